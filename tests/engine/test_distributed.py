"""Two processes on the CPU (gloo) against one with the joint batch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from detectron2.utils import comm

from dearli_d2.config import get_config
from dearli_d2.engine import metrics
from dearli_d2.engine.launch import launch
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.methods.hvl.vision_language import region_losses
from dearli_d2.methods.split_matching.matching import SplitTargets, candidate_cosine, pixel_losses
from dearli_d2.modeling.mask2former.criterion import SetCriterion
from dearli_d2.modeling.mask2former.matcher import HungarianMatcher, Matches
from dearli_d2.modeling.mask2former.transformer_decoder import DecoderOutput
from dearli_d2.modeling.per_pixel.losses import LOSSES, PixelLoss, dyce_loss
from dearli_d2.modeling.ranks import mean_over_ranks
from dearli_d2.structures import Targets
from tests.conftest import MINI_OVERRIDES, REPO
from tests.engine.test_trainer import losses_of

CONFIG = REPO / "configs" / "miniworld" / "m2f_lang.yaml"

# many points, so that the two runs' different random points hardly matter
OPTIONS = (
    "SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "2", "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "4000",
    "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO", "0.0", "DATASETS.TEST", "('miniworld_val@0.05',)", "TEST.PICTURES", "0",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    """Where there is one, detectron2's launcher takes NCCL."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def train(folder, config=CONFIG, options=()):
    """One process of a training that logs every step."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PERIOD", "WINDOW"):
            patch.setattr(metrics, name, 1)
        DualStreamTrainer(
            get_config(config, [*MINI_OVERRIDES, *OPTIONS, "DATASETS.TEST", "()", "OUTPUT_DIR", str(folder), *options])
        ).train()


def command_line(folder, processes, *arguments):
    command = [sys.executable, "-W", "ignore", "train_net.py", "--config-file", str(CONFIG), "--num-gpus", str(processes),
               *arguments, *MINI_OVERRIDES, *OPTIONS, "OUTPUT_DIR", str(folder)]  # fmt: skip
    return command


def run(command, *overrides):
    return subprocess.run([*command, *overrides], cwd=REPO, capture_output=True, text=True, timeout=300)


def test_two_processes_equal_one_with_the_joint_batch(tmp_path):
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        launch(train, processes, arguments=(tmp_path / str(processes),))
    one, two = (losses_of(tmp_path / str(n)) for n in (1, 2))
    assert sorted(one) == sorted(two) == [0, 1]
    for name, value in one[0].items():  # before the first update, where only the points differ
        assert two[0][name] == pytest.approx(value, rel=0.05), name
    weights = [torch.load(tmp_path / str(n) / "model_final.pth", weights_only=True)["model"] for n in (1, 2)]
    moved = (
        weights[0]["sem_seg_head.predictor.query_feat.weight"] - weights[1]["sem_seg_head.predictor.query_feat.weight"]
    )
    assert moved.abs().median() < 5e-4  # half a step of the learning rate


def test_two_semi_supervised_processes_equal_one_with_the_joint_batch(tmp_path):
    """The teacher is not wrapped; every rank updates its own from the same student. CutMix, whose boxes are drawn per rank,
    is off. Mask points are drawn per rank, so the losses are only nearly equal."""
    options = ("SSL.START", "0", "SSL.IMS_PER_BATCH", "4", "SSL.CUTMIX", "0.0", "SSL.PICTURE_PERIOD", "0", "SSL.MONITOR_PERIOD", "2",
               "SSL.MONITOR_IMAGES", "4")  # fmt: skip
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        launch(train, processes, arguments=(tmp_path / str(processes), CONFIG.with_name("dear.yaml"), options))
    one, two = (losses_of(tmp_path / str(n)) for n in (1, 2))
    assert sorted(one) == sorted(two) == [0, 1]
    assert any(name.startswith("unlabeled_") for name in one[0])
    for name, value in one[0].items():
        assert two[0][name] == pytest.approx(value, rel=0.08, abs=0.02), name
    states = [torch.load(tmp_path / str(n) / "model_final.pth", weights_only=True) for n in (1, 2)]
    name = "sem_seg_head.predictor.query_feat.weight"
    for part in ("model", "teacher"):
        a, b = (s["model"] if part == "model" else s["teacher"]["model"] for s in states)
        assert (a[name] - b[name]).abs().median() < 5e-4, part


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


def _dyce_of_rank(folder, same, hard_fraction):
    """One process: DyCE of its part of two images, and the averaged gradient of a weight."""
    rank = comm.get_rank()
    generator = torch.Generator().manual_seed(0)
    images, target = torch.randn(2, 3, 8, 8, generator=generator), torch.randint(0, 4, (2, 8, 8), generator=generator)
    target[1, :2] = 255
    if same:
        images, target = images[:1].repeat(2, 1, 1, 1), target[:1].repeat(2, 1, 1)
    if comm.get_world_size() > 1:
        images, target = images[rank : rank + 1], target[rank : rank + 1]
    weight = torch.linspace(-1, 1, 12).view(4, 3, 1, 1).requires_grad_()
    loss = dyce_loss(torch.nn.functional.conv2d(images, weight), target, hard_fraction, 0.5)
    loss.backward()
    if comm.get_world_size() > 1:  # as data-parallel training does
        torch.distributed.all_reduce(weight.grad)
        weight.grad /= comm.get_world_size()
    torch.save({"loss": loss.detach(), "gradient": weight.grad}, folder / f"{comm.get_world_size()}_{rank}.pt")


@pytest.mark.parametrize(("same", "hard_fraction"), [(True, 0.2), (False, 1.0)])
def test_dyce_of_two_ranks_equals_one(tmp_path, same, hard_fraction):
    for processes in (1, 2):
        launch(_dyce_of_rank, processes, arguments=(tmp_path, same, hard_fraction))
    one, *two = (torch.load(tmp_path / f"{name}.pt") for name in ("1_0", "2_0", "2_1"))
    assert torch.allclose(two[0]["gradient"], one["gradient"], atol=1e-6)
    assert torch.allclose((two[0]["loss"] + two[1]["loss"]) / 2, one["loss"])
    if same:
        assert torch.allclose(two[0]["loss"], one["loss"])


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
        return draw(size[1:], generator=torch.Generator().manual_seed(size[1])).expand(size)

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


SEMIDAVIL = ("MODEL.SEMIDAVIL.LOSS", "ce", "SSL.START", "0", "SSL.IMS_PER_BATCH", "4", "SSL.SOURCE_IMS_PER_BATCH", "4",
             "SSL.PICTURE_PERIOD", "0", "SSL.MONITOR_PERIOD", "0")  # fmt: skip


def test_three_streams_train_in_two_processes(tmp_path):
    """Every trained parameter takes part, and the ranks' mean of the supervised loss is that of the joint batch."""
    config = CONFIG.with_name("semidavil.yaml")
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        launch(train, processes, arguments=(tmp_path / str(processes), config, SEMIDAVIL))
    one, two = (losses_of(tmp_path / str(n)) for n in (1, 2))
    assert two[0]["loss_sup"] == pytest.approx(one[0]["loss_sup"], rel=0.02)  # padding differs from rank to rank


