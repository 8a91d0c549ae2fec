"""Guard against strangers: `grm`, `envs` and `policies` are also names of unrelated PyPI distributions."""

import importlib.util
from pathlib import Path

from .errors import ShadowedPackageError

SIBLINGS = ("envs", "policies", "shaping", "robot_io")


def check_layout() -> None:
    """Raise `ShadowedPackageError` unless every sibling package resolves beside `grm`."""
    home = Path(__file__).resolve().parent.parent
    for name in SIBLINGS:
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if found != home / name:
            raise ShadowedPackageError(
                f"package {name!r} resolves to {found or 'nothing'}; expected {home / name}; "
                f"uninstall the other distribution or install grm-robotics in an environment of its own"
            )
