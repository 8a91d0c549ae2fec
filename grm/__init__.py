"""How far along is this? One interface for process rewards: robot frames and reasoning steps alike.

Importing this package imports no torch; `grm.GRM` does, when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

from .errors import (
    AbstainedError,
    CheckpointError,
    DivergedError,
    GrmError,
    MissingExtraError,
    OutputError,
    RendererError,
    ShadowedPackageError,
    TaskError,
    TraceError,
)
from .live import LivePotential, LiveReward
from .reward import (
    Frame,
    Judge,
    Judgement,
    PerspectiveJudgement,
    ProcessReward,
    ScoredJudgement,
    ScoreKind,
    Task,
    Thought,
)

if TYPE_CHECKING:
    from .models.multiview import GRM

__all__ = [
    "GRM",
    "AbstainedError",
    "CheckpointError",
    "DivergedError",
    "Frame",
    "GrmError",
    "Judge",
    "Judgement",
    "LivePotential",
    "LiveReward",
    "MissingExtraError",
    "OutputError",
    "PerspectiveJudgement",
    "ProcessReward",
    "RendererError",
    "ScoreKind",
    "ScoredJudgement",
    "ShadowedPackageError",
    "Task",
    "TaskError",
    "Thought",
    "TraceError",
]


def __getattr__(name: str) -> Any:
    if name == "GRM":
        from .models.multiview import GRM

        return GRM
    raise AttributeError(f"module 'grm' has no attribute {name!r}")
