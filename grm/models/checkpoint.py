"""Checkpoints: a folder with `config.json` and `model.safetensors`, loaded strictly. No pickle is ever read."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from ..errors import CheckpointError, OutputError

SCHEMA = 1


def save_checkpoint(folder: Path, network: nn.Module, config: Mapping[str, Any]) -> None:
    """Write both files, whole or not at all. Raises `OutputError` if the folder cannot be written."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            weights = Path(scratch) / "model.safetensors"
            state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
            safetensors.torch.save_file(state, weights)
            (Path(scratch) / "config.json").write_text(json.dumps({"schema": SCHEMA, **config}, indent=2) + "\n")
            for name in ("model.safetensors", "config.json"):
                os.replace(Path(scratch) / name, folder / name)
    except (OSError, safetensors.SafetensorError) as error:  # safetensors has its own for a disk that is full
        raise OutputError(f"checkpoint folder {folder} cannot be written ({error}); choose another") from error


def read_config(folder: Path, kind: str) -> dict[str, Any]:
    """The checkpoint's configuration. Raises `CheckpointError` unless it is of this kind and schema."""
    path = Path(folder) / "config.json"
    if not path.exists():
        raise CheckpointError(f"{folder} holds no checkpoint (no config.json); expected a folder `grm train` wrote")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not even text
        raise CheckpointError(f"{path} is not JSON ({error}); expected the file `grm train` wrote") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a JSON {type(config).__name__}; expected the object `grm train` wrote")
    found = (config.pop("kind", None), config.pop("schema", None))
    if found != (kind, SCHEMA):
        raise CheckpointError(
            f"{path} is of kind {found[0]!r} and schema {found[1]!r}; expected {kind!r} and {SCHEMA}: "
            f"train again, or use the version of grm-robotics that wrote it"
        )
    return config


def load_weights(folder: Path, network: nn.Module) -> None:
    """Load `model.safetensors` strictly. Raises `CheckpointError` on missing, surplus or misshapen weights."""
    path = Path(folder) / "model.safetensors"
    if not path.exists():
        raise CheckpointError(f"{folder} holds no model.safetensors; expected the weights beside its config.json")
    try:
        weights = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); it may be cut short: copy it again") from error
    expected = network.state_dict()
    missing, surplus = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    misshapen = [n for n in expected.keys() & weights.keys() if expected[n].shape != weights[n].shape]
    if missing or surplus or misshapen:
        raise CheckpointError(
            f"{path}: missing {missing[:3]}, surplus {surplus[:3]}, of another shape {sorted(misshapen)[:3]} "
            f"({len(missing)}, {len(surplus)}, {len(misshapen)} in all); expected exactly the network of config.json"
        )
    if any(not torch.isfinite(tensor).all() for tensor in weights.values()):
        raise CheckpointError(f"{path} holds weights that are not finite; the training run that wrote it diverged")
    network.load_state_dict(weights, strict=True)


def locate(source: str | Path, packaged: Path) -> Path:
    """A folder from nothing (the packaged checkpoint), a folder, or a Hub id `owner/name`."""
    if str(source) == "":
        return packaged
    if Path(source).is_dir():
        return Path(source)
    if str(source).count("/") == 1 and not str(source).startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors", "*.npz"]))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
            raise CheckpointError(
                f"{source!r} is neither a folder here nor a model the Hub would give ({type(error).__name__}); "
                f"expected a checkpoint folder, an id 'owner/name', or nothing for the packaged model"
            ) from error
    raise CheckpointError(
        f"no checkpoint folder at {source}; expected one that `grm train` or `grm adapt` wrote, a Hub id 'owner/name', "
        f"or nothing for the packaged model"
    )


def copy_side_file(source: Path, target: Path, name: str) -> None:
    """Carry a file such as the replay set along from one checkpoint folder to another, if it is there."""
    if (Path(source) / name).exists() and Path(source).resolve() != Path(target).resolve():
        shutil.copy(Path(source) / name, Path(target) / name)
