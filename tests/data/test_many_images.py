"""Many images: listed once, shared by all processes, in folders, lists, tar shards and behind URLs."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import random
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dearli_d2.data import listing, packed, panoptic_records, remote, shards, sharing
from dearli_d2.data.catalog import ImageFolder, PanopticSource, dataset_dicts, dataset_records, register
from dearli_d2.data.images import SUFFIXES, find_images, opened_file, read_image
from dearli_d2.data.mappers import UnlabeledTrainMapper
from dearli_d2.data.records import Records
from dearli_d2.data.streams import build_stream
from dearli_d2.data.validation import validate_dataset
from dearli_d2.data.views import WeakGeometry
from dearli_d2.errors import DatasetError, StorageError, UnreadableImageError

NAME = "many_images"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEARLI_CACHE", str(tmp_path / "cache"))
    listing.forget()


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six photographs in three folders."""
    rng = np.random.default_rng(0)
    for index, place in enumerate(("a.jpg", "deep/b.PNG", "deep/c.jpg", "deep-er/d.webp", "deep-er/x/e.jpg", "z.jpg")):
        path = tmp_path / "photos" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (24 + index, 32, 3), np.uint8)).save(path, format="PNG")
    return tmp_path / "photos"


def of(root: Path, what: str = "", **options) -> Records:
    register(NAME, ImageFolder(root, what=what, **options))
    return dataset_records(NAME)


def names(root: Path, what: str = "") -> list[str]:
    listing.forget()
    return [d["image_id"] for d in of(root, what)]


def brute_force(root: Path) -> list[str]:
    found = [p for p in sorted(root.rglob("*")) if p.is_file() and p.suffix.lower() in SUFFIXES]
    return [p.relative_to(root).as_posix() for p in found if p.stat().st_size]


def test_a_folder_of_thousands_is_listed_as_by_brute_force(tmp_path):
    """In the order of earlier versions, on which a run that is resumed depends; each in a few bytes."""
    draw, root = random.Random(0), tmp_path / "photos"
    places = {f"{draw.choice('abc')}{draw.choice(('', '-', '.x'))}" for _ in range(20)}
    for place in places | {f"{a}/{b}" for a in places for b in "xy"}:
        (root / place).mkdir(parents=True, exist_ok=True)
        for _ in range(60):
            name = f"{draw.choice('Ab-_é')}{draw.randrange(500)}.{draw.choice(('jpg', 'PNG', 'txt', 'jpeg'))}"
            (root / place / name).write_bytes(b"x" * draw.randrange(3))
    expected, records = brute_force(root), of(root)
    assert len(expected) > 500
    assert records.names() == expected
    assert list(records.files()) == [str(root / name) for name in expected]
    assert names(root) == expected  # from the cache
    assert [records.length(i) for i in (0, 7)] == [(root / expected[i]).stat().st_size for i in (0, 7)]


def test_records_behave_as_a_list_of_dicts(folder):
    records, dicts = of(folder), [{k: d[k] for k in ("file_name", "image_id")} for d in dataset_dicts(NAME)]
    assert list(records) == dicts
    assert [records[0], records[-1], records[np.int64(2)]] == [dicts[0], dicts[-1], dicts[2]]
    assert list(records[1:5:2]) == dicts[1:5:2]
    assert list(records[::-1][1:]) == dicts[::-1][1:]
    with pytest.raises(IndexError):
        records[6]
    assert list(pickle.loads(pickle.dumps(records[2:]))) == dicts[2:]
    register("another", ImageFolder(folder / "deep"))
    assert list(dataset_records("many_images@n3~1")) == [
        dicts[i] for i in sorted(np.random.default_rng(1).permutation(6)[:3])
    ]
    assert [(d["height"], d["width"]) for d in dataset_dicts(NAME)] == [
        read_image(d["file_name"]).shape[:2] for d in dicts
    ]


def test_a_new_a_deleted_and_a_changed_file_are_noticed(folder):
    before = of(folder)
    stamp, printed = before.listing.stamp, before.fingerprint()
    listing.forget()
    assert of(folder).listing.stamp == stamp
    (folder / "deep" / "b.PNG").rename(folder / "deep" / "n.PNG")
    assert names(folder) == brute_force(folder)
    (folder / "z.jpg").unlink()
    assert names(folder) == brute_force(folder)
    changed = folder / "a.jpg"
    assert dataset_dicts(NAME)[0]["height"] == 24
    Image.new("RGB", (8, 9)).save(changed)
    listing.forget()
    assert of(folder).listing.stamp != stamp
    assert of(folder).fingerprint() != printed
    assert dataset_dicts(NAME)[0]["height"] == 9
    same, stamp = changed.stat(), of(folder).listing.stamp
    changed.write_bytes(b"x" * same.st_size)  # only the time tells
    os.utime(changed, ns=(same.st_mtime_ns, same.st_mtime_ns + 1))
    listing.forget()
    assert of(folder).listing.stamp != stamp


