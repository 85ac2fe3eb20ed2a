#!/usr/bin/env python
"""Trains or evaluates the model of a config file; `python train_net.py --help` explains the options."""

import sys

from dearli_d2.cli import main

if __name__ == "__main__":
    sys.exit(main())
