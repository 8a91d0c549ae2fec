"""One run as one HTML file: what happened, the clips with their potential, the learning curves, the numbers.

The file is self-contained (pictures, style and script are inside, and its content security policy forbids the network),
so it can be mailed, archived beside the results and opened years later.
"""

import base64
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8

from ..data.video import encode_jpeg
from ..errors import OutputError, TraceError

WINDOW = 20
"""Rollouts in the moving average of a learning curve."""
PICTURE_BUDGET_BYTES = 22_000_000
"""Arrays are encoded at the first of `QUALITIES` that fits, so that a page stays below 25 MB; a `Film` is as it is."""
QUALITIES = (88, 78, 66, 50, 35, 20)


@dataclass(frozen=True, slots=True, eq=False)
class Film:
    """One view's T pictures as JPEG files of one size: a hundredth of the memory that the frames take."""

    pictures: Sequence[bytes]
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.pictures)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A stretch of a clip to jump to."""

    text: str
    """What happened there: 'Φ fell by 0.31'."""
    begin: int
    """Number of the frame in the clip where it begins."""
    end: int
    """Number of the frame where it ends, not before `begin`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clip:
    """One episode to look at: T frames from every view and what the model said after each.

    Raises `TraceError` on construction where lengths disagree, or where a judged number is not one.
    """

    title: str
    """What the reader sees, in words: 'Expert demonstration', 'A failed rollout (number 12)'."""
    views: Mapping[str, UInt8[np.ndarray, "T _ _ 3"] | Film]
    """RGB frames by camera name, or JPEG files of them; sizes may differ between cameras."""
    rate_hz: float
    """Frames per second of the episode's own time."""
    potential: Float[np.ndarray, " T"]
    """Φ in [0, 1] after each frame; NaN where the model abstained."""
    spread: Float[np.ndarray, " T"]
    """One standard deviation of `potential`; NaN where the model abstained."""
    judged: Bool[np.ndarray, " T"]
    outcome: bool
    """Whether the episode ended in success."""
    truth: Float[np.ndarray, " T"] | None = None
    """True progress in [0, 1], where a simulator knows it."""
    success_probability: Float[np.ndarray, " T"] | None = None
    """P(the task is done) in [0, 1], from a head of its own; NaN where the model abstained."""
    events: Sequence[Event] = ()
    """Stretches to mark and to jump to."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.rate_hz) and self.rate_hz > 0):
            raise TraceError(f"clip {self.title!r} plays at {self.rate_hz} Hz; expected a positive, finite rate")
        if self.potential.ndim != 1 or len(self.potential) == 0:
            raise TraceError(
                f"clip {self.title!r} has a potential of shape {self.potential.shape}; "
                f"expected one number per frame, at least one"
            )
        if not self.views:
            raise TraceError(f"clip {self.title!r} has no views; expected at least one camera's frames")
        length = len(self.potential)
        for name, frames in self.views.items():
            if not isinstance(frames, Film) and (
                frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape
            ):
                raise TraceError(
                    f"view {name!r} of clip {self.title!r} has shape {frames.shape} and dtype {frames.dtype}; "
                    f"expected (T, h, w, 3) RGB in uint8"
                )
            if len(frames) != length:
                raise TraceError(
                    f"view {name!r} of clip {self.title!r} has {len(frames)} frames for {length} potentials; "
                    f"expected one frame per judged step"
                )
        for name in ("spread", "judged", "truth", "success_probability"):
            series = getattr(self, name)
            if series is not None and series.shape != (length,):
                raise TraceError(
                    f"{name} of clip {self.title!r} has shape {series.shape}; expected ({length},), like its potential"
                )
        for event in self.events:
            if not 0 <= event.begin <= event.end < length:
                raise TraceError(
                    f"event {event.text!r} of clip {self.title!r} is from frame {event.begin} to {event.end}; expected "
                    f"numbers in order, from 0 to {length - 1}"
                )
        judged = self.potential[self.judged]
        if not ((judged >= 0) & (judged <= 1)).all():
            raise TraceError(
                f"clip {self.title!r} has judged potentials outside [0, 1]; "
                f"expected numbers within it, and NaN only where `judged` is False"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """How one arm of the experiment learned: one point per rollout, in the order they happened.

    Several curves may share an `arm` (one per seed); they share its colour. Raises `TraceError` on construction where
    lengths disagree, rollouts do not increase, or a success is outside [0, 1].
    """

    arm: str
    rollout: Integer[np.ndarray, " N"]
    """Which rollout, increasing."""
    success: Float[np.ndarray, " N"]
    """1 where the rollout succeeded, 0 where it did not."""

    def __post_init__(self) -> None:
        if self.rollout.ndim != 1 or self.rollout.shape != self.success.shape or len(self.rollout) == 0:
            raise TraceError(
                f"curve {self.arm!r} has {self.rollout.shape} rollouts and {self.success.shape} successes; "
                f"expected two vectors of one length, at least 1"
            )
        if not (np.diff(self.rollout) > 0).all():
            raise TraceError(f"the rollouts of curve {self.arm!r} do not increase; expected them in the order they ran")
        if not ((self.success >= 0) & (self.success <= 1)).all():
            raise TraceError(f"curve {self.arm!r} has a success outside [0, 1]; expected 0 or 1 for every rollout")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunPage:
    """Everything the page shows; sections without content are left out."""

    title: str
    """The task, as a person would say it: 'Unlock the door'."""
    subtitle: str
    """The small line above it: which command, task and seed."""
    verdict: str
    """One sentence: what came out."""
    clips: Sequence[Clip] = ()
    curves: Sequence[Curve] = ()
    table_headers: Sequence[str] = ()
    table_rows: Sequence[Sequence[str | float]] = ()
    figure: str = ""
    """An SVG of all of it, drawn by us and not by a stranger: it goes onto the page as it is."""
    settings: Mapping[str, str | float] = field(default_factory=dict)
    rows_of_clips: Sequence[int] = ()
    """Number of each clip's row in the table, whose name then leads to the clip; empty for none."""
    notes: Sequence[str] = ()
    """Plain sentences about what happened, what is known and what is not."""

    def __post_init__(self) -> None:
        for row in self.table_rows:
            if len(row) != len(self.table_headers):
                raise TraceError(
                    f"table row {list(row)!r} has {len(row)} cells; expected {len(self.table_headers)}, one per header"
                )

        if self.rows_of_clips and (
            len(self.rows_of_clips) != len(self.clips)
            or not set(self.rows_of_clips) <= set(range(len(self.table_rows)))
        ):
            raise TraceError(
                f"rows_of_clips is {list(self.rows_of_clips)} for {len(self.clips)} clips and {len(self.table_rows)} "
                f"rows; expected the number of a row for each clip"
            )


