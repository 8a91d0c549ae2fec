"""An episode as a film to send around: its cameras side by side, and under them Φ as it was at that moment."""

from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image, ImageDraw, ImageFont  # a dependency of torchvision

from ..data.video import decode_jpeg
from ..errors import OutputError
from ..inspection import Inspection
from .page import Film

WIDTH, PLOT, MARGIN, LINE = 640, 140, 34, 22
"""Pixels: at least of the film, of the curve's height, beside the curve, and of a line of text."""
INK, PAPER, FAINT, PHI, LOST = "#1e2329", "#fffefb", "#d9d6cd", "#0b7a75", "#9a3324"


def write_overlay(path: Path, one: Inspection, films: Mapping[str, Film], kept: np.ndarray) -> None:
    """Write an MP4 (H.264) at the episode's own speed; `films` show the judged frames `kept`.

    Raises `OutputError` if it cannot be written.
    """
    height = max(film.height for film in films.values())
    widths = [film.width for film in films.values()]
    across = max(WIDTH, sum(widths) + 4 * (len(widths) - 1))
    size = (across + across % 2, _even(LINE + height + LINE + PLOT + 2 * LINE))
    curve = _curve(one, kept, size[0])
    time = one.time_s[kept]
    rate = Fraction((len(kept) - 1) / float(time[-1] - time[0])).limit_denominator(1000) if time[-1] > time[0] else 1
    font = ImageFont.load_default(14)
    try:
        with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "23"})
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            for k in range(len(kept)):
                image = Image.new("RGB", size, PAPER)
                pen, left = ImageDraw.Draw(image), 0
                for (name, film), width in zip(films.items(), widths, strict=True):
                    pen.text((left + 2, 3), name, fill=INK, font=font)
                    image.paste(Image.fromarray(decode_jpeg(np.frombuffer(film.pictures[k], np.uint8))), (left, LINE))
                    left += width + 4
                _draw_curve(pen, curve, k, (LINE + height, size[0]), _words(one, int(kept[k])), font)
                container.mux(stream.encode(av.VideoFrame.from_image(image)))
            container.mux(stream.encode())
    except (FFmpegError, OSError) as error:
        raise OutputError(f"cannot write the film {path} ({error}); expected a writable folder with space") from error


def _even(number: int) -> int:
    return number + number % 2


def _words(one: Inspection, t: int) -> tuple[str, bool]:
    """What is said above the curve, and whether progress is being lost."""
    now = float(one.time_s[t])
    falls = any(part.start_s <= now <= part.end_s for part in one.regressions)
    if not one.judged[t]:
        return f"{now:.1f} s   Φ abstains", falls
    said = f"{now:.1f} s   Φ {one.potential[t]:.2f} ± {one.spread[t]:.2f}"
    if not np.isnan(one.success[t]):
        said += f"   P(done) {one.success[t]:.2f}"
    return said + ("   progress is lost" if falls else ""), falls


def _curve(one: Inspection, kept: np.ndarray, width: int) -> list[tuple[float, float] | None]:
    """Places of the kept frames' Φ within the plot, in pixels from its left and upper edge; None where it abstained."""
    time = one.time_s[kept]
    span = max(float(time[-1] - time[0]), 1e-9)
    x = MARGIN + (time - time[0]) / span * (width - 2 * MARGIN)
    return [
        (float(a), float((1 - one.potential[t]) * PLOT)) if one.judged[t] else None
        for a, t in zip(x, kept, strict=True)
    ]


def _draw_curve(
    pen: ImageDraw.ImageDraw,
    curve: list[tuple[float, float] | None],
    now: int,
    place: tuple[int, int],
    words: tuple[str, bool],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    upper, width = place
    pen.text((MARGIN, upper + 3), words[0], fill=LOST if words[1] else INK, font=font)
    upper += LINE + 4
    for level in (0, 0.5, 1):
        y = upper + (1 - level) * PLOT
        pen.line((MARGIN, y, width - MARGIN, y), fill=FAINT)
        pen.text((4, y - 8), f"{level:g}", fill=INK, font=font)
    for k, (a, b) in enumerate(pairwise(curve)):
        if a is not None and b is not None:
            pen.line((a[0], upper + a[1], b[0], upper + b[1]), fill=PHI if k < now else FAINT, width=3)
    dot = curve[now]
    if dot is not None:
        pen.ellipse((dot[0] - 5, upper + dot[1] - 5, dot[0] + 5, upper + dot[1] + 5), fill=PHI)
