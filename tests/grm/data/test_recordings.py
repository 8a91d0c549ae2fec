import dataclasses
import json
import re
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow.parquet
import pytest
from lerobot.datasets import LeRobotDataset

from grm.data.lerobot import EpisodeWriter, read_episodes
from grm.data.recordings import Recording, demonstration, failure, find_recordings
from grm.errors import TraceError
from grm.reward import Frame

from .test_lerobot import LENGTH, make

REAL = Path("../shared/data/real_table")


def grey(level: int) -> np.ndarray:
    return np.full((32, 48, 3), level, np.uint8)


def film(path: Path, levels, rate: int = 10, start: float = 0.0, times=None) -> Path:
    """A video whose every picture is one grey; lossless, so that a level tells which picture it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv444p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for k, level in enumerate(levels):
            picture = av.VideoFrame.from_ndarray(grey(level), format="rgb24")
            picture.pts = round(1000 * (start + (times[k] if times is not None else k / rate)))
            picture.time_base = Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def shown(frames, view: str) -> list[int | None]:
    """Which grey a view shows in each frame; None where it is absent."""
    return [round(float(f.views[view].mean())) if view in f.views else None for f in frames]


LEVELS = [20 * k for k in range(10)]


@pytest.fixture
def folder(tmp_path) -> Path:
    film(tmp_path / "tisch räumen" / "top.mp4", LEVELS)
    film(tmp_path / "tisch räumen" / "wrist.mp4", LEVELS[::-1])
    return tmp_path / "tisch räumen"


def only(*sources, **options) -> Recording:
    [recording], broken = find_recordings(sources, **options)
    assert broken == []
    return recording


def test_a_folder_of_videos_is_one_episode(folder):
    recording = only(folder, instruction="clear the table")
    assert (recording.name, recording.views, recording.length) == ("tisch räumen", ("top", "wrist"), 10)
    assert recording.rate_hz == pytest.approx(10, abs=0.2)
    assert (recording.notes, recording.succeeded, recording.keyframes) == ((), None, ())
    frames = list(recording.frames())
    np.testing.assert_allclose(shown(frames, "top"), LEVELS, atol=1)
    np.testing.assert_allclose(shown(frames, "wrist"), LEVELS[::-1], atol=1)
    np.testing.assert_allclose([f.time for f in frames], np.arange(10) / recording.rate_hz, atol=1e-6)
    np.testing.assert_allclose(shown(recording.frames(3), "top"), LEVELS[::3], atol=1)
    assert shown([recording.last_frame()], "wrist") == [0]
    assert only(folder, instruction="x", cameras=["wrist"]).views == ("wrist",)
    with pytest.raises(TraceError, match="stride is 0"):
        recording.frames(0)


def test_one_video_is_one_episode(folder):
    recording = only(folder / "top.mp4", instruction="clear the table")
    assert (recording.name, recording.views, recording.length) == ("top", ("top",), 10)


def test_cameras_of_other_start_length_and_rate_are_aligned_by_time(tmp_path):
    film(tmp_path / "long.mp4", range(0, 200, 10), rate=10)
    film(tmp_path / "fast.mp4", range(0, 160, 2), rate=40)
    film(tmp_path / "short.mkv", range(0, 120, 10), rate=10)
    film(tmp_path / "late.mkv", range(0, 100, 10), rate=10, start=0.5)
    recording = only(tmp_path, instruction="x")
    assert recording.length == 21, "so that the fast camera's last pictures are seen"
    frames = list(recording.frames())
    np.testing.assert_allclose(shown(frames, "long"), [*range(0, 200, 10), 190], atol=2)
    np.testing.assert_allclose(shown(frames, "fast"), [*range(0, 160, 8), 158], atol=4)
    np.testing.assert_allclose(shown(frames, "short")[:12], [*range(0, 120, 10)], atol=2)
    assert shown(frames, "short")[14:] == [None] * 7
    late = shown(frames, "late")
    assert late[:4] == [None] * 4
    np.testing.assert_allclose(late[5:15], [*range(0, 100, 10)], atol=2)
    said = " / ".join(recording.notes)
    assert "view late starts 0.50 s after" in said
    assert "view short ends 0.88 s before" in said
    assert "view long has 10 pictures a second, another one 40" in said


def test_a_variable_rate_follows_the_time_stamps(tmp_path):
    times = [0.0, 0.1, 0.2, 0.9, 1.0, 1.1]
    film(tmp_path / "uneven.mkv", LEVELS[:6], times=times)
    film(tmp_path / "even.mkv", range(0, 120, 10))
    recording = only(tmp_path, instruction="x")
    period = 1 / recording.rate_hz
    for frame, level in zip(recording.frames(), shown(recording.frames(), "uneven"), strict=True):
        newest = max(k for k, time in enumerate(times) if time < frame.time + period / 2)
        assert level == pytest.approx(LEVELS[newest], abs=1)


def test_folders_of_pictures_in_the_order_of_their_numbers(tmp_path):
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
        for k in range(12):
            cv2.imwrite(str(tmp_path / name / f"frame{k}.png"), grey(10 * k))
    recording = only(tmp_path, instruction="x")
    assert (recording.views, recording.length, recording.rate_hz) == (("left", "right"), 12, 10.0)
    assert shown(recording.frames(), "right") == [*range(0, 120, 10)]


def raw(root: Path, count: int = 3) -> Path:
    for k in range(1, count + 1):
        for camera in ("cam_high", "cam_wrist"):
            film(root / f"episode_{k:03d}" / f"{camera}.mp4", LEVELS)
        parts = [{"anotation": "a", "start_frame_id": 1, "end_frame_id": 4}, {"start_frame_id": 4, "end_frame_id": 12}]
        (root / f"episode_{k:03d}" / "annotated_keyframes.json").write_text(json.dumps(parts))
    (root / "task_instruction.json").write_text(json.dumps(["clean the table", "tidy up"]))
    return root


def test_the_raw_layout_of_recorders(tmp_path):
    recordings, broken = find_recordings([raw(tmp_path)])
    assert broken == []
    assert [r.name for r in recordings] == ["episode_001", "episode_002", "episode_003"]
    assert {r.instruction for r in recordings} == {"clean the table"}
    assert recordings[0].views == ("cam_high", "cam_wrist")
    assert recordings[0].keyframes == ((1, 4), (4, 9)), "cut to what was recorded"
    assert only(tmp_path, episodes=[2], instruction="other words").name == "episode_002"
    assert only(tmp_path, episodes=[2], instruction="other words").instruction == "other words"


def test_a_recording_as_a_demonstration(tmp_path):
    [recording, *_], _ = find_recordings([raw(tmp_path)])
    episode = demonstration(recording, rate_hz=5.0)
    assert episode.succeeded
    assert (episode.task, episode.instruction, episode.rate_hz) == ("clean the table", "clean the table", 5.0)
    taken = [0, 2, 4, 6, 8, 9]
    assert [round(float(image.mean())) for image in episode.views["cam_high"]] == [LEVELS[k] for k in taken]
    np.testing.assert_allclose(episode.progress, np.interp(taken, [1, 4, 9], [0, 0.5, 1]), atol=1e-6)
    assert np.isnan(demonstration(recording, keyframes=False).progress).all(), "nobody says"
    with pytest.raises(TraceError, match="episode_001 is recorded as a failure"):
        demonstration(dataclasses.replace(recording, succeeded=False))
    failed = failure(dataclasses.replace(recording, succeeded=False), rate_hz=5.0)
    np.testing.assert_array_equal(failed.views["cam_high"], episode.views["cam_high"])
    assert not failed.success.any()
    assert np.isnan(failed.progress).all()
    assert not failure(recording).success.any(), "nobody had said how it ended: whoever calls it a failure is believed"
    with pytest.raises(TraceError, match="episode_001 is recorded as a success; expected one that failed"):
        failure(dataclasses.replace(recording, succeeded=True))
    frame = Frame(views={"top": np.zeros((300, 400, 3), np.uint8)})
    large = Recording.of_frames("large", "look", [frame, frame], 5.0)
    assert demonstration(large).views["top"].shape == (2, 128, 171, 3)
    gone = dataclasses.replace(large, views=("top", "wrist"))
    with pytest.raises(TraceError, match="large has 0 moments that all of its cameras show"):
        demonstration(gone)


def test_one_bad_episode_is_reported_and_the_rest_is_found(tmp_path):
    root = raw(tmp_path, 4)
    (root / "episode_001" / "cam_high.mp4").write_bytes(b"")
    whole = (root / "episode_002" / "cam_wrist.mp4").read_bytes()
    (root / "episode_002" / "cam_wrist.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "episode_003" / "annotated_keyframes.json").write_text("[{")
    recordings, broken = find_recordings([root])
    assert [r.name for r in recordings] == ["episode_004"]
    assert [name for name, _ in broken] == ["episode_001", "episode_002", "episode_003"]
    assert "is empty (0 bytes)" in str(broken[0][1])
    assert "cam_wrist.mp4 cannot be read" in str(broken[1][1])
    assert "annotated_keyframes.json cannot be read" in str(broken[2][1])


def test_a_file_that_ends_before_its_header_says_is_no_quiet_end(tmp_path):
    path = film(tmp_path / "top.mp4", np.random.default_rng(0).integers(0, 255, 60))
    data = path.read_bytes()
    moov = data.index(b"moov") - 4
    front = data.index(b"mdat") - 4
    assert front < moov, "the index comes last in what was written"
    # The index stays, half of the pictures are gone.
    path.write_bytes(data[:front] + data[front : front + 200].ljust(moov - front, b"\0") + data[moov:])
    recordings, broken = find_recordings([tmp_path], instruction="x")
    if recordings:
        with pytest.raises(TraceError, match=r"top.mp4 (ends after|cannot be decoded after) \d+ of"):
            list(recordings[0].frames())
    else:
        assert "top.mp4 cannot be read" in str(broken[0][1])


def test_a_lerobot_dataset_is_streamed_as_it_would_be_read(tmp_path):
    root = tmp_path / "set"
    EpisodeWriter(root).append(make(0), make(1, behaviour="near miss", length=9), make(2))
    recordings, broken = find_recordings([root])
    assert broken == []
    assert [(r.name, r.length, r.episode_index, r.index_from) for r in recordings] == [
        ("episode 0", LENGTH, 0, 0),
        ("episode 1", 9, 1, LENGTH),
        ("episode 2", LENGTH, 2, LENGTH + 9),
    ]
    assert [r.succeeded for r in recordings] == [True, False, True]
    for recording, episode in zip(recordings, read_episodes(root), strict=True):
        assert (recording.task, recording.instruction) == (episode.task, episode.instruction)
        assert recording.keyframes == tuple((part.start, part.end) for part in episode.sub_tasks)
        frames = list(recording.frames())
        assert len(frames) == len(episode)
        for name, images in episode.views.items():
            seen = np.stack([frame.views[name] for frame in frames]).astype(int)
            assert np.abs(seen - images).max() <= 3, "two decoders' rounding, and no other frame"
    assert only(root, episodes=[1], cameras=["side"]).views == ("side",)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Two episodes of a LeRobotDataset that keeps pictures and no videos."""
    feature = {"dtype": "image", "shape": (32, 48, 3), "names": ["height", "width", "channels"]}
    state = {"dtype": "float32", "shape": (2,), "names": None}
    features = {f"observation.images.{view}": feature for view in ("top", "wrist")} | {"observation.state": state}
    dataset = LeRobotDataset.create("local/set", 10, features, root=tmp_path / "set", use_videos=False)
    for episode in range(2):
        for k in range(40):
            views = {f"observation.images.{v}": grey(6 * k + 3 * episode) for v in ("top", "wrist")}
            dataset.add_frame({**views, "observation.state": np.zeros(2, np.float32), "task": "open the door"})
        dataset.save_episode()
    dataset.finalize()
    return tmp_path / "set"


