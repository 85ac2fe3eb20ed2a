"""Vocabularies: synonyms, order, prompts, cache."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dearli_d2.errors import ConfigError
from dearli_d2.modeling.backbone.clip_model import build_clip
from dearli_d2.modeling.clip.text import GivenVocabulary, Vocabulary, build_vocabulary, read_templates
from dearli_d2.modeling.clip.text_tower import text_tower_of


@pytest.fixture(scope="module")
def clip():
    return build_clip("miniworld-convnext", "shipped").eval()


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEARLI_CACHE", str(tmp_path / "cache"))


def embeddings(count, dim=8):
    return F.normalize(torch.randn(count, dim), dim=-1)


def test_class_logit_is_the_maximum_over_its_synonyms():
    table, queries = embeddings(6), torch.randn(3, 8)
    result = Vocabulary(table, [1, 3, 2]).cosine(queries)
    cosine = F.normalize(queries, dim=-1) @ table.T
    expected = torch.stack([cosine[:, 0], cosine[:, 1:4].amax(-1), cosine[:, 4:].amax(-1)], -1)
    assert torch.allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("counts", [[1, 3, 2], [1] * 6, [2, 2, 2]])
def test_further_embeddings_are_classes_behind_those_of_names(counts):
    torch.manual_seed(0)
    table, queries, more = embeddings(6), torch.randn(3, 8), 3 * torch.randn(2, 8)
    vocabularies = [Vocabulary(table, counts)]
    if len(set(counts)) == 1:
        vocabularies.append(GivenVocabulary(table.unflatten(0, (len(counts), counts[0]))))
    cosine = F.cosine_similarity(queries.double()[:, None], more.double()[None], dim=-1)
    for vocabulary in vocabularies:
        result = vocabulary.cosine(queries, more)
        assert torch.allclose(result[:, : len(counts)], vocabulary.cosine(queries), atol=1e-6)
        assert torch.allclose(result[:, len(counts) :].double(), cosine, atol=1e-6)


def test_maximum_and_gradient_equal_those_of_a_loop_over_classes():
    torch.manual_seed(0)
    counts = [1, 12, 3, 1, 7] * 6
    table = embeddings(sum(counts))
    ours, loop = (torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    result = Vocabulary(table, counts).cosine(ours)
    cosine = F.normalize(loop, dim=-1) @ table.T
    expected = torch.stack([part.amax(-1) for part in cosine.split(counts, -1)], -1)
    weight = torch.randn(2, 5, len(counts))
    (result * weight).sum().backward()
    (expected * weight).sum().backward()
    assert torch.allclose(result, expected, atol=1e-6)
    assert torch.allclose(ours.grad, loop.grad, atol=1e-6)


def test_cost_does_not_grow_with_the_longest_list_of_synonyms():
    """One class of 300 names beside 149 of one must not make a table of 150 x 300."""
    counts = [300] + [1] * 149
    queries = torch.randn(50, 8, requires_grad=True)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        Vocabulary(embeddings(sum(counts)), counts).cosine(queries)
    assert max(sizes) <= 50 * sum(counts)


def test_duplicate_synonym_changes_nothing(clip):
    queries = torch.randn(4, 64)
    once = build_vocabulary(clip, "miniworld-convnext", [["grass"], ["sky", "water"]], ["a {}."])
    twice = build_vocabulary(clip, "miniworld-convnext", [["grass", "grass"], ["sky", "water", "sky"]], ["a {}."])
    assert torch.allclose(once.cosine(queries), twice.cosine(queries), atol=1e-6)


def test_permuting_classes_permutes_logits(clip):
    queries, names, order = torch.randn(4, 64), [["grass"], ["sky", "water"], ["sand"]], [2, 0, 1]
    plain = build_vocabulary(clip, "miniworld-convnext", names, ["a {}."]).cosine(queries)
    permuted = build_vocabulary(clip, "miniworld-convnext", [names[i] for i in order], ["a {}."]).cosine(queries)
    assert torch.allclose(permuted, plain[:, order], atol=1e-6)


@pytest.mark.parametrize("count", [1, 1000])
def test_one_class_and_a_thousand(count):
    assert Vocabulary(embeddings(count), [1] * count).cosine(torch.randn(2, 8)).shape == (2, count)


def test_templates_are_averaged_on_the_sphere(clip):
    import open_clip

    tokenizer = open_clip.get_tokenizer("miniworld-convnext")
    with torch.no_grad():
        each = [F.normalize(clip.encode_text(tokenizer([t.format("grass")])), dim=-1) for t in ("a {}.", "the {}.")]
    expected = F.normalize(torch.cat(each).mean(0), dim=-1)
    ours = build_vocabulary(clip, "miniworld-convnext", [["grass"]], ["a {}.", "the {}."]).embeddings[0]
    assert torch.allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("arch", ["miniworld-convnext", "ViT-B-16", "EVA02-B-16"])
def test_embeddings_equal_those_of_open_clip_without_reading_the_padding(arch, monkeypatch):
    """Of every kind of text tower that is used, with few layers."""
    import open_clip

    config = open_clip.get_model_config(arch)
    small = {**config["text_cfg"], "layers": 2}
    monkeypatch.setattr("open_clip.factory.get_model_config", lambda name: {**config, "text_cfg": small})
    torch.manual_seed(0)
    model = open_clip.create_model(arch).eval()
    read = []
    text_tower_of(model).transformer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[1]))
    names, templates = [["grass"], ["a very long name of a class"]], ["a {}.", "This is a photo of the {} there."]
    ours = build_vocabulary(model, arch, names, templates).embeddings
    assert max(read) < 20
    tokenizer = open_clip.get_tokenizer(arch)
    with torch.no_grad():
        each = [F.normalize(model.encode_text(tokenizer([t.format(n) for t in templates])), dim=-1) for (n,) in names]
    expected = F.normalize(torch.stack([e.mean(0) for e in each]), dim=-1)
    assert torch.allclose(ours, expected, atol=1e-5)


def keys(tmp_path):
    return {file.name for file in (tmp_path / "cache" / "text").iterdir()}


def test_cache_returns_the_same_without_encoding_again(clip, tmp_path, monkeypatch):
    first = build_vocabulary(clip, "miniworld-convnext", [["grass"]], ["a {}."]).embeddings
    assert len(keys(tmp_path)) == 1
    monkeypatch.setattr("dearli_d2.modeling.clip.text._encode", lambda *_: pytest.fail("encoded again"))
    assert torch.equal(first, build_vocabulary(clip, "miniworld-convnext", [["grass"]], ["a {}."]).embeddings)


def test_a_damaged_cache_file_is_made_again(clip, tmp_path):
    first = build_vocabulary(clip, "miniworld-convnext", [["grass"]], ["a {}."]).embeddings
    (tmp_path / "cache" / "text" / keys(tmp_path).pop()).write_bytes(b"cut off")
    assert torch.equal(first, build_vocabulary(clip, "miniworld-convnext", [["grass"]], ["a {}."]).embeddings)


def test_every_weight_of_the_text_tower_changes_the_cache_key(clip):
    """Also one number deep in a block, and the last number of a large table."""
    from dearli_d2.modeling.clip.text import _fingerprint

    tokens = [torch.tensor([[1, 2, 3]])]
    before = _fingerprint(clip, tokens)
    weights = {
        n: p
        for n, p in clip.named_parameters()
        if not n.startswith("visual.") and n not in ("logit_scale", "logit_bias")
    }
    assert len(weights) > 20
    with torch.no_grad():
        for name, weight in weights.items():
            last = weight.view(-1)[-1:]
            kept = last.clone()
            last.add_(1.0)
            assert _fingerprint(clip, tokens) != before, name
            last.copy_(kept)
    assert _fingerprint(clip, tokens) == before


def test_activation_heads_tokens_and_nothing_of_the_image_tower_change_the_cache_key(clip):
    import copy

    from open_clip.transformer import QuickGELU

    from dearli_d2.modeling.clip.text import _fingerprint

    tokens = [torch.tensor([[1, 2, 3]])]
    before = _fingerprint(clip, tokens)
    assert _fingerprint(clip, [torch.tensor([[1, 2, 4]])]) != before
    other = copy.deepcopy(clip)
    with torch.no_grad():
        for weight in (*other.visual.parameters(), other.logit_scale):
            weight.add_(1.0)
    other.train()
    assert _fingerprint(other, tokens) == before
    block = text_tower_of(other).transformer.resblocks[0]
    gelu, block.mlp.gelu = block.mlp.gelu, QuickGELU()
    assert _fingerprint(other, tokens) != before
    block.mlp.gelu = gelu
    assert _fingerprint(other, tokens) == before
    block.attn.num_heads *= 2
    assert _fingerprint(other, tokens) != before


def test_names_without_tokens_and_long_prompts_are_errors(clip):
    with pytest.raises(ConfigError, match="no text token"):
        build_vocabulary(clip, "miniworld-convnext", [[" "]], ["{}"])
    with pytest.raises(ConfigError, match="the text tower reads 24"):
        build_vocabulary(clip, "miniworld-convnext", [["very " * 30 + "red"]], ["{}"])


def test_template_sources(tmp_path):
    assert len(read_templates("imagenet")) == 80
    vild = read_templates("vild")
    assert (len(vild), len(set(vild))) == (14, 14)
    assert {"a photo of a {}.", "There is a {} in the scene", "This is a photo of a large {}."} <= set(vild)
    assert not any(word in " ".join(vild) for word in ("sculpture", "bad", "tattoo"))
    assert all(t.count("{}") == 1 for t in read_templates("simple"))
    path = tmp_path / "templates.txt"
    path.write_text("\ufeffa {} with a mark\n", encoding="utf-8")
    assert read_templates(str(path)) == ["a {} with a mark"]
    path.write_bytes("a größe {}".encode("latin-1"))
    with pytest.raises(ConfigError, match="templates.txt is no text in UTF-8"):
        read_templates(str(path))
    path.write_text("one {} here\nno place here\n")
    with pytest.raises(ConfigError, match="no place here"):
        read_templates(str(path))
    with pytest.raises(ConfigError, match="neither a file nor one of"):
        read_templates("imagnet")
