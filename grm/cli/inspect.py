"""`grm inspect`: recorded episodes judged, triaged and put on a page, wherever robot people keep them."""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.markup import escape
from rich.table import Table

from ..data.recordings import Recording, find_recordings
from ..data.video import read_picture
from ..errors import OutputError, TraceError
from ..inspection import Inspection, every_frame, inspect, near_duplicates, triage
from ..report import Film
from ..report.inspection import EPISODES, HEADERS, FilmMaker, cells, kept_frames, picture_size, write_inspection
from ..reward import Frame
from .judges import load_judge
from .output import check_output, command_line, commit
from .terminal import complaints, console, progress_bar

SERIES = ("potential", "spread", "incremental", "forward", "backward", "absolute", "success")
RATE_HZ = 5.0
"""Frames judged per second where `every` is not said: what the packaged GRM learnt from."""


@dataclass(frozen=True)
class Inspect:
    """Judge recorded episodes: where progress was made or lost, which failed, which are fit to train on.

    Sources are LeRobotDatasets (folders or Hub ids), videos, folders with one video or one folder of pictures per
    camera, or folders of `episode_*` folders of those. Writes index.html, inspection.json, episodes.csv, frames.csv,
    and grm_progress.parquet beside them for a LeRobotDataset: what LeRobot's RA-BC weighting reads.
    """

    sources: Annotated[tuple[str, ...], tyro.conf.Positional]
    """What to inspect."""
    out: Path
    """Folder of the results."""
    model: str = ""
    """Checkpoint: a folder, a Hub id, or nothing for the packaged one."""
    judge: str = ""
    """Another model instead: `lerobot:FOLDER` of a reward model, or `module:function`, which is called with the task
    and the frames so far."""
    instruction: str = ""
    """What the task is, where the source does not say, or says it otherwise."""
    cameras: tuple[str, ...] = ()
    """Names of the cameras to judge from; nothing for all."""
    episodes: tuple[int, ...] = ()
    """Numbers of the episodes; nothing for all."""
    goal: str = "auto"
    """A picture of the task done: `auto` (the last frame of another episode that is recorded as a success), a number
    (the last frame of that episode; they count from 0 unless a LeRobotDataset says otherwise), a picture file, `none`,
    or `own-last-frame`, which tells every episode that it ended well."""
    every: int = 0
    """Judge every n-th frame, and the last; 0 for about five a second."""
    overlay: bool = False
    """Also a film of each episode with its curve, overlays/*.mp4."""
    rerun: bool = False
    """Also a Rerun recording of each episode, rerun/*.rrd (extra `viz`)."""
    resume: bool = False
    """Go on with what an interrupted run left in `out`."""

    def run(self) -> None:
        """Judge what is not judged yet, then write everything; exit status 1 if an episode could not be read."""
        recordings, broken = find_recordings(
            self.sources, cameras=self.cameras, episodes=self.episodes, instruction=self.instruction
        )
        goals = Goals(self.goal, recordings)
        model = load_judge(self.judge, self.model)
        check_output(self.out, resume=self.resume)
        self._check_settings()
        found: list[tuple[Recording, Inspection]] = []
        numbers: dict[str, int] = {}
        with progress_bar() as progress:
            strides = [self.every or max(1, round(recording.rate_hz / RATE_HZ)) for recording in recordings]
            total = sum(len(recording.sampled(k)) for recording, k in zip(recordings, strides, strict=True))
            size = picture_size(recordings, strides)
            bar = progress.add_task("inspecting", total=total)
            for number, (recording, stride) in enumerate(zip(recordings, strides, strict=True)):
                progress.update(bar, description=recording.name)
                path = self.out / "episodes" / f"{number}.npz"
                try:
                    if not path.exists():
                        maker = FilmMaker(recording.views, kept_frames(len(recording.sampled(stride))), *size)
                        judged = inspect(
                            model,
                            recording,
                            goals.of(number),
                            stride=stride,
                            after_each=lambda frames: progress.advance(bar, frames),
                            watch=maker.see,
                        )
                        films = maker.films()
                        self._write_extras(number, judged, films)
                        _write_films(_film_path(path), films)
                        _write_episode(path, judged)
                    else:
                        progress.advance(bar, len(recording.sampled(stride)))
                    found.append((recording, _read_episode(path, recording)))
                    numbers[recording.name] = number
                    # Whoever is not among the worst now will not be later: its film can go.
                    for one in triage(one for _, one in found)[EPISODES:]:
                        _film_path(self.out / "episodes" / f"{numbers[one.name]}.npz").unlink(missing_ok=True)
                except TraceError as error:
                    broken.append((recording.name, error))
        notes = goals.notes + [f"{r.name}: {note}" for r, _ in found for note in r.notes]
        notes += [f"{name} could not be read: {error}" for name, error in broken]
        shown = {
            name: _read_films(film)
            for name, number in numbers.items()
            if (film := _film_path(self.out / "episodes" / f"{number}.npz")).exists()
        }
        self._write(found, broken, notes)
        write_inspection(
            self.out / "index.html",
            [one for _, one in found],
            shown,
            command=command_line(self),
            settings={"model": self.judge or self.model or "packaged", "goal": self.goal, "commit": commit()},
            notes=notes,
        )
        console.print(_table([one for _, one in found]))
        for name, error in broken:
            complaints.print(f"[bold red]{escape(name)}[/bold red] {escape(str(error))}", highlight=False)
        console.print(f"wrote index.html and the numbers to [bold]{escape(str(self.out))}[/bold]", soft_wrap=True)
        if broken:
            sys.exit(1)

    def _write_extras(self, number: int, one: Inspection, films: Mapping[str, Film]) -> None:
        from ..report.overlay import write_overlay
        from ..report.rrd import write_rrd

        for wanted, folder, write, suffix in (
            (self.overlay, "overlays", write_overlay, "mp4"),
            (self.rerun, "rerun", write_rrd, "rrd"),
        ):
            if wanted and films:
                (self.out / folder).mkdir(exist_ok=True)
                write(self.out / folder / f"{number}.{suffix}", one, films, kept_frames(len(one.frame)))

    def _check_settings(self) -> None:
        """What was judged before must have been asked the same."""
        path = self.out / "config.json"
        asked = {name: value for name, value in asdict(self).items() if name not in ("out", "resume")}
        asked = json.loads(json.dumps(asked))
        if path.exists():
            before = json.loads(path.read_text())["settings"]
            other = [name for name, value in asked.items() if before.get(name) != value]
            if other:
                raise OutputError(f"{self.out} was inspected with other {', '.join(other)}; choose another folder")
        path.write_text(
            json.dumps({"command": command_line(self), "commit": commit(), "settings": asked}, indent=2) + "\n"
        )

    def _write(
        self,
        found: Sequence[tuple[Recording, Inspection]],
        broken: Sequence[tuple[str, TraceError]],
        notes: Sequence[str],
    ) -> None:
        inspections = [one for _, one in found]
        rows = [_row(recording, one) for recording, one in found]
        content = {
            "command": command_line(self),
            "commit": commit(),
            "model": self.judge or self.model or "packaged",
            "goal": self.goal,
            "notes": list(notes),
            "broken": {name: str(error) for name, error in broken},
            "episodes": [
                row
                | {
                    "regressions": [asdict(part) for part in one.regressions],
                    "stalls": [asdict(part) for part in one.stalls],
                    "milestones_s": one.milestones_s,
                }
                for row, one in zip(rows, inspections, strict=True)
            ],
            "near_duplicates": near_duplicates(inspections),
            "triage": [one.name for one in triage(inspections)],
        }
        (self.out / "inspection.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
        with (self.out / "episodes.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else ["name"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        with (self.out / "frames.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["name", "frame", "time_s", *SERIES])
            for one in inspections:
                columns = [np.round(getattr(one, name), 4) for name in SERIES]
                for t, frame in enumerate(one.frame):
                    numbers = ["" if np.isnan(column[t]) else float(column[t]) for column in columns]
                    writer.writerow([one.name, int(frame), round(float(one.time_s[t]), 4), *numbers])
        of_lerobot = [(recording, one) for recording, one in found if recording.episode_index is not None]
        if of_lerobot:
            _write_parquet(of_lerobot, self.out / "grm_progress.parquet", self.judge or self.model or "packaged")


class Goals:
    """Which picture shows the task done, for each recording; `notes` say what a reader must know of it."""

    def __init__(self, wanted: str, recordings: Sequence[Recording]) -> None:
        self.wanted, self.recordings = wanted, recordings
        self.notes: list[str] = []
        self._frames: dict[int, Frame] = {}
        self._picture: Frame | None = None
        if wanted == "own-last-frame":
            self.notes.append(
                "WARNING: every episode was shown its own last frame as the goal. It then ends near 1 whatever "
                "happened: trust the order within an episode, and neither its end nor its verdict."
            )
        elif wanted == "none":
            self.notes.append("No goal picture was given: the backward perspective abstains.")
        elif wanted.isdecimal():
            numbers = [k if r.episode_index is None else r.episode_index for k, r in enumerate(recordings)]
            if int(wanted) not in numbers:
                known = ", ".join(map(str, numbers[:10])) + (", …" if len(numbers) > 10 else "")
                raise TraceError(
                    f"--goal {wanted} is none of the episodes to inspect; expected one of {known or 'none'}"
                )
            self._giver = numbers.index(int(wanted))
        elif wanted == "auto":
            self._successes = [k for k, recording in enumerate(recordings) if recording.succeeded]
            if len(self._successes) < min(2, len(recordings)):
                self.notes.append(
                    "Too few episodes are recorded as successes to lend the others a goal picture: where none does, "
                    "the backward perspective abstains (choose one with --goal)."
                )
        else:
            image = read_picture(Path(wanted))
            self._picture = Frame(views={view: image for recording in recordings for view in recording.views})

    def of(self, number: int) -> Frame | None:
        """The goal of recording `number`: never its own end, unless that was asked for. Raises `TraceError`."""
        if self.wanted == "none":
            return None
        if self._picture is not None:
            return self._picture
        if self.wanted == "own-last-frame":
            return self.recordings[number].last_frame()
        if self.wanted.isdecimal():
            # The one that lends its end to the others has nobody to show it one.
            return None if self._giver == number else self._last(self._giver)
        own = self.recordings[number]
        givers = [k for k in self._successes if k != number and self.recordings[k].instruction == own.instruction]
        return self._last(givers[0]) if givers else None

    def _last(self, number: int) -> Frame:
        if number not in self._frames:
            self._frames[number] = self.recordings[number].last_frame()
        return self._frames[number]


def _write_episode(path: Path, one: Inspection) -> None:
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name("partial-" + path.name)  # so that what has the right name is whole
    np.savez(partial, **{name: getattr(one, name) for name in ("time_s", "frame", "judged", "fingerprint", *SERIES)})
    partial.replace(path)


def _film_path(episode: Path) -> Path:
    return episode.with_name(f"{episode.stem}-film.npz")


def _write_films(path: Path, films: Mapping[str, Film]) -> None:
    path.parent.mkdir(exist_ok=True)
    pictures = [jpeg for film in films.values() for jpeg in film.pictures]
    np.savez(
        path,
        names=np.array(list(films)),
        shapes=np.array([(len(film), film.height, film.width) for film in films.values()]),
        sizes=np.array([len(jpeg) for jpeg in pictures]),
        bytes=np.frombuffer(b"".join(pictures), np.uint8),
    )


def _read_films(path: Path) -> dict[str, Film]:
    with np.load(path, allow_pickle=False) as file:
        ends, blob = np.cumsum(file["sizes"]).tolist(), file["bytes"].tobytes()
        pictures = iter([blob[begin:end] for begin, end in pairwise([0, *ends])])
        return {
            str(name): Film(list(islice(pictures, int(count))), int(height), int(width))
            for name, (count, height, width) in zip(file["names"], file["shapes"].reshape(-1, 3), strict=True)
        }


def _read_episode(path: Path, recording: Recording) -> Inspection:
    with np.load(path, allow_pickle=False) as file:
        return Inspection(name=recording.name, succeeded=recording.succeeded, **{name: file[name] for name in file})


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def _row(recording: Recording, one: Inspection) -> dict[str, object]:
    lost = one.regressions
    return {
        "name": one.name,
        "episode_index": recording.episode_index,
        "seconds": round(float(one.time_s[-1]), 3),
        "judged_frames": int(one.judged.sum()),
        "abstained_frames": int((~one.judged).sum()),
        "final": _number(one.final),
        "best": _number(one.best),
        "verdict": None if one.verdict is None else one.verdict.name.lower(),
        "recorded_success": one.succeeded,
        "agrees": one.agrees,
        "regressions_count": len(lost),
        "deepest_regression": max((part.depth for part in lost), default=0.0),
        "first_failure_s": lost[0].start_s if lost else None,
        "stalled_s": round(sum(part.end_s - part.start_s for part in one.stalls), 3),
        "advice": one.advice,
    }


def _write_parquet(found: Sequence[tuple[Recording, Inspection]], path: Path, model: str) -> None:
    """LeRobot's RA-BC table, a row per frame; a frame that was not judged has no row, which is no number either."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("index", "episode_index", "frame_index", "progress_sparse")
    }
    for recording, one in found:
        if recording.index_from is None or recording.episode_index is None:
            continue
        progress = every_frame(one, recording.length)
        frames = np.flatnonzero(~np.isnan(progress))
        columns["index"].append(recording.index_from + frames)
        columns["episode_index"].append(np.full(len(frames), recording.episode_index))
        columns["frame_index"].append(frames)
        columns["progress_sparse"].append(progress[frames])
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    table = pa.table(
        {name: pa.array(a, pa.float32() if name == "progress_sparse" else pa.int64()) for name, a in arrays.items()}
    )
    pq.write_table(table.replace_schema_metadata({"reward_model_path": model}), path)


def _table(inspections: Sequence[Inspection]) -> Table:
    table = Table(*HEADERS, title="worst first")
    for one in triage(inspections)[:30]:
        table.add_row(*cells(one))
    return table
