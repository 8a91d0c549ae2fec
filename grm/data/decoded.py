"""Decoded pictures of data sets on disk, mapped into memory: runs on the same data decode it once and share its pages.

Decoding the videos of a few thousand episodes takes minutes, and their pictures some gigabytes per process.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import OutputError
from .episodes import Episode
from .lerobot import read_episodes


def read_decoded(root: Path, cache: Path) -> Iterator[Episode]:
    """All episodes of the LeRobotDataset at `root`, their views mapped from files below `cache`, made if need be.

    A data set that has changed is decoded again. Raises `TraceError` as `read_episodes` does, and `OutputError` if
    `cache` cannot be written.
    """
    root = Path(root)
    name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    folder, info = Path(cache) / name, (root / "meta" / "info.json")
    if not ((folder / "info.json").exists() and (folder / "info.json").read_bytes() == info.read_bytes()):
        _decode(root, folder, info.read_bytes())
    entries = json.loads((folder / "episodes.json").read_text())
    columns = np.load(folder / "columns.npz", allow_pickle=False)
    shapes = json.loads((folder / "views.json").read_text())
    views = {
        view: np.memmap(folder / f"{view}.raw", np.uint8, "r", shape=tuple(shape)) for view, shape in shapes.items()
    }
    start = 0
    for entry in entries:
        rows = slice(start, start + entry.pop("length"))
        start = rows.stop
        yield Episode(
            **entry,
            views={view: images[rows] for view, images in views.items()},
            **{column: columns[column][rows] for column in columns.files},
        )


def _decode(root: Path, folder: Path, info: bytes) -> None:
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        entries, columns, shapes, files = [], [], {}, {}
        for episode in read_episodes(root):
            for view, images in episode.views.items():
                if view not in files:
                    files[view] = (partial / f"{view}.raw").open("wb")
                    shapes[view] = [0, *images.shape[1:]]
                files[view].write(images.tobytes())
                shapes[view][0] += len(images)
            entries.append(
                {
                    "task": episode.task,
                    "instruction": episode.instruction,
                    "rate_hz": episode.rate_hz,
                    "behaviour": episode.behaviour,
                    "seed": episode.seed,
                    "length": len(episode),
                }
            )
            columns.append({c: getattr(episode, c) for c in ("state", "actions", "rewards", "success", "progress")})
        for file in files.values():
            file.close()
        np.savez(partial / "columns.npz", **{c: np.concatenate([row[c] for row in columns]) for c in columns[0]})
        (partial / "views.json").write_text(json.dumps(shapes))
        (partial / "episodes.json").write_text(json.dumps(entries))
        (partial / "info.json").write_bytes(info)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}); choose another cache folder") from error
