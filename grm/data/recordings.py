"""Episodes as people keep them, streamed: a LeRobotDataset, videos or pictures by camera, the raw layout of recorders.

Nothing is decoded before `Recording.frames` is asked, and then one frame set at a time, so memory does not grow with
the recording. Cameras of different length, rate or start are aligned by their time stamps; what did not fit is said in
`Recording.notes`.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from jaxtyping import Int, UInt8

from ..errors import TraceError
from ..labels import from_keyframes
from ..reward import Frame
from .episodes import Episode
from .lerobot import RecordedEpisode, download, recorded_episodes
from .video import decode_jpeg, read_picture, resize

VIDEOS = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v")
PICTURES = (".png", ".jpg", ".jpeg")
PICTURES_HZ = 10.0
"""Rate of folders of pictures, which do not say theirs."""
_HEIGHT = 128
"""Largest height of a demonstration's pictures, in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """One recorded episode that can be streamed."""

    name: str
    """Unique within a source: `episode 3`, or the name of a folder or file."""
    instruction: str
    views: tuple[str, ...]
    """Camera names, sorted."""
    rate_hz: float
    """Of the stream: that of the slowest camera."""
    length: int
    """Frames of the stream."""
    task: str = ""
    keyframes: tuple[tuple[int, int], ...] = ()
    """Sub-tasks as (first, last) frame of the stream."""
    succeeded: bool | None = None
    """What was recorded of the outcome; None where nobody said."""
    episode_index: int | None = None
    """Of a LeRobotDataset."""
    index_from: int | None = None
    """Number of its first frame in a LeRobotDataset."""
    notes: tuple[str, ...] = ()
    """What did not fit between the cameras, in words."""
    _open: Callable[[Int[np.ndarray, " n"]], Iterator[Frame]] = field(repr=False)

    @classmethod
    def of_frames(
        cls, name: str, instruction: str, frames: Sequence[Frame], rate_hz: float, **known: object
    ) -> "Recording":
        """One that is in memory already; `known` are further fields."""
        return cls(
            name=name,
            instruction=instruction,
            views=tuple(sorted({view for frame in frames for view in frame.views})),
            rate_hz=rate_hz,
            length=len(frames),
            _open=lambda wanted: iter([frames[k] for k in wanted]),
            **known,  # pyright: ignore[reportArgumentType]
        )

    def sampled(self, stride: int = 1) -> Int[np.ndarray, " n"]:
        """Numbers of the frames 0, stride, 2 stride, … and of the last one, which shows how it ended.

        Raises `TraceError` if `stride` is below 1.
        """
        if stride < 1:
            raise TraceError(f"stride is {stride}; expected 1 for every frame, or more")
        return np.unique([*range(0, self.length, stride), *([self.length - 1] if self.length else [])]).astype(int)

    def frames(self, stride: int = 1) -> Iterator[Frame]:
        """The frames that are `sampled`; a camera that shows nothing at that time is absent.

        Raises `TraceError` if `stride` is below 1, and where a file ends before its header says.
        """
        return self._open(self.sampled(stride))

    def last_frame(self) -> Frame:
        """The last frame of the stream with all views that have one. Decodes the recording. Raises `TraceError`."""
        last: dict[str, UInt8[np.ndarray, "h w 3"]] = {}
        time = 0.0
        for frame in self.frames():
            last |= frame.views
            time = frame.time
        return Frame(views=last, time=time)


def find_recordings(
    sources: Sequence[str | Path],
    *,
    cameras: Sequence[str] = (),
    episodes: Sequence[int] = (),
    instruction: str = "",
) -> tuple[list[Recording], list[tuple[str, TraceError]]]:
    """What can be read in `sources`, and by name what cannot, each with its error.

    A source is a LeRobotDataset v3 (a folder, or the Hub's `owner/name`), a video, a folder with one video or one
    folder of pictures per camera, or a folder of `episode_*` folders of those, beside which Robo-Dopamine's recorders
    keep `task_instruction.json` and in which `annotated_keyframes.json`. `cameras` and `episodes` (numbers) choose; the
    `instruction`, where given, goes before the recorded one.

    Raises `TraceError` for a source that is none of these.
    """
    found: list[Recording] = []
    broken: list[tuple[str, TraceError]] = []
    for source in sources:
        for name, make in _makers(source, cameras, episodes, instruction):
            try:
                found.append(make())
            except TraceError as error:
                broken.append((name, error))
    return found, broken


