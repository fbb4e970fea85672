#!/usr/bin/env python3
"""Record the corpus: what a private RabbitMQ sends in real sessions, turn by turn, into tests/fuzz/corpus/wire.

    python tests/fuzz/record.py

The client is the one that `tests.wire.replay` replays, over a plain socket. Names and figures of the machine and of the
broker's build are taken out, byte for byte, so that the files say nothing about where they were made.
"""

from __future__ import annotations

import re
import select
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.wire import replay  # noqa: E402
from tests.wire.far_side import CREDENTIALS  # noqa: E402
from warrener.records import Credentials  # noqa: E402
from warrener.testing.rabbitmq import PrivateRabbitMQ  # noqa: E402
from warrener.wire import Session, SessionPhase  # noqa: E402

CORPUS = ROOT / "tests" / "fuzz" / "corpus" / "wire"
#: Seconds without a byte that end a turn.
QUIET = 0.3

_DELETE_EXCHANGE = (
    f'rabbit_exchange:delete(rabbit_misc:r(<<"/">>, exchange, <<"{replay.EXCHANGE}">>), false, <<"fuzz">>)'
)

Misfortune = Callable[[int], None]


def scrub(data: bytes) -> bytes:
    """Replace the node's name by as many x."""
    return re.sub(rb"[\w.-]+@[\w.-]+", lambda found: b"x" * len(found[0]), data)


def record(port: int, misfortune: Misfortune, *, turns: int = 18, session: Session | None = None) -> bytes:
    """Return what the broker says in one session; `misfortune` is told of each turn before it."""
    client = replay.Client()
    if session is not None:
        client.session = session
    said: list[bytes] = []
    with socket.create_connection(("127.0.0.1", port), timeout=60) as peer:
        for turn in range(turns):
            misfortune(turn)
            if turn:
                client.take_turn()
            while data := client.session.data_to_send():
                with suppress(OSError):
                    peer.sendall(data)
            heard = b""
            while select.select([peer], [], [], QUIET)[0]:
                try:
                    data = peer.recv(65536)
                except OSError:
                    break
                if not data:
                    break
                heard += data
                client.note(client.session.receive(data))
                while data := client.session.data_to_send():
                    with suppress(OSError):
                        peer.sendall(data)
            said.append(heard)
            if client.session.phase is SessionPhase.OVER:
                break
    return replay.TURN.join(scrub(heard) for heard in said)


def main() -> None:
    """Record one session for each thing that a broker may do."""
    CORPUS.mkdir(parents=True, exist_ok=True)
    with PrivateRabbitMQ() as broker:
        broker.add_user(CREDENTIALS.username, CREDENTIALS.password)
        broker.set_permissions(CREDENTIALS.username)

        def at(when: int, what: Callable[[], object]) -> Misfortune:
            return lambda turn: what() and None if turn == when else None

        def alarm(turn: int) -> None:
            if turn in (5, 8):
                broker.memory_alarm(turn == 5)

        sessions: dict[str, bytes] = {
            "a-whole-life": record(broker.port, lambda _turn: None),
            "an-alarm": record(broker.port, alarm),
            "the-exchange-is-gone": record(broker.port, at(6, lambda: broker.eval(_DELETE_EXCHANGE))),
            "an-operator-closes": record(broker.port, at(7, lambda: broker.close_all_connections("maintenance"))),
            "a-wrong-password": record(
                broker.port,
                lambda _turn: None,
                session=Session(Credentials(CREDENTIALS.username, "wrong"), replay.Sink()),
            ),
            "a-missing-vhost": record(
                broker.port, lambda _turn: None, session=Session(CREDENTIALS, replay.Sink(), vhost="missing")
            ),
        }
    for name, data in sessions.items():
        replay.check(data)
        (CORPUS / name).write_bytes(data)
        print(f"{name}: {len(data)} bytes")


if __name__ == "__main__":
    main()
