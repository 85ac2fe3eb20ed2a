#!/usr/bin/env python
"""Checks the project on a GPU in a few minutes: speed, kernels, memory, and the tests of tests/gpu.

    python scripts/gpu_check.py output/gpu_check            # all stages, at most eight minutes
    python scripts/gpu_check.py output/gpu_check --stages step attention
    python scripts/gpu_check.py output/gpu_check --dry-run  # the same code on a CPU at tiny sizes

Each stage is a process of its own with a time limit. It writes STAGE.json into the folder; a table of all stages comes
last. A stage that fails or takes too long does not stop the others.

The check imports the project from the checkout. It needs torch, torchvision and the packages of requirements.txt. On a
machine without a package index, copy the missing packages into a folder and name it in PYTHONPATH, for example

    pip install --target carried --no-deps open_clip_torch ftfy wcwidth fvcore iopath yacs termcolor omegaconf \
        antlr4-python3-runtime pycocotools segment-anything "click>=8.3"
    bash scripts/install_detectron2.sh                      # then copy its folder detectron2 into carried/
    PYTHONPATH=carried python scripts/gpu_check.py output/gpu_check
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

import torch  # noqa: E402

# one training step of DEARLi at full size, and the same code at a size for a CPU
SIZE, IMAGES = 640, 8
DRY = False


def _device() -> str:
    return "cpu" if DRY else "cuda"


def _synchronize() -> None:
    if not DRY:
        torch.cuda.synchronize()


def _milliseconds(task: Callable[[], object], repeats: int = 10, warm_up: int = 3) -> float:
    """Median wall time of a call, the device idle before and after."""
    if DRY:
        repeats, warm_up = 1, 1
    times = []
    for index in range(warm_up + repeats):
        _synchronize()
        start = time.perf_counter()
        task()
        _synchronize()
        if index >= warm_up:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


# ---------------------------------------------------------------------------------------------- stages


def machine() -> dict:
    """Card, versions, and the two ceilings: memory bandwidth and bf16 matrix products."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "cpus": os.cpu_count()}
    if DRY:
        return found
    properties = torch.cuda.get_device_properties(0)
    found |= {"card": properties.name, "memory GiB": properties.total_memory / 2**30, "cuda": torch.version.cuda}
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda").random_(0, 255)
    target = torch.empty_like(source)
    found["copy TB/s"] = 2 * source.numel() / _milliseconds(lambda: target.copy_(source)) / 1e9
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    found["bf16 TFLOP/s"] = 2 * 8192**3 / _milliseconds(lambda: a @ b) / 1e9
    return found


