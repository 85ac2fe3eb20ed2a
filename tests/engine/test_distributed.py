"""Losses and evaluation of two processes on the CPU (gloo) against one; tests/engine/test_joint_batch.py compares whole steps."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from detectron2.utils import comm

from dearli_d2.engine.launch import launch
from dearli_d2.methods.hvl.vision_language import region_losses
from dearli_d2.methods.split_matching.matching import SplitTargets, candidate_cosine, pixel_losses
from dearli_d2.modeling.mask2former.criterion import SetCriterion
from dearli_d2.modeling.mask2former.matcher import HungarianMatcher, Matches
from dearli_d2.modeling.mask2former.transformer_decoder import DecoderOutput
from dearli_d2.modeling.per_pixel.losses import LOSSES, PixelLoss, dyce_loss, hard_targets
from dearli_d2.modeling.ranks import mean_over_ranks
from dearli_d2.structures import Targets
from tests.conftest import MINI_OVERRIDES, REPO

CONFIG = REPO / "configs" / "miniworld" / "m2f_lang.yaml"

OPTIONS = (
    "SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "2", "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "4000",
    "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO", "0.0", "DATASETS.TEST", "('miniworld_val@0.05',)", "TEST.PICTURES", "0",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    """Where there is one, detectron2's launcher takes NCCL."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def command_line(folder, processes, *arguments):
    command = [sys.executable, "-W", "ignore", "train_net.py", "--config-file", str(CONFIG), "--num-gpus", str(processes),
               *arguments, *MINI_OVERRIDES, *OPTIONS, "OUTPUT_DIR", str(folder)]  # fmt: skip
    return command


def run(command, *overrides):
    return subprocess.run([*command, *overrides], cwd=REPO, capture_output=True, text=True, timeout=300)


def test_evaluation_on_two_processes_of_torchrun_equals_one(tmp_path):
    trained = run(command_line(tmp_path / "train", 1), "DATASETS.TEST", "()")
    assert trained.returncode == 0, trained.stderr
    results = []
    for processes in (1, 2):
        folder = tmp_path / f"eval{processes}"
        command = command_line(folder, 1, "--weights", str(tmp_path / "train/model_final.pth"))
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"] if processes == 2 else []
        place = command.index("train_net.py")
        command[place : place + 1] = ["-m", *torchrun, "dearli_d2", "eval"]
        result = run(command)
        assert result.returncode == 0, result.stderr
        results.append(json.loads((folder / "evaluation/miniworld_val@0.05/results.json").read_text())["results"])
    assert results[0] == results[1]


def test_an_error_in_a_worker_is_a_line_and_no_stack_trace(tmp_path):
    result = run(command_line(tmp_path / "x", 2), "DATASETS.TRAIN", "('none',)")
    assert result.returncode == 2
    assert "error: there is no data set 'none'" in result.stderr
    assert "Traceback" not in result.stderr


MINED = [(True, 0.2), (False, 1.0), (False, 0.2), (False, 1e-9)]


def _mined_of_rank(folder):
    """One process: DyCE of its part of two images with the averaged gradient of a weight, and the pixels that are mined."""
    results = []
    for same, hard_fraction in MINED:
        generator = torch.Generator().manual_seed(0)
        images, target = (
            torch.randn(2, 3, 8, 8, generator=generator),
            torch.randint(0, 4, (2, 8, 8), generator=generator),
        )
        target[1, :2] = 255
        if same:  # each loss is there twice
            images, target = images[:1].repeat(2, 1, 1, 1), target[:1].repeat(2, 1, 1)
        weight = torch.linspace(-1, 1, 12).view(4, 3, 1, 1).requires_grad_()
        logits = torch.nn.functional.conv2d(_part(images), weight)
        loss = dyce_loss(logits, _part(target), hard_fraction, 0.5)
        loss.backward()
        hard = hard_targets(logits.detach(), _part(target), keep=10, below=0.05)
        results.append((mean_over_ranks(loss.detach()), mean_over_ranks(weight.grad), hard))
    torch.save(results, folder / f"{comm.get_world_size()}_{comm.get_rank()}.pt")


def test_pixels_are_mined_as_by_one_process(tmp_path):
    for processes in (1, 2):
        launch(_mined_of_rank, processes, arguments=(tmp_path,))
    one, *two = (torch.load(tmp_path / f"{name}.pt") for name in ("1_0", "2_0", "2_1"))
    for mined, expected, first, second in zip(MINED, one, *two, strict=True):
        for rank in (first, second):
            torch.testing.assert_close(
                rank[:2], expected[:2], rtol=1e-5, atol=1e-6, msg=lambda text, mined=mined: f"{mined} {text}"
            )
        assert torch.equal(torch.cat([first[2], second[2]]), expected[2])


def _part(sequence):
    """What this rank has of a batch of two."""
    rank = comm.get_rank()
    return sequence[rank : rank + 1] if comm.get_world_size() > 1 else sequence


