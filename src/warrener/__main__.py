"""``python -m warrener`` is ``warrener``."""

from __future__ import annotations

import sys

from warrener._cli.main import main

if __name__ == "__main__":
    sys.exit(main())
