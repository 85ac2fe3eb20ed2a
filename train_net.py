#!/usr/bin/env python
"""The command line of detectron2: trains as `dearli train` does, and with --eval-only evaluates as `dearli eval` does."""

import sys

from dearli_d2.cli.base import run
from dearli_d2.cli.train import train_net

if __name__ == "__main__":
    sys.exit(run(train_net, program="python train_net.py"))
