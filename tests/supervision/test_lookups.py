"""Credentials that expire, and endpoints that the program names: when each is asked for, and what a failed question costs."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio
import trio.testing

import warrener
from warrener import Credentials, Endpoint, Producer, open_producer
from warrener.errors import Fault, FaultKind
from warrener.testing import EmbeddedBroker
from warrener.testing.scripted import ScriptedDriver, lives, refuses

if TYPE_CHECKING:
    from trio.testing import MockClock

URL = "amqp://localhost/"
REFUSED = Fault(FaultKind.AUTHENTICATION, "the broker refused the new secret", reply_code=530)
SHUTDOWN = Fault(FaultKind.CLOSED_BY_BROKER, "CONNECTION_FORCED", reply_code=320)


class Vault:
    """Answers by a script; the last answer repeats. An exception is raised, a number is waited for."""

    def __init__(self, *answers: Any) -> None:
        self.asked: list[float] = []
        self._answers = list(answers)

    async def __call__(self) -> Any:
        self.asked.append(anyio.current_time())
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, float):
            await anyio.sleep(answer)
        return answer


def token(number: int, lasts: float | None = 20.0, user: str = "ann") -> Credentials:
    return Credentials(user, f"token-{number}", expires_in=lasts)


# --- credentials ----------------------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_a_token_is_renewed_on_the_live_link(autojump_clock: MockClock) -> None:
    """After three quarters of its time, again and again, on one link; the dial has the first token."""
    vault = Vault(*(token(number) for number in range(1, 9)))
    driver = ScriptedDriver(lives())
    async with open_producer(URL, driver=driver, credentials=vault) as producer:
        await producer.wait_connected()
        began = trio.current_time()
        await trio.sleep(50)
        assert [at - began for at in vault.asked] == [0, 15, 30, 45]
        assert driver.endpoints[0].credentials == Credentials("ann", "token-1")
        assert driver.link.secrets == ["token-2", "token-3", "token-4"]
        assert (await producer.publish(b"x", routing_key="q")).link == 1


@pytest.mark.trio
async def test_a_token_without_an_end_is_asked_for_once_for_each_dial(autojump_clock: MockClock) -> None:
    """Nothing is renewed, and the next dial asks again."""
    vault = Vault(token(1, None), token(2, None))
    driver = ScriptedDriver(lives(1000.0), lives())
    async with open_producer(URL, driver=driver, credentials=vault):
        await trio.sleep(2000)
    assert [each.credentials.password for each in driver.endpoints] == ["token-1", "token-2"]
    assert [link.secrets for link in driver.links] == [[], []]


@pytest.mark.trio
async def test_a_short_token_is_not_asked_for_more_than_once_a_second(autojump_clock: MockClock) -> None:
    """A source that answers with 10 ms is asked again after a second."""
    vault = Vault(token(1, 0.01))
    async with open_producer(URL, driver=ScriptedDriver(lives()), credentials=vault) as producer:
        await producer.wait_connected()
        await trio.sleep(10.5)
    assert len(vault.asked) == 11


@pytest.mark.trio
async def test_a_refused_secret_is_a_fault_and_the_link_is_dialed_again(autojump_clock: MockClock) -> None:
    """The broker ends the link; the next dial has fresh credentials, and the status says what happened."""
    driver = ScriptedDriver(lives(secret=REFUSED), lives())
    async with open_producer(URL, driver=driver, credentials=Vault(token(1), token(2), token(3))) as producer:
        await producer.wait_connected()
        await trio.sleep(15.1)
        assert producer.status().last_fault == REFUSED
        assert (await producer.publish(b"x", routing_key="q")).link == 2
    assert driver.endpoints[1].credentials.password == "token-3"


@pytest.mark.trio
async def test_a_renewal_that_fails_is_tried_until_the_token_expires(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The link lives to the end of its token; then it is lost, and messages wait for the next one."""
    caplog.set_level(logging.WARNING, "warrener")
    vault = Vault(token(1), *[ConnectionError("the vault at secret-token is down")] * 6, token(2))
    driver = ScriptedDriver(lives())
    async with open_producer(URL, driver=driver, credentials=vault, backoff_jitter=0) as producer:
        await producer.wait_connected()
        began = trio.current_time()
        await trio.sleep(19.9)
        assert producer.status().link == 1
        await trio.sleep(0.2)
        fault = producer.status().last_fault
        assert fault is not None
        assert (fault.kind, fault.permanent) == (FaultKind.LOOKUP, False)
        assert "have expired and were not renewed" in fault.text
        assert (await producer.publish(b"x", routing_key="q")).link > 1
        assert [round(at - began, 2) for at in vault.asked][:5] == [0, 15, 16.25, 17.25, 18.25]
    assert "secret-token" not in caplog.text
    assert "asks for them again" in caplog.text


