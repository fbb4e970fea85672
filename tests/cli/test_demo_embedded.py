"""The whole demo, without RabbitMQ."""

from __future__ import annotations

import pytest

from warrener import demo


@pytest.mark.full
def test_the_demo_balances_on_the_embedded_broker(capsys: pytest.CaptureFixture[str]) -> None:
    """With nothing but the package: killed, revived, blocked, closed under load, and every message accounted for."""
    status = demo.main(plain=True, embedded=True)

    shown = capsys.readouterr().out
    assert status == 0, shown
    assert "It balances" in shown