def test_a_lerobot_dataset_of_pictures(pictures):
    recordings, broken = find_recordings([pictures])
    assert broken == []
    for episode, recording in enumerate(recordings):
        assert (recording.length, recording.rate_hz, recording.views) == (40, 10.0, ("top", "wrist"))
        expected = [6 * k + 3 * episode for k in recording.sampled(7)]
        assert shown(recording.frames(7), "wrist") == expected
    one = only(pictures, episodes=[1], cameras=["top"])
    assert one.views == ("top",)
    np.testing.assert_allclose([frame.time for frame in one.frames()], np.arange(40) / 10)
    with pytest.raises(TraceError, match="has no camera 'side'; it has top, wrist"):
        [*map(_raise, find_recordings([pictures], cameras=["side"])[1])]


def _raise(broken: tuple[str, TraceError]) -> None:
    raise broken[1]


def test_a_table_of_pictures_that_ends_early_is_said(pictures):
    [table] = pictures.glob("data/**/*.parquet")
    rows = pyarrow.parquet.read_table(table)
    pyarrow.parquet.write_table(rows.slice(0, 70), table)
    recordings, _ = find_recordings([pictures])
    assert len(list(recordings[0].frames())) == 40
    with pytest.raises(TraceError, match="holds 30 of the 40 pictures of episode 1"):
        list(recordings[1].frames())
    table.write_bytes(table.read_bytes()[:-100])
    with pytest.raises(TraceError, match=r"parquet cannot be read"):
        list(recordings[0].frames())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cameras": ["front"]}, "has no camera 'front'; it has top, wrist"),
        ({"instruction": ""}, "says nowhere what the task is"),
    ],
)
def test_what_an_episode_lacks_is_said(folder, options, message):
    recordings, [(name, error)] = find_recordings([folder], **{"instruction": "x", **options})
    assert (recordings, name) == ([], "tisch räumen")
    assert message in str(error)


