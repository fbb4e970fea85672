"""Several private nodes of RabbitMQ that are one cluster, on one machine.

``with PrivateCluster() as cluster:`` starts three nodes of `PrivateRabbitMQ`, one after the other. Each later node joins the
first one by itself. Every node has its own ports and its own data; all share one Erlang cookie and one watchdog, so nothing is
left behind, also when the owner is killed. `nodes` are the brokers, with all their controls: `kill` and `start`, `freeze` and
`thaw`, `drain` and `revive`.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from warrener.testing.rabbitmq import PrivateRabbitMQ, RabbitMQFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType
    from typing import Self

__all__ = ["PrivateCluster"]


class PrivateCluster:
    """One cluster, from the start of the ``with`` body to its end, which deletes its data."""

    def __init__(
        self, size: int = 3, *, extra_config: str = "", start_timeout: float = 120.0, root: Path | None = None
    ) -> None:
        """Describe the cluster; nothing is started yet.

        Args:
            size: how many nodes it has.
            extra_config: lines added to ``rabbitmq.conf`` of each node.
            start_timeout: seconds for the start of each node.
            root: a folder that holds another RabbitMQ; see `PrivateRabbitMQ`.
        """
        if size < 1:
            raise ValueError(f"a cluster has at least one node, not {size}")
        self._names = [f"warrener{number}" for number in range(1, size + 1)]
        self._extra_config = extra_config
        self._start_timeout = start_timeout
        self._root = root
        self._resources = ExitStack()
        self.nodes: tuple[PrivateRabbitMQ, ...] = ()

    def __enter__(self) -> Self:
        """Start the nodes; returns when all of them are in the cluster. Raises `RabbitMQMissing` or `RabbitMQFailed`."""
        members = [
            "cluster_formation.peer_discovery_backend = classic_config",
            *(
                f"cluster_formation.classic_config.nodes.{n} = {name}@localhost"
                for n, name in enumerate(self._names, 1)
            ),
        ]
        with ExitStack() as undo:
            for name in self._names:
                # The first node forms the cluster: it has nobody to look for.
                joining = members if self.nodes else []
                node = PrivateRabbitMQ(
                    extra_config="\n".join([*joining, self._extra_config]),
                    start_timeout=self._start_timeout,
                    root=self._root,
                    node=name,
                    beside=self.nodes[0] if self.nodes else None,
                )
                undo.enter_context(node)
                self.nodes = (*self.nodes, node)
            self.wait_running(self._start_timeout)
            self._resources = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Kill all nodes and remove their folders."""
        self._resources.close()

    @property
    def urls(self) -> list[str]:
        """The URL of each node, in their order."""
        return [node.url for node in self.nodes]

    def running(self) -> int:
        """How many nodes the cluster has, as a node that runs sees it."""
        # RabbitMQ 4 has another name for it.
        known = "erlang:function_exported(rabbit_nodes, list_running, 0)"
        named = f"case {known} of true -> list_running; false -> all_running end"
        return int(self._any().eval(f"length(apply(rabbit_nodes, {named}, []))"))

    def wait_running(self, timeout: float = 60.0) -> None:
        """Wait until every node is in the cluster. Raises `RabbitMQFailed` after `timeout` seconds."""
        self._wait("not every node joined the cluster", timeout, lambda: self.running() == len(self.nodes))

    def wait_replicated(self, queues: list[str], timeout: float = 60.0) -> None:
        """Wait until each of the quorum queues has a leader, and a running member on every node."""
        self._wait("a quorum queue has not all its members", timeout, lambda: all(map(self._replicated, queues)))

    def _any(self) -> PrivateRabbitMQ:
        """Return a node that runs."""
        for node in self.nodes:
            if node.running:
                return node
        raise RabbitMQFailed("no node of the cluster runs")

    def _replicated(self, queue: str) -> bool:
        name = ",".join(str(byte) for byte in queue.encode())
        answer = self._any().eval(
            f'N = rabbit_misc:r(<<"/">>, queue, <<{name}>>), {{ok, Q}} = rabbit_amqqueue:lookup(N), '
            "Up = proplists:get_value(online, rabbit_quorum_queue:info(Q, [online])), length(Up)"
        )
        return answer.isdigit() and int(answer) == len(self.nodes)

    def _wait(self, why: str, timeout: float, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + timeout
        while not holds():
            if time.monotonic() > deadline:
                raise RabbitMQFailed(f"{why} within {timeout:g} s")
            time.sleep(0.1)
