"""What a confirmed publish costs, here and elsewhere: ``make bench``, or ``python -m benchmarks --help``.

A measurement runs the clients in alternation, each in a process of its own, against one private broker. Machines drift and
are shared, so only ratios within one run count; CPU time is that of the client's process, user and system.
"""
