"""What `predict` writes, and what it must not replace; a stand-in for the model where its output does not matter."""

from __future__ import annotations

import errno
import json
import os
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dearli_d2 import predict
from dearli_d2.config import get_config
from dearli_d2.data.catalog import taxonomy_of
from dearli_d2.data.custom import TRAIN, register_custom
from dearli_d2.data.index_masks import read_index_mask
from dearli_d2.data.inspection import inspect_custom
from dearli_d2.data.mappers import TestMapper
from dearli_d2.data.panoptic_json import read_panoptic_json
from dearli_d2.data.taxonomy import Taxonomy
from dearli_d2.errors import ConfigError, DatasetError
from dearli_d2.files import output_names
from dearli_d2.journal import entries
from dearli_d2.prediction_files import DEFAULT_KINDS, Maps
from dearli_d2.prediction_folder import PredictionFolder, find_inputs
from tests.conftest import REPO

# ids as in a user's masks, in an order of their own
TAXONOMY = Taxonomy((("crate", "box"), ("sky",)), frozenset({0}), (40, 7), ((200, 0, 0), (0, 0, 200)))
RUN = {"weights": "a", "settings": "b"}


class Halves:
    """Left half a crate, right half sky. `fail(pixels)` may raise."""

    def __init__(self, taxonomy=TAXONOMY, fail=lambda pixels: None):
        backbone = SimpleNamespace(size_divisibility=32)
        self.model = SimpleNamespace(known_taxonomy=lambda: taxonomy, backbone=backbone, device=torch.device("cpu"))
        self.mapper, self.fail, self.seen = TestMapper(10, 100), fail, []

    def pending(self, images, semantic=True, amp=None):
        return [partial(self._of, image.pixels) for image in images]

    def _of(self, pixels):
        self.seen.append(pixels.shape)
        self.fail(pixels)
        ids = np.ones(pixels.shape[:2], np.int32)
        ids[:, pixels.shape[1] // 2 :] = 2
        segments = [{"id": i + 1, "category_id": i, "isthing": i == 0, "score": 0.9} for i in (0, 1)]
        return Maps(ids, segments, ids - 1, np.ones(ids.shape, np.float32))


def write(path: Path, size=(20, 10), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, **options)
    return path


def run(out, *arguments, run=RUN, overwrite=False, of=None, kinds=DEFAULT_KINDS, **options):
    folder = PredictionFolder(out, find_inputs(arguments), run, overwrite, kinds)
    return predict.predict_files(of or Halves(), folder, **options)


def listed(out):
    return json.loads((out / "predictions.json").read_text())


def content_of(folder):
    """All files but the journals."""
    files = [p for p in folder.rglob("*") if p.is_file() and ".predictions" not in p.parts]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.mark.parametrize(
    "tree",
    [
        ["a/1.jpg", "b/1.jpg", "c/1-2.jpg"],
        ["1.jpg", "1.png", "1.jpg.png", "1.png.jpg"],
        ["1.jpg", "d/1_panoptic.jpg", "1_panoptic.png", "1_semantic.png", "d/d/1.jpg"],
        ["a.b.jpg", "a.jpg", "a.b.png", "ü/ö x.jpg"],
    ],
)
def test_every_image_has_files_of_its_own_under_the_same_names_in_every_run(tmp_path, tree):
    for index, name in enumerate(tree):
        write(tmp_path / "in" / name, (20 + index, 10))
    run(tmp_path / "out", tmp_path / "in")
    first, content = content_of(tmp_path / "out"), listed(tmp_path / "out")
    assert len(first) == 3 * len(tree) + 1
    assert {i["file_name"] for i in content["images"]} == set(tree)
    for entry, annotation in zip(content["images"], content["annotations"], strict=True):
        width = 20 + tree.index(entry["file_name"])
        assert entry["width"] == width
        assert Image.open(tmp_path / "out" / annotation["file_name"]).size == (width, 10)
    run(tmp_path / "out", tmp_path / "in")
    assert content_of(tmp_path / "out") == first


def test_names_follow_the_folder_that_holds_all_arguments(tmp_path, monkeypatch):
    for name in ("a/1.jpg", "b/x/1.jpg", "photo.jpg"):
        write(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert find_inputs(["a/1.jpg"]).names == ["1"]
    assert find_inputs(["b"]).names == ["x/1"]
    assert find_inputs(["photo.jpg", "a", tmp_path / "b", "./a/1.jpg"]).names == ["photo", "a/1", "b/x/1"]
    assert output_names(["1.jpg", "1.png", "1.jpg.png"]) == ["1.jpg", "1.png", "1.jpg.png"]


@pytest.mark.parametrize("inside", ["out", "day/out", "."])
def test_own_pictures_inside_the_input_folder_are_not_predicted(tmp_path, inside):
    write(tmp_path / "1.jpg")
    write(tmp_path / "day" / "2.jpg")
    out = tmp_path / inside
    for _ in range(2):
        run(out, tmp_path)
        assert {i["file_name"] for i in listed(out)["images"]} == {"1.jpg", "day/2.jpg"}
    run(tmp_path / "other", tmp_path)
    assert len(listed(tmp_path / "other")["images"]) == 2
    if inside == "out":
        with pytest.raises(DatasetError, match="were written by an earlier prediction"):
            find_inputs([out])
        assert len(find_inputs([out / "1_overlay.png"]).paths) == 1  # on demand


def test_an_image_is_never_overwritten(tmp_path):
    write(tmp_path / "1.jpg")
    mine = write(tmp_path / "1_panoptic.png").read_bytes()
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="1 of the images to predict would be overwritten"):
            run(tmp_path, tmp_path, overwrite=overwrite)
    assert (tmp_path / "1_panoptic.png").read_bytes() == mine
    assert not (tmp_path / "predictions.json").exists()


OTHERS = {
    "other weights": ({"run": {**RUN, "weights": "c"}}, "made with other weights"),
    "other images": ({"images": "other"}, "holds predictions of 1 other images"),
    "the same names elsewhere": ({"images": "elsewhere"}, "holds predictions of 1 other images"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_predictions_of_others_are_replaced_on_demand_only(tmp_path, case):
    options, message = OTHERS[case]
    write(tmp_path / "in" / "1.jpg")
    write(tmp_path / "other" / "2.jpg")
    write(tmp_path / "elsewhere" / "1.jpg")
    out, images = tmp_path / "out", tmp_path / options.get("images", "in")
    run(out, tmp_path / "in")
    before = content_of(out)
    with pytest.raises(ConfigError, match=f"{message}.*--overwrite"):
        run(out, images, run=options.get("run", RUN))
    assert content_of(out) == before
    run(out, images, run=options.get("run", RUN), overwrite=True)
    assert len(content_of(out)) == 4  # nothing is left of the images before


def test_files_of_others_are_replaced_on_demand_only(tmp_path):
    write(tmp_path / "in" / "1.jpg")
    write(tmp_path / "out" / "1_panoptic.png")
    with pytest.raises(ConfigError, match="holds 1 files that would be overwritten: 1_panoptic.png"):
        run(tmp_path / "out", tmp_path / "in")
    (tmp_path / "out" / "predictions.json").write_text('{"annotations": []}')
    with pytest.raises(ConfigError, match="was not written by this version"):
        run(tmp_path / "out", tmp_path / "in")
    run(tmp_path / "out", tmp_path / "in", overwrite=True)
    write(tmp_path / "in" / "2.jpg")
    write(tmp_path / "in" / "1.png")
    run(tmp_path / "out", tmp_path / "in")  # more images of the same run
    assert sorted(listed(tmp_path / "out")["outputs"]) == ["1.jpg", "1.png", "2"]
    assert len(content_of(tmp_path / "out")) == 3 * 3 + 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("bug"), OSError(errno.ENOSPC, "No space left")])
def test_what_is_interrupted_says_so_and_may_be_repeated(tmp_path, error):
    for index in range(3):
        write(tmp_path / "in" / f"{index}.jpg", (20 + index, 10))

    def fail(pixels):
        if pixels.shape[1] == 21:
            raise error

    with pytest.raises(type(error)):
        run(tmp_path / "out", tmp_path / "in", of=Halves(fail=fail))
    content = listed(tmp_path / "out")
    assert content["info"]["complete"] is False
    assert content["images"] == content["annotations"] == []
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".") and p.is_file()]
    with pytest.raises(DatasetError, match="was interrupted"):
        read_panoptic_json(tmp_path / "out" / "predictions.json")
    run(tmp_path / "out", tmp_path / "in")
    assert listed(tmp_path / "out")["info"]["complete"] is True
    whole = Halves()
    run(tmp_path / "whole", tmp_path / "in", of=whole)
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")
    assert len(whole.seen) == 3


