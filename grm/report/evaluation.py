"""What an evaluation looks like: potential against truth, risk against coverage, coverage against its nominal value.

Plain SVG, written by hand: no plotting library to install, readable in any browser, and its numbers can be diffed.
"""

import html
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ..errors import OutputError
from ..evaluate import Scored, pool
from ..metrics import LEVELS, interval_coverage, risk_coverage

SIDE = 220
"""Pixels of a panel's axes."""
GAP = 46
"""Pixels around them, for names and numbers."""
COLUMNS = 4
"""Panels in a row."""
DOTS = 600
"""Most dots of one group in one panel."""
COLOURS = {"demonstrations": "#1b7837", "off the demonstration": "#c2570c", "visited by a learner": "#6a51a3"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Panel:
    """One pair of axes from 0 to 1, and to `top`."""

    title: str
    x: str
    y: str
    dots: Sequence[tuple[str, Float[np.ndarray, " n"], Float[np.ndarray, " n"]]] = ()
    """Colour, abscissae and ordinates of each cloud."""
    lines: Sequence[tuple[str, Float[np.ndarray, " n"], Float[np.ndarray, " n"]]] = ()
    top: float = 1.0
    diagonal: bool = False
    """Whether to draw where both are equal."""


def write_plots(scored: Sequence[Scored], folder: Path) -> list[Path]:
    """Write potential.svg, risk_coverage.svg and reliability.svg; returns those written.

    A plot without a single judged and labelled frame is left out. Raises `OutputError` if a file cannot be written.
    """
    drawn = {
        "potential": (potential_panels(scored), COLOURS),
        "risk_coverage": (risk_panels(scored), {}),
        "reliability": (reliability_panels(scored), {}),
    }
    paths = []
    for name, (panels, legend) in drawn.items():
        if panels:
            path = folder / f"{name}.svg"
            try:
                path.write_text(draw(panels, legend), encoding="utf-8")
            except OSError as error:
                raise OutputError(
                    f"cannot write {path} ({error.strerror}); expected a writable folder with free space"
                ) from error
            paths.append(path)
    return paths


def potential_panels(scored: Sequence[Scored]) -> list[Panel]:
    """Per task: every judged frame's potential over its truth, by who acted."""
    panels = []
    for task, items in _by_task(scored).items():
        groups = {
            "demonstrations": [item for item in items if item.demonstration],
            "off the demonstration": [item for item in items if not item.demonstration and not item.visited],
            "visited by a learner": [item for item in items if item.visited],
        }
        clouds = []
        for name, group in groups.items():
            potential, truth, _ = pool(group)
            known = np.flatnonzero(np.isfinite(potential) & np.isfinite(truth))
            shown = known[np.linspace(0, len(known) - 1, min(len(known), DOTS)).astype(int)]
            if len(shown):
                clouds.append((COLOURS[name], truth[shown], potential[shown]))
        if clouds:
            panels.append(Panel(title=task, x="true progress", y="potential", dots=clouds, diagonal=True))
    return panels


def risk_panels(scored: Sequence[Scored]) -> list[Panel]:
    """Per task, and for all of them: mean error of the share of frames whose spread is smallest."""
    panels = []
    for title, items in _tasks_and_all(scored):
        coverage, risk = risk_coverage(*pool(items))
        some = np.unique(np.linspace(0, len(coverage) - 1, min(len(coverage), 200)).astype(int))
        top = float(np.ceil(10 * max(risk.max(), 0.05)) / 10)
        lines = [("#2166ac", coverage[some], risk[some])]
        panels.append(Panel(title=title, x="share of frames judged", y="mean |error|", lines=lines, top=top))
    return panels


def reliability_panels(scored: Sequence[Scored]) -> list[Panel]:
    """Per task, and for all of them: share of truths within each central interval of the spread."""
    panels = []
    for title, items in _tasks_and_all(scored):
        lines = [("#2166ac", LEVELS, interval_coverage(*pool(items)))]
        panels.append(Panel(title=title, x="nominal coverage", y="coverage", lines=lines, diagonal=True))
    return panels


def draw(panels: Sequence[Panel], legend: dict[str, str]) -> str:
    """One SVG of all panels, row by row, with the legend (name: colour) above them."""
    cell, columns = SIDE + 2 * GAP, min(COLUMNS, len(panels))
    above = 24 if legend else 0
    width, height = columns * cell, -(-len(panels) // columns) * cell + above
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
    ]
    at = GAP
    for name, colour in legend.items():
        parts.append(f'<circle cx="{at}" cy="14" r="4" fill="{colour}"/><text x="{at + 8}" y="18">{name}</text>')
        at += 30 + 6 * len(name)
    for index, panel in enumerate(panels):
        left, upper = index % columns * cell + GAP, index // columns * cell + GAP + above
        parts.append(f'<g transform="translate({left} {upper})">{_panel(panel)}</g>')
    return "".join(parts) + "</svg>\n"


def _panel(panel: Panel) -> str:
    half = SIDE / 2
    parts = [
        f'<rect width="{SIDE}" height="{SIDE}" fill="none" stroke="#888"/>',
        f'<text x="{half}" y="-8" text-anchor="middle" font-weight="bold">{html.escape(panel.title)}</text>',
        f'<text x="{half}" y="{SIDE + 30}" text-anchor="middle">{panel.x}</text>',
        f'<text transform="translate(-34 {half}) rotate(-90)" text-anchor="middle">{panel.y}</text>',
    ]
    for share in (0, 0.5, 1):
        parts.append(f'<text x="{share * SIDE}" y="{SIDE + 14}" text-anchor="middle">{share:g}</text>')
        parts.append(f'<text x="-5" y="{(1 - share) * SIDE + 4}" text-anchor="end">{share * panel.top:g}</text>')
    if panel.diagonal:
        parts.append(f'<line x1="0" y1="{SIDE}" x2="{SIDE}" y2="0" stroke="#bbb" stroke-dasharray="4"/>')
    for colour, x, y in panel.dots:
        circles = (f'<circle cx="{a:.1f}" cy="{b:.1f}" r="1.6"/>' for a, b in _pixels(panel, x, y))
        parts.append(f'<g fill="{colour}" fill-opacity="0.5">{"".join(circles)}</g>')
    for colour, x, y in panel.lines:
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in _pixels(panel, x, y))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return "".join(parts)


def _pixels(panel: Panel, x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
    return list(zip((x * SIDE).tolist(), ((1 - y / panel.top) * SIDE).tolist(), strict=True))


def _by_task(scored: Sequence[Scored]) -> dict[str, list[Scored]]:
    tasks: dict[str, list[Scored]] = defaultdict(list)
    for item in scored:
        tasks[item.episode.task].append(item)
    return tasks


def _tasks_and_all(scored: Sequence[Scored]) -> list[tuple[str, list[Scored]]]:
    tasks = _by_task(scored)
    groups = [*tasks.items(), *([("all tasks", list(scored))] if len(tasks) > 1 else [])]
    return [(title, items) for title, items in groups if np.isfinite(sum(pool(items))).any()]
