"""EoMT against Hugging Face's `EomtForUniversalSegmentation` with the same weights and inputs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer

from dearli_d2.checkpoint import load_state
from dearli_d2.methods.eomt.model import EoMT
from dearli_d2.methods.eomt.names import our_names
from dearli_d2.methods.eomt.options import EoMTOptions
from dearli_d2.methods.eomt.vit import PlainViT
from dearli_d2.modeling.mask2former.criterion import SetCriterion
from dearli_d2.modeling.mask2former.inference import panoptic_inference, semantic_inference
from dearli_d2.modeling.mask2former.matcher import HungarianMatcher
from dearli_d2.modeling.segmenter import ReadOut

transformers = pytest.importorskip("transformers", reason="the peer")
pytestmark = pytest.mark.skipif(
    not hasattr(transformers, "EomtForUniversalSegmentation"), reason="this transformers has no EoMT"
)

CLASSES, QUERIES, BLOCKS, POINTS = 5, 7, 3, 256


def eomt(side: int = 64, patch: int = 16, swiglu: bool = False, **options) -> EoMT:
    """A tiny one: 5 blocks of 32 channels, of which the last three read 7 queries."""
    layer = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU, "mlp_ratio": 5.5} if swiglu else {}
    vit = VisionTransformer(
        img_size=side, patch_size=patch, embed_dim=32, depth=5, num_heads=4, num_classes=0, init_values=0.5,
        reg_tokens=4, no_embed_class=True, dynamic_img_size=True, **layer,
    )  # fmt: skip
    return EoMT(
        backbone=PlainViT(vit),
        num_queries=QUERIES,
        criterion=SetCriterion(CLASSES, HungarianMatcher(num_points=POINTS), num_points=POINTS),
        taxonomy=SimpleNamespace(thing_ids={0, 2}),
        pixel_mean=[120.0] * 3,
        pixel_std=[60.0] * 3,
        options=EoMTOptions(blocks=BLOCKS, patch_size=patch),
        **options,
    )


def pair(side: int = 64, patch: int = 16, swiglu: bool = False):
    """Ours and theirs with the same random weights, through the name map."""
    torch.manual_seed(side + patch)
    config = transformers.EomtConfig(
        hidden_size=32, num_hidden_layers=5, num_attention_heads=4, image_size=side, patch_size=patch, num_blocks=BLOCKS,
        num_upscale_blocks={16: 2, 8: 1}[patch], num_queries=QUERIES, num_register_tokens=4, num_labels=CLASSES,
        train_num_points=POINTS, use_swiglu_ffn=swiglu,
    )  # fmt: skip
    peer = transformers.EomtForUniversalSegmentation(config)
    with torch.no_grad():  # away from the special values of the initialisation, where errors could hide
        for parameter in peer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours = eomt(side, patch, swiglu)
    report = load_state(ours, peer.state_dict(), "peer", strict=True)
    assert report.complete
    return ours, peer


def predictions_of(peer, images, **targets):
    """(mask logits, class logits) of every prediction, and the output."""
    found, original = [], peer.predict
    peer.predict = lambda x: found.append(original(x)) or found[-1]
    try:
        output = peer(images, **targets)
    finally:
        del peer.predict
    return found, output


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize(("side", "patch", "swiglu"), [(64, 16, False), (48, 8, False), (64, 16, True)])
@torch.no_grad()
def test_predictions_without_masks_equal(side, patch, swiglu):
    ours, peer = pair(side, patch, swiglu)
    ours.eval().attn_mask_probs.zero_()
    peer.eval().attn_mask_probs.zero_()
    images = torch.randn(2, 3, side, side)
    found, _ = predictions_of(peer, images)
    (output,) = ours.network(images)
    close(output.mask_logits(), found[0][0])
    close(output.class_outputs[0], found[0][1])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("side", "patch"), [(64, 16), (48, 8)])
@torch.no_grad()
def test_every_prediction_equals_with_masks(side, patch, training):
    ours, peer = pair(side, patch)
    ours.train(training), peer.train(training)
    images = torch.randn(2, 3, side, side)
    found, _ = predictions_of(peer, images)
    outputs = ours.network(images)
    assert len(outputs) == len(found) == BLOCKS + 1
    for output, (mask_logits, class_logits) in zip(outputs, found, strict=True):
        close(output.mask_logits(), mask_logits)
        close(output.class_outputs[0], class_logits)
    ours.attn_mask_probs.zero_()
    assert (ours.network(images)[-1].class_outputs[0] - found[-1][1]).abs().max() > 1e-3  # the masks matter


@torch.no_grad()
def test_every_prediction_equals_in_the_middle_of_the_annealing():
    ours, peer = pair()
    images, probabilities = torch.randn(2, 3, 64, 64), torch.tensor([0.3, 0.8, 0.5])
    for model in (ours, peer):
        model.train().attn_mask_probs.copy_(probabilities)
    torch.manual_seed(3)
    found, _ = predictions_of(peer, images)
    torch.manual_seed(3)
    for output, (mask_logits, class_logits) in zip(ours.network(images), found, strict=True):
        close(output.mask_logits(), mask_logits)
        close(output.class_outputs[0], class_logits)


def test_names_of_older_transformers_are_known():
    state = pair(swiglu=True)[1].state_dict()
    if not any(".gate_proj." in name for name in state):
        pytest.skip("this transformers is an older one, the tests above read its names")
    older = {name: value for name, value in state.items() if ".mlp." not in name}
    for name in [n for n in state if ".gate_proj." in n]:
        parts = [state[name.replace("gate", part)] for part in ("gate", "up")]
        older[name.replace("gate_proj", "weights_in")] = torch.cat(parts)
        last = name.replace("gate_proj", "down_proj")
        older[last.replace("down_proj", "weights_out")] = state[last]
    newer = our_names(state)
    assert newer.keys() == our_names(older).keys()
    assert all(torch.equal(value, newer[name]) for name, value in our_names(older).items())


@torch.no_grad()
def test_the_sum_of_the_losses_equals_on_fixed_points(make_targets, monkeypatch):
    ours, peer = pair()
    ours.train(), peer.train()
    images = torch.randint(0, 256, (2, 3, 64, 64)).float()
    targets = [make_targets(4, 64, 64, seed=1), make_targets(2, 64, 64, seed=2)]
    for target in targets:
        target.labels.remainder_(CLASSES)

    def same_points(*shape, device=None, **_):
        shape = shape[0] if isinstance(shape[0], tuple | list) else shape
        generator = torch.Generator().manual_seed(shape[-2])
        return torch.empty(shape[-2:]).uniform_(generator=generator).expand(shape).contiguous()

    monkeypatch.setattr(torch, "rand", same_points)
    samples = [{"image": image, "targets": target} for image, target in zip(images, targets, strict=True)]
    losses = ours(samples)
    theirs = peer(
        (images - 120) / 60,
        mask_labels=[t.masks.float() for t in targets],
        class_labels=[t.labels for t in targets],
    ).loss
    assert len(losses) == 3 * (BLOCKS + 1)
    torch.testing.assert_close(sum(losses.values()), theirs.squeeze(), rtol=1e-4, atol=0)


def compare_read_outs(panoptics, scores, output, size: tuple[int, int], threshold: float, overlap: float) -> int:
    """Ours, which are those of Mask2Former, against Hugging Face's for EoMT; returns the number of segments."""
    edges = {"shortest_edge": 64, "longest_edge": 64}
    processor, sizes, count = transformers.EomtImageProcessor(size=edges), [size] * len(panoptics), 0
    theirs = processor.post_process_panoptic_segmentation(
        output, sizes, threshold=threshold, overlap_mask_area_threshold=overlap, stuff_classes=[1, 3, 4]
    )
    for (panoptic, segments), result in zip(panoptics, theirs, strict=True):
        found = {s["id"]: s["label_id"] for s in result["segments_info"]}
        assert sorted(found.values()) == sorted(s["category_id"] for s in segments)
        for segment in segments:
            mask = panoptic == segment["id"]
            (number,) = result["segmentation"][mask].unique().tolist()
            assert found[number] == segment["category_id"]
            assert torch.equal(result["segmentation"] == number, mask)
        count += len(segments)
    for ours, classes in zip(scores, processor.post_process_semantic_segmentation(output, sizes, edges), strict=True):
        assert torch.equal(ours.argmax(0), classes)
    return count


