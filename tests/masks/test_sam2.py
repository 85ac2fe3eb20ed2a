"""SAM 2 and SAM 3: against the automatic generator of transformers on random weights, folders of weights, and bad ones."""

from __future__ import annotations

import importlib
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from safetensors.torch import save_file

from dearli_d2.data import miniworld
from dearli_d2.errors import ConfigError, WeightsError
from dearli_d2.files import file_digest
from dearli_d2.masks.networks import load_generator
from dearli_d2.masks.point_grid import PointGridGenerator
from dearli_d2.masks.sam2 import CLASSES, Sam2Network

transformers = pytest.importorskip("transformers", minversion="5.3")

_DECODER = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 4, "iou_head_hidden_dim": 16}
_SIZES = [[32, 32], [16, 16], [8, 8]]


def tiny(name: str, seed: int = 0):
    """A model with random weights, whose masks differ and whose scores lie on both sides of 0.5."""
    torch.manual_seed(seed)
    if name == "sam2":
        backbone = {
            "model_type": "sam2_hiera_det_model", "hidden_size": 8, "num_attention_heads": 1, "image_size": [128, 128],
            "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 1, 2, 2],
            "window_size_per_stage": [4, 4, 4, 4], "global_attention_blocks": [3],
            "window_positional_embedding_background_size": [4, 4],
        }  # fmt: skip
        vision = {"backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8]}
        config, side, patch = transformers.Sam2Config, 128, 16
    else:
        backbone = {
            "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "image_size": 112, "pretrain_image_size": 56, "window_size": 4, "global_attn_indexes": [1],
        }  # fmt: skip
        vision, config, side, patch = {"backbone_config": backbone}, transformers.Sam3TrackerConfig, 112, 14
    vision |= {"backbone_feature_sizes": _SIZES, "fpn_hidden_size": 32}
    prompts = {"hidden_size": 32, "image_size": side, "patch_size": patch}
    made = config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=_DECODER)
    model = getattr(transformers, CLASSES[name][0])(made).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.dim() > 1 and "positional" not in key:
                torch.nn.init.normal_(weight, std=2.0 * weight[0].numel() ** -0.5)
        for head in model.mask_decoder.output_hypernetworks_mlps:
            head.proj_out.weight.mul_(8)
        model.mask_decoder.iou_prediction_head.proj_out.weight.mul_(2)
    return model


def generator(model, name: str, **options) -> PointGridGenerator:
    return PointGridGenerator(Sam2Network(model, getattr(transformers, CLASSES[name][1])()), 8, **options)


def of_transformers(model, name: str, image: np.ndarray, **options) -> dict:
    side = model.prompt_encoder.input_image_size
    processor = getattr(transformers, CLASSES[name][1])(size={"height": side, "width": side})
    pipeline = transformers.MaskGenerationPipeline(model=model, image_processor=processor)
    return pipeline(Image.fromarray(image), points_per_crop=8, points_per_batch=9, **options)


@pytest.mark.parametrize("shape", [(96, 96), (60, 96)])
@pytest.mark.parametrize("name", CLASSES)
def test_masks_equal_those_of_transformers(name, shape, monkeypatch):
    if (
        shape[0] != shape[1]
    ):  # transformers takes SAM's points, of an image that keeps its proportions; SAM 2's is a square
        module = importlib.import_module(f"transformers.models.{name}.image_processing_{name}")
        monkeypatch.setattr(
            module,
            "_normalize_coordinates",
            lambda side, points, size: (points * side / torch.tensor(size[::-1])).float(),
        )
    model, count = tiny(name), 0
    image = miniworld.make_scene(0, 1, size=96).image[: shape[0]]
    for nms in (0.7, 1.0):
        limits = {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.6, "crops_nms_thresh": nms}
        expected = of_transformers(model, name, image, **limits)
        (found,) = generator(model, name, predicted_iou=0.5, stability=0.6, nms=nms)([image])
        assert len(found) == len(expected["masks"])
        assert [a["predicted_iou"] for a in found] == pytest.approx(expected["scores"].tolist(), abs=1e-5)
        for a, mask in zip(found, expected["masks"], strict=True):
            own = rle.decode(a["segmentation"]).astype(bool)
            assert (own ^ np.asarray(mask)).sum() <= 1  # a pixel on the threshold
        count += len(found)
    assert count > 20