@pytest.mark.trio
async def test_another_user_gets_another_link_and_nothing_is_unknown(autojump_clock: MockClock) -> None:
    """A secret cannot change the user: the producer hands over to the same endpoint before the old user expires."""
    vault = Vault(token(1), token(2, user="bob"))
    driver = ScriptedDriver(lives(latency=1.0), lives())
    urls = ["amqp://localhost:1/", "amqp://localhost:2/"]
    async with open_producer(urls, driver=driver, credentials=vault, endpoint_order="ordered") as producer:
        receipts = [await producer.publish(b"x", routing_key="q") for _ in range(20)]
    assert [each.link for each in receipts] == sorted(each.link for each in receipts)
    assert {each.attempts for each in receipts} == {1}
    assert [(each.port, each.credentials.username) for each in driver.endpoints[:2]] == [(1, "ann"), (1, "bob")]
    assert driver.links[0].secrets == []


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (ValueError("token-1"), "credentials() raised ValueError; its text is not shown"),
        (
            ConnectionRefusedError(111, "Connection refused"),
            "credentials() raised ConnectionRefusedError (Connection refused)",
        ),
        (1000.0, "credentials() did not answer within 10 s"),
        ("token-1", "credentials() must return Credentials, not str"),
        (Credentials("ann", b"token-1"), "whose password is bytes, not str"),  # type: ignore[arg-type]
        (Credentials("ann", "token-1\0"), "holds a NUL character"),
        (token(1, 0.0), "expires_in is not a number of seconds above 0"),
        (token(1, math.nan), "expires_in is not a number of seconds above 0"),
    ],
)
@pytest.mark.trio
async def test_an_answer_that_cannot_be_used_is_a_failed_dial(
    autojump_clock: MockClock, answer: object, text: str
) -> None:
    """The fault says what is wrong, shows no secret, and the dial is repeated."""
    driver = ScriptedDriver(lives())
    async with open_producer(URL, driver=driver, credentials=Vault(answer, token(1))) as producer:
        await trio.sleep(10.1)
        assert producer.counters["dials_failed"] == 1
        fault = producer.status().last_fault
        assert fault is not None
        assert fault.kind is FaultKind.LOOKUP
        assert text in fault.text
        assert "token-1" not in fault.text
        await producer.wait_connected()
    assert len(driver.dials) == 1


@pytest.mark.trio
async def test_run_can_be_cancelled_while_it_asks(autojump_clock: MockClock) -> None:
    """Neither question holds up the end, and the program's callable sees the cancellation."""
    ended: list[str] = []

    async def never() -> Any:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("cancelled")

    for settings in ({"url_or_settings": URL, "credentials": never}, {"endpoints": never}):
        began = trio.current_time()
        with trio.move_on_after(3):
            await Producer(driver=ScriptedDriver(lives()), **settings).run()  # type: ignore[arg-type]
        assert trio.current_time() - began == 3
    assert ended == ["cancelled", "cancelled"]


@pytest.mark.trio
async def test_closing_does_not_wait_for_a_question(autojump_clock: MockClock) -> None:
    """`aclose()` of a producer with nothing accepted ends while the program is still asked."""

    async def never() -> Any:
        await trio.sleep_forever()

    for settings in ({"url_or_settings": URL, "credentials": never}, {"endpoints": never}):
        producer = Producer(driver=ScriptedDriver(lives()), **settings)  # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:
            await nursery.start(producer.run)
            await trio.testing.wait_all_tasks_blocked()
            began = trio.current_time()
            await producer.aclose()
            assert trio.current_time() == began