def _losses_of_rank(folder):
    """One process: losses of its part of two images that are unequal in everything that a loss could be divided by, and the
    averaged gradient of each."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand

    def points(*size, **options):  # the same for every mask, whatever the process
        return draw(size[1:], generator=torch.Generator().manual_seed(size[1])).expand(size).clone()

    target = torch.randint(0, 4, (2, 8, 8), generator=generator)
    target[1, :5] = 255
    images = torch.randn(2, 3, 8, 8, generator=generator)
    weight = torch.linspace(-1, 1, 12).view(4, 3, 1, 1).requires_grad_()
    pixels = torch.nn.functional.conv2d(_part(images), weight)
    results = {name: PixelLoss(name, 4) for name in LOSSES if name != "dyce"}
    results["weighted_ce"].weigh(torch.tensor([10, 40, 3, 11]))
    results = {name: (loss(pixels, _part(target)), weight) for name, loss in results.items()}

    segments = [Targets(target[0, 0, :n], draw(n, 32, 32, generator=generator) > 0.6) for n in (5, 1)]
    classes = torch.randn(2, 2, 6, 5, generator=generator)
    embeddings, features = (torch.randn(size, generator=generator) for size in ((2, 2, 6, 8), (2, 8, 16, 16)))
    factor = torch.ones(8, requires_grad=True)
    output = DecoderOutput(classes, embeddings * factor, features).images(*_bounds())
    logits = output.class_outputs * factor[:5]
    torch.rand = points
    try:
        losses = SetCriterion(4, HungarianMatcher(num_points=64), num_points=64)(logits, output, _part(segments))
    finally:
        torch.rand = draw
    results |= {name: (loss, factor) for name, loss in losses.items()}

    # Split Matching: regions in the first image only; HVL: a hidden region that is larger there
    unit = torch.nn.functional.normalize(torch.randn(3, 8, generator=generator), dim=-1)
    none, three = Targets(target[0, 0, :0], segments[0].masks[:0]), Targets(torch.arange(3), segments[0].masks[:3])
    parts = [SplitTargets(none, three, unit), SplitTargets(none, none, unit[:0])]
    matches = Matches(torch.zeros(3, dtype=torch.int64), torch.arange(3).expand(2, 3)[..., None], torch.ones(2, 3, 1))
    vectors = (torch.randn(2, 2, 6, 8, generator=generator) * factor)[:, slice(*_bounds())]
    cosine = candidate_cosine(vectors, _part(parts), matches.images(*_bounds(), [3, 0]))
    results |= {f"loss_cosine_{layer}": (value, factor) for layer, value in enumerate(cosine)}
    results["loss_mfe"] = pixel_losses(pixels, _part(target.where(target < 255, -1))), weight
    region = torch.stack([torch.ones(32, 32) > 0, torch.arange(1024).view(32, 32) < 300])
    dense = torch.nn.functional.normalize(torch.randn(2, 8, 4, 4, generator=generator), dim=1)
    align, consistency = region_losses(_part(dense) * factor.view(8, 1, 1), _part(dense.flip(1)), _part(region),
                                       _part(torch.tensor([0, 2])), unit, 0.07)  # fmt: skip
    results |= {"loss_align": (align, factor), "loss_consistency": (consistency, factor)}

    found = {}
    for name, (loss, parameter) in results.items():
        (gradient,) = torch.autograd.grad(loss, parameter, retain_graph=True)
        found[name] = mean_over_ranks(loss.detach()), mean_over_ranks(gradient)  # as data-parallel training does
    torch.save(found, folder / f"{comm.get_world_size()}_{comm.get_rank()}.pt")


def _bounds():
    return (comm.get_rank(), comm.get_rank() + 1) if comm.get_world_size() > 1 else (0, 2)


def test_losses_and_gradients_of_two_ranks_are_those_of_one_with_the_joint_batch(tmp_path):
    for processes in (1, 2):
        launch(_losses_of_rank, processes, arguments=(tmp_path,))
    one, *two = (torch.load(tmp_path / f"{name}.pt") for name in ("1_0", "2_0", "2_1"))
    assert {"ce", "weighted_ce", "focal", "dual_ce", "dual_focal", "loss_ce", "loss_mask_0", "loss_dice"} <= set(one)
    for name, expected in one.items():
        for rank in two:
            for value, wanted in zip(rank[name], expected, strict=True):
                torch.testing.assert_close(
                    value, wanted, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
                )


def _note_shutdown(folder):
    """One process: notes when its group is closed."""
    close = torch.distributed.destroy_process_group
    rank = comm.get_rank()

    def noted(*args, **kwargs):
        close(*args, **kwargs)
        (folder / f"closed_{rank}").touch()

    torch.distributed.destroy_process_group = noted


def test_every_process_closes_its_group_before_it_ends(tmp_path):
    """A process that ends with gloo's threads running can be killed by SIGABRT."""
    launch(_note_shutdown, 2, arguments=(tmp_path,))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["closed_0", "closed_1"]
