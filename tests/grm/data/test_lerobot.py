import dataclasses
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from grm.data.episodes import Episode, SubTask
from grm.data.lerobot import EpisodeWriter, count_episodes, read_episodes
from grm.errors import OutputError, TraceError

LENGTH = 12


def make(
    seed: int, *, behaviour: str = "expert", views=("top", "side"), size: int = 32, length: int = LENGTH
) -> Episode:
    """Noise of one colour per block under a moving square: what chroma subsampling would blur."""
    generator = np.random.default_rng(seed)
    images = {}
    for name in views:
        blocks = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        still = np.kron(blocks, np.ones((size // 8, size // 8, 1), np.uint8))
        film = np.stack([still] * length)
        for t in range(length):
            film[t, 4:7, t : t + 3] = (255, 0, 0)
        images[name] = film
    succeeded = behaviour == "expert"
    return Episode(
        task="open-v3",
        instruction="open the door",
        views=images,
        rate_hz=40.0,
        state=generator.normal(size=(length, 5)).astype(np.float32),
        actions=generator.uniform(-1, 1, (length, 4)).astype(np.float32),
        rewards=np.array([0.0] * (length - 2) + [float(succeeded), 0.0], np.float32),
        success=np.array([False] * (length - 1) + [succeeded]),
        progress=np.linspace(0, 1 if succeeded else 0.4, length, dtype=np.float32),
        behaviour=behaviour,
        sub_tasks=(SubTask(name="reach", start=0, end=5), SubTask(name="finish", start=5, end=length - 1)),
        seed=seed,
    )


def assert_same(one: Episode, other: Episode) -> None:
    for field in ("task", "instruction", "rate_hz", "behaviour", "sub_tasks", "seed"):
        assert getattr(one, field) == getattr(other, field), field
    for field in ("state", "actions", "rewards", "success", "progress"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)
        assert getattr(one, field).dtype == getattr(other, field).dtype
    assert sorted(one.views) == sorted(other.views)
    for name in one.views:
        assert one.views[name].shape == other.views[name].shape
        error = np.abs(one.views[name].astype(int) - other.views[name])
        assert error.mean() < 1, name
        assert error.max() < 12, name  # YUV in 8 bits rounds; a blurred square would be off by a hundred


EPISODES = [make(3), make(4, behaviour="undo", length=9), make(5)]


@pytest.fixture(scope="module")
def root(tmp_path_factory, capfd_module) -> Path:
    """Three episodes, each written by a writer of its own, as if the process had been started anew."""
    root = tmp_path_factory.mktemp("data") / "set"
    for index, episode in enumerate(EPISODES):
        writer = EpisodeWriter(root)
        assert len(writer.lines()) == index
        writer.append(episode)
        del writer
        assert count_episodes(root) == index + 1
    return root


@pytest.fixture(scope="module")
def capfd_module():
    """What was printed while the data set was written, by Python and by libraries in C alike."""
    import tempfile

    with tempfile.TemporaryFile() as file:
        kept = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)

        def text() -> str:
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            file.seek(0)
            return file.read().decode()

        yield text
        text()


@pytest.fixture
def copy(root, tmp_path) -> Path:
    return Path(shutil.copytree(root, tmp_path / "copy"))


def video(root: Path, name: str, index: int) -> Path:
    return sorted((root / "videos" / f"observation.images.{name}").rglob("*.mp4"))[index]


def test_writing_is_quiet(root, capfd_module):
    printed = capfd_module()
    for noise in ("x264", "frame I:", "kb/s", "Svt[", "Map:", "it/s"):
        assert noise not in printed, printed


def test_round_trip(root):
    found = list(read_episodes(root))
    assert len(found) == 3
    for one, other in zip(EPISODES, found, strict=True):
        assert_same(one, other)


def test_a_success_that_lasts_or_is_undone_is_read_as_it_was_written(tmp_path):
    lasting, undone = make(8, length=9), make(9, length=9, behaviour="undo")
    lasting = dataclasses.replace(lasting, success=np.arange(9) >= 5)
    undone = dataclasses.replace(undone, success=(np.arange(9) == 4) | (np.arange(9) == 5))
    EpisodeWriter(tmp_path / "set").append(lasting, undone)
    for one, other in zip([lasting, undone], read_episodes(tmp_path / "set"), strict=True):
        assert_same(one, other)


def test_any_episode_and_view_alone(root):
    [last, first] = read_episodes(root, [2, 0], views=["side"])
    assert list(last.views) == ["side"]
    assert_same(dataclasses.replace(EPISODES[2], views={"side": EPISODES[2].views["side"]}), last)
    assert first.seed == 3
    assert next(read_episodes(root, [1], views=[])).views == {}


def test_records_say_what_was_written(root):
    lines = EpisodeWriter(root).lines()
    assert [(line["behaviour"], line["seed"], line["success"], line["length"]) for line in lines] == [
        ("expert", 3, True, 12),
        ("undo", 4, False, 9),
        ("expert", 5, True, 12),
    ]
    assert EpisodeWriter(root.parent / "nothing-yet").lines() == []


def test_the_stock_reader_reads_it(root):
    from lerobot.datasets import LeRobotDataset

    dataset = LeRobotDataset("grm/set", root=root, video_backend="pyav")
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (3, 33, 40)
    item = dataset[LENGTH + 2]
    assert item["task"] == "open the door"
    assert item["episode_index"] == 1
    assert item["progress"] == pytest.approx(EPISODES[1].progress[2])
    image = (item["observation.images.top"].numpy().transpose(1, 2, 0) * 255).round()
    assert np.abs(image - EPISODES[1].views["top"][2]).mean() < 1
    np.testing.assert_array_equal(item["action"], EPISODES[1].actions[2])
    ends = [(bool(dataset[i]["next.done"]), bool(dataset[i]["next.success"])) for i in (9, 10, 11)]
    assert ends == [(False, False), (True, True), (True, True)]


def test_without_our_records_the_rest_is_still_there(copy):
    (copy / "meta" / "grm_episodes.jsonl").unlink()
    [episode] = read_episodes(copy, [0], views=["top"])
    assert (episode.task, episode.behaviour, episode.seed, episode.sub_tasks) == ("open the door", "unknown", None, ())
    np.testing.assert_array_equal(episode.progress, EPISODES[0].progress)
    assert episode.succeeded
    with pytest.raises(OutputError, match=r"holds 3 episodes and .* tells of 0"):
        EpisodeWriter(copy).append(make(9))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9, None])