def step() -> dict:
    """The DEARLi step in bf16: seconds, peak memory, milliseconds by part."""
    from benchmarks.step import build_ours, profile

    size, images = (64, 2) if DRY else (SIZE, IMAGES)
    run = build_ours(size, images, not DRY)
    run()
    if not DRY:
        torch.cuda.reset_peak_memory_stats()
    result = {"size": size, "labelled + unlabelled": f"{images} + {images}"}
    result["step ms"] = _milliseconds(run, repeats=15)
    result["images/s"] = 2e3 * images / result["step ms"]
    if not DRY:
        result["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
    del run
    result |= {f"part: {part} ms": 1e3 * seconds for part, seconds in profile((size, images, not DRY))}
    return result


def kernels() -> dict:
    """Kernel launches of one step, device time by kernel, and how long the device was idle."""
    from torch.profiler import ProfilerActivity, profile

    from benchmarks.step import build_ours

    size, images = (64, 2) if DRY else (SIZE, IMAGES)
    run = build_ours(size, images, not DRY)
    for _ in range(1 if DRY else 3):
        run()
    _synchronize()
    activities = [ProfilerActivity.CPU] if DRY else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as trace:
        start = time.perf_counter()
        run()
        _synchronize()
        wall = 1e3 * (time.perf_counter() - start)
    on_device = [e for e in trace.events() if e.device_type != torch.autograd.DeviceType.CPU]
    busy: dict[str, float] = {}
    for event in on_device:
        busy[event.name] = busy.get(event.name, 0.0) + event.time_range.elapsed_us() / 1e3
    top = sorted(busy.items(), key=lambda item: -item[1])[:30]
    counts = {name: sum(e.name == name for e in on_device) for name, _ in top}
    operators = sorted(trace.key_averages(), key=lambda e: -getattr(e, "self_device_time_total", 0))[:30]
    return {
        "launches": len(on_device),
        "device busy ms": sum(busy.values()),
        "wall ms while traced": wall,
        "top kernels": [{"ms": ms, "count": counts[name], "name": name[:150]} for name, ms in top],
        "top operators": [
            {"ms": getattr(e, "self_device_time_total", 0) / 1e3, "count": e.count, "name": e.key[:80]}
            for e in operators
        ],
    }


def schedules() -> dict:
    """The step against the naive schedule of benchmarks/step.py, interleaved in one process."""
    from benchmarks.measure import interleaved_seconds
    from benchmarks.step import BUILDERS

    size, images = (64, 2) if DRY else (SIZE, IMAGES // 2)
    tasks = {name: build(size, images, not DRY) for name, build in BUILDERS.items()}
    seconds = interleaved_seconds(tasks, 1 if DRY else 5)
    return {f"{name} ms": 1e3 * s for name, s in seconds.items()} | {"ratio": seconds["ours"] / seconds["naive"]}


def deformable_attention() -> dict:
    """Each implementation at the pixel decoder's size, 16 images, forward and backward."""
    from dearli_d2.modeling.mask2former import deformable_attention as module

    batch, side = (1, 64) if DRY else (2 * IMAGES, SIZE)
    shapes = [(side // 32, side // 32), (side // 16, side // 16), (side // 8, side // 8)]
    tokens = sum(h * w for h, w in shapes)
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(batch, tokens, 8, 32, generator=generator)
    points = torch.rand(tokens, 2, generator=generator).to(_device())
    offsets = 3 * torch.randn(batch, tokens, 8, len(shapes), 4, 2, generator=generator)  # cells
    logits = torch.randn(batch, tokens, 8, len(shapes) * 4, generator=generator)
    inputs = [x.to(_device()).requires_grad_() for x in (value, offsets, logits)]
    upstream = torch.randn(batch, tokens, 256, generator=generator).to(_device())
    result: dict = {"B": batch, "N": tokens}
    reference = None
    for name in ("grid_sample", "gather" if DRY else "triton"):
        call = partial(module.multi_scale_deformable_attention, inputs[0], shapes, points, *inputs[1:], name)
        with torch.no_grad():
            result[f"{name} forward ms"] = _milliseconds(call)
        output = call()
        gradients = torch.autograd.grad(output, inputs, upstream)
        found = [output.detach(), *gradients]
        if reference is None:
            reference = found
        else:
            errors = [((a - b).norm() / b.norm()).item() for a, b in zip(found, reference, strict=True)]
            result[f"{name} largest relative difference"] = max(errors)
        result[f"{name} forward + backward ms"] = _milliseconds(
            lambda call=call: torch.autograd.grad(call(), inputs, upstream)
        )
    return result


def attention() -> dict:
    """Masked attention of the transformer decoder: milliseconds of each backend of torch, first call apart."""
    from torch.nn.attention import SDPBackend

    batch, queries = (1, 10) if DRY else (2 * IMAGES, 100)
    result: dict = {}
    dtype = torch.float32 if DRY else torch.bfloat16
    for side in (8,) if DRY else (20, 40, 80):
        q = torch.randn(batch, 8, queries, 32, device=_device(), dtype=dtype)
        k, v = (torch.randn(batch, 8, side * side, 32, device=_device(), dtype=dtype) for _ in range(2))
        mask = torch.zeros(batch, 8, queries, side * side, device=_device(), dtype=torch.bool)
        mask[..., ::2] = True
        call = partial(torch.nn.functional.scaled_dot_product_attention, q, k, v, mask)
        result[f"{side}^2 default ms"] = _milliseconds(call)
        for backend in (SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            result |= {f"{side}^2 {backend.name} {key}": value for key, value in _with_backend(backend, call).items()}
    return result


def _with_backend(backend: object, call: Callable[[], object]) -> dict:
    from torch.nn.attention import sdpa_kernel

    try:
        with sdpa_kernel(backend):
            start = time.perf_counter()
            call()
            _synchronize()
            first = 1e3 * (time.perf_counter() - start)
            return {"first ms": first, "ms": _milliseconds(call)}
    except RuntimeError as error:
        return {"refused": str(error).splitlines()[0][:80]}


def loader() -> dict:
    """Milliseconds of the host for one labelled and one unlabelled sample, and bytes of a sample."""
    import tempfile

    import numpy as np
    from PIL import Image

    from dearli_d2.config import get_config
    from dearli_d2.data import build
    from dearli_d2.data.batches import PackedBatch

    torch.set_num_threads(1)
    cfg = get_config(REPO / "configs" / "ade20k" / "dear_convnext_b.yaml", ["MODEL.DEVICE", _device()])
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        coarse = rng.integers(0, 255, (32, 43, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((683, 512), Image.BICUBIC).save(f"{folder}/image.jpg", quality=90)
        ids = np.kron(np.arange(1, 13).reshape(3, 4), np.ones((171, 171), int))[:512, :683]
        rgb = np.zeros((512, 683, 3), np.uint8)
        rgb[: ids.shape[0], : ids.shape[1], 0] = ids
        Image.fromarray(rgb).save(f"{folder}/label.png")
        segments = [{"id": i, "category_id": i, "iscrowd": 0, "isthing": True} for i in range(1, 13)]
        record = {"file_name": f"{folder}/image.jpg", "height": 512, "width": 683, "image_id": 1}
        labelled = record | {"pan_seg_file_name": f"{folder}/label.png", "segments_info": segments}
        result = {}
        for name, mapper, sample in (
            ("labelled", build.build_labeled_mapper(cfg), labelled),
            ("unlabelled", build.build_unlabeled_mapper(cfg), record),
        ):
            result[f"{name} sample ms"] = _milliseconds(partial(mapper, dict(sample)), repeats=30)
            result[f"{name} MiB"] = PackedBatch([mapper(dict(sample))]).buffer.nbytes / 2**20
    return result


def training() -> dict:
    """Training steps with the data loader: milliseconds of a step, and how many of them it waits for images."""
    import tempfile

    import numpy as np
    from detectron2.utils.events import EventStorage
    from PIL import Image

    from dearli_d2.config import get_config
    from dearli_d2.data.custom import register_custom
    from dearli_d2.engine.trainer import DualStreamTrainer

    size, images, steps = (64, 2, 4) if DRY else (SIZE, IMAGES, 24)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        for part in ("images", "masks", "unlabeled"):
            (root / part).mkdir(parents=True)
        ids = np.kron(rng.integers(0, 4, (6, 8), dtype=np.uint8), np.ones((86, 86), np.uint8))[:512, :683]
        for index in range(4 * images):
            for part in ("images", "unlabeled"):
                coarse = Image.fromarray(rng.integers(0, 255, (32, 43, 3), dtype=np.uint8))
                coarse.resize((683, 512), Image.Resampling.BICUBIC).save(root / part / f"{index}.jpg", quality=90)
            Image.fromarray(np.roll(ids, 10 * index, 1)).save(root / "masks" / f"{index}.png")
        options = {
            "DATASETS.CUSTOM.ROOT": root, "DATASETS.TEST": "()", "MODEL.DEVICE": _device(),
            "MODEL.BACKBONE.WEIGHTS": "", "MODEL.TEXT.TEMPLATES": "name", "SOLVER.AMP.ENABLED": not DRY,
            "INPUT.CROP_SIZE": size, "SOLVER.IMS_PER_BATCH": images, "SSL.IMS_PER_BATCH": images, "SSL.START": 0,
            "SSL.PICTURE_PERIOD": 0, "SSL.MONITOR_PERIOD": 0, "SOLVER.MAX_ITER": steps, "SOLVER.WARMUP_ITERS": 0,
            "TEST.EVAL_PERIOD": 0, "DATALOADER.NUM_WORKERS": 0 if DRY else max(2, (os.cpu_count() or 2) - 4),
            "OUTPUT_DIR": Path(folder) / "run",
        }  # fmt: skip
        flat = [str(x) for pair in options.items() for x in pair]
        cfg = get_config(REPO / "configs" / "custom" / "template.yaml", flat)
        register_custom(cfg.DATASETS.CUSTOM)
        trainer, times = DualStreamTrainer(cfg), []
        with EventStorage() as trainer.storage:
            for trainer.iter in range(steps):
                start = time.perf_counter()
                trainer.run_step()
                _synchronize()
                times.append(1e3 * (time.perf_counter() - start))
                print(f"step {trainer.iter}: {times[-1]:.0f} ms", flush=True)
                trainer.storage.step()
        waits = trainer.storage.history("data_time").median(steps // 2)
    return {
        "step ms": statistics.median(times[steps // 2 :]),
        "wait for images ms": 1e3 * waits,
        "loader processes": options["DATALOADER.NUM_WORKERS"],
    }


def core() -> dict:
    """benchmarks.core: both decoders and the criterion against Hugging Face's, as ratios."""
    from benchmarks.core import build_step
    from benchmarks.measure import interleaved_seconds

    result = {}
    for size in (64,) if DRY else (320, 640):
        seconds = interleaved_seconds({which: build_step(which, size) for which in ("ours", "peer")}, 1 if DRY else 5)
        result |= {f"{size}^2 {name} ms": 1e3 * s for name, s in seconds.items()}
        result[f"{size}^2 ratio"] = seconds["ours"] / seconds["peer"]
    return result


def inference() -> dict:
    """Panoptic and semantic prediction of one image in fp32 and in bf16 autocast, with its read-out."""
    from benchmarks.step import _model

    size = 64 if DRY else SIZE
    model = _model(False)[0].eval()
    sample = [{"image": torch.randint(0, 256, (3, size, size), dtype=torch.uint8), "height": size, "width": size}]
    result = {}
    with torch.no_grad():
        for name, enabled in (("fp32", False), ("bf16", True)):
            with torch.autocast(_device(), dtype=torch.bfloat16, enabled=enabled):
                result[f"{name} image ms"] = _milliseconds(partial(model, sample))
    return result


def tests() -> dict:
    """tests/gpu, and the kernels' tests on the device."""
    paths = ["tests/gpu", *sorted(map(str, (REPO / "tests" / "modeling").glob("test_*_triton.py")))]
    command = [sys.executable, "-m", "pytest", "-v", "-rf", "--tb=short", "-p", "no:cacheprovider", *paths]
    if importlib.util.find_spec("xdist"):
        command += ["-n", "1" if DRY else "6"]
        os.environ["OMP_NUM_THREADS"] = "2"
    report = Path(os.environ["GPU_CHECK_OUT"]) / "tests.log"
    with report.open("w") as log:  # as it comes: what a time limit cuts off is there up to that test
        status = subprocess.run(command, cwd=REPO, stdout=log, stderr=log, check=False).returncode
    words = re.findall(r"(\d+) (passed|failed|skipped|errors?)", report.read_text().strip().splitlines()[-1])
    return {word: int(number) for number, word in words} | {"exit status": status}


# stage, seconds that it may take: in order of worth
STAGES: dict[str, tuple[Callable[[], dict], int]] = {
    "machine": (machine, 40),
    "step": (step, 100),
    "deformable_attention": (deformable_attention, 60),
    "tests": (tests, 180),
    "kernels": (kernels, 60),
    "training": (training, 140),
    "schedules": (schedules, 70),
    "loader": (loader, 40),
    "attention": (attention, 40),
    "core": (core, 60),
    "inference": (inference, 50),
}


# ---------------------------------------------------------------------------------------------- running them


def _run_stage(name: str, out: Path) -> int:
    try:
        result, status = STAGES[name][0](), 0
    except Exception as error:
        traceback.print_exc()
        result, status = {"error": f"{type(error).__name__}: {error}"[:500]}, 1
    (out / f"{name}.json").write_text(json.dumps(result, indent=1))
    return status


def _table(results: dict[str, dict]) -> str:
    lines = []
    for stage, result in results.items():
        for key, value in result.items():
            if not isinstance(value, list):
                shown = f"{value:.4g}" if isinstance(value, float) else str(value)
                lines.append(f"{stage:22s} {key:42s} {shown}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), metavar="STAGE",
                        help=f"which, in this order: {', '.join(STAGES)}")  # fmt: skip
    parser.add_argument("--budget", type=int, default=480, help="seconds for all stages; what is left is not started")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--in-process", metavar="STAGE", choices=list(STAGES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    global DRY
    DRY = args.dry_run
    os.environ["GPU_CHECK_OUT"] = str(args.out.resolve())
    if args.in_process:
        warnings.filterwarnings("ignore")
        return _run_stage(args.in_process, args.out)
    if not DRY and not torch.cuda.is_available():
        print("error: torch sees no GPU; --dry-run runs the stages on the CPU", file=sys.stderr)
        return 2
    end, results = time.monotonic() + args.budget, {}
    for stage in args.stages:
        left = end - time.monotonic()
        if left < 10:
            results[stage] = {"not started": "the budget is used up"}
            continue
        (args.out / f"{stage}.json").unlink(missing_ok=True)  # of an earlier check
        limit = min(STAGES[stage][1] * (4 if DRY else 1), left)
        command = [sys.executable, __file__, str(args.out), "--in-process", stage, *(["--dry-run"] if DRY else [])]
        start = time.monotonic()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])}
        try:
            with open(args.out / f"{stage}.log", "w") as log:
                subprocess.run(command, timeout=limit, stdout=log, stderr=log, env=environment, cwd=REPO, check=False)
            results[stage] = json.loads((args.out / f"{stage}.json").read_text())
        except subprocess.TimeoutExpired:
            results[stage] = {"error": f"not finished after {limit:.0f} s"}
        except FileNotFoundError:
            results[stage] = {"error": f"no result; see {stage}.log"}
        results[stage]["seconds in all"] = time.monotonic() - start
        print(
            f"{stage}: {results[stage].get('error', 'done')} after {results[stage]['seconds in all']:.0f} s", flush=True
        )
    (args.out / "all.json").write_text(json.dumps(results, indent=1))
    print(_table(results))
    return int(any("error" in result for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
