"""What only a GPU shows: devices, autocast types, and that steps do not wait for the device more than they must."""

from __future__ import annotations

import pytest
import torch

from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.modeling import build_model
from dearli_d2.modeling.mask2former.deformable_attention import multi_scale_deformable_attention
from dearli_d2.modeling.mask2former.inference import panoptic_regions

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SHAPES = [(20, 30), (10, 15), (5, 8)]


def attention_inputs(device):
    generator = torch.Generator().manual_seed(0)
    tokens = sum(h * w for h, w in SHAPES)
    value = torch.randn(2, tokens, 8, 32, generator=generator)
    reference = torch.rand(100, 2, generator=generator).to(device)
    offsets = torch.randn(2, 100, 8, 3, 4, 2, generator=generator)
    logits = torch.randn(2, 100, 8, 12, generator=generator)
    return reference, [x.to(device).requires_grad_() for x in (value, offsets, logits)]


@pytest.mark.parametrize("implementation", ["auto", "grid_sample"])
def test_deformable_attention_equals_the_cpu(implementation):
    results = []
    for device in ("cpu", "cuda"):
        reference, leaves = attention_inputs(device)
        output = multi_scale_deformable_attention(leaves[0], SHAPES, reference, *leaves[1:], implementation)
        output.square().sum().backward()
        results.append([output.detach().cpu()] + [x.grad.cpu() for x in leaves])
    for ours, expected in zip(*results, strict=True):
        assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
@pytest.mark.parametrize("file", ["m2f_lang.yaml", "m2f.yaml"])
def test_training_steps(mini_config, dtype, file):
    amp = [] if dtype is None else ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype]
    trainer = DualStreamTrainer(mini_config("MODEL.DEVICE", "cuda", *amp, file=file))
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.student.parameters())


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
def test_semi_supervised_steps(mini_config, dtype):
    amp = [] if dtype is None else ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype]
    options = ["SSL.START", "0", "SSL.IMS_PER_BATCH", "2", "SSL.CUTMIX", "1.0", "SSL.PICTURE_PERIOD", "2"]
    trainer = DualStreamTrainer(mini_config("MODEL.DEVICE", "cuda", *options, *amp, file="dear.yaml"))
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.student.parameters())
    assert all(s["targets"].masks.is_cuda for s in trainer.batch["unlabeled"])


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
@pytest.mark.parametrize("head", ["upsample", "dpt", "mask2former"])
def test_domain_adaptation_steps(mini_config, dtype, head):
    amp = [] if dtype is None else ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype]
    options = ["SSL.START", "0", "SSL.CUTMIX", "1.0", "SSL.CONFIDENCE", "0.1", "SSL.PICTURE_PERIOD", "2"]
    options += ["SSL.MONITOR_PERIOD", "0", "MODEL.SEMIDAVIL.HEAD", head]
    trainer = DualStreamTrainer(mini_config("MODEL.DEVICE", "cuda", *options, *amp, file="semidavil.yaml"))
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.student.parameters())


def test_dyce_equals_the_cpu():
    from dearli_d2.modeling.per_pixel.losses import dyce_loss

    logits, target = torch.randn(2, 19, 40, 50), torch.randint(0, 19, (2, 40, 50))
    target[:, :7] = 255
    results = []
    for device in ("cpu", "cuda"):
        leaf = logits.clone().to(device).requires_grad_()
        loss = dyce_loss(leaf, target.to(device))
        loss.backward()
        results.append((loss.detach().cpu(), leaf.grad.cpu()))
    assert torch.allclose(results[0][0], results[1][0], rtol=1e-5)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-7)


def test_cutmix_equals_the_cpu():
    import numpy as np

    from dearli_d2.engine.cutmix import CutMix, mix_images, mix_targets
    from dearli_d2.structures import Targets

    plan = CutMix(1.0).plan(3, 40, 40, np.random.default_rng(0))
    images = torch.rand(3, 3, 40, 40)
    ids = torch.randint(0, 5, (3, 40, 40))
    targets = [Targets(torch.arange(4), torch.stack([i == n for n in range(1, 5)])) for i in ids]
    assert torch.equal(mix_images(images.cuda(), plan).cpu(), mix_images(images, plan))
    here, there = mix_targets(targets, plan, {0, 1}), mix_targets([t.to("cuda") for t in targets], plan, {0, 1})
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a.labels, b.labels.cpu())
        assert torch.equal(a.masks, b.masks.cpu())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inference_under_autocast_agrees_with_fp32(mini_config, dtype):
    model = build_model(mini_config("MODEL.DEVICE", "cuda")).eval()
    images = [{"image": torch.randint(0, 256, (3, 128, 128), dtype=torch.uint8)}]
    with torch.no_grad():
        full = model(images)[0]["sem_seg"]
        with torch.autocast("cuda", dtype=dtype):
            half = model(images)[0]["sem_seg"]
    assert (full - half).abs().mean() < 0.05 * full.abs().mean() + 0.01


def test_panoptic_read_out_does_not_wait_for_the_device():
    logits, masks = torch.randn(2, 50, 11, device="cuda"), torch.randn(2, 50, 64, 64, device="cuda")
    panoptic_regions(logits, masks, {1, 2}, 0.0, 0.8)
    torch.cuda.set_sync_debug_mode("error")
    try:
        panoptic_regions(logits, masks, {1, 2}, 0.0, 0.8)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
def test_hvl_steps(mini_config, dtype):
    amp = [] if dtype is None else ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype]
    options = ["SSL.START", "0", "SSL.PICTURE_PERIOD", "2", "SSL.MONITOR_PERIOD", "0", "SSL.CONFIDENCE", "0.07"]
    trainer = DualStreamTrainer(mini_config("MODEL.DEVICE", "cuda", *options, *amp, file="hvl.yaml"))
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.student.parameters())


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
def test_split_matching_steps(mini_config, dtype):
    amp = [] if dtype is None else ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype]
    trainer = DualStreamTrainer(mini_config("MODEL.DEVICE", "cuda", *amp, file="split_matching.yaml"))
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.student.parameters())


def test_kmeans_equals_the_cpu():
    from dearli_d2.modeling.clustering import cosine_kmeans

    points = torch.nn.functional.normalize(torch.randn(4, 256, 32), dim=-1)
    here, there = cosine_kmeans(points, points[:, ::32]), cosine_kmeans(points.cuda(), points[:, ::32].cuda())
    assert (here[0] == there[0].cpu()).float().mean() > 0.99


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
@pytest.mark.parametrize("norm", ["NONE", "BN", "GN"])
def test_cross_supervision_steps(mini_config, dtype, norm):
    amp = [] if dtype is None else ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype]
    options = [
        "SSL.START",
        "0",
        "SSL.CUTMIX",
        "1.0",
        "SSL.CONFIDENCE",
        "0.1",
        "SSL.PICTURE_PERIOD",
        "2",
        "MODEL.DPT.NORM",
        norm,
    ]
    options += ["SSL.STRONG_VIEWS", "2", "MODEL.DPT.FEATURE_DROPOUT", "True"]
    trainer = DualStreamTrainer(mini_config("MODEL.DEVICE", "cuda", *options, *amp, file="segkc.yaml"))
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.student.parameters())
    assert all(s[key].masks.is_cuda for s in trainer.batch["unlabeled"] for key in ("targets", "senior_targets"))
