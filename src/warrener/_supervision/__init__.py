"""Supervision: the task that owns the machine's record and performs its effects."""