def demonstration(recording: Recording, *, rate_hz: float = 5.0, keyframes: bool = True) -> Episode:
    """The recording as an expert's episode to adapt to, at about `rate_hz`; it is taken to end in success.

    Progress is what the sub-tasks' keyframes say (`from_keyframes`) where there are any and `keyframes` says so, and
    unknown where not. Moments at which a camera shows nothing are left out.
    Raises `TraceError` for one that was recorded as a failure, or that cannot be read to its end.
    """
    if recording.succeeded is False:
        raise TraceError(f"{recording.name} is recorded as a failure; expected a demonstration: choose another episode")
    return _small_episode(recording, rate_hz, keyframes=keyframes, succeeded=True)


def failure(recording: Recording, *, rate_hz: float = 5.0) -> Episode:
    """The recording as an episode of which no frame shows the task done, at about `rate_hz`; its progress is unknown.

    Moments at which a camera shows nothing are left out.
    Raises `TraceError` for one that was recorded as a success, or that cannot be read to its end.
    """
    if recording.succeeded:
        raise TraceError(f"{recording.name} is recorded as a success; expected one that failed: choose another episode")
    return _small_episode(recording, rate_hz, keyframes=False, succeeded=False)


def _small_episode(recording: Recording, rate_hz: float, *, keyframes: bool, succeeded: bool) -> Episode:
    stride = max(1, round(recording.rate_hz / rate_hz))
    seen: list[tuple[int, Frame]] = []
    for number, frame in zip(recording.sampled(stride), recording.frames(stride), strict=True):
        if set(frame.views) == set(recording.views):
            small = {name: resize(image, _HEIGHT) for name, image in frame.views.items()}
            seen.append((number, Frame(views=small, time=frame.time)))
    if len(seen) < 2:
        raise TraceError(f"{recording.name} has {len(seen)} moments that all of its cameras show; expected at least 2")
    length, progress = len(seen), np.full(len(seen), np.nan)
    if keyframes and recording.keyframes:
        progress = from_keyframes(recording.keyframes, recording.length).every_frame[[number for number, _ in seen]]
    return Episode(
        task=recording.task or recording.instruction,
        instruction=recording.instruction,
        views={name: np.stack([frame.views[name] for _, frame in seen]) for name in recording.views},
        rate_hz=recording.rate_hz / stride,
        state=np.zeros((length, 1), np.float32),
        actions=np.zeros((length, 1), np.float32),
        rewards=np.zeros(length, np.float32),
        success=(np.arange(length) == length - 1) & succeeded,
        progress=progress.astype(np.float32),
    )


def _makers(
    source: str | Path, cameras: Sequence[str], episodes: Sequence[int], instruction: str
) -> list[tuple[str, Callable[[], Recording]]]:
    """By name, how each episode of a source is opened."""
    path = Path(source)
    if not path.exists() and str(source).count("/") == 1 and not str(source).startswith((".", "/")):
        path = download(str(source))
    if not path.exists():
        raise TraceError(f"{source} does not exist; expected a LeRobotDataset, a video, or a folder of videos")
    if (path / "meta" / "info.json").exists():
        known = recorded_episodes(path)
        return [
            (f"episode {index}", lambda index=index: _of_lerobot(path, index, known[index], cameras, instruction))
            for index in _chosen(path, range(len(known)), episodes)
        ]
    folders = sorted(folder for folder in path.glob("episode_*") if folder.is_dir()) if path.is_dir() else []
    if folders:
        numbered = {_number(folder, k): folder for k, folder in enumerate(folders)}
        return [
            (folder.name, lambda folder=folder: _of_folder(folder, cameras, instruction))
            for folder in (numbered[index] for index in _chosen(path, numbered, episodes))
        ]
    if path.is_file() and path.suffix.lower() not in VIDEOS:
        raise TraceError(f"{path} is no video; expected one of {', '.join(VIDEOS)}, a folder or a LeRobotDataset")
    _chosen(path, range(1), episodes)
    return [(path.stem, lambda: _of_folder(path, cameras, instruction))]