def test_a_process_looks_again_when_a_folder_changes_and_not_before(folder, monkeypatch):
    looks = []
    real = listing._look
    monkeypatch.setattr(listing, "_look", lambda *a: looks.append(a) or real(*a))
    for place in (folder, folder / "deep", folder / "deep-er", folder / "deep-er" / "x"):
        os.utime(place, (time.time() - 60, time.time() - 60))
    assert len(of(folder)) == len(of(folder)) == 6
    assert len(looks) == 1
    (folder / "deep" / "b.PNG").unlink()
    assert (len(of(folder)), len(looks)) == (5, 2)


def test_what_can_be_no_image_is_left_out_and_counted(folder, caplog):
    (folder / "empty.jpg").touch()
    (folder / "raw.NEF").write_bytes(b"x")
    (folder / "gone.png").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.png")
    assert len(of(folder)) == 6
    assert "4 of 10 files are left out" in caplog.text
    for words in ("empty.jpg is empty", "raw.NEF is a raw photograph", "gone.png: No such file", "pipe.png is no file"):
        assert words in caplog.text


def test_a_folder_of_shards_alone_says_how_to_name_them(folder):
    pack(folder, folder.parent / "packed")
    with pytest.raises(
        DatasetError, match=r"no image .* it holds 2 tar files, whose images \S+/packed/\*.tar would name"
    ):
        of(folder.parent / "packed")


@pytest.mark.parametrize("damage", ["torn", "foreign", "of another version", "flipped"])
def test_a_damaged_cache_is_made_anew(folder, damage):
    expected, path = names(folder), of(folder).listing.table.path
    content = path.read_bytes()
    if damage == "torn":
        path.write_bytes(content[:-20])
    elif damage == "foreign":
        path.write_bytes(b"\x89PNG of somebody else" * 9)
    elif damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        path.write_bytes(content.replace(b'\\"format\\": 1', b'\\"format\\": 9'))
    assert packed.read_table(path) is None
    assert names(folder) == expected
    assert path.read_bytes() == content


def test_an_interrupted_look_leaves_no_cache(folder, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(listing, "_problem", interrupted)
    with pytest.raises(KeyboardInterrupt):
        of(folder)
    monkeypatch.undo()
    monkeypatch.setenv("DEARLI_CACHE", str(folder.parent / "cache"))
    whole = packed.write_atomically
    monkeypatch.setattr(
        packed, "write_atomically", lambda path, write: whole(path, lambda t: write(t) or interrupted())
    )
    with pytest.raises(KeyboardInterrupt):
        of(folder)
    assert not list((folder.parent / "cache" / "tables").glob("*.safetensors"))
    monkeypatch.undo()
    assert names(folder) == brute_force(folder)


def test_a_cache_that_cannot_be_written_costs_a_warning(folder, monkeypatch, caplog):
    (folder.parent / "file").touch()
    monkeypatch.setenv("DEARLI_CACHE", str(folder.parent / "file"))
    assert names(folder) == brute_force(folder)
    assert sorted(d["height"] for d in dataset_dicts(NAME)) == list(range(24, 30))
    assert "DEARLI_CACHE names another folder" in caplog.text
    assert list(pickle.loads(pickle.dumps(of(folder)))) == list(of(folder))
    assert not listing.known()


def build_slowly(path: Path, queue) -> None:
    def build():
        queue.put("built")
        time.sleep(0.3)
        return packed.Table({}, {"names": np.arange(3)})

    queue.put(packed.cached(path, 1, build).arrays["names"].tolist())


def test_of_two_processes_one_builds_and_both_read(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=build_slowly, args=(tmp_path / "t.safetensors", queue)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=20) for _ in range(3)]
    for process in processes:
        process.join()
    assert sorted(map(str, found)) == ["[0, 1, 2]", "[0, 1, 2]", "built"]