def write_page(page: RunPage, path: Path) -> None:
    """Write the page to `path`, replacing what was there; missing folders are made.

    Raises `OutputError` if the file cannot be written.
    """
    write_html(_render(page), path)


def write_html(content: str, path: Path) -> None:
    """Write a page's text; raises as `write_page`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"cannot write the report to {path} ({error.strerror}); "
            f"expected a file name in a writable folder with free space"
        ) from error


def moving_average(success: Float[np.ndarray, " N"], window: int = WINDOW) -> Float[np.ndarray, " N"]:
    """Mean of the last `window` entries up to and including each; of all of them so far while there are fewer."""
    total = np.concatenate([[0.0], np.cumsum(success)])
    end = np.arange(1, len(success) + 1)
    start = np.maximum(end - window, 0)
    return (total[end] - total[start]) / (end - start)


def fill(template: str, parts: Mapping[str, str]) -> str:
    """A template of this package, begun by the head that all pages share, with its slots filled.

    One pass over both, so that braces in the run's own text can never be taken for a slot.
    """
    head, body = (
        resources.files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("head.html", template)
    )
    text = body.replace("{{head}}", head, 1)
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: parts[slot[1]], text)


def _render(page: RunPage) -> str:
    parts = {
        "title": html.escape(page.title),
        "subtitle": html.escape(page.subtitle),
        "verdict": html.escape(page.verdict),
        "table": _table(page),
        "notes": "".join(f"<li>{html.escape(note)}</li>" for note in page.notes),
        "settings": "".join(
            f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(_cell(value))}</dd></div>"
            for name, value in page.settings.items()
        ),
        "figure": page.figure,
        "window": str(WINDOW),
        "data": _json({"window": WINDOW, "clips": _clips(page.clips), "curves": [_curve(c) for c in page.curves]}),
    }
    for name, shown in {
        "clips": page.clips,
        "curves": page.curves,
        "figure": page.figure,
        "rows": page.table_rows,
        "notes": page.notes,
        "settings": page.settings,
    }.items():
        parts[f"hide_{name}"] = "" if shown else "hidden"
    return fill("page.html", parts)


def _json(value: object) -> str:
    # Inside <script>, "</script>" and "<!--" end or swallow the block whatever the quoting: no "<" may be left in it.
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _cell(value: str | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(page: RunPage) -> str:
    def is_numeric(column: Sequence[str | float]) -> bool:
        # "0.85 ± 0.05", "18 / 20" and "2 min" are set like numbers; a dash says nothing either way.
        cells = [_cell(cell) for cell in column if _cell(cell) not in ("", "-", "–", "—")]
        return bool(cells) and all(re.match(r"[-+−<>≈]?\s?\d", cell) for cell in cells)

    numeric = [is_numeric(column) for column in zip(*page.table_rows, strict=True)]
    numeric = numeric or [False] * len(page.table_headers)
    style = [' class="number"' if n else "" for n in numeric]
    head = "".join(f'<th scope="col"{s}>{html.escape(h)}</th>' for h, s in zip(page.table_headers, style, strict=True))
    body = ""
    for number, row in enumerate(page.table_rows):
        first, *rest = (html.escape(_cell(cell)) for cell in row)
        cells = "".join(f"<td{s}>{cell}</td>" for cell, s in zip(rest, style[1:], strict=True))
        if number in page.rows_of_clips:
            first = f'<button type="button" data-clip="{page.rows_of_clips.index(number)}">{first}</button>'
        body += f'<tr><th scope="row"{style[0]}>{first}</th>{cells}</tr>'
    return f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"


def _curve(curve: Curve) -> dict[str, object]:
    return {
        "arm": curve.arm,
        "rollout": curve.rollout.tolist(),
        "success": curve.success.tolist(),
        "average": np.round(moving_average(curve.success), 4).tolist(),
    }


def _clips(clips: Sequence[Clip]) -> list[dict[str, object]]:
    drawn: list[dict[str, Sequence[bytes]]] = []
    for quality in QUALITIES:
        drawn = [{name: _jpegs(frames, quality) for name, frames in clip.views.items()} for clip in clips]
        encoded = sum(len(jpeg) for views in drawn for frames in views.values() for jpeg in frames)
        if encoded * 4 / 3 <= PICTURE_BUDGET_BYTES:
            break
    return [_clip(clip, views) for clip, views in zip(clips, drawn, strict=True)]


def _jpegs(frames: np.ndarray | Film, quality: int) -> Sequence[bytes]:
    """JPEG files of the frames; a film's own as they are."""
    return frames.pictures if isinstance(frames, Film) else [encode_jpeg(frame, quality) for frame in frames]


