"""Every rollout becomes a LeRobotDataset episode, and no kill, crash or full disk costs one that was finished.

LeRobot leaves a whole data set unreadable when a process dies before `finalize()`. So an episode is never recorded into
the data set: it is streamed into a folder beside, finalized there, and only whole files are moved over, each by one
rename, the table of contents last. A marker makes the move a decision: without it what is beside is thrown away, with
it the move is completed by whoever comes next. At every moment in between, LeRobot's own reader reads all that was
finished.
"""

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grm.data.lerobot import IMAGES, SIDECAR
from grm.errors import OutputError, TraceError
from grm.reward import Judgement

from .robot import PIXELS, RobotEnv
from .rollout import Ending, Tick, Verdict

_MARKER = "whole"
"""In the folder beside: its episode is finished, and belongs into the data set."""
_QUEUE = 100_000
"""Pictures; LeRobot drops what does not fit its encoder's queue."""
_RESERVE_BYTES = 200_000_000
_LAST = ("meta/episodes", "meta/stats.json", str(SIDECAR), "meta/info.json")
"""What is moved after everything else, in this order: what a reader looks at first comes last."""


class Recorder:
    """A subscriber that records each rollout into the LeRobotDataset v3 at `root`, made with the first one.

    T ticks become T + 1 rows, the last of which shows how it ended. Columns: a video by view, `observation.state`,
    `action` (really sent, in the robot's units), `command` (the same in the environment's range), `next.reward` (the
    task reward), `next.done`, `next.truncated`, `next.success`, `intervention`, `time` (seconds since the beginning),
    `potential` and `potential_spread` as they were at the time (NaN where nobody judged). What LeRobot has no column
    for is in `meta/grm_episodes.jsonl`, with the verdict. Discarded episodes are not kept.

    Args:
        root: a new folder, or one that a recorder began with the same robot.
        env: whose rollouts are recorded; asked for names, sizes and rate only.
        instruction: of the task, for LeRobot and for judges.
        task: its name.

    Raises:
        OutputError: `root` is something else or of another robot, or the disk is full.
    """

    def __init__(self, root: Path, env: RobotEnv, instruction: str, *, task: str = "", rate_hz: float = 20.0) -> None:
        self.root = Path(root)
        self._beside = _new_beside(self.root)
        self._features = _features(env)
        self._instruction, self._task, self._rate_hz = instruction, task, rate_hz
        self.behaviour = "rollout"
        """What the next episode is: `rollout`, `evaluation` or `demonstration`."""
        self._dataset: Any = None
        self._rows = 0
        self._interventions = 0
        self._judged: dict[int, tuple[float, float]] = {}
        self._newest: Mapping[str, np.ndarray] = {}
        self._sent: np.ndarray | None = None
        self._time = 0.0
        recover(self.root)
        if self.root.exists() and not (self.root / "meta" / "info.json").exists():
            raise OutputError(f"{self.root} exists and is no LeRobotDataset; expected a new folder, or a recording")
        self._require_same()
        self.prepare()

    @property
    def episodes(self) -> int:
        """How many are safe on disk."""
        info = self.root / "meta" / "info.json"
        return int(json.loads(info.read_text())["total_episodes"]) if info.exists() else 0

    def prepare(self) -> None:
        """Open the folder beside for the next episode, which takes a third of a second: while the robot rests."""
        import av.logging
        import datasets
        from lerobot.configs.video import RGBEncoderConfig
        from lerobot.datasets import LeRobotDataset

        self._require_space()
        av.logging.set_libav_level(av.logging.ERROR)  # x264 prints a page of statistics per file otherwise
        self._beside = _new_beside(self.root)
        options: dict[str, Any] = {
            "root": self._beside,
            "video_backend": "pyav",
            "rgb_encoder": RGBEncoderConfig(vcodec="h264", pix_fmt="yuv444p", preset="veryfast", crf=0, g=10),
            "streaming_encoding": True,
            "encoder_threads": 1,
            "encoder_queue_maxsize": _QUEUE,
        }
        name = f"grm/{self.root.name}"
        try:
            if self.root.exists():
                _copy_contents(self.root / "meta", self._beside / "meta")
                self._dataset = LeRobotDataset.resume(name, **options)
            else:
                rate, features = round(self._rate_hz), self._features
                self._dataset = LeRobotDataset.create(name, rate, features, robot_type="grm", **options)
        except OSError as error:
            raise self._failed(error) from error
        datasets.disable_progress_bars()  # only now: opening a data set enables them

    def begin(self, observation: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> None:
        """An episode begins; one that never ended is forgotten."""
        if self._dataset is None or self._rows:
            self._abandon()
            self.prepare()
        self._rows, self._interventions, self._judged = 0, 0, {}
        self._newest, self._sent = observation, np.array(list(info["sent"].values()), np.float32)
        self._time = info["time"]

    def tick(self, tick: Tick) -> None:
        """A transition has happened. Raises `OutputError` if it cannot be written; the episode is lost then."""
        self._sent = np.array(list(tick.info["sent"].values()), np.float32)
        self._add(
            tick.observation,
            command=tick.info["action"],
            reward=tick.reward,
            done=tick.terminated or tick.truncated,
            truncated=tick.truncated,
            success=bool(tick.info["success"]),
            intervention=tick.intervention,
            time=self._time,
        )
        self._newest, self._interventions = tick.next_observation, self._interventions + tick.intervention
        self._time = tick.info["time"]

    def judge(self, index: int, potential: float, spread: float) -> None:
        """What the model said of frame `index` of this episode, at the time; until the episode ends."""
        self._judged[index] = potential, spread

    def end(self, ending: Ending) -> None:
        """The episode is over: when this returns, it is safe on disk. Raises `OutputError` if it cannot be written."""
        if self._dataset is None:
            return
        if ending.verdict is Verdict.DISCARD or self._rows == 0:
            self._abandon()
            self.prepare()
            return
        success = ending.verdict is Verdict.SUCCESS
        self._add(
            self._newest,
            command=np.zeros(self._features["command"]["shape"], np.float32),
            reward=0.0,
            done=True,
            truncated=ending.verdict is Verdict.GOING,
            success=success,
            intervention=False,
            time=self._time,
        )
        try:
            self._finish(ending)
            line = self._line(ending)
            self._dataset.save_episode()
            self._dataset.finalize()
            with (self._beside / SIDECAR).open("a") as file:
                file.write(json.dumps(line) + "\n")
            self._dataset, self._rows = None, 0
            _commit(self._beside, self.root)
        except (OSError, RuntimeError) as error:
            self._abandon()
            raise self._failed(error) from error
        self.prepare()

    def close(self) -> None:
        """Throw away what was begun and never ended."""
        self._abandon()

    def _add(self, observation: Mapping[str, np.ndarray], **values: Any) -> None:
        row = {
            **{
                IMAGES + key.removeprefix(PIXELS): image for key, image in observation.items() if key.startswith(PIXELS)
            },
            "observation.state": observation["state"],
            "action": self._sent,
            "command": np.asarray(values["command"], np.float32),
            "next.reward": np.array([values["reward"]], np.float32),
            "next.done": np.array([values["done"]]),
            "next.truncated": np.array([values["truncated"]]),
            "next.success": np.array([values["success"]]),
            "intervention": np.array([values["intervention"]]),
            "time": np.array([values["time"]], np.float32),
            "potential": np.array([np.nan], np.float32),
            "potential_spread": np.array([np.nan], np.float32),
            "task": self._instruction,
        }
        try:
            self._dataset.add_frame(row)
        except (OSError, RuntimeError) as error:
            self._abandon()
            raise self._failed(error) from error
        self._rows += 1

    def _finish(self, ending: Ending) -> None:
        """Into the rows, which are in memory until now: what is known only at the end."""
        rows = self._dataset.writer.episode_buffer
        for index, (potential, spread) in self._judged.items():
            if 0 <= index < self._rows:
                rows["potential"][index] = np.array([potential], np.float32)
                rows["potential_spread"][index] = np.array([spread], np.float32)
        last = self._rows - 2  # the last transition, which a verdict given in a pause came too late for
        success, going = ending.verdict is Verdict.SUCCESS, ending.verdict is Verdict.GOING
        rows["next.reward"][last] = np.array([float(success)], np.float32)
        rows["next.done"][last], rows["next.truncated"][last] = np.array([True]), np.array([going])
        rows["next.success"][last] = np.array([success])

    def _line(self, ending: Ending) -> dict[str, Any]:
        return {
            "task": self._task or self._instruction,
            "behaviour": self.behaviour,
            "seed": None,
            "success": ending.verdict is Verdict.SUCCESS,
            "length": self._rows,
            "rate_hz": self._rate_hz,
            "sub_tasks": [],
            "verdict": str(ending.verdict),
            "interventions": self._interventions,
            "reason": ending.reason,
        }

    def _abandon(self) -> None:
        dataset, self._dataset, self._rows = self._dataset, None, 0
        if dataset is not None:
            with contextlib.suppress(OSError, ValueError, RuntimeError):  # it goes, whether it can be closed or not
                dataset.writer.cancel_pending_videos()
                dataset.finalize()
        shutil.rmtree(self._beside, ignore_errors=True)

    def _require_space(self) -> None:
        existing = next(path for path in self.root.absolute().parents if path.exists())
        free = shutil.disk_usage(existing).free
        if free < _RESERVE_BYTES:
            raise OutputError(
                f"the disk of {existing} has {free / 1e6:.0f} MB left; expected at least {_RESERVE_BYTES / 1e6:.0f} MB "
                f"for an episode: free some, or record elsewhere; the {self.episodes} episodes so far are safe"
            )

    def _require_same(self) -> None:
        if not self.root.exists():
            return
        found = json.loads((self.root / "meta" / "info.json").read_text())
        rate = round(self._rate_hz)
        if found["fps"] != rate:
            raise OutputError(f"{self.root} is of {found['fps']} steps per second; expected {rate}: record elsewhere")
        for key, feature in self._features.items():
            there = found["features"].get(key, {})
            was, now = ((tuple(each.get("shape", ())), each.get("names")) for each in (there, feature))
            if was != now:
                raise OutputError(
                    f"{self.root} has {key} of shape {was[0]} and names {was[1]}; expected {now[0]} and {now[1]}, as "
                    f"this robot has: record elsewhere"
                )

    def _failed(self, error: Exception) -> OutputError:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        what = "the disk is full" if full else f"writing failed ({type(error).__name__}: {error})"
        return OutputError(
            f"{what}: the episode being recorded in {self.root} is lost, the {self.episodes} before it are safe; "
            f"{'free some space' if full else 'see whether the folder is writable'}, then go on"
        )


def recover(root: Path) -> None:
    """Complete or throw away what a recorder of the data set at `root` left beside it. Harmless at any other time."""
    root = Path(root)
    for beside in sorted(root.parent.glob(f".{root.name}.recording-*")):
        if (beside / _MARKER).exists():
            _move(beside, root)
        shutil.rmtree(beside, ignore_errors=True)


def read_judged(root: Path) -> list[Judgement]:
    """What was said of the frames of each recorded episode at the time. Raises `TraceError` without such columns."""
    import pandas as pd

    tables = [pd.read_parquet(file) for file in sorted((Path(root) / "data").rglob("*.parquet"))]
    if not tables or not all("potential" in table for table in tables):
        raise TraceError(f"{root} has no episodes with a potential; expected a recording of rollouts")
    judged = []
    for _, table in pd.concat(tables).sort_values(by=["episode_index", "frame_index"]).groupby("episode_index"):
        said = [
            np.array([np.asarray(value).item() for value in table[name]], np.float64)
            for name in ("potential", "potential_spread")
        ]
        judged.append(Judgement(potential=said[0], spread=said[1], judged=~np.isnan(said[0])))
    return judged


def _copy_contents(meta: Path, to: Path) -> None:
    """What LeRobot needs to append: of the episodes only the newest file, or opening would take ever longer."""
    episodes = sorted((meta / "episodes").rglob("*.parquet"))

    def skip(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(folder) / name in episodes[:-1]]

    shutil.copytree(meta, to, ignore=skip)


def _new_beside(root: Path) -> Path:
    """A folder that never was: LeRobot may yet write into one that was given up, when it collects its garbage."""
    return root.with_name(f".{root.name}.recording-{time.time_ns()}")


def _commit(beside: Path, root: Path) -> None:
    """Make a finalized episode part of the data set."""
    for path in beside.rglob("*"):
        if path.is_file():
            _sync(path)
    if not root.exists():
        beside.rename(root)
        return
    (beside / _MARKER).touch()
    _sync(beside)
    _move(beside, root)
    shutil.rmtree(beside, ignore_errors=True)


def _move(beside: Path, root: Path) -> None:
    """Move whole files over, each by one rename, the table of contents last. May be begun again at any point."""
    paths = sorted(path.relative_to(beside) for path in beside.rglob("*") if path.is_file() and path.name != _MARKER)

    def turn(path: Path) -> int:
        return next((i for i, start in enumerate(_LAST) if path.as_posix().startswith(start)), -1)

    for path in sorted(paths, key=turn):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (beside / path).replace(root / path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _features(env: RobotEnv) -> dict[str, Any]:
    def column(dtype: str, names: Sequence[str] | None = None) -> dict[str, Any]:
        return {"dtype": dtype, "shape": (len(names) if names else 1,), "names": list(names) if names else None}

    spaces: Any = env.observation_space
    return {
        **{
            IMAGES + name: {
                "dtype": "video",
                "shape": spaces[PIXELS + name].shape,
                "names": ["height", "width", "channels"],
            }
            for name in env.views
        },
        "observation.state": column("float32", env.scalars),
        "action": column("float32", env.robot.limits.names),
        "command": column("float32", env.commanded),
        **dict.fromkeys(("next.reward", "time", "potential", "potential_spread"), column("float32")),
        **dict.fromkeys(("next.done", "next.truncated", "next.success", "intervention"), column("bool")),
    }
