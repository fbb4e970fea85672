"""Publishing: from `publish()` to the link, and the broker's answer back to its publisher."""
