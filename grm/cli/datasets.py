"""Which data sets a verb reads: every LeRobotDataset among its folders and directly inside of them."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import TraceError


def datasets(folders: Sequence[Path]) -> list[Path]:
    """Every LeRobotDataset among these folders and directly inside of them."""
    found = []
    for folder in folders:
        inside = sorted(path.parent.parent for path in Path(folder).glob("*/meta/info.json"))
        inside = [path for path in inside if not path.name.startswith(".")]  # one that is being made
        if (Path(folder) / "meta" / "info.json").exists():
            found.append(Path(folder))
        elif inside:
            found += inside
        else:
            raise TraceError(f"{folder} holds no LeRobotDataset; expected one, or several in folders inside it")
    return found