# --- endpoints ------------------------------------------------------------------------------------------------------


def urls(*ports: int) -> list[str]:
    return [f"amqp://localhost:{port}/" for port in ports]


@pytest.mark.trio
async def test_the_endpoints_are_asked_for_before_each_pass(autojump_clock: MockClock) -> None:
    """At the start and when the delay is over; a broker that moved is found, and the status names it."""
    directory = Vault(urls(1), urls(1, 2))
    driver = ScriptedDriver(lives(20.0), lives())
    async with open_producer(endpoints=directory, driver=driver, endpoint_order="ordered") as producer:
        assert producer.status().endpoint == "not known yet"
        await producer.wait_connected()
        assert producer.status().endpoint == "amqp://localhost:1/"
        await trio.sleep(30)
        assert producer.status().endpoint == "amqp://localhost:2/"
    assert [each.port for each in driver.endpoints] == [1, 2]
    assert len(directory.asked) == 2


@pytest.mark.trio
async def test_a_pass_dials_the_whole_answer_before_it_asks_again(autojump_clock: MockClock) -> None:
    """One answer serves one pass, and the failures of an endpoint that stays in the list are remembered."""
    directory = Vault(urls(1, 2, 3), urls(3, 4))
    driver = ScriptedDriver(refuses(), refuses(), refuses(), lives())
    async with open_producer(endpoints=directory, driver=driver, endpoint_order="ordered") as producer:
        await producer.wait_connected()
    assert [each.port for each in driver.endpoints] == [1, 2, 3, 4]
    assert len(directory.asked) == 2


@pytest.mark.trio
async def test_a_failed_question_falls_back_to_the_last_answer(autojump_clock: MockClock) -> None:
    """A directory that is down does not keep the producer from a broker that it knows."""
    directory = Vault(urls(1), ConnectionError("down"))
    driver = ScriptedDriver(lives(20.0), lives())
    async with open_producer(endpoints=directory, driver=driver) as producer:
        await producer.wait_connected()
        await trio.sleep(30)
        assert producer.status().link == 2
        assert producer.faults[FaultKind.LOOKUP] == 1


@pytest.mark.trio
async def test_without_any_answer_the_attempts_are_used_up(autojump_clock: MockClock) -> None:
    """The producer gives up as after failed dials, without a dial; `reconnect()` revives it, and it asks at once."""
    directory = Vault(*[ConnectionError("down")] * 3, urls(1))
    driver = ScriptedDriver(lives())
    async with open_producer(endpoints=directory, driver=driver, backoff_attempts=2) as producer:
        with pytest.raises(warrener.GaveUp):
            await producer.wait_connected()
        with pytest.raises(warrener.GaveUp, match=r"endpoints\(\) raised ConnectionError"):
            await producer.publish(b"x", routing_key="q")
        assert driver.dials == []
        began = trio.current_time()
        assert producer.reconnect()
        assert (await producer.publish(b"x", routing_key="q")).attempts == 1
        assert trio.current_time() == began


@pytest.mark.trio
async def test_a_hint_asks_at_once(autojump_clock: MockClock) -> None:
    """`reconnect()` during the delay asks for the endpoints, and does not wait for the rest of the delay."""
    directory = Vault(urls(1), urls(2))
    driver = ScriptedDriver(refuses(), lives())
    settings: dict[str, Any] = {"backoff_initial": 10.0, "backoff_jitter": 0.0}
    async with open_producer(endpoints=directory, driver=driver, **settings) as producer:
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        assert producer.reconnect()
        await producer.wait_connected()
        assert trio.current_time() == began
    assert [each.port for each in driver.endpoints] == [1, 2]


