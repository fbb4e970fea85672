"""The code that touches a socket: the interface between supervisor and wire, and the drivers that implement it."""
