"""A deterministic simulation of the whole stack against the embedded broker, in virtual time."""
