"""Which picture is new, and how old is it? A driver answers a frozen camera's last picture as willingly as a fresh one.

Every sensor has noise: a picture that repeats bit by bit is the same exposure, whatever the driver says about its time.
"""

import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import av
import cv2
import numpy as np
from jaxtyping import UInt8

from grm.errors import TraceError
from grm.reward import BLACK

from .errors import StaleFrameError

_REMEMBERED = 64
"""Pictures back that one delivered out of order is recognised: three seconds at 20 Hz."""


@dataclass(slots=True)
class _Camera:
    newest: UInt8[np.ndarray, "h w 3"] | None = None
    seen: float = 0.0
    known: deque[int] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    rejected: int = 0


class Freshness:
    """The newest picture of every camera, and its age in seconds since it was first seen.

    A repeated, an older or a black picture is not taken for new: the last good one stays, and grows older.
    """

    def __init__(self, cameras: Sequence[str]) -> None:
        self._cameras = {name: _Camera() for name in cameras}

    def look(self, observation: Mapping[str, Any], now: float) -> list[str]:
        """Takes what a robot reported at `now` and returns the cameras that showed something new."""
        fresh = []
        for name, camera in self._cameras.items():
            picture = observation.get(name)
            if picture is None:
                continue
            picture = np.ascontiguousarray(picture)
            key = zlib.crc32(picture)
            if key in camera.known or picture.max() <= BLACK:
                camera.rejected += 1
                continue
            camera.known.append(key)
            camera.newest, camera.seen = picture, now
            fresh.append(name)
        return fresh

    def ages(self, now: float) -> dict[str, float]:
        """Seconds since each camera showed something new; infinite if it never did."""
        return {
            name: now - camera.seen if camera.newest is not None else float("inf")
            for name, camera in self._cameras.items()
        }

    @property
    def rejected(self) -> dict[str, int]:
        """How many pictures of each camera were repeated, older, or black."""
        return {name: camera.rejected for name, camera in self._cameras.items()}

    def pictures(self, now: float, max_age_s: float) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """The newest picture of each camera. Raises `StaleFrameError` if one is older than `max_age_s` seconds."""
        for name, age_s in self.ages(now).items():
            if age_s > max_age_s:
                found = f"is {age_s:.2f} s old" if np.isfinite(age_s) else "never came"
                raise StaleFrameError(
                    f"the newest picture of camera {name!r} {found}; expected at most {max_age_s:g} s: look at its "
                    f"cable and its lens, or see whether another program uses it"
                )
        return {name: camera.newest for name, camera in self._cameras.items() if camera.newest is not None}

    def forget(self) -> None:
        """Before an episode: what was shown before it does not count, and may be shown again."""
        for camera in self._cameras.values():
            camera.newest = None
            camera.known.clear()


def resize(picture: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """The whole picture in another size, averaging over what becomes one pixel."""
    if picture.shape[:2] == (height, width):
        return picture
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def to_png(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, " bytes"]:
    """A picture as a PNG file, without loss and in a millisecond."""
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]


def as_recorded(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """What a recording shows of a picture: up to 2 of 255 apart, since a video's colours are rounded on the way.

    Who judges this judges the same live and from the recording. Not to be applied twice, nor to what was recorded.
    """
    return av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv444p").to_ndarray(format="rgb24")


def to_jpeg(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """A picture as a JPEG file, for people."""
    return cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()


def from_file(data: UInt8[np.ndarray, " bytes"]) -> UInt8[np.ndarray, "h w 3"]:
    """The picture in a PNG or JPEG file. Raises `TraceError` if there is none."""
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if picture is None:
        raise TraceError(f"{len(data)} bytes are no picture; expected a whole PNG or JPEG file")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