def _chosen(source: Path, there: range | Mapping[int, object], episodes: Sequence[int]) -> list[int]:
    unknown = [index for index in episodes if index not in there]
    if unknown or not there:
        known = list(there)
        raise TraceError(
            f"{source} has no episode {unknown[0] if unknown else 0}; it has "
            + (f"{len(known)}: {known[0]} to {known[-1]}" if known else "none")
        )
    return list(episodes) or list(there)


def _number(folder: Path, place: int) -> int:
    digits = "".join(itertools.takewhile(str.isdigit, folder.name.removeprefix("episode_")))
    return int(digits) if digits else place


@dataclass(frozen=True, slots=True)
class _View:
    """One camera's pictures on its own clock: from `start`, `count` of them, at `rate_hz` on average."""

    path: Path
    start: float
    rate_hz: float
    count: int
    shift: float = 0.0
    """What its clock shows when the episode begins: LeRobot keeps many episodes in one file."""
    column: str = ""
    """Of the table `path` that holds pictures; empty for a video or a folder."""
    episode: int = 0
    """Whose rows of the table these are."""

    @property
    def end(self) -> float:
        """Time of the last picture."""
        return self.start + (self.count - 1) / self.rate_hz

    def pictures(self) -> Iterator[tuple[float, Callable[[], UInt8[np.ndarray, "h w 3"]]]]:
        """(Time, how to get it) of every picture in order, decoded forwards."""
        if self.column:
            yield from self._rows()
            return
        if self.path.is_dir():
            for k, picture in enumerate(_picture_files(self.path)):
                yield k / self.rate_hz, lambda picture=picture: read_picture(picture)
            return
        seen = 0
        try:
            with av.open(str(self.path)) as container:
                stream = container.streams.video[0]
                if self.shift > 0:
                    container.seek(int(self.shift * av.time_base))
                for picture in container.decode(stream):
                    time = float(picture.time or 0.0) - self.shift
                    if time < self.start - 0.5 / self.rate_hz:
                        continue
                    seen += 1
                    yield time, lambda picture=picture: picture.to_ndarray(format="rgb24")
                    if seen == self.count:
                        return
        except (FFmpegError, OSError, ValueError) as error:
            raise TraceError(
                f"video {self.path} cannot be decoded after {seen} of {self.count} pictures ({error}); expected a "
                f"whole file: it may be truncated; copy or record it again"
            ) from error
        raise TraceError(
            f"video {self.path} ends after {seen} of the {self.count} pictures its header tells of; expected a whole "
            f"file: it may be truncated; copy or record it again"
        )

    def _rows(self) -> Iterator[tuple[float, Callable[[], UInt8[np.ndarray, "h w 3"]]]]:
        """The pictures of a table, a few rows in memory at a time."""
        import pyarrow as pa
        import pyarrow.dataset

        seen = 0
        try:
            rows = pyarrow.dataset.dataset(self.path).scanner(
                columns=[self.column],
                filter=pyarrow.dataset.field("episode_index") == self.episode,
                batch_size=32,
                batch_readahead=1,
                use_threads=False,
            )
            for batch in rows.to_batches():
                for cell in batch.column(0):
                    data = np.frombuffer(cell.as_py()["bytes"] or b"", np.uint8)
                    yield seen / self.rate_hz, lambda data=data: decode_jpeg(data)
                    seen += 1
        except (pa.ArrowException, OSError, KeyError, TypeError) as error:
            raise TraceError(
                f"column {self.column!r} of {self.path} cannot be read ({error}); expected LeRobot's pictures as bytes"
            ) from error
        if seen != self.count:
            raise TraceError(f"{self.path} holds {seen} of the {self.count} pictures of episode {self.episode}")


