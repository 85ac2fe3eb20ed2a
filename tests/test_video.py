"""Videos: frames in and out, and ids that last."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest

from dearli_d2.cli import main
from dearli_d2.data.taxonomy import Taxonomy
from dearli_d2.errors import UnreadableImageError
from dearli_d2.prediction_files import Maps
from dearli_d2.video import Linker, Video, VideoWriter, predict_video
from dearli_d2.video_folder import FrameFolder
from dearli_d2.visualization import overlay

TAXONOMY = Taxonomy((("car",), ("sky",)), frozenset({0}), (7, 3), ((200, 0, 0), (0, 0, 200)))


def street(frame, order=1):
    """Two cars that drive towards each other below the sky; their order among the segments changes."""
    panoptic, segments = np.zeros((60, 120), np.int32), []
    boxes = [(0, slice(20, 40), slice(10 + 2 * frame, 40 + 2 * frame)), (0, slice(40, 60), slice(80 - 2 * frame, 110 - 2 * frame)), (1, slice(0, 20), slice(0, 120))]  # fmt: skip
    for number, (category, rows, columns) in enumerate(boxes[::order], start=1):
        panoptic[rows, columns] = number
        segments.append({"id": number, "category_id": category, "isthing": category == 0, "score": 0.9})
    return Maps(panoptic, segments, None, np.full((60, 120), 0.25, np.float32))


def test_segments_keep_ids_and_colours_whatever_their_order_in_a_frame():
    link = Linker(TAXONOMY)
    frames = [link(street(frame, 1 if frame % 2 else -1)) for frame in range(10)]
    for place in ((5, 5), (30, 35), (50, 85)):
        assert len({int(maps.panoptic[place]) for maps in frames}) == 1
    pictures = [overlay(np.zeros((60, 120, 3), np.uint8), m.panoptic, m.segments, TAXONOMY) for m in frames]
    for place in ((5, 5), (30, 35), (50, 85)):
        assert len({tuple(picture[place]) for picture in pictures}) == 1
    assert frames[3].confidence[0, 0] == 0.25
    later = link(street(30))  # the cars have jumped: new ids, never used ones; the sky stays
    assert later.panoptic[5, 5] == frames[0].panoptic[5, 5]
    assert {s["id"] for s in later.segments if s["isthing"]}.isdisjoint(s["id"] for s in frames[0].segments)


def test_a_video_is_read_predicted_and_written(tmp_path):
    with VideoWriter(tmp_path / "in.mp4", 12.0) as writer:
        for frame in range(6):
            writer.add(np.full((61, 120, 3), (40 * frame, 90, 20), np.uint8))
    video = Video(tmp_path / "in.mp4")
    assert (video.count, video.fps) == (6, 12.0)
    seen = []
    count = predict_video(
        lambda frame: street(1), video, TAXONOMY, lambda number, frame, maps: seen.append((number, frame))
    )
    assert count == 6
    assert [number for number, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[3][1].shape == (60, 120, 3)
    assert np.abs(seen[3][1].mean((0, 1)) - (120, 90, 20)).max() < 8  # RGB
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_frames_after_an_interruption_are_those_of_a_whole_run(tmp_path):
    with VideoWriter(tmp_path / "in.mp4", 12.0) as writer:
        for frame in range(8):
            writer.add(np.full((60, 120, 3), (30 * frame, 90, 20), np.uint8))
    video = Video(tmp_path / "in.mp4")

    def predict(name, start=0, stop=99, run=0):
        asked = []

        def find(frame):
            asked.append(start + len(asked))
            if asked[-1] == stop:
                raise KeyboardInterrupt
            return street(
                asked[-1] + (12 if asked[-1] > 4 else 0), -1 if asked[-1] % 2 else 1
            )  # the cars jump: new ids

        with (
            suppress(KeyboardInterrupt),
            FrameFolder(tmp_path / name, ["panoptic", "overlay"], TAXONOMY, {"run": run}) as folder,
        ):
            predict_video(find, video, TAXONOMY, folder.write, folder.linker(), folder.done)
        return asked

    def files(name):
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    assert len(predict("whole")) == 8
    assert predict("parts", 0, 4) == [0, 1, 2, 3, 4]
    lines = tmp_path / "parts" / "frames.jsonl"
    lines.write_bytes(lines.read_bytes()[:-5])  # a line that was cut off
    assert predict("parts", 3, 6) == [3, 4, 5, 6]
    assert predict("parts", 6) == [6, 7]
    assert files("parts") == files("whole")
    assert predict("parts", 8) == []
    (tmp_path / "parts" / "000005_overlay.png").unlink()
    assert predict("parts", 4) == [4, 5, 6, 7]
    assert files("parts") == files("whole")
    assert len(predict("parts", run=1)) == 8  # other predictions


def test_the_command_goes_on_behind_the_last_frame(tmp_path, monkeypatch):
    with VideoWriter(tmp_path / "in.mp4", 12.0) as writer:
        for frame in range(3):
            writer.add(np.full((60, 120, 3), 30 * frame, np.uint8))
    asked = []

    class Predictor:
        model = SimpleNamespace(known_taxonomy=lambda: TAXONOMY)
        mapper = None

        def __init__(self, *_):
            pass

        def maps(self, *_):
            asked.append(len(asked))
            return [street(len(asked))]

    monkeypatch.setattr("dearli_d2.predict.Predictor", Predictor)
    monkeypatch.setattr("dearli_d2.config.get_config", lambda *_: None)
    for name, value in {"precision": None, "identity": {"weights": "a"}, "load_pixels": None}.items():
        monkeypatch.setattr(f"dearli_d2.predict.{name}", lambda *_, value=value: value)
    command = ["video", str(tmp_path / "in.mp4"), "--config-file", "any.yaml", "--out", str(tmp_path / "out")]
    command += ["--files", "panoptic"]
    assert main(command) == 0
    assert main(command) == 0
    assert len(asked) == 3  # the second command finds all frames


def test_a_video_is_not_replaced_by_its_prediction(tmp_path, capsys):
    with VideoWriter(tmp_path / "in.mp4", 12.0) as writer:
        writer.add(np.zeros((60, 120, 3), np.uint8))
    before = (tmp_path / "in.mp4").read_bytes()
    assert (
        main(["video", str(tmp_path / "in.mp4"), "--config-file", "any.yaml", "--out", str(tmp_path / "in.mp4")]) == 2
    )
    assert "is the video itself" in capsys.readouterr().err
    assert (tmp_path / "in.mp4").read_bytes() == before


def test_what_is_no_video_is_one_line(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    for name in ("a.mp4", "none.mp4"):
        with pytest.raises(UnreadableImageError, match="cannot be read as a video; convert it"):
            Video(tmp_path / name)

    def interrupted():
        with VideoWriter(tmp_path / "b.mp4", 10) as writer:
            writer.add(np.zeros((20, 20, 3), np.uint8))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]  # nothing half-written
