"""What holds for every format: written labels are read back as they were, bad input is one line, training can read them."""

from __future__ import annotations

import numpy as np
import pytest

from dearli_d2.config import get_config
from dearli_d2.data.catalog import dataset_dicts, taxonomy_of
from dearli_d2.data.custom import TRAIN, UNLABELED, VAL, register_custom
from dearli_d2.data.inspection import inspect_custom
from dearli_d2.data.panoptic_png import read_panoptic, segment_ids
from dearli_d2.errors import DatasetError
from dearli_d2.labels.formats import formats
from dearli_d2.labels.geometry import decode
from dearli_d2.labels.recognition import format_of, read_labels, recognize
from dearli_d2.labels.structures import Request
from tests.conftest import REPO
from tests.labels.conftest import CLASSES, SIZE, name_of, shapes_of

WRITABLE = [name for name, format in formats().items() if format.writer]
POLYGONS = {"yolo-seg"}  # formats whose masks come back within a pixel of their border


def test_the_table_of_the_documentation_has_every_format_as_it_is():
    rows = {}
    for line in (REPO / "docs" / "custom_data.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[0].startswith("`"):
            rows[cells[0].strip("`")] = cells[2:5]
    assert set(rows) == set(formats())
    for name, (read, written, trip) in rows.items():
        assert (read, written) == ("yes", "yes" if name in WRITABLE else "no"), name
        assert trip.startswith("within a pixel" if name in POLYGONS else "exact" if name in WRITABLE else "")
        assert bool(trip) == (name in WRITABLE), name


@pytest.fixture(params=WRITABLE)
def written(request, root):
    """(format, root, path) of labels of five images of six that the format's writer wrote."""
    format = formats()[request.param]
    out = root / "labels"
    writer = format.writer(out, CLASSES)
    for index in range(5):
        writer.add(name_of(index), SIZE, shapes_of(index))
    writer.finish()
    return format, root, out


def test_what_is_written_is_recognised_as_that_format_alone(written):
    format, _, path = written
    assert set(recognize(path)) == {format.name}
    assert format_of(path) is format


def test_a_round_trip_keeps_masks_and_classes(written):
    format, root, path = written
    labels = read_labels(Request(path, root))
    assert {c.name for c in labels.classes} >= {c.name for c in CLASSES}
    found = {image.file.relative_to(root / "images").as_posix(): image for image in labels.images}
    assert set(found) == {name_of(index) for index in range(5)}
    for index in range(5):
        image = found[name_of(index)]
        assert image.size == SIZE
        for name in ("road", "car"):
            ours = sum(decode(s.rle).astype(int) for s in image.shapes() if s.name == name)
            truth = sum(decode(s.rle).astype(int) for s in shapes_of(index) if s.name == name)
            assert (ours != truth).sum() <= (0.02 * truth.size if format.name in POLYGONS else 0), (name, index)
        if labels.instances:
            assert sum(s.name == "car" for s in image.shapes()) == (2 if index % 2 == 0 else 1)


def config(root, *overrides):
    return get_config(
        REPO / "configs" / "custom" / "small.yaml",
        ["DATASETS.CUSTOM.ROOT", str(root), "DATASETS.CUSTOM.LABELS", "labels", "DATASETS.CUSTOM.UNLABELED", "images",
         "DATASETS.CUSTOM.CLASSES", "['1 stuff road','2 thing car']", "MODEL.DEVICE", "cpu", *overrides],
    )  # fmt: skip


def test_training_reads_the_labels(written):
    _, root, _ = written
    cfg = config(root)
    register_custom(cfg.DATASETS.CUSTOM)
    assert cfg.MODEL.NUM_CLASSES == 2
    assert taxonomy_of(TRAIN).main_names == ["road", "car"]
    dicts = dataset_dicts(TRAIN) + dataset_dicts(VAL)
    assert len(dicts) == 5
    for d in dicts:
        ids = segment_ids(read_panoptic(d["pan_seg_file_name"]))
        cars = [s for s in d["segments_info"] if s["category_id"] == 1]
        truth = [decode(s.rle) for s in shapes_of(int(d["file_name"][-5])) if s.name == "car"]
        assert len(cars) == len(truth)
        drawn = np.isin(ids, [s["id"] for s in cars])
        assert (drawn != np.any(truth, axis=0)).sum() <= 0.02 * drawn.size
    # the image without labels is in the same folder
    assert [d["image_id"] for d in dataset_dicts(UNLABELED)] == [name_of(5)]
    assert "car" in inspect_custom(cfg.DATASETS.CUSTOM)


def test_a_missing_image_is_named_with_the_number_of_them(written):
    _, root, path = written
    for index in (0, 1):
        (root / "images" / name_of(index)).unlink()
    with pytest.raises(DatasetError, match=r"2 images .*im0"):
        read_labels(Request(path, root))


def read_all(request, name):
    """All shapes of all images."""
    return [image.shapes() for image in read_labels(request, name).images]


def test_empty_files_are_one_line(written):
    format, root, path = written
    for file in path.rglob("*"):
        if file.suffix in (".json", ".xml", ".png", ".yaml"):
            file.write_bytes(b"")
    with pytest.raises(DatasetError) as error:
        read_all(Request(path, root), format.name)
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_one_line(written):
    format, root, path = written
    for file in (path, *path.rglob("*")):
        if file.is_file() and file.suffix in (".json", ".xml", ".txt", ".png", ".yaml"):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DatasetError) as error:
        read_all(Request(path, root), format.name)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
