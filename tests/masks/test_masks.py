"""Class-agnostic masks: SAM against its own automatic generator, storage, the resumable run, the command line."""

from __future__ import annotations

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from dearli_d2.cli import main
from dearli_d2.data import miniworld
from dearli_d2.errors import ConfigError, DatasetError, WeightsError
from dearli_d2.masks.bits import run_lengths
from dearli_d2.masks.classical import ClassicalGenerator
from dearli_d2.masks.generate import generate
from dearli_d2.masks.generator import MaskGenerator
from dearli_d2.masks.point_grid import PointGridGenerator
from dearli_d2.masks.run_lengths import RunLengths
from dearli_d2.masks.sam import SamNetwork, load_sam
from dearli_d2.masks.storage import MaskFolder, encode
from tests.pretend_cuda import PretendCuda


def tiny_sam(seed: int = 0) -> Sam:
    """SAM with a small encoder and random weights; its scores are spread out so that the filters have work to do."""
    torch.manual_seed(seed)
    sam = Sam(
        ImageEncoderViT(
            depth=1, embed_dim=16, img_size=128, mlp_ratio=2, num_heads=2, patch_size=16, qkv_bias=True, use_rel_pos=True,
            global_attn_indexes=[0], window_size=4, out_chans=32, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        ),
        PromptEncoder(embed_dim=32, image_embedding_size=(8, 8), input_image_size=(128, 128), mask_in_chans=8),
        MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=32, num_heads=4),
            transformer_dim=32, iou_head_depth=2, iou_head_hidden_dim=16,
        ),
        pixel_mean=[123.675, 116.28, 103.53], pixel_std=[58.395, 57.12, 57.375],
    )  # fmt: skip
    with torch.no_grad():  # tokens that listen to the prompt, masks of different extent, scores on both sides of 0.4
        for name, parameter in sam.mask_decoder.transformer.named_parameters():
            if name.endswith("weight") and parameter.dim() > 1:
                parameter.mul_(6)
        sam.mask_decoder.mask_tokens.weight.mul_(0.3)
        sam.mask_decoder.iou_token.weight.mul_(0.3)
        for layer in sam.mask_decoder.output_hypernetworks_mlps:
            layer.layers[-1].weight.mul_(400)
        for block in (sam.image_encoder.patch_embed.proj, sam.mask_decoder.output_upscaling[0]):
            block.weight.mul_(6)
        sam.prompt_encoder.point_embeddings[1].weight.mul_(4)
        head = sam.mask_decoder.iou_prediction_head.layers[-1]
        head.weight.mul_(60)
        head.bias.fill_(0.5)
    sam.mask_threshold = 10.0
    return sam.eval()


def sam_generator(sam: Sam, points_per_side: int = 8, **options) -> PointGridGenerator:
    return PointGridGenerator(SamNetwork(sam), points_per_side, **options)


def scene(index: int, size: int = 96) -> np.ndarray:
    return miniworld.make_scene(0, index, size=size).image


def test_classical_masks_find_most_segments():
    """What the decoder warm-up learns from where there is no SAM: share of segments with a mask of IoU above 0.5."""
    found = {True: [], False: []}
    for scene_index in range(20):
        made = miniworld.make_scene(0, scene_index)
        masks = np.stack([rle.decode(m["segmentation"]) for m in ClassicalGenerator()([made.image])[0]]).astype(bool)
        for index, cls in enumerate(made.classes, 1):
            truth = made.segments == index
            iou = (masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2))
            found[cls.isthing].append(iou.max() > 0.5)
    assert np.mean(found[True]) > 0.6
    assert np.mean(found[False]) > 0.8


