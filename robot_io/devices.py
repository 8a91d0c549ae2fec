"""LeRobot's robots and teleoperators, configured with the words of its own commands."""

import contextlib
import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import make_dataclass
from typing import Any

import draccus
from draccus.utils import DraccusException
from lerobot import cameras, robots, teleoperators
from lerobot.robots import RobotConfig
from lerobot.teleoperators import TeleoperatorConfig
from lerobot.utils.import_utils import register_third_party_plugins

from grm.errors import OutputError

from . import sim  # noqa: F401 (registers the simulated robot)


def robot_config(words: Sequence[str]) -> RobotConfig:
    """A robot, from words such as `type=so101_follower` and `port=/dev/ttyACM0`. Raises `OutputError`."""
    return _parse(RobotConfig, words, "robot")


def teleop_config(words: Sequence[str]) -> TeleoperatorConfig:
    """A teleoperator, likewise."""
    return _parse(TeleoperatorConfig, words, "teleoperator")


def _parse(kind: Any, words: Sequence[str], name: str) -> Any:
    known = dict(word.partition("=")[::2] for word in words)
    if "type" not in known or not all("=" in word for word in words):
        raise OutputError(f"the {name} is {' '.join(words)!r}; expected `type=… name=value …`, by LeRobot's own names")
    if known["type"] not in kind.get_known_choices():
        _register()
    Chosen = make_dataclass("Chosen", [(name, kind)])
    try:
        return getattr(draccus.parse(Chosen, args=[f"--{name}.{word}" for word in words], exit_on_error=False), name)
    except (DraccusException, ValueError, TypeError, SystemExit) as error:
        why, choices = " ".join(str(error).split()), ", ".join(sorted(kind.get_known_choices()))
        raise OutputError(
            f"the {name} {' '.join(words)!r} is not understood ({why}); LeRobot knows {choices}"
        ) from error


def _register() -> None:
    """All that LeRobot has and what is installed beside it; those whose drivers are not installed stay unknown."""
    for package in (cameras, robots, teleoperators):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    register_third_party_plugins()
