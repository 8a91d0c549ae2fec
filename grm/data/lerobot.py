"""The kernel's door to LeRobot: episodes to and from a LeRobotDataset v3 on disk.

One `finalize()` and `resume()` per episode, because LeRobot leaves the whole data set unreadable when a process dies
before `finalize()`. It dies all the same when it is killed in the middle of writing one: so each append can be undone,
the first by being made in a folder beside, the others from a journal. A killed run loses at most the episode in flight.
What LeRobot has no column for (task name, behaviour, sub-task keyframes, seed) is one JSON line per episode in
`meta/grm_episodes.jsonl`.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OutputError, TraceError
from .episodes import Episode, SubTask

IMAGES = "observation.images."
SIDECAR = Path("meta") / "grm_episodes.jsonl"
"""Of a data set: one JSON line per episode, with what LeRobot has no column for."""
_JOURNAL = Path(".append")
"""While an episode is appended: the names of all files that were there before, and copies of those that change."""
_CHANGING = (Path("meta") / "info.json", Path("meta") / "stats.json", Path("meta") / "tasks.parquet", SIDECAR)


class EpisodeWriter:
    """Appends episodes to a LeRobotDataset v3 at `root`, creating it with the first one.

    Views are stored as lossless H.264 with full colour resolution (tiny objects would not survive less); `progress` in
    [0, 1], `next.reward`, `next.done` and `next.success` are columns. One writer at a time: what an earlier one left
    half-written is undone here, and one that finds another's episodes refuses to write. Raises `OutputError` if `root`
    exists and is not such a data set, or is not writable.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        if self.root.exists() and not (self.root / "meta" / "info.json").exists():
            raise OutputError(
                f"{self.root} exists and is not a LeRobotDataset; expected a new folder or one that `grm collect` began"
            )
        existing = next(p for p in (self.root, *self.root.absolute().parents) if p.exists())
        if not (existing.is_dir() and os.access(existing, os.W_OK)):
            raise OutputError(f"{self.root} is not writable ({existing} is not); choose a folder you may write to")
        self._undo()
        self._known = self._count()

    def lines(self) -> list[dict]:
        """What was written so far: one record per episode, with its behaviour and seed."""
        sidecar = self.root / SIDECAR
        return [json.loads(line) for line in sidecar.read_text().splitlines()] if sidecar.exists() else []

    def append(self, *episodes: Episode) -> None:
        """Write episodes whole; when this returns, they are safe on disk.

        Several at once cost little more than one: most of the time goes into opening the data set. Raises `TraceError`
        for other views, image sizes, states or actions than the data set's, and `OutputError` if another writer has
        written since, before any of them is written.
        """
        if not episodes:
            return
        import av.logging
        import datasets
        from lerobot.configs.video import RGBEncoderConfig
        from lerobot.datasets import LeRobotDataset

        # x264 prints a page of statistics per file otherwise: LeRobot puts FFmpeg's own printer back after each.
        av.logging.set_libav_level(av.logging.ERROR)
        encoder = RGBEncoderConfig(vcodec="h264", pix_fmt="yuv444p", preset="veryfast", crf=0, g=10)
        if self._count() != self._known:
            raise OutputError(
                f"{self.root} holds {self._count()} episodes and this writer left it with {self._known}; expected one "
                f"writer at a time: wait for the other run to end, or stop it, and start again"
            )
        self._undo()
        first = not self.root.exists()
        root = self.root.with_name(f".{self.root.name}.first") if first else self.root
        if not first and len(self.lines()) != count_episodes(self.root):
            raise OutputError(
                f"{self.root} holds {count_episodes(self.root)} episodes and {SIDECAR} tells of {len(self.lines())}; "
                f"expected a data set that `grm collect` began: choose another folder, or delete it"
            )
        features, rate = (_features(episodes[0]), round(episodes[0].rate_hz)) if first else _found(self.root)
        for episode in episodes:
            _require_fit(self.root, features, rate, episode)
        longest = max(len(episode) for episode in episodes)  # LeRobot drops frames that do not fit its encoder's queue
        if first:
            dataset = LeRobotDataset.create(
                f"grm/{self.root.name}",
                rate,
                features,
                root=root,
                robot_type="sawyer",
                video_backend="pyav",
                rgb_encoder=encoder,
                streaming_encoding=True,
                encoder_threads=1,
                encoder_queue_maxsize=longest,
            )
        else:
            self._note()
            dataset = LeRobotDataset.resume(
                f"grm/{self.root.name}",
                root=root,
                video_backend="pyav",
                rgb_encoder=encoder,
                streaming_encoding=True,
                encoder_threads=1,
                encoder_queue_maxsize=longest,
            )
        datasets.disable_progress_bars()  # only now: opening a data set enables them
        for episode in episodes:
            for t in range(len(episode)):
                dataset.add_frame(_row(episode, t))
            dataset.save_episode()
        dataset.finalize()
        with (root / SIDECAR).open("a") as file:
            file.writelines(json.dumps(_line(episode)) + "\n" for episode in episodes)
        if first:
            root.replace(self.root)
        else:
            self._forget()
        self._known += len(episodes)

    def _count(self) -> int:
        return count_episodes(self.root) if self.root.exists() else 0

    def _note(self) -> None:
        """Begin an append: remember what is there. The list of files comes last and makes the journal valid."""
        journal = self.root / _JOURNAL
        shutil.rmtree(journal, ignore_errors=True)
        files = [str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()]
        (journal / "meta").mkdir(parents=True)
        for name in _CHANGING:
            shutil.copy(self.root / name, journal / name)
        (journal / "files.tmp").write_text(json.dumps(files))
        (journal / "files.tmp").replace(journal / "files.json")

    def _forget(self) -> None:
        """End an append: from the moment the list is gone, the episode is there."""
        (self.root / _JOURNAL / "files.json").unlink()
        shutil.rmtree(self.root / _JOURNAL)

    def _undo(self) -> None:
        """Take back what an append that never ended has written."""
        shutil.rmtree(self.root.with_name(f".{self.root.name}.first"), ignore_errors=True)
        journal = self.root / _JOURNAL
        if not (journal / "files.json").exists():
            return
        before = {self.root / name for name in json.loads((journal / "files.json").read_text())}
        for path in sorted(self.root.rglob("*"), reverse=True):  # what is in a folder comes before the folder
            if path.is_file() and path not in before and journal not in path.parents:
                path.unlink()
            elif path.is_dir() and path != journal and not any(path.iterdir()):
                path.rmdir()
        for name in _CHANGING:
            shutil.copy(journal / name, self.root / name)
        self._forget()