def _size(frames: np.ndarray | Film) -> tuple[int, int]:
    return (frames.height, frames.width) if isinstance(frames, Film) else (frames.shape[1], frames.shape[2])


def _clip(clip: Clip, pictures: Mapping[str, Sequence[bytes]]) -> dict[str, object]:
    return {
        "title": clip.title,
        "outcome": bool(clip.outcome),
        "rate_hz": float(clip.rate_hz),
        "views": [
            {
                "name": name,
                "height": _size(clip.views[name])[0],
                "width": _size(clip.views[name])[1],
                "frames": [base64.b64encode(picture).decode("ascii") for picture in frames],
            }
            for name, frames in pictures.items()
        ],
        "potential": _series(clip.potential, clip.judged),
        "spread": _series(clip.spread, clip.judged),
        "truth": None if clip.truth is None else _series(clip.truth),
        "success": None if clip.success_probability is None else _series(clip.success_probability),
        "events": [{"text": event.text, "begin": event.begin, "end": event.end} for event in clip.events],
    }


def _series(values: Float[np.ndarray, " T"], shown: Bool[np.ndarray, " T"] | None = None) -> list[float | None]:
    """Numbers for JSON, which has no NaN: an abstention is null, and the page leaves a gap."""
    finite = np.isfinite(values) if shown is None else np.isfinite(values) & shown
    return [round(float(v), 4) if ok else None for v, ok in zip(values, finite, strict=True)]