def _stream(views: Mapping[str, _View], rate_hz: float, wanted: Int[np.ndarray, " n"]) -> Iterator[Frame]:
    """The newest picture of every view at each moment of the common clock, none before its first or after its end."""
    begin = min(view.start for view in views.values())
    running = {name: _newest(view.pictures()) for name, view in views.items()}
    for newest in running.values():
        next(newest)
    half = 0.5 / rate_hz
    for k in wanted.tolist():
        now = begin + k / rate_hz
        shown = {name: newest.send(now + half) for name, newest in running.items()}
        alive = {
            name: get()
            for name, get in shown.items()
            if get is not None and now <= views[name].end + 1.5 / views[name].rate_hz
        }
        yield Frame(views=alive, time=k / rate_hz)


def _newest(pictures):
    """A coroutine: sent a time, it answers how to get the newest picture before it; None while there is none."""
    current, ahead = None, next(pictures, None)
    until = yield None
    while True:
        while ahead is not None and ahead[0] < until:
            current, ahead = ahead[1], next(pictures, None)
        until = yield current


def _assemble(name: str, views: Mapping[str, _View], instruction: str, source: Path, **known: object) -> Recording:
    if not instruction.strip():
        raise TraceError(f"{source} says nowhere what the task is; expected an instruction: name it with --instruction")
    rate = min(view.rate_hz for view in views.values())
    begin, end = min(view.start for view in views.values()), max(view.end for view in views.values())
    length = round((end - begin) * rate) + 1
    keyframes = tuple((first, min(last, length - 1)) for first, last in known.pop("keyframes", ()))  # pyright: ignore
    return Recording(
        name=name,
        instruction=instruction,
        views=tuple(sorted(views)),
        rate_hz=rate,
        length=length,
        keyframes=keyframes,
        notes=tuple(_misfits(views, begin, end)),
        _open=lambda wanted: _stream(views, rate, wanted),
        **known,  # pyright: ignore[reportArgumentType]
    )


def _misfits(views: Mapping[str, _View], begin: float, end: float) -> Iterator[str]:
    """What a person should know before trusting that the cameras show one moment."""
    fastest = max(view.rate_hz for view in views.values())
    for name, view in sorted(views.items()):
        if view.start - begin > 1 / view.rate_hz:
            yield f"view {name} starts {view.start - begin:.2f} s after the first one"
        if end - view.end > 1 / view.rate_hz:
            yield f"view {name} ends {end - view.end:.2f} s before the last one"
        if fastest / view.rate_hz > 1.01:
            yield f"view {name} has {view.rate_hz:.3g} pictures a second, another one {fastest:.3g}"


def _of_folder(path: Path, cameras: Sequence[str], instruction: str) -> Recording:
    """A video, or a folder with a video or a folder of pictures per camera."""
    if path.is_file():
        entries = {path.stem: path}
    else:
        entries = {
            entry.stem: entry
            for entry in sorted(path.iterdir())
            if entry.suffix.lower() in VIDEOS or (entry.is_dir() and _picture_files(entry))
        }
        if not entries and _picture_files(path):
            entries = {path.name: path}
    if not entries:
        raise TraceError(
            f"{path} holds no video and no folder of pictures; expected one per camera, as in cam_high.mp4"
        )
    entries = _select(path, entries, cameras)
    views = {name: _probe(entry) for name, entry in entries.items()}
    return _assemble(
        path.stem if path.is_file() else path.name,
        views,
        instruction or _recorded_instruction(path),
        path,
        keyframes=_recorded_keyframes(path),
    )


def _select[T](source: Path, there: Mapping[str, T], cameras: Sequence[str]) -> dict[str, T]:
    missing = [name for name in cameras if name not in there]
    if missing:
        raise TraceError(f"{source} has no camera {missing[0]!r}; it has {', '.join(sorted(there)) or 'none'}")
    return {name: there[name] for name in (cameras or sorted(there))}


def _picture_files(folder: Path) -> list[Path]:
    """Its pictures in the order of the numbers in their names, then of the names: 10.png comes after 9.png."""
    files = [entry for entry in folder.iterdir() if entry.suffix.lower() in PICTURES]
    return sorted(files, key=lambda file: (int("0" + "".join(filter(str.isdigit, file.stem))), file.name))


