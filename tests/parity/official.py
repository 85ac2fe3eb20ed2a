"""What the authors' DEARLi code computes, for `test_official_dearli.py`; and the input and weights that both sides share.

As a script, in a process of its own because both register models under the same names: `python official.py CHECKOUT RESULT.pt`.
"""

from __future__ import annotations

import math
import os
import sys
import types
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

CONFIG = "configs/ade20k/panoptic-segmentation-vlm/convnext_semisup/vlm_convnext_base_ade20k_1_128.yaml"
CLASS_NAMES = "mask2former/data/vlm_datasets/eng_prompts/ade20k_150_prompts.txt"
CLASSES, SIZE, EMBEDDING = 150, 128, 640
SYNONYMS = [1 + c % 3 for c in range(CLASSES)]
SPOKEN = (
    ("wall",),
    ("building", "edifice"),
    ("painting", "picture", "striped zebra crossing"),
)  # names for the text tower


def generator(key: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(key.encode()))


def set_weights(model: torch.nn.Module) -> None:
    """Random weights that follow from each name. What the decoder's layers add is small, so that queries do not become alike."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point() or name.endswith("empty_weight"):
                continue
            noise = torch.randn(tensor.shape, generator=generator(name))
            if name.endswith("logit_scale"):
                noise = torch.full_like(noise, math.log(30))
            elif tensor.dim() > 1:
                noise /= math.sqrt(tensor[0].numel())
                if "predictor" in name and name.endswith(("out_proj.weight", "linear2.weight")):
                    noise *= 0.1
            else:
                noise = 0.1 * noise + (1 if name.endswith(("weight", "gamma")) else 0)
            tensor.copy_(noise)


def text_embeddings() -> torch.Tensor:
    """(S, E) unit-norm, the synonyms of one class after another."""
    vectors = torch.randn(sum(SYNONYMS), EMBEDDING, generator=generator("text"))
    return torch.nn.functional.normalize(vectors, dim=-1)


def image(key: str) -> torch.Tensor:
    """(3, SIZE, SIZE) uint8: smooth colours and noise."""
    coarse = torch.rand(1, 3, 7, 7, generator=generator(key))
    smooth = torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic", align_corners=True)[0]
    noise = torch.randn(3, SIZE, SIZE, generator=generator(f"{key} noise"))
    return (smooth * 200 + 30 + noise * 10).clamp(0, 255).byte()


def segments(key: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) labels and (N, SIZE, SIZE) bool disjoint masks: the cells of random points."""
    seeds = torch.rand(count, 2, generator=generator(key)) * SIZE
    pixels = torch.cartesian_prod(torch.arange(SIZE), torch.arange(SIZE)).float()
    nearest = torch.cdist(pixels, seeds).argmin(1).view(SIZE, SIZE)
    labels = torch.randint(0, CLASSES, (count,), generator=generator(f"{key} labels"))
    return labels, nearest == torch.arange(count)[:, None, None]


STEPS = (0, 1, 2, 3, 4, 500, 998, 999, 1000, 40000)
TEACHERS = ((0, False), (0, True), (3, False), (3, True))  # burn-in, and whether it has weights of its own
LABELED = [("labelled a", 6), ("labelled b", 3)]
UNLABELED = [("pseudo a", 5), ("pseudo b", 2)]


@contextmanager
def same_points() -> Iterator[None]:
    """Both sides draw points by `torch.rand(masks, P, 2)`, as many sets as they need; here the P points follow from P."""
    draw = torch.rand

    def points(*size, **options):
        shape = tuple(size[0]) if isinstance(size[0], tuple | list) else size
        if len(shape) != 3 or shape[2] != 2:
            return draw(*size, **options)
        return draw(shape[1:], generator=generator(str(shape[1]))).expand(shape).clone()

    torch.rand = points
    try:
        yield
    finally:
        torch.rand = draw


