"""From the settings to the parts that run: the supervisor, the admission and the sender of one producer."""

from __future__ import annotations

import random
from collections.abc import Callable

from warrener._backend import Backend
from warrener._publishing.admission import Admission
from warrener._publishing.destinations import Destinations
from warrener._publishing.ledger import Ledger
from warrener._publishing.sender import Sender
from warrener._settings.settings import Settings
from warrener._supervision.endpoint_list import EndpointList
from warrener._supervision.supervisor import Supervisor
from warrener._supervision.topology import LiveTopology
from warrener.drivers.base import Driver
from warrener.machine import Policy
from warrener.records import Outcome

__all__ = ["assembled"]


def assembled(
    settings: Settings,
    driver: Driver,
    rng: random.Random,
    backend: Backend,
    ledger: Ledger,
    destinations: Destinations,
    topology: LiveTopology,
    tell: Callable[[Outcome], None],
) -> tuple[Supervisor, Sender]:
    """Return the supervisor and the sender, which know each other. `tell` gets each outcome that comes after its publisher was cancelled."""
    s = settings
    supervisor = Supervisor(
        name=s.name,
        driver=driver,
        endpoints=EndpointList(
            s.endpoints,
            shuffle=rng.shuffle if s.endpoint_order == "shuffled" else None,
            discover=None if s.discovery is None else s.discover,
        ),
        credentials=s.credentials,
        options=s.link_options(),
        topology=topology,
        policy=Policy(
            backoff=s.backoff,
            breaker=s.breaker,
            stable_for=s.stable_for,
            drain_timeout=s.drain_timeout,
            close_timeout=s.close_timeout,
            abort_timeout=s.abort_timeout,
            start_jitter=s.start_jitter,
            prefer=s.prefer,
            discovery=s.discovery is not None,
            when_exhausted=s.when_exhausted,
        ),
        clock=backend.clock,
        rng=rng,
    )
    admission = Admission(ledger, backend, supervisor, destinations, max_block=s.max_block)
    sender = Sender(ledger, backend, supervisor, admission, name=s.name, confirm_timeout=s.confirm_timeout, tell=tell)
    supervisor.publishing = sender
    return supervisor, sender
