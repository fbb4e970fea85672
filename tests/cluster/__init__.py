"""A cluster of three private nodes under random faults, with a producer of this library or of another one; see `__main__`."""