@pytest.mark.parametrize("nms", [0.7, 1.0])
@pytest.mark.parametrize("shape", [(96, 96), (60, 96), (96, 70)])
def test_sam_equals_the_automatic_mask_generator(shape, nms):
    sam, count = tiny_sam(), 0
    images = [scene(i)[: shape[0], : shape[1]] for i in range(2)]
    options = {"points_per_side": 8, "pred_iou_thresh": 0.4, "stability_score_thresh": 0.3, "box_nms_thresh": nms}
    reference = SamAutomaticMaskGenerator(sam, **options, points_per_batch=7, output_mode="binary_mask")
    ours = sam_generator(sam, prompts=13, predicted_iou=0.4, stability=0.3, nms=nms)(images)
    for image, found in zip(images, ours, strict=True):
        expected = [e for e in reference.generate(image) if e["area"]]
        assert len(expected) == len(found)
        count += len(found)
        left = list(found)
        for e in expected:  # the amplified weights make rounding flip single pixels, and near ties change places
            match = min(left, key=lambda a: distance(e, a))
            assert distance(e, match) < 0.01
            left.remove(match)
    assert count >= (2 if nms < 1 else 40)


def distance(e: dict, a: dict) -> float:
    """Of two annotations: 1 - intersection over union, or a larger difference of their scores."""
    mask = rle.decode(a["segmentation"]).astype(bool)
    overlap = (mask & e["segmentation"]).sum() / (mask | e["segmentation"]).sum()
    scores = [abs(e[k] - a[k]) for k in ("predicted_iou", "stability_score")]
    return max(1 - overlap, *scores, abs(e["area"] - a["area"]) / e["area"])


def test_sam_filters_drop_masks():
    sam, image = tiny_sam(), [scene(0)]
    everything = len(sam_generator(sam, predicted_iou=-1e9, stability=0.0, nms=1.0)(image)[0])
    assert len(sam_generator(sam, predicted_iou=-1e9, stability=0.0, nms=0.7)(image)[0]) < everything
    assert len(sam_generator(sam, predicted_iou=-1e9, stability=0.9, nms=1.0)(image)[0]) < everything
    assert sam_generator(sam, predicted_iou=1e9)(image) == [[]]  # none is good enough: no masks, no error


def test_masks_do_not_depend_on_batches():
    sam = tiny_sam()
    images = [scene(i)[: 96 - 20 * i] for i in range(3)]
    options = {"predicted_iou": 0.4, "stability": 0.3}
    alone = [a for i in images for a in sam_generator(sam, prompts=1, **options)([i])]
    together = sam_generator(sam, prompts=64, **options)(images)
    assert [len(x) for x in together] == [len(x) for x in alone]
    for one, other in zip(alone, together, strict=True):
        assert all(distance(pixels(a), b) < 0.01 for a, b in zip(one, other, strict=True))


def test_bf16_finds_the_masks_of_fp32():
    sam, images = tiny_sam(), [scene(i) for i in range(2)]
    sam.mask_threshold = 0.0
    for (
        name,
        weight,
    ) in sam.named_parameters():  # layers that keep the variance, as trained ones; tiny_sam's amplify rounding
        if weight.dim() > 1 and "pe_layer" not in name:
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    options = {"predicted_iou": -1e9, "stability": 0.0, "nms": 1.0}  # the masks themselves: no score close to a limit
    exact, fast = (sam_generator(sam, precision=p, **options)(images) for p in ("fp32", "bf16"))
    best = []
    for one, other in zip(exact, fast, strict=True):
        own, close = (
            rle.decode([a["segmentation"] for a in x]).reshape(-1, len(x)).astype(float) for x in (one, other)
        )
        both = own.T @ close
        best.append((both / (own.sum(0)[:, None] + close.sum(0) - both)).max(1))  # NMS sorts by score, so places differ
    overlap = np.concatenate(best)
    assert len(overlap) > 300
    assert overlap.mean() > 0.98
    assert np.quantile(overlap, 0.05) > 0.95
    assert sam_generator(sam, precision="bf16").settings()["precision"] == "bf16"


def pixels(annotation: dict) -> dict:
    return {**annotation, "segmentation": rle.decode(annotation["segmentation"]).astype(bool)}


