"""A learner on disk: a folder of config.json, weights and replay. No pickle is written or read."""

import json
import os
import uuid
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from grm.errors import CheckpointError

SCHEMA = 4
"""Version of the folder's layout. 2: replay rows know their episode, config names files. 3: and what they were paid."""


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    replay: Mapping[str, np.ndarray],
    *,
    pause: Callable[[], None] = lambda: None,
) -> None:
    """Write the folder. Killed at any moment, it holds the old checkpoint or the new one, whole.

    The new files get names of their own; `config.json` names them and is replaced last, by one rename. `pause` is
    called after each array.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named = {"weights": f"weights-{uuid.uuid4().hex}.safetensors", "replay": f"replay-{uuid.uuid4().hex}.npz"}
    save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, folder / named["weights"])
    with zipfile.ZipFile(folder / named["replay"], "w") as file:  # what numpy's savez writes, an array at a time
        for name, array in replay.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.ascontiguousarray(array), allow_pickle=False)
            pause()
    partial = folder / "config.json.partial"
    partial.write_text(json.dumps({"schema": SCHEMA, "files": named, **config}, indent=1))
    os.replace(partial, folder / "config.json")
    for path in folder.iterdir():
        if path.name not in (*named.values(), "config.json"):
            path.unlink()


def has_checkpoint(folder: Path) -> bool:
    """Whether a whole checkpoint is there; a folder alone may be what a kill left of the first one."""
    return (folder / "config.json").exists()


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, np.ndarray]]:
    """Config, weights and replay as they were written; raises `CheckpointError`."""
    try:
        config = json.loads((folder / "config.json").read_text())
        if config.get("schema") != SCHEMA:
            raise CheckpointError(f"{folder} has schema {config.get('schema')}; expected {SCHEMA}, train it again")
        named = config["files"]
        weights = load_file(folder / named["weights"])
        with np.load(folder / named["replay"], allow_pickle=False) as file:
            replay = dict(file)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} is not a readable checkpoint ({error}); expected config.json and the files it names, as "
            f"`save_checkpoint` writes them"
        ) from error
    return config, weights, replay


def saved_rollouts(folder: Path) -> int:
    """How many rollouts the learner saved in `folder` had finished; 0 if there is none."""
    return int(read_checkpoint(folder)[0]["rollouts"]) if has_checkpoint(folder) else 0


def optimizer_weights(name: str, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """An optimiser's state as named tensors."""
    return {
        f"{name}.{index}.{key}": tensor
        for index, state in optimizer.state_dict()["state"].items()
        for key, tensor in state.items()
    }


def load_optimizer(name: str, optimizer: torch.optim.Optimizer, weights: Mapping[str, torch.Tensor]) -> None:
    """Put back what `optimizer_weights` named."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in weights.items():
        owner, _, rest = key.partition(".")
        if owner == name:
            index, _, entry = rest.partition(".")
            state.setdefault(int(index), {})[entry] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
