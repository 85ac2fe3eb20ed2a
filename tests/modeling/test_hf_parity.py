"""Our core against Hugging Face's Mask2Former with the same weights and inputs."""

from __future__ import annotations

import pytest
import torch
from transformers.utils import is_torch_available

from benchmarks.hf_peer import build_pair, features_of

pytestmark = pytest.mark.skipif(not is_torch_available(), reason="the installed transformers needs a newer torch")

SIZES = [(64, 64), (96, 64), (64, 160)]


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    head, criterion, peer = build_pair(5, 32, 9, 4, 2, 3, 40, 48, num_points=256)
    # away from the special values of the initialisation, where errors could hide
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    from benchmarks.hf_peer import copy_weights

    copy_weights(head, peer)
    return head.eval(), criterion, peer.eval()


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    scale = theirs.abs().max()
    assert (ours - theirs).abs().max() <= 1e-4 * scale, f"{(ours - theirs).abs().max() / scale:.2e} relative"


@pytest.mark.parametrize("size", SIZES)
def test_pixel_decoder_equals(pair, size):
    head, _, peer = pair
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        ours = head.pixel_decoder(features_of(peer, images))
        theirs = peer.model.pixel_level_module(images)
    close(ours.mask_features, theirs.decoder_last_hidden_state)
    for a, b in zip(ours.multi_scale, theirs.decoder_hidden_states, strict=True):
        close(a, b)


@pytest.mark.parametrize("size", SIZES)
def test_all_layers_logits_equal(pair, size):
    head, _, peer = pair
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        ours = head(features_of(peer, images))
        theirs = peer(images)
    layers = [
        *theirs.auxiliary_logits,
        {"class_queries_logits": theirs.class_queries_logits, "masks_queries_logits": theirs.masks_queries_logits},
    ]
    assert len(layers) == len(ours.class_outputs)
    for index, layer in enumerate(layers):
        close(ours.class_outputs[index], layer["class_queries_logits"])
        close(ours.mask_logits(index), layer["masks_queries_logits"])


@pytest.mark.parametrize("size", SIZES)
def test_total_loss_equals_on_fixed_points(pair, size, make_targets, monkeypatch):
    head, criterion, peer = pair
    # an image that is smaller than the batch: zeros on the right and at the bottom
    images = torch.randn(2, 3, *size)
    images[1, :, size[0] // 2 :] = 0
    targets = [make_targets(4, *size, seed=1), make_targets(2, *size, seed=2)]

    rand = torch.rand

    def same_points(*shape, device=None, **_):
        shape = shape[0] if isinstance(shape[0], (tuple, list)) else shape
        if len(shape) < 2:  # the peer's layer drop
            return rand(shape)
        generator = torch.Generator().manual_seed(shape[-2])
        return torch.empty(shape[-2:]).uniform_(generator=generator).expand(shape).contiguous()

    monkeypatch.setattr(torch, "rand", same_points)
    with torch.no_grad():
        output = head(features_of(peer, images))
        losses = criterion(output.class_outputs, output, targets)
        theirs = peer(images, mask_labels=[t.masks.float() for t in targets], class_labels=[t.labels for t in targets])
    close(sum(losses.values()), theirs.loss)
