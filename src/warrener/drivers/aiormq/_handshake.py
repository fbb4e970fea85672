"""The handshake of `warrener.wire` in place of aiormq's: the login and the tuning are the same on both drivers."""

from __future__ import annotations

from typing import Any

import pamqp.frame
from attrs import evolve
from pamqp import commands

from warrener.drivers import _faults
from warrener.drivers.aiormq import _frames as frames
from warrener.drivers.base import LinkDown, Peer
from warrener.wire.handshake import Handshake as WireHandshake
from warrener.wire.handshake import PeerRefused

__all__ = ["Handshake"]


class Handshake:
    """Reads connection.start and connection.tune before aiormq does, and replaces its connection.start-ok."""

    def __init__(self, handshake: WireHandshake, peer: Peer) -> None:
        self._handshake = handshake
        self._start_ok = b""
        self.peer = peer

    def on_start(self, data: bytes) -> bytes:
        """Choose the login; return a frame for aiormq that offers only PLAIN, the login that aiormq knows."""
        start = frames.read(data, commands.Connection.Start)
        try:
            self._start_ok = self._handshake.on_start(start)
        except PeerRefused as refused:
            raise LinkDown(_faults.protocol_error(refused.error)) from None
        offered = start.server_properties.get("capabilities")
        capabilities = offered if isinstance(offered, dict) else {}
        known: dict[str, Any] = {str(name): value for name, value in capabilities.items() if isinstance(value, bool)}
        properties: dict[str, Any] = {"capabilities": known}
        return pamqp.frame.marshal(
            commands.Connection.Start(server_properties=properties, mechanisms="PLAIN", locales="en_US"), 0
        )

    def on_secure(self) -> None:
        """Refuse another step of authentication."""
        try:
            self._handshake.on_secure()
        except PeerRefused as refused:
            raise LinkDown(_faults.protocol_error(refused.error)) from None

    def on_tune(self, data: bytes) -> bytes:
        """Agree on the tuning; return a frame for aiormq whose values it may accept as they are."""
        try:
            _, tuning = self._handshake.on_tune(frames.read(data, commands.Connection.Tune))
        except PeerRefused as refused:
            raise LinkDown(_faults.protocol_error(refused.error)) from None
        self.peer = evolve(
            self.peer,
            product=tuning.product,
            version=tuning.version,
            mechanism=tuning.mechanism,
            heartbeat=float(tuning.heartbeat),
            frame_max=tuning.frame_max,
            channel_max=tuning.channel_max,
        )
        return pamqp.frame.marshal(commands.Connection.Tune(tuning.channel_max, tuning.frame_max, tuning.heartbeat), 0)

    def start_ok(self) -> bytes:
        """Return our connection.start-ok, once: it holds the credentials, which aiormq never has."""
        start_ok, self._start_ok = self._start_ok, b""
        return start_ok
