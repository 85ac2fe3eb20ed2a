"""`python -m dearli_d2` is `dearli`."""

import sys

from . import missing_detectron2

if __name__ == "__main__":
    if advice := missing_detectron2():
        sys.exit(f"error: {advice}")
    from .cli import main

    sys.exit(main())