@pytest.mark.parametrize("name", CLASSES)
def test_a_folder_of_the_hub_is_loaded_also_by_its_file_of_weights(name, tmp_path):
    model, image = tiny(name), [miniworld.make_scene(0, 1, size=96).image]
    model.save_pretrained(tmp_path)
    expected = generator(model, name, predicted_iou=0.5, stability=0.6)(image)
    for weights in (tmp_path, tmp_path / "model.safetensors"):
        made = load_generator(name, weights, "cpu", points_per_side=8, predicted_iou=0.5, stability=0.6)
        assert made(image) == expected
        assert made.settings()["weights_sha256"] == file_digest(tmp_path / "model.safetensors")
        assert (made.settings()["generator"], made.settings()["precision"]) == ("transformers", "fp32")
    assert load_generator(name, tmp_path, "cpu").predicted_iou == 0.8


@pytest.mark.parametrize("name", CLASSES)
def test_the_model_for_videos_of_the_published_folders_gives_its_part_for_images(name, tmp_path):
    model, image = tiny(name), [miniworld.make_scene(0, 1, size=96).image]
    config, state = model.config.to_dict(), model.state_dict()
    if name == "sam2":
        content = {**config, "model_type": "sam2_video", "num_maskmem": 7}
        published = {**state, "memory_encoder.feature_projection.weight": torch.zeros(4)}
    else:
        content = {"model_type": "sam3_video", "tracker_config": {**config, "model_type": "sam3_tracker_video"}}
        published = {"detector_model.text_encoder.weight": torch.zeros(4)}
        for key, value in state.items():
            old = "vision_encoder.backbone.", "vision_encoder.neck."
            new = "detector_model.vision_encoder.backbone.", "tracker_neck."
            part = next((i for i in range(2) if key.startswith(old[i])), None)
            published[f"tracker_model.{key}" if part is None else key.replace(old[part], new[part])] = value
    (tmp_path / "config.json").write_text(json.dumps(content, default=str))
    save_file({k: v.clone() for k, v in published.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    made = load_generator(name, tmp_path, "cpu", points_per_side=8, predicted_iou=0.5, stability=0.6)
    assert made(image) == generator(model, name, predicted_iou=0.5, stability=0.6)(image)


def test_wrong_folders_of_weights_are_told_in_one_line(tmp_path, monkeypatch):
    tiny("sam2").save_pretrained(tmp_path / "two")
    whole, config = (tmp_path / "two" / name for name in ("model.safetensors", "config.json"))
    cases = [
        (WeightsError, "sam3", tmp_path / "two", r"config.json is of a sam2, not of a sam3; give --model sam2"),
        (WeightsError, "sam2", tmp_path / "none", r"none: there is no .*config.json; sam2 needs the folder of the hub"),
        (WeightsError, "sam2", "sam2.1/hiera_tiny", r"sam2.1/hiera_tiny is a name of the list of weights"),
    ]
    for kind, model, weights, words in cases:
        with pytest.raises(kind, match=words) as found:
            load_generator(model, weights, "cpu")
        assert "\n" not in str(found.value)
    content = json.loads(config.read_text())
    content["mask_decoder_config"]["mlp_dim"] = 64
    config.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match="two does not (hold|fit)"):
        load_generator("sam2", tmp_path / "two", "cpu")
    content["mask_decoder_config"]["mlp_dim"] = 32
    config.write_text(json.dumps(content))
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="two does not hold a sam2: ") as found:
        load_generator("sam2", tmp_path / "two", "cpu")
    assert "\n" not in str(found.value)
    config.write_text("{")
    with pytest.raises(WeightsError, match="config.json is damaged"):
        load_generator("sam2", tmp_path / "two", "cpu")
    monkeypatch.setitem(sys.modules, "transformers", None)
    config.write_text(json.dumps(content))
    with pytest.raises(
        ConfigError, match=r"--model sam2 needs the package transformers .*pip install 'dearli_d2\[sam2\]'"
    ):
        load_generator("sam2", tmp_path / "two", "cpu")