def test_what_is_no_source_at_all_is_said(tmp_path, folder):
    with pytest.raises(TraceError, match="nowhere does not exist"):
        find_recordings([tmp_path / "nowhere"])
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(TraceError, match=r"notes.txt is no video; expected one of .mp4"):
        find_recordings([tmp_path / "notes.txt"])
    with pytest.raises(TraceError, match="has no episode 7; it has 3: 1 to 3"):
        find_recordings([raw(tmp_path / "raw")], episodes=[7])
    empty = tmp_path / "empty"
    empty.mkdir()
    [(_, error)] = find_recordings([empty], instruction="x")[1]
    assert "holds no video and no folder of pictures" in str(error)


@pytest.mark.parametrize("damaged", ["meta/episodes/chunk-000/file-000.parquet", "meta/grm_episodes.jsonl"])
def test_a_cut_table_of_episodes_is_said(tmp_path, damaged):
    root = tmp_path / "set"
    EpisodeWriter(root).append(make(0))
    (root / damaged).write_bytes((root / damaged).read_bytes()[:100])
    with pytest.raises(TraceError, match=r"metadata of .* cannot be read"):
        find_recordings([root])


def test_one_lost_video_of_a_lerobot_dataset_leaves_the_other_episodes(tmp_path):
    root = tmp_path / "set"
    for seed in range(2):  # each append writes files of its own
        EpisodeWriter(root).append(make(seed))
    (root / "videos" / "observation.images.top" / "chunk-000" / "file-001.mp4").unlink()
    [recording], [(name, error)] = find_recordings([root])
    assert (recording.name, name) == ("episode 0", "episode 1")
    assert "file-001.mp4 cannot be read" in str(error)


