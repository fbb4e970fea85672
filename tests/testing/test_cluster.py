"""The private cluster: three nodes that share their queues, and an operator's actions on each of them."""

from __future__ import annotations

import pytest

import warrener
from warrener.testing.cluster import PrivateCluster
from warrener.topology import Queue

pytestmark = [pytest.mark.broker, pytest.mark.slow]

NAME = "shared"
QUORUM = Queue(NAME, arguments={"x-queue-type": "quorum"})


def test_a_cluster_has_at_least_one_node() -> None:
    """Nothing is started for a size that makes no sense."""
    with pytest.raises(ValueError, match="at least one node, not 0"):
        PrivateCluster(0)


@pytest.mark.full
@pytest.mark.trio
async def test_nodes_that_go_and_come_back() -> None:
    """A producer outlives the maintenance and the death of the node that it uses; all three nodes have all messages."""
    with PrivateCluster() as cluster:
        assert cluster.running() == 3
        assert len(set(cluster.urls)) == 3
        async with warrener.open_producer(cluster.urls, endpoint_order="ordered", topology=[QUORUM]) as producer:
            first = await producer.publish(b"1", routing_key=NAME)
            cluster.nodes[0].drain()
            second = await producer.publish(b"2", routing_key=NAME)
            cluster.nodes[0].revive()
            cluster.wait_replicated([NAME])
            cluster.nodes[1].kill()
            third = await producer.publish(b"3", routing_key=NAME)
            cluster.nodes[1].start()
            cluster.wait_running()
            cluster.wait_replicated([NAME])
        assert first.link < second.link < third.link
        assert producer.counters["confirmed"] == 3
