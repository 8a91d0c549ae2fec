"""Networks and episodes small enough to make on the spot, and the command line called in this process."""

from collections.abc import Sequence

import numpy as np
import torch

from grm.data.episodes import Episode
from grm.models.multiview import GRM, Architecture, MultiViewNetwork

TINY = Architecture(image_size=32, features=16, text_features=8, text_buckets=64)


def tiny_network(seed: int = 0) -> MultiViewNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MultiViewNetwork(TINY)


def tiny_grm(seed: int = 0) -> GRM:
    return GRM(tiny_network(seed))


def square(
    seed: int,
    *,
    task: str = "right-v3",
    behaviour: str = "expert",
    views: Sequence[str] = ("top",),
    length: int = 8,
    size: int = 32,
    known: bool = True,
) -> Episode:
    """A white square walks to the right, all the way as an expert's and half of it otherwise."""
    generator = np.random.default_rng(seed)
    succeeded = behaviour == "expert"
    reach = 1.0 if succeeded else 0.5
    row = int(generator.integers(size - 4))
    film = np.full((length, size, size, 3), 40, np.uint8)
    for t, column in enumerate(np.rint(np.linspace(0, reach * (size - 4), length)).astype(int)):
        film[t, row : row + 4, column : column + 4] = 255
    done = np.arange(length) == length - 1
    return Episode(
        task=task,
        instruction=f"move the square: {task}",
        views=dict.fromkeys(views, film),
        rate_hz=10.0,
        state=generator.normal(size=(length, 2)).astype(np.float32),
        actions=generator.uniform(-1, 1, (length, 2)).astype(np.float32),
        rewards=np.zeros(length, np.float32),
        success=done & succeeded,
        progress=np.linspace(0, reach, length, dtype=np.float32) if known else np.full(length, np.nan, np.float32),
        behaviour=behaviour,
        seed=seed,
    )