@torch.no_grad()
def test_read_outs_equal_those_of_hugging_face():
    torch.manual_seed(0)
    class_logits, mask_logits = 4 * torch.randn(4, QUERIES, CLASSES + 1), torch.randn(4, QUERIES, 8, 8)
    mask_logits = torch.nn.functional.interpolate(3 * mask_logits, (64, 64), mode="bilinear")
    output = SimpleNamespace(class_queries_logits=class_logits, masks_queries_logits=mask_logits, patch_offsets=None)
    panoptics = panoptic_inference(class_logits, mask_logits, {0, 2}, 0.4, 0.3)
    scores = semantic_inference(class_logits, mask_logits)
    assert compare_read_outs(panoptics, scores, output, (64, 64), 0.4, 0.3) > 4


@torch.no_grad()
def test_from_the_image_to_its_segments_equals():
    ours, peer = pair()
    for model in (ours, peer):
        model.eval().attn_mask_probs.zero_()
    ours.read_out = ReadOut(object_threshold=0.2, overlap_threshold=0.4)
    images = torch.randint(0, 256, (2, 3, 64, 64)).float()
    results = ours([{"image": image} for image in images])
    output = peer((images - 120) / 60)
    panoptics, scores = [r["panoptic_seg"] for r in results], [r["sem_seg"] for r in results]
    assert compare_read_outs(panoptics, scores, output, (64, 64), 0.2, 0.4) > 2
