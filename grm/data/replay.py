"""A small sample of the pre-training episodes that travels with a checkpoint, so that adapting does not forget.

One .npz of JPEG bytes and plain arrays: a few frames of a few episodes of every task, some megabytes in all.
"""

import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..errors import CheckpointError, OutputError
from .episodes import Episode
from .video import decode_jpeg, encode_jpeg

FILE = "replay.npz"


def write_replay(folder: Path, episodes: Sequence[Episode], *, frames: int = 8, quality: int = 92) -> None:
    """Store `frames` frames, evenly spaced and both ends among them, of every episode.

    Raises `OutputError` if the folder cannot be written.
    """
    blobs: list[bytes] = []
    entries = []
    for episode in episodes:
        picked = np.unique(np.linspace(0, len(episode) - 1, frames).round().astype(int))
        for name in sorted(episode.views):
            blobs += [encode_jpeg(episode.views[name][t], quality) for t in picked]
        entries.append(
            {
                "task": episode.task,
                "instruction": episode.instruction,
                "behaviour": episode.behaviour,
                "views": sorted(episode.views),
                "progress": episode.progress[picked].round(4).tolist(),
                "success": episode.success[picked].tolist(),
                "rate_hz": episode.rate_hz,
            }
        )
    path = Path(folder) / FILE
    partial = path.with_name("partial-" + FILE)  # so that an old sample is only replaced by a whole one
    try:
        np.savez(
            partial,
            index=np.frombuffer(json.dumps(entries).encode(), np.uint8),
            sizes=np.array([len(blob) for blob in blobs], np.int64),
            images=np.frombuffer(b"".join(blobs), np.uint8),
        )
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); choose another output folder") from error


def read_replay(folder: Path) -> Iterator[Episode]:
    """The stored episodes; none if the checkpoint came without. Raises `CheckpointError` if the file is damaged."""
    path = Path(folder) / FILE
    if not path.exists():
        return
    try:
        with np.load(path, allow_pickle=False) as data:
            entries = json.loads(data["index"].tobytes())
            images, sizes = data["images"], data["sizes"]
        needed = sum(len(entry["views"]) * len(entry["progress"]) for entry in entries)
        if len(sizes) != needed or sizes.sum() != len(images):
            raise ValueError(f"{len(sizes)} pictures of {needed}, {len(images)} bytes of {sizes.sum()}")
    except (ValueError, KeyError, TypeError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy the checkpoint again, or delete this file") from error
    blobs = iter(np.split(images, np.cumsum(sizes)[:-1]))
    for entry in entries:
        length = len(entry["progress"])
        zeros = np.zeros((length, 1), np.float32)
        yield Episode(
            task=entry["task"],
            instruction=entry["instruction"],
            views={name: np.stack([decode_jpeg(next(blobs)) for _ in range(length)]) for name in entry["views"]},
            rate_hz=entry["rate_hz"],
            state=zeros,
            actions=zeros,
            rewards=zeros[:, 0],
            success=np.array(entry["success"]),
            progress=np.array(entry["progress"], np.float32),
            behaviour=entry["behaviour"],
        )
