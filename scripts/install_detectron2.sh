#!/usr/bin/env bash
# Installs detectron2 for the Python given as $1 (default: python3). An importable detectron2 is left as it is.
#   default         a copy of detectron2 from the package index, pinned by hash, as pure Python: no compiler needed, any Python
#   DETECTRON2=git  upstream at a pinned commit (needs git, a compiler and network access to its repository)
set -euo pipefail

python=${1:-python3}
version=0.7.2
sha256=491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561
commit=a59f05630a8f205756064244bf5beb8661f96180

if "$python" -c 'import detectron2' 2>/dev/null; then
    echo "detectron2 $("$python" -c 'import detectron2; print(detectron2.__version__)') is present and used as it is"
    exit 0
fi

if [ "${DETECTRON2:-}" = git ]; then
    "$python" -m pip install --no-build-isolation \
        "git+https://github.com/facebookresearch/detectron2.git@$commit"
    exit 0
fi

site=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
list=$(mktemp)
trap 'rm -f "$list"' EXIT
echo "sal-detectron2==$version --hash=sha256:$sha256" >"$list"
# The wheel is tagged for one Python because of its compiled part, which nothing here uses.
"$python" -m pip install --quiet --no-deps --only-binary=:all: --python-version 3.10 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    --platform linux_x86_64 --require-hashes --target "$site" -r "$list"
# Without the compiled part every Python sees the same package. Its Python files run on numpy 2 and import neither black nor
# hydra where we use them, so pip is told of no dependency: requirements.txt lists them.
"$python" - "$site" "$version" <<'PY'
import sys
from pathlib import Path

site, version = Path(sys.argv[1]), sys.argv[2]
for compiled in site.glob("detectron2/_C.*.so"):
    compiled.unlink()
about = site / f"sal_detectron2-{version}.dist-info"
for name, drop, add in (("METADATA", "Requires-Dist:", ""), ("WHEEL", "Tag:", "Tag: py3-none-any\n")):
    kept = [line for line in (about / name).read_text().splitlines(keepends=True) if not line.startswith(drop)]
    head = kept.index("\n") if "\n" in kept else len(kept)
    (about / name).write_text("".join([*kept[:head], add, *kept[head:]]))
PY
echo "detectron2 $version installed as pure Python"
