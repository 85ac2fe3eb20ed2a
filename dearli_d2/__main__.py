"""`python -m dearli_d2` is `dearli`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
