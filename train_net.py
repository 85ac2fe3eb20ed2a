#!/usr/bin/env python
"""Trains or evaluates the model of a config file.

python train_net.py --config-file configs/miniworld/m2f_lang.yaml --num-gpus 1 [--resume | --eval-only] [KEY VALUE ...]
"""

import sys

from dearli_d2.cli import main

if __name__ == "__main__":
    sys.exit(main())
