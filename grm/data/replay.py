"""A small sample of the pre-training episodes that travels with a checkpoint, so that adapting does not forget.

One .npz of JPEG bytes and plain arrays: a few frames of a few episodes of every task, some megabytes in all.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..errors import CheckpointError
from .episodes import Episode
from .video import decode_jpeg, encode_jpeg

FILE = "replay.npz"


def write_replay(folder: Path, episodes: Sequence[Episode], *, frames: int = 8, quality: int = 92) -> None:
    """Store `frames` frames, evenly spaced and both ends among them, of every episode."""
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
    np.savez(
        Path(folder) / FILE,
        index=np.frombuffer(json.dumps(entries).encode(), np.uint8),
        sizes=np.array([len(blob) for blob in blobs], np.int64),
        images=np.frombuffer(b"".join(blobs), np.uint8),
    )


def read_replay(folder: Path) -> Iterator[Episode]:
    """The stored episodes; none if the checkpoint came without. Raises `CheckpointError` if the file is damaged."""
    path = Path(folder) / FILE
    if not path.exists():
        return
    try:
        with np.load(path, allow_pickle=False) as data:
            entries = json.loads(data["index"].tobytes())
            blobs = iter(np.split(data["images"], np.cumsum(data["sizes"])[:-1]))
    except (ValueError, KeyError, OSError, EOFError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy the checkpoint again, or delete this file") from error
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
