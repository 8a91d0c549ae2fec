"""One episode as one picture: its frames in a row, and under them what the judge said against what was true."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont  # a dependency of torchvision

from ..errors import OutputError, TraceError
from ..reward import Frame

WIDTH, MARGIN, PLOT = 1200, 56, 260
"""Pixels: of the picture, left of the axis, and the height of the curves."""
INK, FAINT, PHI, TRUTH = "#1f2328", "#d8dee4", "#c2410c", "#1d6fa5"


def write_strip(
    path: Path,
    frames: Sequence[Frame],
    potential: Float[np.ndarray, " T"],
    truth: Mapping[int, float],
    *,
    view: str,
    title: str,
    marked: int | None = None,
    pictures: int = 9,
) -> None:
    """Write a PNG of an episode of T frames.

    Args:
        path: where to.
        frames: T of them; a frame without the view is shown black.
        potential: Φ in [0, 1] after each; a gap where it is NaN.
        truth: true progress in [0, 1] at the frames where it is known, with straight lines between.
        view: whose camera's images to show.
        title: one line above.
        marked: a frame to point out: where Φ is highest.
        pictures: how many frames to show, evenly spaced.

    Raises:
        TraceError: under two frames, or not one potential each.
        OutputError: the file cannot be written.
    """
    length = len(frames)
    if length < 2 or potential.shape != (length,):
        raise TraceError(f"{length} frames and potentials of shape {potential.shape}; expected at least two, one each")
    side = (WIDTH - 2 * MARGIN) // pictures
    top = 48
    image = Image.new("RGB", (WIDTH, top + side + 24 + PLOT + 64), "white")
    draw = ImageDraw.Draw(image)
    font, small = ImageFont.load_default(20), ImageFont.load_default(15)
    draw.text((MARGIN, 14), title, fill=INK, font=font)
    for k, t in enumerate(np.linspace(0, length - 1, pictures).round().astype(int)):
        seen = frames[t].views.get(view)
        shown = Image.new("RGB", (1, 1)) if seen is None else Image.fromarray(seen)
        image.paste(shown.resize((side - 4, side - 4), Image.Resampling.BICUBIC), (MARGIN + k * side + 2, top))

    # The curves run from the middle of the first picture to the middle of the last, so that each is above its moment.
    floor, left, right = top + side + 24 + PLOT, MARGIN + side / 2, WIDTH - MARGIN - side / 2

    def at(t: float, value: float) -> tuple[float, float]:
        return left + (right - left) * t / (length - 1), floor - PLOT * value

    for value in (0.0, 0.5, 1.0):
        draw.line([(left - 10, at(0, value)[1]), (right + 10, at(0, value)[1])], fill=FAINT)
        draw.text((left - 18, at(0, value)[1]), f"{value:.1f}", fill=INK, font=small, anchor="rm")
    if marked is not None:
        draw.line([at(marked, 0), at(marked, 1)], fill=FAINT, width=3)
    known = sorted(truth)
    draw.line([at(t, truth[t]) for t in known], fill=TRUTH, width=3)
    for t in known:
        x, y = at(t, truth[t])
        draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=TRUTH)
    for t in range(length - 1):
        if np.isfinite(potential[t : t + 2]).all():
            draw.line([at(t, potential[t]), at(t + 1, potential[t + 1])], fill=PHI, width=4)
    draw.text((left, floor + 24), "potential: what the judge says", fill=PHI, font=font)
    draw.text((left + 330, floor + 24), "true progress: what the simulator knows", fill=TRUTH, font=font)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error}); choose another output folder") from error