def _probe(path: Path) -> _View:
    """What a camera's file says of itself, counted where it does not. Raises `TraceError` if it is no whole video."""
    if path.is_dir():
        return _View(path, 0.0, PICTURES_HZ, len(_picture_files(path)))
    if path.exists() and path.stat().st_size == 0:
        raise TraceError(f"video {path} is empty (0 bytes); expected a whole file: copy or record it again")
    try:
        container = av.open(str(path))
        try:
            return _described(path, container)
        finally:
            container.close()
    except (FFmpegError, OSError) as error:
        raise TraceError(
            f"video {path} cannot be read ({error}); expected a whole file in a codec FFmpeg knows: it may be "
            f"truncated; copy or record it again"
        ) from error


def _described(path: Path, container: InputContainer) -> _View:
    if not container.streams.video:
        raise TraceError(f"{path} holds no video stream; expected a camera's video")
    stream = container.streams.video[0]
    first = next(container.decode(stream), None)
    if first is None:
        raise TraceError(f"video {path} holds no picture; expected a whole file: copy or record it again")
    count, rate = stream.frames, float(stream.average_rate or 0)
    if not (count and rate):  # a container that does not say: count its packets, without decoding them
        container.seek(0)
        times = sorted(float(p.pts * p.time_base) for p in container.demux(stream) if p.pts is not None)
        if not times:
            raise TraceError(f"video {path} has no time stamps; expected a container that keeps them, such as .mp4")
        told = _seconds(stream.metadata.get("DURATION", ""))
        if told - times[-1] > 1:  # a whole file's last picture lasts no longer
            raise TraceError(
                f"video {path} ends at {times[-1]:.1f} of the {told:.1f} s its header tells of; expected a whole file: "
                f"it may be truncated; copy or record it again"
            )
        count = len(times)
        rate = (count - 1) / (times[-1] - times[0]) if count > 1 and times[-1] > times[0] else PICTURES_HZ
    return _View(path, float(first.time or 0.0), rate, count)


def _seconds(clock: str) -> float:
    """Of `hh:mm:ss.fff`, as Matroska writes a stream's duration; 0 where it says nothing."""
    try:
        hours, minutes, seconds = clock.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return 0.0


def _recorded_instruction(path: Path) -> str:
    """The first of the paraphrases in task_instruction.json, in the episode's folder or the one above."""
    for folder in (path, path.parent):
        file = folder / "task_instruction.json"
        if file.is_file():
            said = _json(file)
            said = said[0] if isinstance(said, list) and said else said
            if isinstance(said, str):
                return said
            raise TraceError(f"{file} holds {type(said).__name__}; expected a list of sentences, or one")
    return ""


def _recorded_keyframes(path: Path) -> list[tuple[int, int]]:
    file = path / "annotated_keyframes.json"
    if not file.is_file():
        return []
    try:
        return [(int(part["start_frame_id"]), int(part["end_frame_id"])) for part in _json(file)]
    except (KeyError, TypeError, ValueError) as error:
        raise TraceError(
            f"{file} is not a list of sub-tasks with start_frame_id and end_frame_id ({type(error).__name__}: {error})"
        ) from error


def _json(file: Path):
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TraceError(f"{file} cannot be read ({error}); expected JSON") from error


def _of_lerobot(root: Path, index: int, known: RecordedEpisode, cameras: Sequence[str], instruction: str) -> Recording:
    length, rate_hz = known.length, known.rate_hz
    there = {name: _View(path, 0.0, rate_hz, length, shift) for name, (path, shift) in known.videos.items()}
    for name, (path, column) in known.images.items():
        there[name] = _View(path, 0.0, rate_hz, length, column=column, episode=index)
    if not there:
        raise TraceError(f"{root} has no cameras; expected videos or pictures among its features")
    views = _select(root, there, cameras)
    for view in views.values():
        if not view.column:
            _probe(view.path)
    return _assemble(
        f"episode {index}",
        views,
        instruction or known.instruction,
        root,
        keyframes=[(part.start, part.end) for part in known.sub_tasks],
        task=known.task,
        succeeded=known.succeeded,
        episode_index=index,
        index_from=known.index_from,
    )
