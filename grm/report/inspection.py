"""What an inspection looks like: a film of each episode with its curves and events, worst first, and the data set."""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..data.recordings import Recording
from ..data.video import encode_jpeg, resize
from ..inspection import Inspection, near_duplicates, triage
from ..metrics import Completion
from ..reward import Frame
from .evaluation import Panel, draw
from .page import PICTURE_BUDGET_BYTES, Clip, Event, Film, RunPage, write_page

EPISODES = 20
"""Episodes whose pictures are on the page: the worst ones."""
FRAMES = 300
"""Pictures of each, per view."""
HEIGHTS = (240, 160, 120, 96, 80)
"""Of the pictures, in pixels: the largest with which all of them fit a page."""
QUALITIES = (20, 75)
"""Lowest and highest of the JPEG files: as high as their share of the page allows."""
HEADERS = ("episode, worst first", "verdict", "recorded", "Φ end", "Φ best", "regressions", "stalls", "advice")
_BYTES_PER_PIXEL = 0.1
_GROUPS = {
    Completion.SUCCESS: ("success", "#1b7837"),
    Completion.PARTIAL: ("partial", "#b8860b"),
    Completion.FAIL: ("fail", "#b2182b"),
}


class FilmMaker:
    """Keeps small pictures of some of the judged frames as they pass."""

    def __init__(self, views: Sequence[str], kept: Collection[int], height: int, picture_bytes: float) -> None:
        """`kept` are the numbers of the judged frames to keep; `height` in pixels and mean size are the pictures'."""
        self._kept, self._height, self._picture_bytes = set(kept), height, picture_bytes
        self._quality, self._bytes, self._count = QUALITIES[1], 0, 0
        self._pictures: dict[str, list[bytes]] = {name: [] for name in views}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def see(self, number: int, frame: Frame) -> None:
        """Look at the judged frame `number`."""
        if number not in self._kept:
            return
        for name, pictures in self._pictures.items():
            pictures.append(self._encode(name, frame.views[name]) if name in frame.views else b"")

    def _encode(self, name: str, image: np.ndarray) -> bytes:
        small = resize(image, self._height)
        self._shapes.setdefault(name, small.shape)
        jpeg = encode_jpeg(small, self._quality)
        self._bytes, self._count = self._bytes + len(jpeg), self._count + 1
        step = -5 if self._bytes > self._count * self._picture_bytes else 5
        self._quality = int(np.clip(self._quality + step, *QUALITIES))
        return jpeg

    def films(self) -> dict[str, Film]:
        """By view, for those that ever showed something; black where a camera showed nothing."""
        films = {}
        for name, shape in self._shapes.items():
            black = encode_jpeg(np.zeros(shape, np.uint8))
            films[name] = Film([jpeg or black for jpeg in self._pictures[name]], shape[0], shape[1])
        return films


def kept_frames(count: int) -> np.ndarray:
    """Which of `count` judged frames are on the page."""
    return np.unique(np.linspace(0, count - 1, min(FRAMES, count)).round().astype(int))


def picture_size(recordings: Sequence[Recording], strides: Sequence[int]) -> tuple[int, float]:
    """Height in pixels, the largest of `HEIGHTS`, and mean bytes of a picture with which the page is not too large."""
    counts = sorted(
        (len(r.views) * min(FRAMES, len(r.sampled(k))) for r, k in zip(recordings, strides, strict=True)),
        reverse=True,
    )
    picture_bytes = PICTURE_BUDGET_BYTES * 3 / 4 / max(1, sum(counts[:EPISODES]))  # base64 makes four bytes of three
    fits = (h for h in HEIGHTS if h * h * 4 / 3 * _BYTES_PER_PIXEL <= picture_bytes)
    return next(fits, HEIGHTS[-1]), picture_bytes


