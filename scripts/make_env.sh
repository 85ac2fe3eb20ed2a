#!/usr/bin/env bash
# Creates or updates the virtual environment $1: the packages of requirements-dev.txt, and detectron2. `make env` installs
# the project itself after it. A torch (or detectron2) that the base Python already has is used, never replaced.
set -euo pipefail

venv=$1
base=${PYTHON:-python3}

# numpy 1.x has no wheels for newer Pythons
"$base" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' || {
    echo "dearli_d2 needs Python 3.10, 3.11 or 3.12; '$base' is $("$base" --version 2>&1). Set PYTHON=/path/to/python3.x" >&2
    exit 1
}
if [ ! -x "$venv/bin/python" ]; then
    options=()
    if "$base" -c 'import torch' 2>/dev/null; then
        options=(--system-site-packages)
    fi
    "$base" -m venv "${options[@]}" "$venv"
fi

python="$venv/bin/python"
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
"$python" - >"$constraints" <<'PY'
import importlib.metadata as metadata

for name in ("torch", "torchvision"):
    try:
        print(f"{name}=={metadata.version(name).split('+')[0]}")
    except metadata.PackageNotFoundError:
        continue
PY
"$python" -m pip install --quiet --disable-pip-version-check --constraint "$constraints" -r requirements-dev.txt
bash scripts/install_detectron2.sh "$python"
