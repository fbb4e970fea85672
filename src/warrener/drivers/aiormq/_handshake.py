"""The handshake as the driver sees it: which login, which tuning, and where the credentials go in."""

from __future__ import annotations

from collections.abc import Mapping

import pamqp.frame
from attrs import evolve
from pamqp import commands

from warrener.drivers import _faults
from warrener.drivers.aiormq import _frames as frames
from warrener.drivers.base import LinkDown, Peer
from warrener.records import Credentials
from warrener.wire import negotiate_heartbeat, negotiate_limit
from warrener.wire.masking import Mask

__all__ = ["Handshake"]

#: The largest frame that we agree to; RabbitMQ's default.
_FRAME_MAX = 131_072
_CHANNEL_MAX = 2047
#: A publishing channel, a channel for suspects, a channel for declarations.
_FEWEST_CHANNELS = 3


class Handshake:
    """Reads connection.start and connection.tune before aiormq does, and completes aiormq's connection.start-ok."""

    def __init__(self, credentials: Credentials, heartbeat: float, peer: Peer, text: Mask) -> None:
        self._credentials = credentials
        self._text = text
        self._heartbeat = heartbeat
        self.peer = peer

    def on_start(self, data: bytes) -> bytes:
        """Refuse a broker without a login of ours; return the frame for aiormq."""
        start = frames.read(data, commands.Connection.Start)
        mechanisms = str(start.mechanisms)
        if "PLAIN" not in mechanisms.split():
            raise LinkDown(_faults.no_common_mechanism(self._text(mechanisms)))
        properties: Mapping[str, object] = start.server_properties or {}
        self.peer = evolve(
            self.peer,
            product=self._text(properties.get("product", "")),
            version=self._text(properties.get("version", "")),
        )
        return data

    def on_tune(self, data: bytes) -> bytes:
        """Agree on the tuning; return a frame for aiormq whose values it may accept as they are."""
        tune = frames.read(data, commands.Connection.Tune)
        if 0 < int(tune.frame_max) < 4096:
            raise LinkDown(_faults.unusable(f"its frame_max is {tune.frame_max}; AMQP's smallest is 4096"))
        if 0 < int(tune.channel_max) < _FEWEST_CHANNELS:
            raise LinkDown(_faults.unusable(f"its channel_max is {tune.channel_max}; {_FEWEST_CHANNELS} are needed"))
        heartbeat = negotiate_heartbeat(self._heartbeat, int(tune.heartbeat))
        frame_max = negotiate_limit(_FRAME_MAX, int(tune.frame_max))
        channel_max = negotiate_limit(_CHANNEL_MAX, int(tune.channel_max))
        self.peer = evolve(self.peer, heartbeat=float(heartbeat), frame_max=frame_max, channel_max=channel_max)
        return pamqp.frame.marshal(commands.Connection.Tune(channel_max, frame_max, heartbeat), 0)

    def start_ok(self, data: bytes) -> bytes:
        """Put the credentials, which aiormq never has, into its connection.start-ok."""
        start_ok = frames.read(data, commands.Connection.StartOk)
        start_ok.mechanism = "PLAIN"
        start_ok.response = f"\0{self._credentials.username}\0{self._credentials.password}"
        return pamqp.frame.marshal(start_ok, 0)
