"""Which model judges: ours, a Python function, or a reward model of LeRobot."""

import importlib
from typing import Any

from ..errors import CheckpointError, MissingExtraError
from ..models.multiview import GRM
from ..models.prefix import PrefixReward
from ..reward import Frame, ProcessReward

LEROBOT = "lerobot:"


def load_judge(judge: str, model: str) -> ProcessReward[Frame, Any]:
    """The GRM at `model` unless `judge` names another: `lerobot:FOLDER` or `module:function`.

    A function takes (task, frames so far) and returns the progress after the last of them, in [0, 1]; NaN abstains.
    Raises `CheckpointError` if there is no such judge.
    """
    if not judge:
        return GRM.from_pretrained(model)
    if model:
        raise CheckpointError(f"both --model {model} and --judge {judge} are given; expected one of them")
    if judge.startswith(LEROBOT):
        try:
            from robot_io.lerobot_judge import load_lerobot_judge
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"a reward model of LeRobot needs {error.name}; install `pip install 'grm-robotics[lerobot]'`"
            ) from error
        return load_lerobot_judge(judge.removeprefix(LEROBOT))
    name, _, attribute = judge.partition(":")
    try:
        score = getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"--judge {judge} cannot be imported ({error}); expected `module:function` of a module that Python finds, "
            f"or `{LEROBOT}FOLDER`"
        ) from error
    return PrefixReward(score)
