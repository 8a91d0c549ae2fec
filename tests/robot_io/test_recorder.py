import errno
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from grm.data.lerobot import EpisodeWriter, read_episodes, recorded_episodes
from grm.errors import OutputError, TraceError
from robot_io import recorder as recorder_module
from robot_io.recorder import Recorder, read_judged, recover
from robot_io.rollout import Ending, Tick, Verdict

from ..tiny import square

RATE_HZ = 20.0


class Space:
    def __init__(self, *shape: int) -> None:
        self.shape = shape


class NoEnv:
    """What a recorder asks of an environment: names and sizes."""

    views = ("front", "wrist")
    scalars = ("x.pos", "gripper.pos")
    commanded = ("x.pos", "gripper.pos")
    observation_space = {"pixels.front": Space(32, 48, 3), "pixels.wrist": Space(32, 32, 3)}  # noqa: RUF012

    class robot:
        class limits:
            names = ("x.pos", "gripper.pos")


def observe(t: int, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng([seed, t])
    return {
        "state": np.array([t / 100, seed], np.float32),
        "pixels.front": np.kron(generator.integers(0, 255, (4, 6, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8)),
        "pixels.wrist": np.kron(generator.integers(0, 255, (4, 4, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8)),
    }


def rollout(recorder: Recorder, seed: int, *, ticks: int = 6, verdict=Verdict.SUCCESS, pause=False, judge=True) -> None:
    recorder.begin(observe(0, seed), {"sent": {"x.pos": 0.0, "gripper.pos": 0.0}, "time": 0.0})
    for t in range(ticks):
        ends = t == ticks - 1 and not pause
        recorder.tick(
            Tick(
                index=t, observation=observe(t, seed), action=np.zeros(2), next_observation=observe(t + 1, seed),
                reward=float(ends and verdict is Verdict.SUCCESS), terminated=ends and verdict is not Verdict.GOING,
                truncated=ends and verdict is Verdict.GOING, intervention=t in (1, 2),
                info={
                    "sent": {"x.pos": 0.5 + t, "gripper.pos": -0.5}, "action": np.array([0.25, t / 10], np.float32),
                    "success": ends and verdict is Verdict.SUCCESS, "time": (t + 1) / RATE_HZ,
                },
            )
        )  # fmt: skip
        if judge and t != 2:
            recorder.judge(t, t / 10, 0.01)
    recorder.end(Ending(verdict=verdict, ticks=ticks, interventions=2))


def make(root: Path) -> Recorder:
    return Recorder(root, NoEnv(), "open the door", task="door", rate_hz=RATE_HZ)


def stock(root: Path):
    from lerobot.datasets import LeRobotDataset

    return LeRobotDataset("grm/set", root=root, video_backend="pyav")


def require_readable(root: Path, episodes: int) -> None:
    """LeRobot's own reader and ours read every episode, pictures included."""
    dataset = stock(root)
    assert dataset.num_episodes == episodes
    assert dataset[0]["observation.images.front"].shape == (3, 32, 48)
    assert dataset[dataset.num_frames - 1]["episode_index"] == episodes - 1
    assert sum(len(episode) for episode in read_episodes(root)) == dataset.num_frames


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """Four rollouts by two recorders, of which one is discarded."""
    root = tmp_path_factory.mktemp("recorded") / "set"
    recorder = make(root)
    rollout(recorder, 0)
    rollout(recorder, 1, verdict=Verdict.DISCARD)
    rollout(recorder, 2, verdict=Verdict.GOING, ticks=4)
    recorder.close()
    recorder = make(root)
    assert recorder.episodes == 2
    rollout(recorder, 3, verdict=Verdict.FAILURE, judge=False)
    recorder.close()
    return root


def test_all_is_recorded_as_it_was(recorded):
    assert [path.name for path in recorded.parent.iterdir()] == ["set"]
    [first, second, third] = read_episodes(recorded)
    assert [len(e) for e in (first, second, third)] == [7, 5, 7]
    assert [e.succeeded for e in (first, second, third)] == [True, False, False]
    assert first.rewards.tolist() == [0, 0, 0, 0, 0, 1, 0]
    assert first.success.tolist()[-1] is True
    np.testing.assert_array_equal(first.actions[:, 0], [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 5.5])  # the last: never taken
    np.testing.assert_array_equal(first.state, [observe(t, 0)["state"] for t in range(7)])
    for name in ("front", "wrist"):
        wanted = np.stack([observe(t, 0)["pixels." + name] for t in range(7)])
        assert np.abs(first.views[name].astype(int) - wanted).mean() < 1
    assert first.instruction == "open the door"
    assert [e.task for e in recorded_episodes(recorded)] == ["door"] * 3


def test_columns_in_the_robots_words(recorded):
    dataset = stock(recorded)
    assert dataset.features["action"]["names"] == ["x.pos", "gripper.pos"]
    rows = [dataset[i] for i in range(7)]
    assert [row["intervention"].item() for row in rows] == [False, True, True, False, False, False, False]
    assert [row["next.done"].item() for row in rows] == [False] * 5 + [True] * 2
    assert [row["next.success"].item() for row in rows] == [False] * 5 + [True] * 2
    assert [row["time"].item() for row in rows] == pytest.approx([t / 20 for t in range(7)])
    assert rows[3]["command"].tolist() == pytest.approx([0.25, 0.3])
    truncated = [dataset[7 + i]["next.truncated"].item() for i in range(5)]
    assert truncated == [False, False, False, True, True]


def test_the_potential_is_what_was_said_at_the_time(recorded):
    judged, _, unjudged = read_judged(recorded)
    np.testing.assert_allclose(judged.potential, [0, 0.1, np.nan, 0.3, 0.4, 0.5, np.nan], atol=1e-6)
    assert judged.judged.tolist() == [True, True, False, True, True, True, False]
    assert not unjudged.judged.any()


def test_where_nothing_was_said_no_potential_is_read(tmp_path):
    EpisodeWriter(tmp_path / "collected").append(square(0))
    for folder in ("collected", "nowhere"):
        with pytest.raises(TraceError, match=f"{folder} has no episodes with a potential"):
            read_judged(tmp_path / folder)


def test_verdicts_are_beside(recorded):
    lines = EpisodeWriter(recorded).lines()
    assert [(line["verdict"], line["interventions"], line["length"]) for line in lines] == [
        ("success", 2, 7), ("going", 2, 5), ("failure", 2, 7)
    ]  # fmt: skip


def test_a_verdict_given_in_a_pause_reaches_the_last_transition(tmp_path):
    recorder = make(tmp_path / "set")
    rollout(recorder, 0, pause=True)
    [episode] = read_episodes(tmp_path / "set")
    assert episode.rewards.tolist() == [0, 0, 0, 0, 0, 1, 0]
    assert episode.succeeded


def test_what_does_not_fit_is_refused(recorded, tmp_path):
    class Other(NoEnv):
        scalars = ("x.pos", "y.pos")

    class Bigger(NoEnv):
        observation_space = {**NoEnv.observation_space, "pixels.front": Space(64, 64, 3)}  # noqa: RUF012

    for env, said in ((Other(), "observation.state"), (Bigger(), "observation.images.front")):
        with pytest.raises(OutputError, match=said):
            Recorder(recorded, env, "open the door", rate_hz=RATE_HZ)
    with pytest.raises(OutputError, match="steps per second"):
        Recorder(recorded, NoEnv(), "open the door", rate_hz=10)
    (tmp_path / "other").mkdir()
    with pytest.raises(OutputError, match="no LeRobotDataset"):
        make(tmp_path / "other")


# ---- kill -9


@pytest.fixture
def copy(recorded, tmp_path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "set"))


def test_killed_between_any_two_renames_it_is_readable_and_completed(copy, monkeypatch):
    """Every moment of the move, one after the other: read by LeRobot as it is, then recovered."""
    kept = Path(shutil.copytree(copy, copy.parent / "kept"))
    recorder = make(copy)
    moved, cut = 0, 10**9
    replace = Path.replace

    def counted(self: Path, target: Path) -> Path:
        nonlocal moved
        if moved == cut:
            raise KeyboardInterrupt
        moved += 1
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", counted)
    rollout(recorder, 5, ticks=2)
    recorder.close()
    total = moved
    assert total > 6
    monkeypatch.setattr(Path, "replace", replace)
    require_readable(copy, 4)
    for cut in (0, total // 2, total - 1):  # noqa: B007 (it is `counted` that uses it)
        shutil.rmtree(copy)
        shutil.copytree(kept, copy)
        recorder, moved = make(copy), 0
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", counted)
            with pytest.raises(KeyboardInterrupt):
                rollout(recorder, 5, ticks=2)
        before = stock(copy)
        assert before.num_episodes in (3, 4)
        assert before[18]["observation.state"].shape == (2,)
        recover(copy)
        require_readable(copy, 4)


NURSERY = textwrap.dedent("""
    # Imports once, then forks a recording process for each number of seconds it reads, and kills it after so many.
    import os, select, signal, sys, time
    from pathlib import Path
    import av, datasets, lerobot.datasets
    from tests.robot_io.test_recorder import make, rollout

    root = Path(sys.argv[1])
    for line in sys.stdin:
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            recorder = make(root)
            for seed in range(10**6):
                os.write(into, b"%d\\n" % recorder.episodes)
                rollout(recorder, seed, ticks=4)
        os.close(into)
        reader = os.fdopen(out)
        first, began = reader.readline(), time.monotonic()
        time.sleep(float(line))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print((first + reader.read()).split()[-1], flush=True)
""")


def kill_often(root: Path, times: int, seed: int) -> None:
    generator = random.Random(seed)
    nursery = subprocess.Popen(
        [sys.executable, "-c", NURSERY, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).resolve().parents[2], env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    recorder = make(root)
    rollout(recorder, 0, ticks=4)
    began = time.monotonic()
    rollout(recorder, 1, ticks=4)
    longest, finished = 2 * (time.monotonic() - began), 2
    recorder.close()
    for _ in range(times):
        nursery.stdin.write(f"{generator.uniform(0, longest)}\n")
        nursery.stdin.flush()
        said = int(nursery.stdout.readline())
        recover(root)
        found = json.loads((root / "meta" / "info.json").read_text())["total_episodes"]
        assert said >= finished
        assert found in (said, said + 1), "finished in the moment it was killed, before it could say so"
        finished = found
    nursery.stdin.close()
    assert nursery.wait(60) == 0
    nursery.stdout.close()
    assert finished > 2 + times // 5
    require_readable(root, finished)
    rollout(make(root), 0)
    require_readable(root, finished + 1)


def test_killed_ten_times_at_random_moments_nothing_finished_is_lost(tmp_path):
    kill_often(tmp_path / "set", 10, seed=0)


@pytest.mark.slow
def test_killed_fifty_times_at_random_moments_nothing_finished_is_lost(tmp_path):
    kill_often(tmp_path / "set", 50, seed=1)


def test_an_exception_in_an_episode_costs_that_one_only(copy):
    recorder = make(copy)
    recorder.begin(observe(0, 0), {"sent": {"x.pos": 0.0, "gripper.pos": 0.0}, "time": 0.0})
    rollout(recorder, 9)  # the one before never ended
    assert recorder.episodes == 4
    require_readable(copy, 4)


# ---- a full disk


@pytest.mark.parametrize("where", ["save_episode", "finalize", "add_frame"])
def test_a_full_disk_costs_one_episode_and_says_so(copy, monkeypatch, where):
    from lerobot.datasets import LeRobotDataset

    recorder = make(copy)

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LeRobotDataset, where, full)
        with pytest.raises(OutputError, match=r"the disk is full: .* the 3 before it are safe; free some space"):
            rollout(recorder, 5, ticks=2)
    assert stock(copy).num_episodes == 3
    rollout(recorder, 6, ticks=2)  # space was freed: it goes on
    require_readable(copy, 4)


def test_an_encoder_that_fails_is_an_error_too(copy, monkeypatch):
    from lerobot.datasets import LeRobotDataset

    recorder = make(copy)
    monkeypatch.setattr(LeRobotDataset, "add_frame", lambda *_: (_ for _ in ()).throw(RuntimeError("encoder died")))
    with pytest.raises(OutputError, match=r"writing failed .*encoder died"):
        rollout(recorder, 5)


def test_too_little_space_is_said_before_an_episode(copy, monkeypatch):
    monkeypatch.setattr(recorder_module.shutil, "disk_usage", lambda _p: type("Usage", (), {"free": 1_000_000})())
    with pytest.raises(OutputError, match=r"has 1 MB left; expected at least 200 MB"):
        make(copy)