def test_a_cut_video_whose_header_counts_no_pictures_is_said(tmp_path):
    path = film(tmp_path / "top.mkv", np.random.default_rng(0).integers(0, 255, 60))
    assert only(path, instruction="x").length == 60
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    recordings, [(_, error)] = find_recordings([path], instruction="x")
    assert recordings == []
    assert re.search(r"top.mkv ends at [1-4]\.\d of the 6\.0 s its header tells of", str(error))


def test_frames_in_memory_are_a_recording_too():
    frames = [Frame(views={"top": grey(k)}, time=0.1 * k) for k in range(4)]
    recording = Recording.of_frames("mine", "open it", frames, 10.0, succeeded=True)
    assert (recording.views, recording.length, recording.succeeded) == (("top",), 4, True)
    assert [frame.time for frame in recording.frames(2)] == pytest.approx([0.0, 0.2, 0.3]), "and how it ended"
    assert recording.sampled(3).tolist() == [0, 3]


@pytest.mark.skipif(not REAL.exists(), reason="the real recordings are not on this machine")
def test_the_real_recordings():
    first, second = find_recordings([REAL])[0]
    assert (first.length, second.length, first.rate_hz) == (1277, 1715, 30.0)
    assert first.views == ("cam_high", "cam_left_wrist", "cam_right_wrist")
    assert (len(first.keyframes), first.keyframes[0]) == (16, (8, 147))
    assert first.notes == ()
    frame = next(first.frames())
    assert frame.views["cam_high"].shape == (480, 640, 3)
