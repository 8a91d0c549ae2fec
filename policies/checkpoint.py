"""A learner on disk: a folder of config.json, weights.safetensors and replay.npz. No pickle is written or read."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from grm.errors import CheckpointError

SCHEMA = 2
"""Version of the folder's layout. 2: replay rows know their episode."""


def write_checkpoint(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor], replay: Mapping[str, np.ndarray]
) -> None:
    """Write the folder; one that exists is replaced only when the new one is complete."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, partial / "weights.safetensors")
    np.savez(partial / "replay.npz", **dict(replay))
    (partial / "config.json").write_text(json.dumps({"schema": SCHEMA, **config}, indent=1))
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, np.ndarray]]:
    """Config, weights and replay as they were written; raises `CheckpointError`."""
    try:
        config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "weights.safetensors")
        with np.load(folder / "replay.npz", allow_pickle=False) as file:
            replay = dict(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} is not a readable checkpoint ({error}); expected config.json, weights.safetensors and "
            f"replay.npz as `save_checkpoint` writes them"
        ) from error
    if config.get("schema") != SCHEMA:
        raise CheckpointError(f"{folder} has schema {config.get('schema')}; expected {SCHEMA}, train it again")
    return config, weights, replay


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
