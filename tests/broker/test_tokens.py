"""Tokens that expire, against RabbitMQ's own OAuth 2 backend with a symmetric key of the test's."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest

import warrener
from warrener import Credentials, Receipt
from warrener.errors import FaultKind
from warrener.testing.rabbitmq import PrivateRabbitMQ

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = [pytest.mark.broker, pytest.mark.anyio, pytest.mark.slow]

_PATIENCE = 120.0
_CONFIG = """
auth_backends.1 = rabbit_auth_backend_oauth2
auth_backends.2 = internal
auth_oauth2.resource_server_id = rabbitmq
"""


class Issuer:
    """Signs tokens with a key that the broker knows."""

    def __init__(self) -> None:
        self.key = secrets.token_bytes(32)
        self.issued: list[str] = []

    def token(self, lasts: int, *, key: bytes | None = None) -> str:
        """A token with all permissions that expires after `lasts` seconds of the broker's clock."""
        header = {"alg": "HS256", "typ": "JWT", "kid": "test"}
        claims = {
            "sub": "producer",
            "aud": ["rabbitmq"],
            "scope": ["rabbitmq.configure:*/*", "rabbitmq.write:*/*", "rabbitmq.read:*/*"],
            "exp": int(time.time()) + lasts,
            "jti": secrets.token_hex(8),
        }
        text = ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
        signature = hmac.new(key or self.key, text.encode(), hashlib.sha256).digest()
        token = f"{text}.{_encoded(signature)}"
        self.issued.append(token)
        return token

    def keys(self) -> str:
        """The key as the broker's setting, in Erlang."""
        value = ",".join(str(byte) for byte in self.key)
        entry = f'#{{<<"kty">> => <<"MAC">>, <<"alg">> => <<"HS256">>, <<"value">> => <<{value}>>}}'
        return f'[{{default_key, <<"test">>}}, {{signing_keys, #{{<<"test">> => {{map, {entry}}}}}}}]'


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="module")
def broker(issuer: Issuer) -> Iterator[PrivateRabbitMQ]:
    """A private RabbitMQ that takes the issuer's tokens in place of passwords."""
    with PrivateRabbitMQ(plugins=["rabbitmq_auth_backend_oauth2"], extra_config=_CONFIG) as running:
        # A channel looks at an expired token again when it ticks: every minute, if nobody says otherwise.
        running.eval("application:set_env(rabbit, channel_tick_interval, 1000)")
        running.eval(f"application:set_env(rabbitmq_auth_backend_oauth2, key_config, {issuer.keys()})")
        yield running


def _url(broker: PrivateRabbitMQ) -> str:
    return f"amqp://127.0.0.1:{broker.port}/"


def _source(answers: list[Callable[[], Credentials]]) -> Callable[[], Awaitable[Credentials]]:
    """Answer by the list; the last answer repeats."""

    async def credentials() -> Credentials:
        await anyio.lowlevel.checkpoint()
        return (answers.pop(0) if len(answers) > 1 else answers[0])()

    return credentials


@pytest.fixture(params=["native", "aiormq"])
def driver(request: pytest.FixtureRequest) -> str:
    """Each driver."""
    return request.param  # type: ignore[no-any-return]


async def _publish_for(producer: warrener.Producer, seconds: float) -> list[Receipt]:
    receipts = []
    with anyio.move_on_after(seconds):
        while True:
            receipts.append(await producer.publish(b"x", routing_key="tokens"))
            await anyio.sleep(0.2)
    return receipts


@pytest.mark.full  # a token of 20 seconds takes its time
async def test_a_token_of_20_seconds_is_renewed_in_time(broker: PrivateRabbitMQ, issuer: Issuer, driver: str) -> None:
    """Publishing goes on past the end of the first token, on one link, and every publish is confirmed."""
    issuer.issued.clear()
    source = _source([lambda: Credentials("producer", issuer.token(20), expires_in=20)])
    with anyio.fail_after(_PATIENCE):
        async with warrener.open_producer(_url(broker), credentials=source, driver=driver) as producer:  # type: ignore[arg-type]
            await producer.declare(warrener.Queue("tokens"))
            receipts = await _publish_for(producer, 24)
            assert {receipt.link for receipt in receipts} == {1}
            assert {receipt.attempts for receipt in receipts} == {1}
            assert producer.status().last_fault is None
    assert len(issuer.issued) == 2


async def test_without_a_renewal_publishes_are_refused(
    broker: PrivateRabbitMQ, issuer: Issuer, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A token whose end the program does not tell: the broker refuses publishes, by 403, and nothing shows the token."""
    issuer.issued.clear()
    source = _source([lambda: Credentials("producer", issuer.token(4))])
    with anyio.fail_after(_PATIENCE):
        async with warrener.open_producer(_url(broker), credentials=source, driver=driver) as producer:  # type: ignore[arg-type]
            await producer.declare(warrener.Queue("tokens"))
            with pytest.raises(warrener.PublishRefused) as refused:
                await _publish_for(producer, 60)
    assert refused.value.reply_code == 403
    assert len(issuer.issued) == 1
    assert issuer.issued[0] not in caplog.text + str(refused.value)


async def test_a_bad_new_secret_is_a_fault(broker: PrivateRabbitMQ, issuer: Issuer, driver: str) -> None:
    """A token that another key has signed: the broker closes the link, and the next dial has a good token again."""
    forged = secrets.token_bytes(32)
    source = _source(
        [
            lambda: Credentials("producer", issuer.token(60), expires_in=2),
            lambda: Credentials("producer", issuer.token(60, key=forged), expires_in=60),
            lambda: Credentials("producer", issuer.token(60), expires_in=60),
        ]
    )
    with anyio.fail_after(_PATIENCE):
        settings = {"backoff_cap": 1.0}
        async with warrener.open_producer(_url(broker), credentials=source, driver=driver, **settings) as producer:  # type: ignore[arg-type]
            async with producer.changes() as changes:
                async for change in changes:
                    if change.link == 2 and change.connection_state is warrener.ConnectionState.CONNECTED:
                        break
            fault = producer.status().last_fault
            assert fault is not None
            assert (fault.kind, fault.reply_code) == (FaultKind.AUTHENTICATION, 530)
            assert "refused the new secret" in fault.text
            await producer.declare(warrener.Queue("tokens"))
            assert (await producer.publish(b"x", routing_key="tokens")).link == 2


async def test_an_expired_token_is_refused_at_the_login(broker: PrivateRabbitMQ, issuer: Issuer, driver: str) -> None:
    """The login with a token that is over fails like one with a wrong password."""
    source = _source([lambda: Credentials("producer", issuer.token(-10))])
    with anyio.fail_after(_PATIENCE):
        async with warrener.open_producer(_url(broker), credentials=source, driver=driver) as producer:  # type: ignore[arg-type]
            with pytest.raises(warrener.AuthenticationRefused):
                await producer.wait_connected()