def count_episodes(root: Path) -> int:
    """How many episodes a LeRobotDataset folder holds, without one being written. Raises `TraceError` if it is none."""
    noted = (Path(root) / _JOURNAL / "files.json").exists()
    info = Path(root) / (_JOURNAL if noted else "") / "meta" / "info.json"
    if not info.exists():
        raise TraceError(
            f"{root} is not a LeRobotDataset (no meta/info.json); make one with `grm collect --out {root}`"
        )
    return int(json.loads(info.read_text())["total_episodes"])


def has_progress(root: Path) -> bool:
    """Whether the folder is a LeRobotDataset that `EpisodeWriter` wrote, with progress and success at every frame."""
    return (Path(root) / SIDECAR).exists()


def read_episodes(
    root: Path, episodes: Sequence[int] | None = None, *, views: Sequence[str] | None = None
) -> Iterator[Episode]:
    """Episodes of a LeRobotDataset v3 folder, one at a time; all of them, with all views, unless named.

    Raises `TraceError` for a folder that is none, an episode or view it does not have, or a video that ends early.
    """
    root = Path(root)
    total = count_episodes(root)
    wanted = list(range(total)) if episodes is None else list(episodes)
    unknown = [index for index in wanted if not 0 <= index < total]
    if unknown or total == 0:
        raise TraceError(
            f"{root} has no episode {unknown[0] if unknown else 0}; it has {total}"
            + (f", 0 to {total - 1}" * (total > 0))
        )
    from lerobot.datasets import LeRobotDatasetMetadata

    meta = LeRobotDatasetMetadata(f"grm/{root.name}", root=root)
    available = [key.removeprefix(IMAGES) for key in meta.video_keys]
    names = available if views is None else list(views)
    missing = [name for name in names if name not in available]
    if missing:
        raise TraceError(f"{root} has no view {missing[0]!r}; it has {', '.join(available) or 'none'}")
    sidecar = root / SIDECAR
    lines = [json.loads(line) for line in sidecar.read_text().splitlines()] if sidecar.exists() else []
    for index in wanted:
        yield _read(root, meta, index, names, lines[index] if index < len(lines) else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEpisode:
    """What a LeRobotDataset knows of an episode without a picture being decoded."""

    instruction: str
    task: str
    """Name of the task, where `EpisodeWriter` wrote it; else empty."""
    rate_hz: float
    length: int
    index_from: int
    """Number of its first frame in the data set."""
    videos: Mapping[str, tuple[Path, float]]
    """By view the file, and what its clock shows when the episode begins."""
    images: Mapping[str, tuple[Path, str]]
    """By view that is kept as pictures the table, and its column."""
    sub_tasks: tuple[SubTask, ...]
    succeeded: bool | None
    """None where nobody said: neither our own writer nor a column `next.success`."""


def recorded_episodes(root: Path) -> list[RecordedEpisode]:
    """All episodes of a LeRobotDataset v3 folder, from its metadata. Raises `TraceError` where those cannot be read."""
    root = Path(root)
    count_episodes(root)
    from lerobot.datasets import LeRobotDatasetMetadata

    sidecar = root / SIDECAR
    try:
        meta = LeRobotDatasetMetadata(f"grm/{root.name}", root=root)
        lines = [json.loads(line) for line in sidecar.read_text().splitlines()] if sidecar.exists() else []
        return [
            _recorded(root, meta, index, lines[index] if index < len(lines) else {})
            for index in range(meta.total_episodes)
        ]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:  # pyarrow's own and json's are ValueErrors
        raise TraceError(
            f"the metadata of {root} cannot be read ({type(error).__name__}: {error}); expected a whole LeRobotDataset "
            f"v3: copy or record it again"
        ) from error


def _recorded(root: Path, meta, index: int, line: dict) -> RecordedEpisode:
    entry: Any = meta.episodes[index]
    return RecordedEpisode(
        instruction=_instruction(entry),
        task=line.get("task", ""),
        rate_hz=float(meta.fps),
        length=int(entry["length"]),
        index_from=int(entry["dataset_from_index"]),
        videos={
            key.removeprefix(IMAGES): (
                root / meta.get_video_file_path(index, key),
                float(entry[f"videos/{key}/from_timestamp"]),
            )
            for key in meta.video_keys
        },
        images={key.removeprefix(IMAGES): (root / meta.get_data_file_path(index), key) for key in meta.image_keys},
        sub_tasks=tuple(SubTask(**sub_task) for sub_task in line.get("sub_tasks", ())),
        succeeded=line["success"] if "success" in line else _recorded_success(entry),
    )


def _recorded_success(entry: Mapping[str, Any]) -> bool | None:
    """Whether an episode ever had `next.success`, from its statistics; None without the column."""
    key = "stats/next.success/max"
    return None if entry.get(key) is None else bool(np.max(entry[key]))


def download(repository: str) -> Path:
    """Folder of a data set of the Hub (`owner/name`), fetched unless it is there. Raises `TraceError` without one."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, repo_type="dataset"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise TraceError(
            f"{repository} is no folder here and cannot be fetched from the Hub ({type(error).__name__}); expected a "
            f"folder, or the owner/name of a public data set and a network"
        ) from error


def _read(root: Path, meta, index: int, names: Sequence[str], line: dict) -> Episode:
    import pandas as pd
    from lerobot.datasets.video_utils import decode_video_frames

    entry = meta.episodes[index]
    path = root / meta.get_data_file_path(index)
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's own for a cut file is a ValueError
        raise TraceError(
            f"{path} of episode {index} cannot be read ({type(error).__name__}); expected a whole Parquet file: it may "
            f"be truncated; record or copy the episode again"
        ) from error
    table = table.loc[table["episode_index"] == index].sort_values(by="frame_index")
    views = {}
    for name in names:
        key = IMAGES + name
        path = root / meta.get_video_file_path(index, key)
        times = entry[f"videos/{key}/from_timestamp"] + table["timestamp"].to_numpy()
        try:
            frames = decode_video_frames(path, times.tolist(), 0.5 / meta.fps, "pyav", return_uint8=True)
        except (OSError, ValueError, RuntimeError, AssertionError, IndexError) as error:
            # What a cut or empty file raises depends on where it was cut: PyAV, torch or LeRobot itself.
            raise TraceError(
                f"video {path} of episode {index} does not decode to its {len(table)} frames ({type(error).__name__}); "
                f"expected a whole file: it may be truncated; record or copy the episode again"
            ) from error
        views[name] = np.ascontiguousarray(frames.numpy().transpose(0, 2, 3, 1))
    after = _column(table, "next.success", 0.0) > 0
    success = np.append(False, after[:-1])
    success[-1] = after[-1]  # what a verdict after the last frame says goes before what was seen in it
    return Episode(
        task=line.get("task", _instruction(entry)),
        instruction=_instruction(entry),
        views=views,
        rate_hz=line.get("rate_hz", float(meta.fps)),
        state=_stack(table, "observation.state"),
        actions=_stack(table, "action"),
        rewards=_column(table, "next.reward", 0.0),
        success=success,
        progress=_column(table, "progress", np.nan),
        behaviour=line.get("behaviour", "unknown"),
        sub_tasks=tuple(SubTask(**sub_task) for sub_task in line.get("sub_tasks", ())),
        seed=line.get("seed"),
    )


def _instruction(entry) -> str:
    """The instruction of an episode's metadata row."""
    return str(entry["tasks"][0])


def _stack(table, key: str) -> np.ndarray:
    return np.stack(table[key].to_numpy()).astype(np.float32)


def _column(table, key: str, default: float) -> np.ndarray:
    if key not in table:
        return np.full(len(table), default, np.float32)
    return np.array([np.asarray(value).item() for value in table[key]], np.float32)


def _found(root: Path) -> tuple[dict, int]:
    """Columns and frames per second of the data set at `root`."""
    info = json.loads((root / "meta" / "info.json").read_text())
    return info["features"], info["fps"]


def _require_fit(root: Path, found: dict, rate: int, episode: Episode) -> None:
    """Raise `TraceError` unless the data set at `root` has this episode's rate, views and columns, in their shapes."""
    features = _features(episode)
    if rate != round(episode.rate_hz):
        raise TraceError(
            f"the episode has {round(episode.rate_hz)} frames per second, {root} has {rate}; "
            f"expected one rate throughout: write it to another folder"
        )
    for key in sorted({*features, *(key for key in found if key.startswith(IMAGES))}):
        shapes = [tuple(each[key]["shape"]) if key in each else None for each in (features, found)]
        if shapes[0] != shapes[1]:
            raise TraceError(
                f"the episode has {key} of shape {shapes[0]}, {root} of {shapes[1]}; "
                f"expected the same views and sizes throughout: write it to another folder"
            )


def _row(episode: Episode, t: int) -> dict:
    """Frame t, as LeRobot takes it."""
    return {
        **{IMAGES + name: images[t] for name, images in episode.views.items()},
        "observation.state": episode.state[t],
        "action": episode.actions[t],
        "next.reward": episode.rewards[t : t + 1],
        "next.done": np.array([t >= len(episode) - 2]),
        "next.success": episode.success[min(t + 1, len(episode) - 1)][None],
        "progress": episode.progress[t : t + 1],
        "task": episode.instruction,
    }


def _line(episode: Episode) -> dict:
    """What LeRobot has no column for."""
    return {
        "task": episode.task,
        "behaviour": episode.behaviour,
        "seed": episode.seed,
        "success": episode.succeeded,
        "length": len(episode),
        "rate_hz": episode.rate_hz,
        "sub_tasks": [asdict(sub_task) for sub_task in episode.sub_tasks],
    }


def _features(episode: Episode) -> dict:
    def vector(size: int, prefix: str) -> dict:
        return {"dtype": "float32", "shape": (size,), "names": [f"{prefix}_{i}" for i in range(size)]}

    return {
        **{
            IMAGES + name: {"dtype": "video", "shape": images.shape[1:], "names": ["height", "width", "channels"]}
            for name, images in episode.views.items()
        },
        "observation.state": vector(episode.state.shape[1], "state"),
        "action": vector(episode.actions.shape[1], "action"),
        "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
        "next.done": {"dtype": "bool", "shape": (1,), "names": None},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
        "progress": {"dtype": "float32", "shape": (1,), "names": None},
    }