@pytest.mark.parametrize("batch", [1, 3])
def test_a_killed_run_goes_on_without_doing_an_image_twice(tmp_path, batch):
    """Killed as `kill -9` does, at the fourth and at the seventh image, with a torn line; equal to a run without a kill."""
    for index in range(9):
        write(tmp_path / "in" / f"{index}.jpg", (20 + index, 10))
    run(tmp_path / "whole", tmp_path / "in", batch=batch)
    out, times = tmp_path / "out", {}
    for deadly in (23, 26, 0):

        def fail(pixels, deadly=deadly):
            if pixels.shape[1] == deadly:
                os.kill(os.getpid(), signal.SIGKILL)

        child = os.fork()
        if not child:
            run(out, tmp_path / "in", of=Halves(fail=fail), batch=batch)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (-signal.SIGKILL if deadly else 0)
        assert listed(out)["info"]["complete"] is not bool(deadly)
        for path in out.glob("*_panoptic.png"):
            times.setdefault(path.name, []).append(path.stat().st_mtime_ns)
        (journal,) = (out / ".predictions").glob("*.jsonl")
        recorded = {key for key, *_ in entries(journal)}
        with journal.open("ab") as file:
            file.write(b'{"key": "0.j')
        for name in list(times):  # what is in the journal is not written again
            if f"{name.split('_')[0]}.jpg" not in recorded:
                del times[name]
    assert content_of(out) == content_of(tmp_path / "whole")
    assert all(len(set(stamps)) == 1 for stamps in times.values())
    assert max(map(len, times.values())) >= 2


