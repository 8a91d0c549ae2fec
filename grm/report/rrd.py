"""An episode as a Rerun recording: cameras and curves on one time line. The extra is `viz`."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import MissingExtraError, OutputError
from ..inspection import Inspection
from .page import Film

SERIES = ("potential", "spread", "incremental", "forward", "backward", "absolute", "success")


def write_rrd(path: Path, one: Inspection, films: Mapping[str, Film], kept: np.ndarray) -> None:
    """Write an .rrd with all judged frames' numbers, and the pictures of those that are `kept`.

    Raises `MissingExtraError` without rerun, and `OutputError` if the file cannot be written.
    """
    try:
        import rerun as rr
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "a Rerun recording needs rerun-sdk; install it with `pip install 'grm-robotics[viz]'`"
        ) from error
    recording = rr.RecordingStream("grm_inspect", recording_id=one.name)
    try:
        recording.save(path)  # a sink from the start: nothing is kept in memory
    except (OSError, RuntimeError) as error:
        raise OutputError(f"cannot write {path} ({error}); expected a writable folder with space") from error
    place = {int(t): k for k, t in enumerate(kept)}
    for t in range(len(one.frame)):
        recording.set_time("frame", sequence=int(one.frame[t]))
        recording.set_time("time", duration=float(one.time_s[t]))
        for name in SERIES:
            value = float(getattr(one, name)[t])
            if not np.isnan(value):  # an abstention leaves a gap
                recording.log(f"reward/{name}", rr.Scalars(value))
        if t in place:
            for view, film in films.items():
                picture = rr.EncodedImage(contents=film.pictures[place[t]], media_type="image/jpeg")
                recording.log(f"cameras/{view}", picture)
    for part in one.regressions:
        recording.set_time("time", duration=part.start_s)
        recording.log("events", rr.TextLog(f"Φ falls by {part.depth:.2f} until {part.end_s:.1f} s"))
    recording.flush()
    recording.disconnect()
