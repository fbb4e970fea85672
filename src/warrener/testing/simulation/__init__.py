"""A deterministic simulation of producers, networks and brokers in virtual time: `python -m warrener.testing.simulation`.

A seed is drawn into a plan (`schedule`), a value: settings, calls, faults. A plan runs (`world`) as one Trio program under a
MockClock: callers (`workload`) use a producer whose driver is real and tapped at its seam (`tap`), over a network
(`network`) to embedded brokers, while the faults (`faults`) come and go; all of it writes into a trace (`trace`). The run is
judged (`checks`), and asked which rows of the fault matrix it has met (`reach`). Many seeds make a corpus (`corpus`).

docs/testing.md, "The simulation", is for its users.
"""
