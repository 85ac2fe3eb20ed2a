#!/usr/bin/env bash
# Creates or updates the virtual environment $1: the packages of requirements-dev.txt, and detectron2. $2, if given, is a
# file of constraints, such as constraints/oldest.txt. `make env` installs the project itself after it. A torch (or
# detectron2) that the base Python already has is used, never replaced.
set -euo pipefail

venv=$1
constraints=${2:-}
base=${PYTHON:-python3}

"$base" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || {
    echo "dearli_d2 needs Python 3.10, 3.11, 3.12 or 3.13; '$base' is $("$base" --version 2>&1). Set PYTHON=/path/to/python3.x" >&2
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
present=$(mktemp)
trap 'rm -f "$present"' EXIT
"$python" - >"$present" <<'PY'
import importlib.metadata as metadata

for name in ("torch", "torchvision"):
    try:
        print(f"{name}=={metadata.version(name).split('+')[0]}")
    except metadata.PackageNotFoundError:
        continue
PY
pip=("$python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" --constraint "$present" ${constraints:+--constraint "$constraints"} -r requirements-dev.txt
# tests compare with it; it asks for numpy 1.x and runs on numpy 2
"${pip[@]}" --no-deps panopticapi-lite==0.2.0
bash scripts/install_detectron2.sh "$python"
