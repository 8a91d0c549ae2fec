"""Decoded pictures of data sets on disk, mapped into memory: runs on the same data decode it once and share its pages.

Decoding the videos of a few thousand episodes takes minutes, and their pictures some gigabytes per process.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OutputError
from .episodes import Episode, SubTask
from .lerobot import count_episodes, read_episodes

_IDENTITY = ("info.json", "stats.json")
"""Of a data set's `meta` folder: they change with every episode, and with every label."""


def read_decoded(root: Path, cache: Path) -> Iterator[Episode]:
    """All episodes of the LeRobotDataset at `root`, their views mapped from files below `cache`, made if need be.

    A data set that has changed is decoded again. Raises `TraceError` as `read_episodes` does, and `OutputError` if
    `cache` cannot be written.
    """
    root = Path(root)
    name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    folder = Path(cache) / name
    count_episodes(root)  # raises for what is no data set
    identity = {file: (root / "meta" / file).read_bytes() for file in _IDENTITY if (root / "meta" / file).exists()}
    if {file: (folder / file).read_bytes() for file in _IDENTITY if (folder / file).exists()} != identity:
        _decode(root, folder, identity)
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
            **entry | {"sub_tasks": tuple(SubTask(**sub_task) for sub_task in entry.get("sub_tasks", ()))},
            views={view: images[rows] for view, images in views.items()},
            **{column: columns[column][rows] for column in columns.files},
        )


def _decode(root: Path, folder: Path, identity: dict[str, bytes]) -> None:
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
                    "sub_tasks": [asdict(sub_task) for sub_task in episode.sub_tasks],
                    "length": len(episode),
                }
            )
            columns.append({c: getattr(episode, c) for c in ("state", "actions", "rewards", "success", "progress")})
        for file in files.values():
            file.close()
        joined: dict[str, Any] = {c: np.concatenate([row[c] for row in columns]) for c in columns[0]}
        np.savez(partial / "columns.npz", **joined)
        (partial / "views.json").write_text(json.dumps(shapes))
        (partial / "episodes.json").write_text(json.dumps(entries))
        for file, content in identity.items():
            (partial / file).write_bytes(content)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}); choose another cache folder") from error