def test_the_second_rank_takes_over_what_the_first_found(folder, monkeypatch):
    expected = names(folder)
    found = listing.known()
    listing.forget()
    monkeypatch.setattr(sharing.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(sharing.comm, "get_rank", lambda: 3)
    monkeypatch.setattr(sharing.comm, "get_local_rank", lambda: 1)
    monkeypatch.setattr(sharing.comm, "all_gather", lambda own: [{}, {}, pickle.loads(pickle.dumps(found)), own])
    sharing.look_once([NAME, f"{NAME}@0.5"])
    monkeypatch.setattr(listing, "_look", lambda *_: pytest.fail("looked again"))
    for key, memory in listing._known.items():  # as if the folders were older
        listing._known[key] = listing._Memory(memory.listing, memory.times, time.time() + 60)
    assert [d["image_id"] for d in of(folder)] == expected


# ---------------------------------------------------------------------------------------------- labelled records


def panoptic_json(folder: Path, change=lambda content: None) -> PanopticSource:
    rng = np.random.default_rng(1)
    images = [
        {"id": i if i % 2 else f"s{i}", "file_name": f"d/{i}.jpg", "height": 20 + i, "width": 30} for i in range(40)
    ]
    annotations = [
        {
            "image_id": image["id"],
            "file_name": f"d/{k}.png",
            "segments_info": [
                {"id": s + 1, "category_id": int(rng.choice([3, 7, 900])), "iscrowd": int(rng.integers(2)), **area}
                for s, area in enumerate([{"area": 2**40 + 1}, {"area": 7.5}, {"area": 8.0}, {}][: k % 5])
            ],
        }
        for k, image in enumerate(images)
    ]
    categories = [{"id": i, "name": f"class {i}", "isthing": i % 2} for i in (7, 3, 900)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    change(content)
    (folder / "p.json").write_text(json.dumps(content))
    return PanopticSource(folder / "i", folder / "p.json", folder / "l", folder / "s", without=("class 900",))


def expected_dicts(source: PanopticSource) -> list[dict]:
    """What detectron2 dicts are, straight from the JSON file."""
    content = json.loads(source.panoptic_json.read_text())
    by_id = {image["id"]: image for image in content["images"]}
    return [
        {
            "file_name": str(source.image_root / by_id[a["image_id"]]["file_name"]),
            "image_id": a["image_id"],
            "height": by_id[a["image_id"]]["height"],
            "width": by_id[a["image_id"]]["width"],
            "pan_seg_file_name": str(source.panoptic_root / a["file_name"]),
            "sem_seg_file_name": str(source.semantic_root / a["file_name"]),
            "segments_info": [
                {
                    "id": s["id"],
                    "category_id": (7, 3).index(s["category_id"]),
                    "iscrowd": s["iscrowd"],
                    "area": s.get("area"),
                }
                for s in a["segments_info"]
                if s["category_id"] != 900
            ],
        }
        for a in content["annotations"]
    ]


def test_labelled_records_come_back_from_the_cache_as_they_were(tmp_path, monkeypatch):
    source = panoptic_json(tmp_path)
    register(NAME, source)
    expected = expected_dicts(source)
    assert dataset_dicts(NAME) == expected
    assert [type(s["area"]) for s in expected[4]["segments_info"]] == [
        type(s["area"]) for s in dataset_records(NAME)[4]["segments_info"]
    ]
    panoptic_records._read.cache_clear()
    real = panoptic_records.read_panoptic_json
    monkeypatch.setattr(panoptic_records, "read_panoptic_json", lambda _: pytest.fail("read again"))
    assert dataset_dicts(NAME) == expected
    view = dataset_records(f"{NAME}@n10:unlabeled")
    assert list(pickle.loads(pickle.dumps(view))) == dataset_dicts(f"{NAME}@n10:unlabeled")
    assert set(view[0]) == {"file_name", "image_id", "height", "width"}
    whole = dataset_records(f"{NAME}@n10:unlabeled", annotated=True)
    assert list(whole) == [d for d in expected if d["file_name"] in set(view.files())]
    monkeypatch.setattr(panoptic_records, "read_panoptic_json", real)
    source = panoptic_json(tmp_path, lambda content: content["annotations"][3]["segments_info"].clear())
    assert dataset_dicts(NAME) == expected_dicts(source)


# ---------------------------------------------------------------------------------------------- lists


def test_a_list_gives_its_images_in_its_order(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere.jpg"
    elsewhere.write_bytes((folder / "a.jpg").read_bytes())
    lines = ["z.jpg", "deep/b.PNG", str(elsewhere), "https://host/w.jpg", "a.jpg"]
    (folder / "mine.txt").write_text("\n".join(lines) + "\n\n")
    assert names(folder, "mine.txt") == lines
    assert list(of(folder, "mine.txt").files()) == [
        str(folder / "z.jpg"), str(folder / "deep" / "b.PNG"), str(elsewhere), "https://host/w.jpg", str(folder / "a.jpg"),
    ]  # fmt: skip
    for text, words in (
        ("z.jpg\ngone.jpg\nlost.jpg\n", r"mine.txt: 2 of 3 images cannot be used: \S+gone.jpg: No such file"),
        ("z.jpg\nnotes.csv\n", "mine.txt: 1 of 2 lines name no image: notes.csv"),
        ("z.jpg\na.jpg\nz.jpg\n", "mine.txt: 1 images are listed twice: z.jpg"),
        ("\n", "mine.txt lists no image"),
    ):
        (folder / "mine.txt").write_text(text)
        with pytest.raises(DatasetError, match=words):
            names(folder, "mine.txt")


# ---------------------------------------------------------------------------------------------- shards and URLs


def pack(folder: Path, to: Path) -> list[str]:
    """Two shards with the photographs of a folder, as WebDataset writes them; the members in their order."""
    to.mkdir(exist_ok=True)
    found = brute_force(folder)
    for number, part in enumerate((found[:2], found[2:])):
        with tarfile.open(to / f"s-{number:03d}.tar", "w") as archive:
            for name in part:
                archive.add(folder / name, name)
                info = tarfile.TarInfo(f"{name}.json")
                info.size = 2
                archive.addfile(info, io.BytesIO(b"{}"))
    return [f"packed/s-{0 if i < 2 else 1:03d}.tar::{name}" for i, name in enumerate(found)]


@pytest.mark.parametrize("what", ["packed/*.tar", "packed/s-{000..001}.tar", "packed/list.txt"])
def test_shards_train_as_the_same_files_in_a_folder(folder, what):
    expected = pack(folder, folder.parent / "packed")
    (folder.parent / "packed" / "list.txt").write_text("packed/s-000.tar\n" + "\n".join(expected[2:]))
    mapper = UnlabeledTrainMapper(WeakGeometry(16, [1.0], 64), lambda image: image, 16)
    batches = []
    for records in (of(folder), of(folder.parent, what)):
        for workers in (0, 1) if what == "packed/*.tar" else (0,):
            stream = build_stream(records, mapper, 2, seed=3, start_iteration=1, num_workers=workers)
            batches.append([sample for _ in range(5) for sample in next(stream)])
    assert names(folder.parent, what) == expected
    for other in batches[1:]:
        for one, two in zip(batches[0], other, strict=True):
            assert np.array_equal(one["image"], two["image"])
            assert np.array_equal(one["strong"], two["strong"])
    assert "2 images" not in str(validate_dataset(NAME))
    sizes = [(d["height"], d["width"]) for d in dataset_dicts(NAME)]
    assert sizes == [(d["height"], d["width"]) for d in (register(NAME, ImageFolder(folder)), *dataset_dicts(NAME))[1:]]


def test_a_shard_is_indexed_once_and_again_when_it_changes(folder, monkeypatch):
    expected = pack(folder, folder.parent / "packed")
    root, shard = folder.parent, folder.parent / "packed" / "s-000.tar"
    assert names(root, "packed/*.tar") == expected
    real = shards._read_index
    monkeypatch.setattr(shards, "_read_index", lambda _: pytest.fail("indexed again"))
    assert names(root, "packed/*.tar") == expected
    monkeypatch.setattr(shards, "_read_index", real)
    with tarfile.open(shard, "a") as archive:
        archive.add(folder / "z.jpg", "new.jpg")
        archive.add(folder / "z.jpg", "a.jpg")  # in place of the first, as tar has it
    assert names(root, "packed/*.tar")[:3] == [f"packed/s-000.tar::{n}" for n in ("deep/b.PNG", "new.jpg", "a.jpg")]
    assert np.array_equal(read_image(f"{shard}::a.jpg"), read_image(folder / "z.jpg"))
    assert [str(p) for p in find_images([f"{root}/packed/s-000.tar"])][1] == f"{root}/packed/s-000.tar::new.jpg"


def test_faults_of_shards_are_named_and_counted(folder):
    pack(folder, folder.parent / "packed")
    root, shard = folder.parent, folder.parent / "packed" / "s-001.tar"
    with pytest.raises(DatasetError, match=r"2 of 4 shards are missing: packed/s-002.tar, packed/s-003.tar"):
        names(root, "packed/s-{000..003}.tar")
    with pytest.raises(DatasetError, match=r"no shard \S+/nowhere/\*.tar"):
        names(root, "nowhere/*.tar")
    with pytest.raises(DatasetError, match="compressed shards"):
        names(root, "packed/s.tar.gz")
    with pytest.raises(UnreadableImageError, match=r"s-001.tar::gone.jpg: the shard has no such member"):
        read_image(f"{shard}::gone.jpg")
    with pytest.raises(UnreadableImageError, match=r"there is no shard \S+s-009.tar"):
        read_image(f"{root}/packed/s-009.tar::gone.jpg")
    (root / "packed" / "list.txt").write_text("packed/s-001.tar::z.jpg\npacked/s-001.tar::gone.jpg")
    with pytest.raises(DatasetError, match=r"1 of 2 images cannot be used: packed/s-001.tar::gone.jpg is not in its"):
        names(root, "packed/list.txt")
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(DatasetError, match=r"1 of 2 shards cannot be used: \S+s-001.tar"):
        names(root, "packed/*.tar")
    with pytest.raises(DatasetError, match=r"s-001.tar"):
        read_image(f"{shard}::z.jpg")
    shard.write_bytes(b"\x1f\x8b" + bytes(2000))
    with pytest.raises(DatasetError, match=r"s-001.tar is no complete tar file without compression"):
        names(root, "packed/*.tar")


@pytest.fixture
def memory(folder):
    """The photographs, and their shards, in fsspec's file system in memory."""
    files = pytest.importorskip("fsspec").filesystem("memory")
    packed_there = pack(folder, folder.parent / "packed")
    for name in brute_force(folder):
        files.pipe(f"/bucket/photos/{name}", (folder / name).read_bytes())
    for shard in (folder.parent / "packed").glob("*.tar"):
        files.pipe(f"/bucket/packed/{shard.name}", shard.read_bytes())
    yield files, packed_there
    files.rm("/bucket", recursive=True)


def test_images_behind_a_url_are_those_of_the_folder(folder, memory):
    files, members = memory
    expected = brute_force(folder)
    assert names(folder, "memory://bucket/photos") == expected
    records = of(folder, "memory://bucket/photos")
    assert records[1] == {"file_name": f"memory://bucket/photos/{expected[1]}", "image_id": expected[1]}
    for path, name in zip(records.files(), expected, strict=True):
        assert np.array_equal(read_image(path), read_image(folder / name))
        assert np.array_equal(read_image(Path(path)), read_image(folder / name))  # where // has become /
    assert [d["height"] for d in dataset_dicts(NAME)] == [read_image(folder / name).shape[0] for name in expected]
    files.pipe("/bucket/photos/new.jpg", b"x")
    assert "new.jpg" in names(folder, "memory://bucket/photos")
    stamp = of(folder, "memory://bucket/photos").listing.stamp
    files.pipe("/bucket/photos/new.jpg", b"y")
    listing.forget()
    assert of(folder, "memory://bucket/photos").listing.stamp != stamp
    assert names(folder, "memory://bucket/packed/*.tar") == [f"memory:///bucket/{name}" for name in members]
    for path, name in zip(of(folder, "memory://bucket/packed/*.tar").files(), expected, strict=True):
        with opened_file(path) as stream:
            assert stream.read() == (folder / name).read_bytes()
    assert np.array_equal(read_image(f"tar://z.jpg::{folder.parent}/packed/s-001.tar"), read_image(folder / "z.jpg"))
    assert len(find_images(["memory://bucket/photos"])) == 7
    with pytest.raises(UnreadableImageError, match="memory://bucket/nothing.jpg does not exist"):
        read_image("memory://bucket/nothing.jpg")
    with pytest.raises(DatasetError, match="no image .* in memory://bucket/nothing"):
        names(folder, "memory://bucket/nothing")
    with pytest.raises(DatasetError, match="nosuch://a/b.jpg cannot be read here"):
        read_image("nosuch://a/b.jpg")


def test_a_host_that_does_not_answer_ends_the_run_in_time(monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    asked = []

    class Silent(fsspec.AbstractFileSystem):
        protocol = "silent"

        def cat_file(self, path, start=None, end=None, **_):
            asked.append(path)
            if "broken" in path:
                raise ConnectionResetError("connection reset")
            time.sleep(60)

    fsspec.register_implementation("silent", Silent, clobber=True)
    monkeypatch.setattr(remote, "TIME_LIMIT", 0.05)
    monkeypatch.setattr(remote, "_PAUSE", 0.01)
    start = time.perf_counter()
    stream = build_stream(
        [{"file_name": "silent://host/a.jpg"}], lambda d: read_image(d["file_name"]), 1, 0, replace_damaged=True
    )
    with pytest.raises(StorageError, match=r"silent://host/a.jpg: no answer within 0.05 seconds, 3 times"):
        next(stream)
    assert time.perf_counter() - start < 30
    with pytest.raises(StorageError, match=r"ConnectionResetError: connection reset, 3 times"):
        read_image("silent://host/broken.jpg")
    assert len(asked) == 6