def relative(value: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is wanted."""
    return float((value - wanted).norm() / wanted.norm().clamp(min=1e-30))


# ---------------------------------------------------------------------------------------------- the authors' side


def _build(checkout: str) -> torch.nn.Module:
    os.chdir(checkout)
    sys.path.insert(0, checkout)
    # the compiled operation; without it their layer computes in plain PyTorch
    sys.modules["MultiScaleDeformableAttention"] = types.ModuleType("MultiScaleDeformableAttention")
    import train_net_semi_sup
    from detectron2.config import get_cfg
    from detectron2.projects.deeplab import add_deeplab_config
    from mask2former import add_maskformer2_config, add_vl_maskformer2_config
    from mask2former.config import add_semi_sup_config

    cfg = get_cfg()
    for add in (add_deeplab_config, add_maskformer2_config, add_semi_sup_config, add_vl_maskformer2_config):
        add(cfg)
    cfg.merge_from_file(CONFIG)
    cfg.merge_from_list(["MODEL.VL_MASK_FORMER.OPEN_CLIP_PRETRAINED_WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    return train_net_semi_sup.SemiSupTrainer.build_model(cfg)


def _instances(key: str, count: int):
    from detectron2.structures import Instances

    instances = Instances((SIZE, SIZE))
    instances.gt_classes, masks = segments(key, count)
    instances.gt_masks = masks
    instances.segment_confidence_maps = instances.segment_per_pixel_logits = masks.float()  # passed on, not used
    return instances


def _momentum(burn_in: int, own_weights: bool) -> list[float]:
    """Share of itself that their teacher keeps in each of `STEPS`."""
    from mask2former.vision_language_maskformer_teacher import VisionLanguageMaskFormerTeacher

    kept: list[float] = []
    teacher = types.SimpleNamespace(
        burn_in_iters=burn_in,
        ema_decay=0.999,
        teacher_weights_path_set=own_weights,
        init_modules=lambda *_, **__: kept.append(0.0),
        convert_weights_to_leaf_nodes=lambda: None,
        ema_update_weights=lambda _, ema_decay: kept.append(ema_decay),
    )
    result = []
    for step in STEPS:
        kept.clear()
        VisionLanguageMaskFormerTeacher.post_optim_step(teacher, None, step)
        result.append(kept[0] if kept else 1.0)
    return result


def compute(checkout: str) -> dict:
    """Logits, semantic scores, losses and gradients of the authors' student."""
    model = _build(checkout)
    set_weights(model)
    from mask2former.utils.misc import VILD_PROMPT

    result: dict = {
        "names": sorted(n for n in model.state_dict() if not n.endswith("empty_weight")),
        "prompts": VILD_PROMPT,
    }
    result["momentum"] = {case: _momentum(*case) for case in TEACHERS}
    result["classes"] = list(model.metadata.stuff_classes)  # things too
    with torch.no_grad():
        metadata = types.SimpleNamespace(stuff_classes=[",".join(names) for names in SPOKEN])
        model.num_templates, model.class_names = model.prepare_class_names_from_metadata(metadata)
        result["spoken"], _ = model.get_text_classifier()
    model.text_classifier, model.num_templates = text_embeddings(), list(SYNONYMS)

    seen = []
    model.sem_seg_head.register_forward_hook(lambda _, __, output: seen.append(output))
    model.eval()
    with torch.no_grad():
        read_out = model([{"image": image("test"), "height": SIZE, "width": SIZE}])[0]
    layers = [*seen[-1]["aux_outputs"], seen[-1]]
    result["class_logits"] = torch.stack([x["pred_logits"] for x in layers])
    result["mask_logits"] = torch.stack([x["pred_masks"] for x in layers])
    result["semantic"] = read_out["sem_seg"]

    model.train()
    batch = [
        {
            "image": image(labeled[0]),
            "student_image": image(unlabeled[0]),
            "instances": _instances(*labeled),
            "teacher_instances_panseg": _instances(*unlabeled),
        }
        for labeled, unlabeled in zip(LABELED, UNLABELED, strict=True)
    ]
    with same_points():
        losses = model(batch)
    sum(losses.values()).backward()
    result["losses"] = {name.replace("pseudo_", "unlabeled_"): loss.detach() for name, loss in losses.items()}
    result["gradients"] = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return result


if __name__ == "__main__":
    torch.save(compute(os.path.abspath(sys.argv[1])), sys.argv[2])