def write_inspection(
    path: Path,
    inspections: Sequence[Inspection],
    films: Mapping[str, Mapping[str, Film]],
    *,
    command: str,
    settings: Mapping[str, str | float],
    notes: Sequence[str],
) -> None:
    """Write the page. `films` are by episode and view, of the frames that `kept_frames` names.

    Raises `OutputError` if the file cannot be written.
    """
    worst = triage(inspections)
    shown = [one for one in worst if films.get(one.name)][:EPISODES]
    counts = {word: sum(one.advice == word for one in worst) for word in ("keep", "weight", "drop", "look")}
    remarks = list(notes)
    if len(shown) < len(worst):
        remarks.append(f"Films are of the {len(shown)} worst episodes; the numbers below are of all {len(worst)}.")
    remarks += [f"{a} and {b} show the same: one of them can go." for a, b in near_duplicates(inspections)]
    suspicious = [one.name for one in worst if one.agrees is False]
    if suspicious:
        remarks.append(f"The recorded outcome contradicts what was seen: {', '.join(suspicious)}.")
    write_page(
        RunPage(
            title=f"{len(worst)} episode{'s' * (len(worst) != 1)} inspected",
            subtitle=command,
            verdict=", ".join(
                f"{count} to {word}" if word != "look" else f"{count} to look at" for word, count in counts.items()
            ),
            clips=[_clip(one, films[one.name]) for one in shown],
            table_headers=HEADERS,
            table_rows=[cells(one) for one in worst],
            rows_of_clips=[worst.index(one) for one in shown],
            figure=data_set_figure(inspections),
            settings=settings,
            notes=remarks,
        ),
        path,
    )


def cells(one: Inspection) -> list[str]:
    """The episode's row, under `HEADERS`."""
    lost = one.regressions
    return [
        one.name,
        "not judged" if one.verdict is None else one.verdict.name.lower(),
        {None: "–", True: "success", False: "failure"}[one.succeeded],
        "–" if np.isnan(one.final) else f"{one.final:.2f}",
        "–" if np.isnan(one.best) else f"{one.best:.2f}",
        f"{len(lost)}" + (f" (to −{max(part.depth for part in lost):.2f})" if lost else ""),
        f"{len(one.stalls)}",
        one.advice,
    ]


def data_set_figure(inspections: Sequence[Inspection]) -> str:
    """SVG: how Φ rises over an episode, and where episodes end, by verdict; empty if none was judged."""
    profile, ends = [], []
    groups = {
        verdict: [one for one in inspections if one.verdict is verdict and one.judged.sum() > 1] for verdict in _GROUPS
    }
    share, edges = np.linspace(0, 1, 51), np.linspace(0, 1, 11)
    for verdict, members in groups.items():
        if not members:
            continue
        curves = []
        for one in members:
            known = np.flatnonzero(one.judged)
            curves.append(np.interp(share, known / max(1, len(one.judged) - 1), one.potential[known]))
        counts = np.histogram([one.final for one in members], edges)[0]
        profile.append((_GROUPS[verdict][1], share, np.mean(curves, axis=0)))
        ends.append((_GROUPS[verdict][1], edges.repeat(2)[1:-1], counts.repeat(2).astype(float)))
    if not profile:
        return ""
    top = float(max(y.max() for _, _, y in ends))
    top = max(1.0, math.ceil(top))
    panels = [
        Panel(title="progress", x="share of the episode", y="mean Φ", lines=profile),
        Panel(title="where episodes end", x="Φ at the end", y="episodes", lines=ends, top=top),
    ]
    drawn = draw(panels, {name: colour for verdict, (name, colour) in _GROUPS.items() if groups[verdict]})
    return drawn.replace(' xmlns="http://www.w3.org/2000/svg"', "")  # within HTML it needs none


def _clip(one: Inspection, films: Mapping[str, Film]) -> Clip:
    kept = kept_frames(len(one.frame))
    span = float(one.time_s[kept[-1]] - one.time_s[kept[0]])

    def place(seconds: float) -> int:
        return int(np.abs(one.time_s[kept] - seconds).argmin())

    lost = [
        Event(
            text=f"Φ fell by {part.depth:.2f} from {part.start_s:.1f} to {part.end_s:.1f} s",
            begin=place(part.start_s),
            end=place(part.end_s),
        )
        for part in one.regressions
    ]
    stood = [
        Event(
            text=f"no progress from {part.start_s:.1f} to {part.end_s:.1f} s",
            begin=place(part.start_s),
            end=place(part.end_s),
        )
        for part in one.stalls
    ]
    verdict = cells(one)[1]
    return Clip(
        title=f"{one.name}: {verdict}, {one.advice}",
        views=films,
        rate_hz=(len(kept) - 1) / span if len(kept) > 1 and span > 0 else 1.0,
        potential=one.potential[kept],
        spread=one.spread[kept],
        judged=one.judged[kept],
        outcome=one.succeeded if one.succeeded is not None else verdict == "success",
        success_probability=None if np.isnan(one.success).all() else one.success[kept],
        events=sorted(lost + stood, key=lambda event: event.begin),
    )