def test_sam_weights_of_another_model_are_refused(tmp_path):
    torch.save(tiny_sam().state_dict(), tmp_path / "sam.pth")
    with pytest.raises(WeightsError, match="does not fit SAM vit_b"):
        load_sam("vit_b", tmp_path / "sam.pth", "cpu")
    with pytest.raises(WeightsError, match="no weight file"):
        load_sam("vit_b", tmp_path / "none.pth", "cpu")


def test_classical_masks_cover_the_image_and_find_regions():
    image = np.full((80, 100, 3), 30, np.uint8)
    image[20:60, 30:70] = (220, 40, 40)
    square = np.zeros((80, 100), bool)
    square[20:60, 30:70] = True
    codes = ClassicalGenerator()([image])[0]
    masks = rle.decode([c["segmentation"] for c in codes]).transpose(2, 0, 1).astype(bool)
    overlaps = [(m & square).sum() / (m | square).sum() for m in masks]
    assert max(overlaps) > 0.75  # blur makes the border a region of its own
    assert masks.any(0).all()
    assert [c["area"] for c in codes] == [m.sum() for m in masks]


def test_classical_masks_of_large_images_are_found_small_and_have_the_images_size():
    image = np.full((1500, 2100, 3), 30, np.uint8)
    image[300:900, 500:1400] = (220, 40, 40)
    square = (image == 220).any(-1)
    masks = [rle.decode(c["segmentation"]).astype(bool) for c in ClassicalGenerator()([image])[0]]
    assert {m.shape for m in masks} == {(1500, 2100)}
    assert max((m & square).sum() / (m | square).sum() for m in masks) > 0.95


def test_storage_round_trip(tmp_path):
    folder = MaskFolder(tmp_path)
    masks = np.random.default_rng(0).random((3, 20, 31)) > 0.6
    annotations = [{"segmentation": encode(m)} for m in masks]
    annotations.append({"segmentation": encode(masks[0]), "iscrowd": 1})
    folder.write("some/where/a.jpg", (20, 31), annotations)
    assert np.array_equal(folder.read("else/where/a.png"), masks)
    folder.write("b.jpg", (20, 31), [])
    assert folder.read("b.jpg").shape == (0, 20, 31)
    with pytest.raises(DatasetError, match=r"no masks of c.jpg.*masks generate makes them"):
        folder.read("c.jpg")
    folder.path("d.jpg").write_text('{"image": {}')
    with pytest.raises(DatasetError, match="is no mask file"):
        folder.read("d.jpg")


def mask_file(tmp_path, size, counts, image=(4, 6)):
    folder = MaskFolder(tmp_path)
    content = {
        "image": {"file_name": "a.jpg", "height": image[0], "width": image[1]},
        "annotations": [{"segmentation": {"size": size, "counts": counts}}],
    }
    (tmp_path / "masks").mkdir()
    folder.path("a.jpg").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("size", "counts", "image", "words"),
    [
        ([100000, 100000], "0`0", (4, 6), r"mask 0 has the size \[100000, 100000\], its image \[4, 6\]"),
        ([6, 4], encode(np.ones((4, 6), bool))["counts"], (4, 6), r"has the size \[6, 4\]"),
        ([4, 6], encode(np.ones((4, 5), bool))["counts"], (4, 6), "do not add up to 4 x 6 pixels"),  # too few
        ([4, 6], encode(np.ones((9, 9), bool))["counts"], (4, 6), "do not add up"),  # too many: beyond the mask
        ([4, 6], "", (4, 6), "do not add up"),
        ([4, 6], "n", (4, 6), "do not add up"),  # cut off in a number
        ([4, 6], "~~\\u00ff", (4, 6), "do not add up"),
        ([-4, -6], "0", (-4, -6), r"its image has the size \(-4, -6\)"),
        ([4, 6], 7, (4, 6), "is no mask file"),
        ([8, 12], encode(np.ones((8, 12), bool))["counts"], (8, 12), "its masks are 12 x 8, the image is 6 x 4"),
    ],
)
def test_a_code_that_does_not_fit_its_image_is_never_decoded(tmp_path, monkeypatch, size, counts, image, words):
    monkeypatch.setattr("dearli_d2.masks.storage.rle.decode", lambda codes: pytest.fail("decoded"))
    with pytest.raises(DatasetError, match=words):
        mask_file(tmp_path, size, counts, image).read("a.jpg", (4, 6))