def test_a_video_cut_short_is_named(copy, share):
    path = video(copy, "side", 0)
    if share is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(TraceError, match=r"file-000\.mp4 of episode 0 does not decode to its 12 frames") as caught:
        list(read_episodes(copy, [0]))
    assert str(path) in str(caught.value)
    assert_same(EPISODES[2], next(read_episodes(copy, [2])))


def test_a_video_of_another_length_is_noticed(copy):
    shutil.copy(video(copy, "side", 1), video(copy, "side", 0))  # 9 frames for 12
    with pytest.raises(TraceError, match="does not decode to its 12 frames"):
        list(read_episodes(copy, [0]))


def test_a_table_cut_short_is_named(copy):
    path = sorted((copy / "data").rglob("*.parquet"))[1]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(TraceError, match=r"file-001\.parquet of episode 1 cannot be read"):
        list(read_episodes(copy, [1]))


def test_what_is_not_there_is_refused_with_what_is(root, tmp_path):
    with pytest.raises(TraceError, match="no episode 3; it has 3, 0 to 2"):
        list(read_episodes(root, [0, 3]))
    with pytest.raises(TraceError, match="no episode -1"):
        list(read_episodes(root, [-1]))
    with pytest.raises(TraceError, match=r"no view 'front'; it has (top, side|side, top)"):
        list(read_episodes(root, views=["top", "front"]))
    with pytest.raises(TraceError, match=r"not a LeRobotDataset .*grm collect"):
        list(read_episodes(tmp_path))
    with pytest.raises(TraceError, match="not a LeRobotDataset"):
        count_episodes(tmp_path / "nowhere")


