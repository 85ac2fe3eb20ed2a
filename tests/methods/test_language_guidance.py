"""Dense language guidance, and the features of captions."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from dearli_d2.data.captions import reads_captions
from dearli_d2.data.taxonomy import Taxonomy
from dearli_d2.engine.classmix import ClassMix
from dearli_d2.engine.strong_views import StrongViews
from dearli_d2.engine.teacher import EMATeacher
from dearli_d2.errors import DatasetError
from dearli_d2.methods.semidavil.correlation import CorrelationReasoning, WordPixelCorrelation
from dearli_d2.methods.semidavil.guidance import CaptionEncoder, DenseLanguageGuidance
from dearli_d2.modeling import build_model


def sample(caption="a picture of grass and striped red"):
    return {"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), "caption": caption, "file_name": "a"}


def guidance(seed=0):
    torch.manual_seed(seed)
    module = DenseLanguageGuidance(12, 10, 8)
    torch.nn.init.normal_(module.project.weight)  # as after training
    return module, torch.randn(2, 12, 3, 5), torch.randn(2, 6, 10), torch.tensor([[1] * 6, [1] * 4 + [0] * 2]).bool()


# ---------------------------------------------------------------------------------------------- guidance


def test_attention_is_normalised_over_tokens_and_over_pixels():
    module, vision, text, present = guidance()
    over_tokens, over_pixels = module.attention(vision.flatten(2).transpose(1, 2), text, present)
    assert over_tokens.shape == over_pixels.shape == (2, 15, 6)
    assert torch.allclose(over_tokens.sum(2), torch.ones(2, 15))
    assert torch.allclose(over_pixels.sum(1), torch.ones(2, 6))
    assert not over_tokens[1, :, 4:].any()


def test_guidance_equals_its_equations():
    """Pixel by pixel and token by token, in float64."""
    module, vision, text, present = guidance()
    got = module(vision, text, present).double()
    module = module.double()
    for image in range(2):
        pixels = vision[image].double().flatten(1).T
        tokens = text[image][present[image]].double()
        key_v, value_v = module.vision_key(pixels), module.vision_value(pixels)
        key_t, value_t = module.text_key(tokens), module.text_value(tokens)
        affinity = torch.stack([torch.stack([v @ t / 8**0.5 for t in key_t]) for v in key_v])
        rows, columns = affinity.softmax(1), affinity.softmax(0)
        f_v = torch.stack([sum(row[j] * value_t[j] for j in range(len(tokens))) for row in rows])
        f_l = torch.stack([sum(columns[i, j] * value_v[i] for i in range(15)) for j in range(len(tokens))])
        expected = pixels + module.project(module.norm(f_v + rows @ f_l))
        assert torch.allclose(got[image].flatten(1).T, expected, atol=1e-5)


def test_padding_tokens_have_no_influence_bit_by_bit():
    module, vision, text, present = guidance()
    other = torch.where(present[..., None], text, 1e3 * torch.randn(text.shape))
    assert torch.equal(module(vision, text, present), module(vision, other, present))
    broken = torch.where(present[..., None], text, torch.nan)
    assert torch.equal(module(vision, text, present), module(vision, broken, present))


def test_the_order_of_tokens_does_not_matter():
    module, vision, text, present = guidance()
    order = torch.randperm(6)
    mixed = module(vision, text[:, order], present[:, order])
    assert torch.allclose(mixed, module(vision, text, present), atol=1e-5)


def test_guidance_starts_as_the_identity_and_learns_at_once():
    module, vision, text, present = guidance()
    fresh = DenseLanguageGuidance(12, 10, 8)
    result = fresh(vision, text, present)
    assert torch.equal(result, vision)
    (result * torch.randn(result.shape)).sum().backward()
    assert fresh.project.weight.grad.any()
    assert not torch.allclose(module(vision, text, present), vision)


def test_guidance_agrees_with_fp32_under_autocast():
    module, vision, text, present = guidance()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = module(vision, text, present)
    full = module(vision, text, present)
    assert (half - full).abs().max() < 0.05 * full.abs().max()


# ---------------------------------------------------------------------------------------------- other attention


def correlation(kind, seed=0):
    torch.manual_seed(seed)
    module = kind(12, 10, 32, 6).eval()
    torch.nn.init.normal_(module.project.weight)  # as after training
    return module, torch.randn(2, 12, 3, 5), torch.randn(2, 6, 10)


def cosines_by_hand(module, vision, text):
    """(B, K, h, w), word by word and pixel by pixel."""
    result = torch.zeros(2, 6, 3, 5, dtype=torch.float64)
    for b, k, i, j in np.ndindex(2, 6, 3, 5):
        pixel, word = module.vision_key(vision[b, :, i, j]), module.text_key(text[b, k])
        result[b, k, i, j] = (pixel @ word) / (pixel.norm() * word.norm())
    return result


def test_word_pixel_correlation_equals_its_equations():
    module, vision, text = correlation(WordPixelCorrelation)
    got = module(vision, text).double()
    module, vision, text = module.double(), vision.double(), text.double()
    cosines = cosines_by_hand(module, vision, text)
    for b, i, j in np.ndindex(2, 3, 5):
        added = module.project.weight @ cosines[b, :, i, j] + module.project.bias
        assert torch.allclose(got[b, :, i, j], vision[b, :, i, j] + added, atol=1e-4)


def test_correlations_are_read_in_space_and_between_words():
    """Each word has its own convolution, each pixel its own attention over words; text stands beside the maps."""
    module, vision, text = correlation(CorrelationReasoning)
    got = module(vision, text).double()
    module, vision, text = module.double(), vision.double(), text.double()
    cosines = cosines_by_hand(module, vision, text)
    for b in range(2):
        maps = [module.spatial(cosines[b, k][None, None])[0].relu() for k in range(6)]
        for i, j in np.ndindex(3, 5):
            words = torch.stack([m[:, i, j] for m in maps])
            both = torch.cat([words, module.text(text[b]).relu()], 1)
            read = words + module.semantic(both[None])[0, :, : words.shape[1]]
            expected = vision[b, :, i, j] + module.project(read.flatten())
            assert torch.allclose(got[b, :, i, j], expected, atol=1e-4)


@pytest.mark.parametrize("kind", [WordPixelCorrelation, CorrelationReasoning])
def test_correlation_starts_as_the_identity_and_then_trains_every_parameter(kind):
    module, vision, text = correlation(kind)
    fresh = kind(12, 10, 32, 6)
    result = fresh(vision, text)
    assert torch.equal(result, vision)
    (result * torch.randn(result.shape)).sum().backward()
    assert fresh.project.weight.grad.any()
    (module(vision, text) * torch.randn(result.shape)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("kind", [WordPixelCorrelation, CorrelationReasoning])
def test_correlation_agrees_with_fp32_under_autocast(kind):
    module, vision, text = correlation(kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = module(vision, text)
    full = module(vision, text)
    assert (half - full).abs().max() < 0.05 * full.abs().max()


@pytest.mark.parametrize("attention", ["wpct", "vlga"])
def test_other_attention_reads_the_names_of_the_classes_and_no_caption(semidavil, attention):
    cfg = semidavil("MODEL.SEMIDAVIL.ATTENTION", attention)
    assert not reads_captions(cfg)
    model = build_model(cfg).eval()
    torch.nn.init.normal_(model.guidance.project.weight)
    words = model.class_words(model.encoder)
    names = model.known_taxonomy().main_text_names
    for word, name in zip(words, names, strict=True):
        assert torch.equal(word, model.encoder(model.language.clip_model, [name])[0][0, -1])
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    without = model([{"image": image}])[0]["sem_seg"]
    assert torch.equal(model([{"image": image, "caption": "grass"}])[0]["sem_seg"], without)
    torch.nn.init.zeros_(model.guidance.project.weight)
    assert not torch.equal(model([{"image": image}])[0]["sem_seg"], without)


# ---------------------------------------------------------------------------------------------- captions
def test_token_features_are_those_of_the_text_tower_before_pooling(semidavil):
    model = build_model(semidavil())
    clip = model.backbone.clip_model
    short, long = "grass", "a picture of striped red and brick wall"
    features, present = model.encoder(clip, [long, short, long])
    assert present.sum(1).tolist() == [len(model.encoder.tokens(c)) for c in (long, short, long)]
    assert torch.equal(features[0], features[2])
    import open_clip

    for row, mask, caption in zip(features, present, (long, short, long), strict=True):
        end = int(mask.sum()) - 1  # the end token is what CLIP pools
        tower = getattr(clip, "text", clip)
        projection = tower.text_projection
        pooled = projection(row[end]) if isinstance(projection, torch.nn.Linear) else row[end] @ projection
        expected = clip.encode_text(open_clip.get_tokenizer("miniworld-convnext")([caption]))[0]
        assert torch.allclose(pooled, expected, atol=1e-4)
        assert not row[end + 1 :].any()


def test_a_mixed_image_is_described_by_both_captions(semidavil):
    cfg = semidavil("SSL.CUTMIX", "1.0", "SSL.CONFIDENCE", "0.0")
    model = build_model(cfg)
    teacher, views = EMATeacher(model), StrongViews(ClassMix(1.0), (), "cpu")
    inputs = [
        {**sample(caption=c), "strong": sample()["image"][None], "inside": torch.ones(64, 64).bool()}
        for c in ("grass", "sky and sand", "water")
    ]
    mixed = views(inputs, teacher.label(inputs), np.random.default_rng(0))  # a permutation that moves every image
    assert [x["caption"] if isinstance(x["caption"], str) else len(x["caption"]) for x in mixed] == [2, 2, 2]
    for x, own in zip(mixed, inputs, strict=True):
        first = x["caption"][0] if isinstance(x["caption"], tuple) else x["caption"]
        assert first == own["caption"]
    clip = model.backbone.clip_model
    both, present = model.encoder(clip, [("grass", "sky and sand"), "grass"])
    apart = [model.encoder(clip, [c])[0][0] for c in ("grass", "sky and sand")]
    assert torch.equal(both[0], torch.cat(apart))
    assert present.sum(1).tolist() == [len(both[0]), len(apart[0])]


def test_captions_are_encoded_once_and_again_after_other_weights(semidavil, monkeypatch):
    model = build_model(semidavil()).eval()
    calls = []
    encode = CaptionEncoder._encode
    monkeypatch.setattr(CaptionEncoder, "_encode", staticmethod(lambda *a: calls.append(1) or encode(*a)))
    teacher = copy.deepcopy(model)
    for _ in range(2):
        model([sample(), sample()])
        teacher([sample()])
    assert len(calls) == 1
    state = model.state_dict()
    name = next(n for n in state if "token_embedding" in n)
    before = model([{**sample(), "image": torch.zeros(3, 64, 64)}])[0]["sem_seg"]
    state[name] = torch.randn(state[name].shape)
    torch.nn.init.normal_(model.guidance.project.weight)
    state.update({n: t for n, t in model.state_dict().items() if n.startswith("guidance")})
    model.load_state_dict(state)
    assert not torch.equal(model([{**sample(), "image": torch.zeros(3, 64, 64)}])[0]["sem_seg"], before)
    assert len(calls) == 2


def test_a_caption_changes_the_prediction_only_with_guidance(semidavil):
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    inputs = [[{"image": image, "caption": caption}] for caption in ("grass", "striped red and sky")]
    model = build_model(semidavil()).eval()
    torch.nn.init.normal_(model.guidance.project.weight)
    assert not torch.equal(*(model(x)[0]["sem_seg"] for x in inputs))
    without = build_model(semidavil("MODEL.SEMIDAVIL.GUIDANCE", "False")).eval()
    assert torch.equal(*(without(x)[0]["sem_seg"] for x in inputs))
    assert not any("guidance" in n for n, _ in without.named_parameters())


def test_missing_and_unfit_captions_are_errors(semidavil):
    model = build_model(semidavil()).eval()
    with pytest.raises(DatasetError, match="has no caption.*class_names"):
        model([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "file_name": "x.jpg"}])
    with pytest.raises(DatasetError, match="reads 24"):
        model([sample(caption="grass " * 40)])
    with pytest.raises(DatasetError, match="no text token"):
        model.encoder.tokens(" ")
    names = build_model(semidavil("MODEL.SEMIDAVIL.CAPTIONS", "class_names", "MODEL.SEMIDAVIL.GUIDANCE", "False"))
    assert names.encoder is None
    with pytest.raises(DatasetError, match="class_names"):  # 16 names are too long for the tiny text tower
        build_model(semidavil("MODEL.SEMIDAVIL.CAPTIONS", "class_names"))
    few = Taxonomy.from_text("grass, sky, sand")
    cfg = semidavil("MODEL.SEMIDAVIL.CAPTIONS", "class_names", "MODEL.NUM_CLASSES", "3")
    fixed = build_model(cfg, few).eval()
    assert fixed.captions_of([{}, {"caption": "other"}]) == ["grass, sky, sand"]
