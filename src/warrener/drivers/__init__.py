"""The code that touches a socket: the seam between supervisor and wire, and the drivers behind it."""