def test_folders_one_cannot_write_to(tmp_path):
    with pytest.raises(OutputError, match="not a LeRobotDataset"):
        EpisodeWriter(tmp_path)
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(OutputError, match="not a LeRobotDataset"):
        EpisodeWriter(file)
    with pytest.raises(OutputError, match="not writable"):
        EpisodeWriter(file / "inside")
    assert file.read_text() == "mine"
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if not os.access(locked, os.W_OK):  # root may write anywhere
        with pytest.raises(OutputError, match="not writable"):
            EpisodeWriter(locked / "inside")


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"views": ("top",)}, r"images\.side of shape None"),
        ({"views": ("top", "side", "new")}, r"images\.new of shape \(32, 32, 3\)"),
        ({"size": 16}, r"of shape \(16, 16, 3\).*\(32, 32, 3\)"),
    ],
)
def test_episodes_that_do_not_fit_are_refused_and_nothing_is_lost(copy, changed, found):
    with pytest.raises(TraceError, match=found):
        EpisodeWriter(copy).append(make(9, **changed))
    assert count_episodes(copy) == 3
    assert_same(EPISODES[2], next(read_episodes(copy, [2])))


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


@pytest.mark.parametrize("moment", ["add_frame", "save_episode", "finalize"])
def test_an_append_that_breaks_off_is_undone(copy, monkeypatch, moment):
    from lerobot.datasets import LeRobotDataset

    class Killed(BaseException):
        pass

    def killed(self, *arguments, **keywords):
        raise Killed

    before = files(copy)
    with monkeypatch.context() as patch:
        patch.setattr(LeRobotDataset, moment, killed)
        with pytest.raises(Killed):
            EpisodeWriter(copy).append(make(8))
    assert count_episodes(copy) == 3
    if moment == "finalize":
        assert json.loads((copy / "meta" / "info.json").read_text())["total_episodes"] == 4, "LeRobot counts it already"
    writer = EpisodeWriter(copy)
    assert files(copy) == before
    assert len(writer.lines()) == 3
    writer.append(make(9))
    assert [episode.seed for episode in read_episodes(copy, views=[])] == [3, 4, 5, 9]
    assert_same(make(9), next(read_episodes(copy, [3])))


def test_a_first_append_that_breaks_off_is_undone(tmp_path, monkeypatch):
    from lerobot.datasets import LeRobotDataset

    def full(self, *arguments, **keywords):
        raise OSError(28, "No space left on device")

    root = tmp_path / "set"
    with monkeypatch.context() as patch:
        patch.setattr(LeRobotDataset, "finalize", full)
        with pytest.raises(OSError, match="No space"):
            EpisodeWriter(root).append(make(8))
    assert not root.exists()
    EpisodeWriter(root).append(make(9))
    assert [episode.seed for episode in read_episodes(root, views=[])] == [9]
    assert files(tmp_path) == {"set", *(f"set/{name}" for name in files(root))}


def test_a_writer_goes_on_after_an_episode_it_could_not_write(copy, monkeypatch):
    from lerobot.datasets import LeRobotDataset

    def full(self, *arguments, **keywords):
        raise OSError(28, "No space left on device")

    writer = EpisodeWriter(copy)
    with monkeypatch.context() as patch:
        patch.setattr(LeRobotDataset, "finalize", full)
        with pytest.raises(OSError, match="No space"):
            writer.append(make(8))
    writer.append(make(9))
    assert [episode.seed for episode in read_episodes(copy, views=[])] == [3, 4, 5, 9]


def test_of_two_writers_the_one_that_was_overtaken_writes_nothing(copy, tmp_path):
    one, other = EpisodeWriter(copy), EpisodeWriter(copy)
    one.append(make(8))
    before = files(copy)
    with pytest.raises(OutputError, match="holds 4 episodes and this writer left it with 3; expected one writer"):
        other.append(make(9))
    assert files(copy) == before
    one.append(make(10))
    assert [episode.seed for episode in read_episodes(copy, views=[])] == [3, 4, 5, 8, 10]

    early, late = EpisodeWriter(tmp_path / "new"), EpisodeWriter(tmp_path / "new")
    early.append(make(1))
    with pytest.raises(OutputError, match="left it with 0"):
        late.append(make(2))