def test_run_lengths_add_up_to_the_number_of_pixels():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (7, 5), (300, 200), (3, 5000)):
        texts = [encode(rng.random(shape) < density)["counts"] for density in (0.0, 0.001, 0.02, 0.5, 1.0)]
        lengths, begin = run_lengths([*texts, texts[2].encode()])
        assert np.add.reduceat(lengths, begin).tolist() == [shape[0] * shape[1]] * 6


def test_run_lengths_of_the_device_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (7, 5), (300, 200), (3, 5000)):
        masks = np.stack([rng.random(shape) < density for density in (0.0, 0.001, 0.02, 0.5, 1.0)])
        parts = [RunLengths.of(torch.from_numpy(part)) for part in (masks[:2], masks[2:2], masks[2:])]
        texts, areas = RunLengths.joined(parts, shape).encoded()
        assert texts == [encode(m)["counts"] for m in masks]
        assert areas == [m.sum() for m in masks]
        with PretendCuda():
            assert RunLengths.of(torch.from_numpy(masks).cuda()).encoded() == (texts, areas)
    assert RunLengths.joined([], (4, 6)).encoded() == ([], [])


def test_a_mask_file_whose_size_would_fill_the_memory(shared):
    with pytest.raises(DatasetError, match="has the size"):
        MaskFolder(shared.parent / "cases" / "20_rle_huge").read("a.jpg")


def test_masks_of_one_folder_do_not_count_for_another_with_the_same_names(images, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for index in range(7):
        Image.fromarray(scene(index + 50, 32)).save(other / f"{index}.jpg")
    theirs, folder = sorted(map(str, other.iterdir())), MaskFolder(tmp_path / "out")
    generate(images[:7], Counting(), folder)
    with pytest.raises(DatasetError, match=r"masks of other images with the names of 7 of these: .*other/0.jpg"):
        generate(theirs, Counting(), folder)
    with pytest.raises(DatasetError, match="the masks of 7 images are of others"):
        folder.check([{"file_name": f} for f in theirs])
    with pytest.raises(DatasetError, match=r"other/3.jpg: .*3.json was made of another image of that name"):
        folder.read(theirs[3])
    assert "7 images" in folder.check([{"file_name": f} for f in images[:7]])
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "images", moved)  # the same images in another place
    assert "7 images" in folder.check([{"file_name": str(moved / f"{i}.jpg")} for i in range(7)])


def test_a_list_of_failures_that_was_cut_off_is_read_as_far_as_it_goes(images, tmp_path):
    folder = MaskFolder(tmp_path / "out")
    generate(images, Counting(), folder)
    path = folder.folder / "failed_0_of_1.jsonl"
    path.write_text(path.read_text() + '{"file": "a.jp')
    assert "left out: " in folder.check([{"file_name": f} for f in images])
    assert generate(images, Counting(), folder)["failed"] == 1
    assert len(path.read_text().splitlines()) == 1
    path.write_bytes(b'\xff\xfe\n[1]\n{"error": "x"}\n')
    with pytest.raises(DatasetError, match="1 of 8 images have no masks"):
        folder.check([{"file_name": f} for f in images])


# ---------------------------------------------------------------------------------------------- the run


class Counting(MaskGenerator):
    """A generator that notes what it was given."""

    def __init__(self, setting: int = 1) -> None:
        self.seen, self.setting = 0, setting

    def settings(self) -> dict:
        return {"generator": "counting", "options": {"setting": self.setting}}

    def find(self, images):
        self.seen += len(images)
        return images

    def annotations(self, found):
        return [{"segmentation": encode(np.ones(found.shape[:2], bool))}]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(7):
        Image.fromarray(scene(index, 32)).save(folder / f"{index}.jpg")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    return sorted(map(str, folder.iterdir()))