SEGKC = ("SSL.START", "0", "SSL.IMS_PER_BATCH", "4", "SSL.CUTMIX", "0.0", "SSL.CONFIDENCE", "0.1", "SSL.PICTURE_PERIOD", "0",
         "SSL.MONITOR_PERIOD", "0", "SOLVER.BASE_LR", "1e-4", "INPUT.SCALE_RANGE", "(2.0, 2.4)")  # fmt: skip


@pytest.mark.parametrize("norm", ["GN", "BN"])
def test_cross_supervision_in_two_processes_equals_one_with_the_joint_batch(tmp_path, norm):
    """Losses, weights and running statistics. The junior's ResNet has statistics of its own ranks, as everywhere in
    detectron2, so here a network without them takes its place."""
    tower = ("MODEL.BACKBONE.NAME", "OpenCLIPConvNeXt", "MODEL.BACKBONE.ARCH", "miniworld-convnext", "MODEL.BACKBONE.WEIGHTS",
             "shipped", "MODEL.DPT.NORM", norm)  # fmt: skip
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        config = CONFIG.with_name("segkc.yaml")
        launch(train, processes, arguments=(tmp_path / str(processes), config, (*SEGKC, *tower)))
    one, two = (losses_of(tmp_path / str(n)) for n in (1, 2))
    assert sorted(one) == sorted(two) == [0, 1]
    for step in one:
        assert {"loss_kd", "unlabeled_loss_con_junior", "unlabeled_loss_con_senior"} <= set(one[step])
        for name, value in one[step].items():
            assert two[step][name] == pytest.approx(value, rel=0.02), (step, name)
    states = [torch.load(tmp_path / str(n) / "model_final.pth", weights_only=True)["model"] for n in (1, 2)]
    for name, tensor in states[0].items():
        if tensor.is_floating_point():
            assert (tensor - states[1][name]).abs().mean() < 5e-4, (
                name
            )  # torch has the unbiased variance, detectron2 not


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
