"""No tensor is left on the wrong device, and the host does not wait for the device more than it must: on a pretended GPU."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage

from dearli_d2.engine.evaluation import evaluate
from dearli_d2.engine.hooks import PictureHook, PseudoLabelMonitor
from dearli_d2.engine.strong_views import build_strong_views
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.modeling.mask2former import mask_losses
from tests.conftest import SSL
from tests.masks.test_masks import sam_generator, scene, tiny_sam
from tests.pretend_cuda import CUDA, DeviceMix, PretendCuda, TwoRanks, move


def can_pretend() -> bool:
    """Older versions of torch (2.4) look for a driver in indexing, whatever the tensor is."""
    try:
        with PretendCuda():
            torch.ones(2, device="cuda")[0]
    except RuntimeError:
        return False
    return True


pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the real device"),
    pytest.mark.skipif(not can_pretend(), reason="this torch cannot pretend a device"),
]

VIEWS = ("SSL.CONFIDENCE", "0.1", "SSL.STRONG_VIEWS", "2", "MODEL.DPT.FEATURE_DROPOUT", "True")
SOURCE = ("SSL.SOURCE_IMS_PER_BATCH", "2", "SSL.CONFIDENCE", "0.1")
# the most that one call of each may wait: pseudo-labels (and once for each set of mixed targets), losses, evaluation of two images
CASES = {
    "m2f": ("m2f.yaml", (), (0, 1, 2)),
    "m2f_lang": ("m2f_lang.yaml", (), (0, 1, 2)),
    "dear": ("dear.yaml", (*SSL, "SSL.CUTMIX", "1.0"), (2, 1, 2)),
    "hvl": ("hvl.yaml", SSL, (3, 1, 0)),
    "split_matching": ("split_matching.yaml", (), (0, 40, 0)),
    "semidavil": ("semidavil.yaml", (*SSL, *SOURCE), (2, 1, 0)),
    "segkc": ("segkc.yaml", (*SSL, *VIEWS), (4, 0, 0)),
    "dpt_segmenter": (
        "segkc.yaml",
        (*SSL, "MODEL.META_ARCHITECTURE", "DPTSegmenter", "MODEL.DPT.HARD_PIXELS", "100"),
        (2, 0, 0),
    ),
    "eomt": ("eomt_ssl.yaml", SSL, (2, 4, 2)),  # costs of each mask features; a real GPU sends them without a wait
}


def to_gpu(trainer: DualStreamTrainer) -> None:
    """Models to the pretended device; what is made of them anew."""
    move(trainer.student)
    if trainer.teacher is not None:
        move(trainer.teacher.model)
    trainer.strong_views = build_strong_views(trainer.cfg, trainer.student)


def run(trainer: DualStreamTrainer, batch: dict, waits: dict, dtype: torch.dtype | None = None) -> tuple:
    """Losses of a step with its pseudo-labels, predictions, and how often each of the three waited."""
    torch.manual_seed(0)
    trainer.student.train()
    streams, counts = dict(batch), [sum(waits.values())]
    with torch.autocast("cuda", dtype) if dtype else nullcontext():
        if "unlabeled" in batch:
            labels = trainer.labeler.label(batch["unlabeled"])
            streams["unlabeled"] = trainer.strong_views(batch["unlabeled"], labels, np.random.default_rng(0))
        counts.append(sum(waits.values()))
        losses = trainer.student(streams)
        counts.append(sum(waits.values()))
        trainer.student.eval()
        images = [{k: x[k] for k in ("image", "caption") if k in x} for x in batch["labeled"]]
        with torch.no_grad():
            outputs = trainer.student(images)
        counts.append(sum(waits.values()))
    return losses, outputs, np.diff(counts).tolist()


def test_a_copy_that_blocks_counts_in_both_directions():
    with PretendCuda() as device:
        there = torch.ones(3).to("cuda", non_blocking=True)
        there.copy_(torch.zeros(3), non_blocking=True)
        assert not device.waits
        there.copy_(torch.zeros(3)), torch.zeros(2).to("cuda"), torch.tensor([1, 2], device="cuda"), there.cpu()
        assert sum(device.waits.values()) == 4


@pytest.mark.parametrize("case", CASES)
def test_step_and_prediction_on_a_pretended_gpu(case, mini_config, monkeypatch):
    # autocast asks for a GPU; what it casts to which type is decided without one
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setitem(mask_losses._BLOCK, "gpu", mask_losses._BLOCK["cpu"])  # the same random points on both
    file, options, most = CASES[case]
    trainer = DualStreamTrainer(mini_config("DATALOADER.NUM_WORKERS", "0", *options, file=file))
    batch = next(trainer.stream)
    state = {name: value.clone() for name, value in trainer.student.state_dict().items()}
    expected, _, _ = run(trainer, batch, {})
    trainer.student.load_state_dict(state)  # running statistics
    ranks = TwoRanks(monkeypatch)  # with the same images, so the losses are those of one
    with PretendCuda() as device:
        to_gpu(trainer)
        for dtype, tolerance in ((None, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 0.1)):
            losses, outputs, waited = run(trainer, batch, device.waits, dtype)
            assert all(x.device.type == "cuda" for x in (*losses.values(), outputs[0]["sem_seg"]))
            assert all(x.dtype == torch.float32 for x in losses.values())
            assert outputs[0]["sem_seg"].isfinite().all()
            assert losses.keys() == expected.keys()
            for name, loss in losses.items():
                assert loss.item() == pytest.approx(expected[name].item(), rel=tolerance, abs=tolerance), name
    assert ranks.calls
    # the last time, when embeddings of the text were there
    assert all(count <= limit for count, limit in zip(waited, most, strict=True)), (waited, dict(device.waits))


@pytest.mark.parametrize("file", ["dear.yaml", "hvl.yaml", "semidavil.yaml", "segkc.yaml"])
def test_pictures_monitor_teacher_and_evaluation_on_a_pretended_gpu(file, mini_config, monkeypatch):
    options = "SSL.PICTURE_PERIOD", "1", "SSL.MONITOR_PERIOD", "1", "SSL.MONITOR_IMAGES", "2", "TEST.PICTURES", "1"
    cfg = mini_config(
        *SSL, *options, "DATALOADER.NUM_WORKERS", "0", "DATASETS.TEST", "('miniworld_val@n2',)", file=file
    )
    trainer = DualStreamTrainer(cfg)
    trainer.iter, trainer.batch = 0, next(trainer.stream)
    TwoRanks(monkeypatch)
    with PretendCuda(), EventStorage(0):
        to_gpu(trainer)
        unlabeled = trainer.batch["unlabeled"]
        labels = trainer.labeler.label(unlabeled)
        trainer.batch["unlabeled"] = trainer.strong_views(unlabeled, labels, np.random.default_rng(0))
        watching = [h for h in trainer._hooks if isinstance(h, PictureHook | PseudoLabelMonitor)]
        assert len(watching) == 2
        for hook in watching:
            hook.before_train()
            hook.after_step()
        if trainer.teacher is not None:
            trainer.teacher.update(trainer.student)
        assert evaluate(cfg, trainer.student)


def test_ranks_agree_on_a_step_through_one_tensor_on_the_device(ssl_config, monkeypatch, caplog):
    trainer = DualStreamTrainer(ssl_config("DATALOADER.NUM_WORKERS", "0"))
    ranks = TwoRanks(monkeypatch)
    with PretendCuda() as device:
        to_gpu(trainer)
        own, norm = torch.tensor([1.0, 5.0], device=CUDA), torch.tensor(0.5, device=CUDA)
        step = 0, ["loss_ce", "loss_mask"], own, norm, ["mine.jpg"]
        ranks.other = torch.tensor([3.0, 5.0, 0.5], device=CUDA)
        expected = {"loss_ce": 2.0, "loss_mask": 5.0, "total_loss": 7.0, "grad_norm": 0.5}
        device.waits.clear()  # of what the test sends there
        assert trainer.guard.step(*step) == expected
        assert (ranks.calls, sum(device.waits.values())) == (1, 1)
        ranks.other = torch.tensor([3.0, float("nan"), 0.5], device=CUDA)
        assert trainer.guard.step(*step) is None  # here all is well, but not there
        assert trainer.guard.bad_steps == 1
        assert "losses not finite: loss_mask" in caplog.text


def test_sam_on_a_pretended_gpu():
    sam, images = tiny_sam(), [scene(0), scene(1)]
    options = {"prompts": 13, "predicted_iou": 0.4, "stability": 0.3}
    expected = sam_generator(sam, **options)(images)
    with PretendCuda():
        move(sam)
        found = sam_generator(sam, **options)(images)
    assert [len(x) for x in found] == [len(x) for x in expected]
    assert [a["area"] for x in found for a in x] == pytest.approx([a["area"] for x in expected for a in x], rel=0.01)


def test_the_pretended_gpu_finds_what_is_on_the_wrong_device():
    with PretendCuda() as device:
        there, here = torch.ones(3, 4, device="cuda"), torch.ones(4)
        with pytest.raises(DeviceMix, match="add"):
            there + here
        with pytest.raises(DeviceMix, match="into a tensor on the CPU"):
            here[torch.arange(2, device="cuda")]
        assert (there + here.to("cuda") * torch.tensor(2.0)).cpu().tolist() == [[3.0] * 4] * 3
        there[torch.arange(2)] = 5
        assert there.sum().item() == 44
        assert there.device.type == "cuda"
        before = sum(device.waits.values())
        there.max().item(), there[there > 1], there.nonzero(), there.cpu(), here.nonzero()
        assert sum(device.waits.values()) - before == 4