def test_shards_write_what_one_process_writes(tmp_path):
    for index in range(7):
        write(tmp_path / "in" / f"{index}.jpg", (20 + index % 3, 10))
    (tmp_path / "in" / "7.jpg").write_bytes(b"")
    run(tmp_path / "whole", tmp_path / "in", batch=2)
    out = tmp_path / "out"
    found = [run(out, tmp_path / "in", batch=2, shard=(index, 3)) for index in (2, 0, 1)]
    assert [f.complete for f in found] == [False, False, True]
    assert sum(f.predicted for f in found) == 7
    assert content_of(out) == content_of(tmp_path / "whole")
    again = Halves()
    assert run(out, tmp_path / "in", batch=2, shard=(0, 3), of=again).complete
    assert not again.seen


def test_files_that_were_lost_and_images_that_changed_are_done_again(tmp_path):
    for index in range(3):
        write(tmp_path / "in" / f"{index}.jpg", (20 + index, 10))
    out, again = tmp_path / "out", Halves()
    run(out, tmp_path / "in")
    (out / "0_overlay.png").unlink()
    write(tmp_path / "in" / "2.jpg", (30, 10))
    run(out, tmp_path / "in", of=again)
    assert sorted(again.seen) == [(10, 20, 3), (10, 30, 3)]
    assert listed(out)["images"][2]["width"] == 30
    run(out, tmp_path / "in", of=again, kinds=("overlay.jpg",))
    assert len(again.seen) == 5
    assert Image.open(out / "1_overlay.jpg").format == "JPEG"


def bomb(path):
    Image.new("1", (14000, 14000)).save(path)


