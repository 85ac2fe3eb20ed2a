"""What the code of Mask2Former or FC-CLIP computes with random weights, for `test_official_panoptic.py`.

As a script, in a process of its own because it registers models under names that ours have too:
`python official_panoptic.py CHECKOUT NAME RESULT.pt`.
"""

from __future__ import annotations

import os
import sys
import types

import torch
import torch.nn.functional as F

from tests.published import random_weights, shapes_of

# name of the list of names: package, config below configs/, size of the image
MODELS = {
    "mask2former_r50": ("mask2former", "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml", (200, 300)),
    "mask2former_swin_t": (
        "mask2former",
        "coco/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml",
        (100, 150),
    ),
    "fc_clip_convnext_l": (
        "fcclip",
        "coco/panoptic-segmentation/fcclip/fcclip_convnext_large_eval_ade20k.yaml",
        (200, 260),
    ),
}
OBJECT_THRESHOLD, OVERLAP_THRESHOLD = 0.0, 0.01  # such that random weights give segments


def image_of(name: str) -> torch.Tensor:
    """(3, H, W) smooth colours, 0..255."""
    coarse = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(1)) * 255
    return F.interpolate(coarse, MODELS[name][2], mode="bicubic")[0].clamp(0, 255)


def weights_of(name: str) -> dict[str, torch.Tensor]:
    """Under the published names. Queries are enlarged, so that they have several classes."""
    weights = random_weights(shapes_of(name))
    if name.startswith("mask2former"):
        weights["sem_seg_head.predictor.query_feat.weight"] *= 8
        weights["sem_seg_head.predictor.class_embed.weight"] *= 4
    return weights


def texts_of(count: int) -> torch.Tensor:
    """(count, 768) unit-norm text embeddings."""
    return F.normalize(torch.randn(count, 768, generator=torch.Generator().manual_seed(5)), dim=-1)


def _build(checkout: str, name: str) -> torch.nn.Module:
    package, path, _ = MODELS[name]
    os.chdir(checkout)
    sys.path.insert(0, checkout)
    import detectron2

    # compiled operations; without them their layers compute in plain PyTorch
    detectron2._C = sys.modules["detectron2._C"] = types.ModuleType("_C")
    sys.modules["MultiScaleDeformableAttention"] = types.ModuleType("MultiScaleDeformableAttention")
    code = __import__(package)
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model
    from detectron2.projects.deeplab import add_deeplab_config

    cfg = get_cfg()
    add_deeplab_config(cfg)
    code.add_maskformer2_config(cfg)
    if package == "fcclip":
        code.add_fcclip_config(cfg)
        cfg.MODEL.FC_CLIP.CLIP_PRETRAINED_WEIGHTS = ""
    cfg.merge_from_file(f"configs/{path}")
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    if package == "fcclip":
        cfg.MODEL.FC_CLIP.CLIP_PRETRAINED_WEIGHTS = ""
    test = cfg.MODEL.MASK_FORMER.TEST
    test.OBJECT_MASK_THRESHOLD, test.OVERLAP_THRESHOLD = OBJECT_THRESHOLD, OVERLAP_THRESHOLD
    return build_model(cfg).eval()


def compute(checkout: str, name: str) -> dict:
    """Panoptic and semantic output of one image, and what the model knows about its classes."""
    model = _build(checkout, name)
    weights, own = weights_of(name), model.state_dict()
    weights |= {k: v for k, v in own.items() if k.endswith(("relative_position_index", "empty_weight"))}
    if name.startswith("mask2former"):  # their code expects the first release's names
        weights = {k.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): v for k, v in weights.items()}
    model.load_state_dict(weights)
    result = {}
    if name.startswith("fc_clip"):
        metadata, result["synonyms"] = model.test_metadata, list(model.test_num_templates)
        model.test_text_classifier = texts_of(sum(result["synonyms"]))
        result["seen"] = model.category_overlapping_mask.bool()
        result["classes"] = list(metadata.stuff_classes)
    else:
        metadata = model.metadata
    image = image_of(name)
    height, width = image.shape[1] + 20, image.shape[2] + 30
    with torch.no_grad():
        output = model([{"image": image, "height": height, "width": width}])[0]
    panoptic, segments = output["panoptic_seg"]
    result["panoptic"], result["semantic"] = panoptic, output["sem_seg"]
    result["segments"] = [(s["category_id"], bool(s["isthing"])) for s in segments]
    result["things"] = sorted(metadata.thing_dataset_id_to_contiguous_id.values())
    return result


if __name__ == "__main__":
    torch.save(compute(os.path.abspath(sys.argv[1]), sys.argv[2]), sys.argv[3])
