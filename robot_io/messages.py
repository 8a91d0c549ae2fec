"""What the robot's process tells the learner: an episode as it happens, or again, from its recording."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from .cameras import to_png
from .link import Message
from .replay import Attempt
from .robot import PIXELS

VERSION = 2
"""Of what both processes say to one another."""


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of config and weights in a checkpoint's folder."""
    files = [path / "config.json", path / "model.safetensors"] if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _pictures(observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: to_png(picture) for key, picture in observation.items() if key.startswith(PIXELS)}


def began(
    number: int,
    purpose: str,
    observation: Mapping[str, np.ndarray],
    time_s: float,
    *,
    cloned: bool | None,
    recorded: bool,
) -> Callable[[], Message]:
    """An episode begins with this observation; `recorded` if its pictures went through the recording already.

    `cloned`: whether the cloned policy alone acts in it, None if nobody knows.
    """
    return lambda: Message(
        kind="begin",
        fields={"episode": number, "purpose": purpose, "time": time_s, "cloned": cloned, "recorded": recorded},
        arrays={"state": observation["state"], **_pictures(observation)},
    )


def stepped(
    number: int,
    index: int,
    action: np.ndarray,
    following: Mapping[str, np.ndarray],
    *,
    time_s: float,
    reward: float,
    intervention: bool,
) -> Callable[[], Message]:
    """A step was made: the action as it was sent, and what was seen after it."""
    return lambda: Message(
        kind="tick",
        fields={
            "episode": number,
            "index": index,
            "time": time_s,
            "reward": float(reward),
            "intervention": bool(intervention),
        },
        arrays={"action": np.asarray(action, np.float32), "state": following["state"], **_pictures(following)},
    )


def ended(number: int, ticks: int, *, success: bool, terminated: bool, kept: bool) -> Message:
    """An episode is over; `kept` if it is in the recording."""
    return Message(
        kind="end",
        fields={"episode": number, "ticks": ticks, "success": success, "terminated": terminated, "kept": kept},
    )


def retold(attempt: Attempt) -> list[Message | Callable[[], Message]]:
    """A recorded rollout as what was sent, or should have been, while it happened."""
    seen = [
        {"state": attempt.state[t], **{PIXELS + name: pictures[t] for name, pictures in attempt.views.items()}}
        for t in range(len(attempt.state))
    ]
    said: list[Message | Callable[[], Message]] = [
        began(attempt.number, attempt.purpose, seen[0], float(attempt.time[0]), cloned=attempt.cloned, recorded=True)
    ]
    for t in range(len(attempt.rewards)):
        said.append(
            stepped(
                attempt.number,
                t,
                attempt.actions[t],
                seen[t + 1],
                time_s=float(attempt.time[t + 1]),
                reward=float(attempt.rewards[t]),
                intervention=bool(attempt.interventions[t]),
            )
        )
    said.append(
        ended(
            attempt.number,
            len(attempt.rewards),
            success=attempt.success,
            terminated=attempt.terminated,
            kept=True,
        )
    )
    return said