ODD = {
    "empty.jpg": lambda path: path.write_bytes(b""),
    "broken.png": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\xff" * 40),
    "bomb.png": bomb,
    "phone.heic": lambda path: path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(20)),
    "raw.dng": lambda path: path.write_bytes(b"II*\0" + bytes(20)),
    "deep.png": lambda path: Image.fromarray(np.full((8, 8), 5000, np.uint16)).save(path),
}


def test_odd_images_are_a_line_each_and_the_rest_goes_on(tmp_path, capsys):
    write(tmp_path / "in" / "a.jpg")
    write(tmp_path / "in" / "z.jpg")
    # EXIF orientation of type ASCII
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02six\0\0\0\0\0"
    write(tmp_path / "in" / "exif.jpg", exif=exif)
    for name, make in ODD.items():
        make(tmp_path / "in" / name)
    skipped = run(tmp_path / "out", tmp_path / "in").skipped
    content = listed(tmp_path / "out")
    assert {i["file_name"] for i in content["images"]} == {"a.jpg", "exif.jpg", "z.jpg"}
    assert {path.name for path, _ in skipped} == {Path(s["image"]).name for s in content["skipped"]} == set(ODD)
    lines = [line for line in capsys.readouterr().err.splitlines() if "skipped: " in line]
    assert len(lines) == len(ODD)


def test_a_caption_belongs_to_one_image(tmp_path):
    for name in ("a/1.jpg", "b/1.jpg", "2.jpg"):
        write(tmp_path / "in" / name)
    file = tmp_path / "captions.jsonl"

    def captions(*entries):
        file.write_text("".join(json.dumps({"file": f, "caption": c}) + "\n" for f, c in entries))
        os.utime(file, (len(entries), len(entries)))
        found = predict.captions_of(find_inputs([tmp_path / "in"]), file)
        return {path.relative_to(tmp_path / "in").as_posix(): caption for path, caption in found.items()}

    given = {"a/1.jpg": "grass", "b/1.jpg": "sky", "2.jpg": "sea"}
    assert captions(*given.items()) == given
    with pytest.raises(DatasetError, match="2 of 3 images have no caption"):
        captions(("1.jpg", "whose?"), ("2.jpg", "sea"))


def test_nothing_is_left_of_an_image_that_was_damaged_since(tmp_path):
    write(tmp_path / "in" / "1.jpg")
    write(tmp_path / "in" / "2.jpg")
    run(tmp_path / "out", tmp_path / "in")
    (tmp_path / "in" / "2.jpg").write_bytes(b"")
    run(tmp_path / "out", tmp_path / "in")
    assert {p.name for p in (tmp_path / "out").glob("*.png")} == {
        f"1_{k}.png" for k in ("panoptic", "semantic", "overlay")
    }


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_an_image_that_needs_too_much_memory_is_a_line(tmp_path, error):
    write(tmp_path / "in" / "1.jpg")
    write(tmp_path / "in" / "2.jpg", (40, 10))

    def greedy(pixels):
        if pixels.shape[1] == 20:
            raise error

    found = run(tmp_path / "out", tmp_path / "in", of=Halves(fail=greedy))
    assert [path.name for path, _ in found.skipped] == ["1.jpg"]
    assert len(listed(tmp_path / "out")["images"]) == 1


def test_predictions_are_labels_in_the_users_own_values(tmp_path):
    """As a COCO-panoptic file and as index masks, by the readers of own data."""
    for index in range(3):
        write(tmp_path / "in" / "day" / f"{index}.jpg")
    out = tmp_path / "out"
    run(out, tmp_path / "in")
    assert read_panoptic_json(out / "predictions.json")["categories"][1]["id"] == 7
    assert np.unique(read_index_mask(out / "day" / "0_semantic.png")).tolist() == [7, 40]
    keys = {
        "ROOT": tmp_path / "in",
        "IMAGES": ".",
        "MASKS": out,
        "PANOPTIC_JSON": out / "predictions.json",
        "UNLABELED": tmp_path / "none",
    }
    pairs = [text for key, value in keys.items() for text in (f"DATASETS.CUSTOM.{key}", str(value))]
    custom = get_config(REPO / "configs/custom/small.yaml", pairs).DATASETS.CUSTOM
    register_custom(custom)
    assert "crate" in inspect_custom(custom)
    taxonomy = taxonomy_of(TRAIN)
    assert (taxonomy.names, taxonomy.dataset_ids) == (TAXONOMY.names, TAXONOMY.dataset_ids)
    segments = listed(out)["annotations"][0]["segments_info"]
    found = [(s["category_id"], s["area"], s["bbox"], s["iscrowd"]) for s in segments]
    assert found == [(40, 100, [0, 0, 10, 10], 0), (7, 100, [10, 0, 10, 10], 0)]


