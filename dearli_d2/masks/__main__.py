"""`python -m dearli_d2.masks`, the first name of `dearli masks`."""

import sys

from ..cli import main

if __name__ == "__main__":
    sys.exit(main(["masks", *sys.argv[1:]]))
