"""HVL's learnable prompts: the text tower with a prompt, and the losses that keep embeddings where CLIP has them."""

from __future__ import annotations

import copy

import open_clip
import pytest
import torch
import torch.nn.functional as F

from dearli_d2.errors import ConfigError
from dearli_d2.methods.hvl.prompts import PromptLearner, anchor_loss, topology_loss
from dearli_d2.modeling.clip.text_tower import text_tower_of


@pytest.fixture
def clip():
    from dearli_d2.modeling.backbone import tiny_clip
    from dearli_d2.modeling.backbone.clip_model import build_clip

    return build_clip(tiny_clip.NAME, "shipped").eval().requires_grad_(False)


def test_a_prompt_of_word_embeddings_equals_the_text_tower(clip):
    """With the tokens of "a photo of a" as prompt, embeddings are those of open_clip for the whole sentence."""
    names, words = ["striped red", "sand"], "a photo of a"
    tokenizer = open_clip.get_tokenizer("miniworld-convnext")
    ids = torch.tensor(tokenizer.encode(words))
    prompts = PromptLearner(clip, len(ids), 2)
    prompts.set_names("miniworld-convnext", names)
    prompts.prompt.data = clip.token_embedding(ids)[None].clone()
    expected = F.normalize(clip.encode_text(tokenizer([f"{words} {n}" for n in names])), dim=-1)
    assert torch.allclose(prompts(clip), expected, atol=1e-5)


@pytest.mark.parametrize("per_class", [False, True])
def test_the_gradient_reaches_the_prompt_and_nothing_of_the_text_tower(clip, per_class):
    prompts = PromptLearner(clip, 4, 3, per_class)
    prompts.set_names("miniworld-convnext", ["a", "b", "c"])
    prompts(clip)[:, 0].sum().backward()
    assert prompts.prompt.shape[0] == (3 if per_class else 1)
    assert (prompts.prompt.grad.abs().sum(-1) > 0).all()
    assert all(p.grad is None for p in clip.parameters())


def test_embeddings_are_kept_until_the_prompt_changes(clip):
    prompts = PromptLearner(clip, 2, 2)
    prompts.set_names("miniworld-convnext", ["a", "b"])
    with torch.no_grad():
        first = prompts(clip)
        assert prompts(clip) is first
        prompts.prompt.add_(1)
        assert not torch.allclose(prompts(clip), first)
    twin = copy.deepcopy(prompts)
    with torch.no_grad():
        assert torch.equal(twin(clip), prompts(clip))


@pytest.mark.parametrize(
    ("names", "tokens", "message"),
    [
        (["grass", "grass"], 8, "two classes have the name 'grass'"),
        (["grass", " "], 8, "no text token"),
        (["grass", "sand"], 75, "PROMPT_TOKENS 75 and the class name 'grass' make 78 tokens"),
    ],
)
def test_names_that_make_no_prompt_are_errors(clip, names, tokens, message):
    with pytest.raises(ConfigError, match=message):
        PromptLearner(clip, tokens, len(names)).set_names("miniworld-convnext", names)


def test_topology_loss_is_zero_at_clips_embeddings_and_under_rotation():
    fixed = F.normalize(torch.randn(6, 8, dtype=torch.float64), dim=-1)
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    assert topology_loss(fixed, fixed) == 0
    assert topology_loss(fixed @ rotation, fixed) < 1e-20
    assert topology_loss(F.normalize(fixed + 0.3 * torch.randn(6, 8), dim=-1), fixed) > 1e-4


def test_anchor_loss_is_bounded_below_and_has_a_gradient_where_classes_coincide():
    fixed = F.normalize(torch.randn(5, 8), dim=-1)
    moved = fixed.clone()
    moved[1] = moved[0]
    moved.requires_grad_()
    anchor_loss(moved, fixed, 1.0).backward()
    assert torch.isfinite(moved.grad).all()
    for _ in range(20):
        value = anchor_loss(F.normalize(torch.randn(5, 8), dim=-1), fixed, 1.0)
        assert value >= -torch.log(torch.tensor(3.0))
    apart = torch.stack([torch.log1p((fixed[k] - fixed[j]).norm()) for k in range(5) for j in range(5) if j != k])
    assert float(anchor_loss(fixed, fixed, 1.0)) == pytest.approx(-float(apart.mean()), abs=1e-4)
    pull = (moved - fixed).norm(dim=-1).mean()
    assert anchor_loss(moved, fixed, 0.0).item() == pytest.approx(pull.item(), abs=1e-4)


def test_the_tower_of_text_is_found_in_every_kind_of_clip_model():
    model = open_clip.create_model("ViT-B-32", pretrained=None)
    assert text_tower_of(model) is model