@pytest.mark.parametrize(("ids", "kind"), [((0, 255), np.uint8), ((3, 256), np.uint16), ((3, 65535), np.uint16)])
def test_ids_beyond_a_byte_are_written_in_two(tmp_path, ids, kind):
    taxonomy = Taxonomy(TAXONOMY.names, TAXONOMY.thing_ids, ids, TAXONOMY.colors)
    write(tmp_path / "1.png")
    run(tmp_path / "out", tmp_path / "1.png", of=Halves(taxonomy))
    semantic = np.asarray(Image.open(tmp_path / "out" / "1_semantic.png"))
    assert semantic.dtype == kind
    assert np.unique(semantic).tolist() == list(ids)


PIXELS = np.arange(10 * 20 * 3, dtype=np.uint8).reshape(10, 20, 3)
WRONG = {
    "two channels": (PIXELS[..., :2], r"not \(10, 20, 2\)"),
    "channels first": (PIXELS.transpose(2, 0, 1), "transpose"),
    "floats": (PIXELS / 255, "255 \\* image"),
    "a batch": (PIXELS[None], "as a list: list"),
    "no pixel": (PIXELS[:0], r"not \(0, 20, 3\)"),
    "a tensor": (torch.from_numpy(PIXELS), "not a Tensor; .*permute"),
    "a list": ([PIXELS], "not a list"),
    "nothing": (None, "not a NoneType"),
    "16 bits of an array": (np.full((8, 8), 5000, np.uint16), "8 bits a channel"),
    "16 bits in colour": (PIXELS.astype(np.uint16), "not .* uint16; values are 0..255"),
    "16 bits": (Image.fromarray(np.full((8, 8), 5000, np.uint16)), "8 bits a channel"),
    "no file": ("none.jpg", "none.jpg cannot be read"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_image_is_an_error_with_the_remedy(case):
    image, message = WRONG[case]
    with pytest.raises(DatasetError, match=message):
        predict.as_pixels(image)


def test_a_path_and_a_pil_image_are_read_as_files_are(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    turned = np.rot90(PIXELS, -1)
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.open(tmp_path / "a.png")):
        assert np.array_equal(predict.as_pixels(image), turned)
    for mode in ("L", "RGBA", "CMYK", "P", "1", "LA"):
        assert predict.as_pixels(Image.fromarray(PIXELS).convert("RGB" if mode in ("LA",) else mode)).shape == (
            10,
            20,
            3,
        )
    assert predict.as_pixels(PIXELS) is PIXELS
    grey, alpha = PIXELS[..., 0], np.concatenate([PIXELS, PIXELS[..., :1]], -1)
    for image in (grey, grey[..., None], np.stack([grey] * 3, -1)):
        assert np.array_equal(predict.as_pixels(image), np.stack([grey] * 3, -1))
    assert np.array_equal(predict.as_pixels(alpha), PIXELS)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:120])
    with pytest.raises(DatasetError):
        predict.as_pixels(Image.open(tmp_path / "cut.png"))


def test_output_inside_a_linked_folder_does_not_replace_images(tmp_path):
    write(tmp_path / "in" / "1.jpg")
    write(tmp_path / "in" / "1_overlay.png")
    os.symlink(tmp_path / "in", tmp_path / "link")
    with pytest.raises(ConfigError, match="would be overwritten"):
        run(tmp_path / "link", tmp_path / "in")
