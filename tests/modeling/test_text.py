"""Vocabularies: synonyms, order, prompts, cache."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dearli_d2.errors import ConfigError
from dearli_d2.modeling.backbone.open_clip import build_clip
from dearli_d2.modeling.text import Vocabulary, build_vocabulary, read_templates


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


def test_cache_returns_the_same_and_knows_other_weights(clip, tmp_path):
    first = build_vocabulary(clip, "miniworld-convnext", [["grass"]], ["a {}."]).embeddings
    files = list((tmp_path / "cache" / "text").iterdir())
    assert len(files) == 1
    assert torch.equal(first, build_vocabulary(clip, "miniworld-convnext", [["grass"]], ["a {}."]).embeddings)
    other = build_clip("miniworld-convnext", "").eval()
    changed = build_vocabulary(other, "miniworld-convnext", [["grass"]], ["a {}."]).embeddings
    assert not torch.allclose(first, changed, atol=1e-2)
    assert len(list((tmp_path / "cache" / "text").iterdir())) == 2


def test_names_without_tokens_and_long_prompts_are_errors(clip):
    with pytest.raises(ConfigError, match="no text token"):
        build_vocabulary(clip, "miniworld-convnext", [[" "]], ["{}"])
    with pytest.raises(ConfigError, match="the text tower reads 24"):
        build_vocabulary(clip, "miniworld-convnext", [["very " * 30 + "red"]], ["{}"])


def test_template_sources(tmp_path):
    assert len(read_templates("imagenet")) == 80
    assert all(t.count("{}") == 1 for t in read_templates("simple"))
    path = tmp_path / "templates.txt"
    path.write_text("one {} here\nno place here\n")
    with pytest.raises(ConfigError, match="no place here"):
        read_templates(str(path))
    with pytest.raises(ConfigError, match="neither a file nor one of"):
        read_templates("imagnet")