@pytest.mark.trio
async def test_an_answer_that_comes_with_the_hint_is_not_mixed_with_the_next_one(autojump_clock: MockClock) -> None:
    """The question that the hint has replaced counts no more; the list of the second answer is the one that is dialed."""
    gate = trio.Event()
    answers = iter((urls(1), urls(2, 3)))

    async def directory() -> list[str]:
        answer = next(answers)
        if answer == urls(1):
            await gate.wait()
        return answer

    driver = ScriptedDriver(refuses(), lives())
    async with open_producer(endpoints=directory, driver=driver, endpoint_order="ordered") as producer:
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
        assert producer.reconnect()
        await producer.wait_connected()
        assert producer.status().endpoint == "amqp://localhost:3/"
    assert [each.port for each in driver.endpoints] == [2, 3]


@pytest.mark.trio
async def test_a_new_password_in_the_answer_ends_the_wait_of_a_refusal(autojump_clock: MockClock) -> None:
    """The same address with other credentials is another endpoint: it is dialed without the slowest delay."""
    one = Endpoint(port=1, credentials=Credentials("ann", "old"))
    two = Endpoint(port=1, credentials=Credentials("ann", "new"))
    driver = ScriptedDriver(lives(20.0, end=SHUTDOWN), refuses(REFUSED), lives())
    async with open_producer(endpoints=Vault([one], [one], [two]), driver=driver) as producer:
        await producer.wait_connected()
        await trio.sleep(60)
        assert producer.status().link == 3
    assert [each.credentials.password for each in driver.endpoints] == ["old", "old", "new"]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ([], "endpoints() returned no endpoint"),
        ("", "endpoints() returned no endpoint"),
        (None, "endpoints() must return URLs or Endpoint values, not NoneType"),
        ([1], "endpoints() must return either URLs or Endpoint values"),
        (["amqp://localhost/", "amqps://localhost/"], "mixes amqp:// and amqps://"),
        ([Endpoint(), Endpoint(tls=True)], "mixes amqp:// and amqps://"),
        (["amqp://u:hidden@h/?heartbeat=5"], "a URL with a query"),
        (["amqp://u:hidden@h:port/"], "the answer of endpoints()"),
        (["amqp://broker.example/"], "has no user"),
        ([Endpoint(port=0)], "port must be"),
        (1000.0, "endpoints() did not answer within 10 s"),
    ],
)
@pytest.mark.trio
async def test_an_answer_of_endpoints_that_cannot_be_used(autojump_clock: MockClock, answer: object, text: str) -> None:
    """It counts as a failed attempt; the text names the mistake and shows no password."""
    driver = ScriptedDriver(lives())
    async with open_producer(endpoints=Vault(answer, urls(1)), driver=driver) as producer:
        await trio.sleep(10.1)
        fault = producer.status().last_fault
        assert fault is not None
        assert fault.kind is FaultKind.LOOKUP
        assert text in fault.text
        assert "hidden" not in fault.text
        await producer.wait_connected()


# --- on every event loop --------------------------------------------------------------------------------------------


@pytest.fixture
async def broker() -> AsyncGenerator[EmbeddedBroker]:
    """An embedded broker with a port."""
    async with EmbeddedBroker() as running:
        yield running


Ask = Callable[[], Awaitable[Sequence[str]]]


@pytest.mark.anyio
@pytest.mark.parametrize("driver", ["native", "aiormq"])
async def test_a_producer_that_is_told_everything(driver: Any, broker: EmbeddedBroker) -> None:
    """Endpoints and credentials by callables, and a renewal, against a broker with a password."""
    broker.add_user("ann", "token-1")
    renewed = anyio.Event()

    async def endpoints() -> list[str]:
        await anyio.lowlevel.checkpoint()
        return [f"amqp://127.0.0.1:{broker.port}/"]

    answers = iter((token(1, 1.0), token(2, None)))

    async def credentials() -> Credentials:
        await anyio.lowlevel.checkpoint()
        answer = next(answers)
        if answer.password == "token-2":
            renewed.set()
        return answer

    with anyio.fail_after(60):
        async with open_producer(endpoints=endpoints, credentials=credentials, driver=driver) as producer:
            await producer.declare(warrener.Queue("q"))
            await producer.publish(b"one", routing_key="q")
            await renewed.wait()
            assert (await producer.publish(b"two", routing_key="q")).link == 1
    assert broker.messages("q") == [b"one", b"two"]