@pytest.mark.slow
def test_killed_for_real(copy):
    script = f"""
        import os, sys
        sys.path.insert(0, {str(Path(__file__).parents[3])!r})
        from lerobot.datasets import LeRobotDataset
        from tests.grm.data.test_lerobot import EpisodeWriter, make
        from pathlib import Path
        LeRobotDataset.finalize = lambda self: os._exit(9)
        EpisodeWriter(Path({str(copy)!r})).append(make(8))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    assert json.loads((copy / "meta" / "info.json").read_text())["total_episodes"] == 4, "LeRobot counts it already"
    assert count_episodes(copy) == 3
    assert_same(EPISODES[1], next(read_episodes(copy, [1])))
    EpisodeWriter(copy).append(make(9))
    for one, other in zip([*EPISODES, make(9)], read_episodes(copy), strict=True):
        assert_same(one, other)


def test_the_encoders_queue_holds_the_whole_episode(tmp_path, monkeypatch):
    """LeRobot drops frames from a full queue with a warning only, and a busy machine fills it."""
    from lerobot.datasets import LeRobotDataset

    sizes = []
    for name in ("create", "resume"):
        original = getattr(LeRobotDataset, name)

        def spy(*args, original=original, **kwargs):
            sizes.append(kwargs["encoder_queue_maxsize"])
            return original(*args, **kwargs)

        monkeypatch.setattr(LeRobotDataset, name, spy)
    writer = EpisodeWriter(tmp_path / "set")
    episodes = [make(0), make(1)]
    for episode in episodes:
        writer.append(episode)
    assert sizes == [len(episode) for episode in episodes]


def test_an_episode_of_another_rate_is_refused(copy):
    other = dataclasses.replace(make(9), rate_hz=2 * EPISODES[0].rate_hz)
    with pytest.raises(TraceError, match="frames per second"):
        EpisodeWriter(copy).append(other)
    assert count_episodes(copy) == 3


@pytest.mark.parametrize("moment", [("add_frame", 15), ("save_episode", 2), ("finalize", 1)])
def test_several_at_once_are_all_or_nothing(copy, monkeypatch, moment):
    from lerobot.datasets import LeRobotDataset

    class Killed(BaseException):
        pass

    name, number = moment
    original, calls = getattr(LeRobotDataset, name), []

    def killed(self, *arguments, **keywords):
        calls.append(name)
        if len(calls) == number:
            raise Killed
        return original(self, *arguments, **keywords)

    before = files(copy)
    with monkeypatch.context() as patch:
        patch.setattr(LeRobotDataset, name, killed)
        with pytest.raises(Killed):
            EpisodeWriter(copy).append(make(7), make(8))
    writer = EpisodeWriter(copy)
    assert files(copy) == before
    assert count_episodes(copy) == len(writer.lines()) == 3
    writer.append(make(8), make(9, behaviour="undo", length=10))
    found = list(read_episodes(copy))
    for one, other in zip([*EPISODES, make(8), make(9, behaviour="undo", length=10)], found, strict=True):
        assert_same(one, other)
    assert [line["seed"] for line in writer.lines()] == [3, 4, 5, 8, 9]


def test_one_that_does_not_fit_keeps_the_others_from_being_written(copy, tmp_path):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(TraceError, match=r"images\.side of shape None"):
        EpisodeWriter(copy).append(make(8), make(9, views=("top",)))
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    new = tmp_path / "new"
    with pytest.raises(TraceError, match="frames per second"):
        EpisodeWriter(new).append(make(8), dataclasses.replace(make(9), rate_hz=20.0))
    EpisodeWriter(new).append()
    assert not new.exists(), "nothing to write, nothing made"


def test_the_queue_holds_the_longest_of_several(tmp_path, monkeypatch):
    from lerobot.datasets import LeRobotDataset

    sizes, original = [], LeRobotDataset.create

    def spy(*args, **kwargs):
        sizes.append(kwargs["encoder_queue_maxsize"])
        return original(*args, **kwargs)

    monkeypatch.setattr(LeRobotDataset, "create", spy)
    EpisodeWriter(tmp_path / "set").append(make(0, length=5), make(1, length=11), make(2, length=7))
    assert sizes == [11]
    assert [len(episode) for episode in read_episodes(tmp_path / "set", views=[])] == [5, 11, 7]
