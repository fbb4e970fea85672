"""What the service that this library replaces got wrong with its settings, each mistake as a test by its name.

Two more are of the ML producer's settings: PREFERRED_LLM_BACKEND dead, a default password in code (tests/ml/test_settings.py).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from warrener.drivers import dial
from warrener.errors import SettingsError
from warrener.settings import Settings

URL = "amqp://gateway:hunter2@localhost/"


def test_heartbeat_ignored() -> None:
    """What is set is what the handshake proposes."""
    assert Settings.resolve(URL, environ={"RABBITMQ_HEARTBEAT": "17"}).link_options().heartbeat == 17


def test_custom_ca_raising_type_error(tmp_path: Path) -> None:
    """The file reaches the endpoint, and the context that is made of it trusts it alone."""
    ca = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(ca))
    environ = {"RABBITMQ_SSL_CACERT": str(ca)}
    endpoint = Settings.resolve(URL.replace("amqp:", "amqps:"), environ=environ).endpoint
    assert endpoint.cafile == str(ca)
    assert len(dial._make_context(endpoint).get_ca_certs()) == 1


def test_use_ssl_with_amqp_silently_plaintext() -> None:
    """The contradiction is refused by name."""
    with pytest.raises(SettingsError, match="RABBITMQ_USE_SSL"):
        Settings.resolve(URL, environ={"RABBITMQ_USE_SSL": "true"})