def test_a_run_resumes_skips_broken_images_and_lists_them(images, tmp_path):
    folder, generator = MaskFolder(tmp_path / "out", shard=0), Counting()
    counts = generate(images, generator, folder, batch_size=3)
    assert dict(counts) == {"present": 0, "done": 7, "masks": 7, "failed": 1}
    failed = [json.loads(line) for line in (folder.folder / "failed_0_of_1.jsonl").read_text().splitlines()]
    assert [f["file"] for f in failed] == [images[-1]]
    assert "cannot be read as an image" in failed[0]["error"]
    assert generate(images[:3], Counting(), folder)["failed"] == 0  # says nothing of the broken one
    assert (folder.folder / "failed_0_of_1.jsonl").exists()
    folder.path("3.jpg").unlink()
    again = Counting()
    assert generate(images, again, folder)["present"] == 6
    assert again.seen == 1
    Image.fromarray(scene(0, 32)).save(images[-1])  # repaired
    assert generate(images, again, folder)["failed"] == 0
    assert not (folder.folder / "failed_0_of_1.jsonl").exists()


def test_shards_are_disjoint_and_whole(images, tmp_path):
    folder = MaskFolder(tmp_path / "out")
    counts = [generate(images, Counting(), folder, shard=(i, 3)) for i in range(3)]
    assert sum(c["done"] for c in counts) == 7
    assert all(c["present"] == 0 for c in counts)  # no shard met another's images
    assert len(folder.shards) == 7
    assert len(folder.shards.files()) == 3
    with pytest.raises(ConfigError, match="--shard 3/3"):
        generate(images, Counting(), folder, shard=(3, 3))


def test_masks_of_other_settings_are_not_mixed(images, tmp_path):
    folder = MaskFolder(tmp_path / "out")
    generate(images[:2], Counting(), folder)
    with pytest.raises(ConfigError, match=r"holds masks made with options \{'setting': 1\}, not \{'setting': 2\}"):
        generate(images, Counting(2), folder)


def test_an_interrupted_run_leaves_whole_results_and_goes_on(images, tmp_path):
    class Failing(Counting):
        def find(self, given):
            if self.seen == 4:
                raise KeyboardInterrupt
            return super().find(given)

    folder = MaskFolder(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        generate(images, Failing(), folder)
    there = list((folder.folder / "masks").glob("[!.]*"))
    assert all(len(folder.read(p.name)) == 1 for p in there)
    rest = Counting()
    generate(images, rest, folder)
    assert rest.seen == 7 - len(there)
    assert len(folder.shards) == 7


def test_command_line_generates_and_shows(images, tmp_path, capsys):
    source, out = str(tmp_path / "images"), str(tmp_path / "out")
    assert (
        main(["masks", "generate", "--images", source, "--out", out, "--generator", "classical", "--shard", "0/1"]) == 0
    )
    assert "7 images done" in capsys.readouterr().out
    assert (
        main(["masks", "view", "--images", source, "--masks", out, "--out", str(tmp_path / "view"), "--count", "3"])
        == 0
    )
    pictures = list((tmp_path / "view").glob("*.png"))
    assert len(pictures) == 3
    mine = tmp_path / "images" / "0.png"
    (tmp_path / "images" / "0.jpg").rename(mine)
    content = mine.read_bytes()
    command = ["masks", "view", "--images", source, "--masks", out, "--out", source]
    assert main(command) == 2
    assert "pictures would replace images" in capsys.readouterr().err
    assert mine.read_bytes() == content
    assert Image.open(pictures[0]).size == (256 + 4 + 256 + 4, 18 + 18 + 256)
    assert main(["masks", "generate", "--images", source, "--out", out]) == 2
    assert "needs --weights" in capsys.readouterr().err
    assert (
        main(["masks", "generate", "--images", source, "--out", out, "--generator", "classical", "--shard", "a"]) == 2
    )
    assert main(["masks", "view", "--images", source, "--masks", str(tmp_path), "--out", out]) == 2
    assert "is no folder of masks" in capsys.readouterr().err
