"""What the frozen encoder of one checkpoint makes of every data set, computed once and kept as float16."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from grm.data.decoded import read_decoded
from grm.data.episodes import Episode
from grm.models.checkpoint import locate
from grm.models.multiview import GRM, MultiViewNetwork, packaged_checkpoint

from .clips import Clip

_CHUNK = 128


def encoder_digest(model: str) -> str:
    """Of the checkpoint's weights: features of another encoder are never taken for these."""
    return hashlib.sha256((locate(model, packaged_checkpoint()) / "model.safetensors").read_bytes()).hexdigest()[:16]


def features_folder(root: Path, folder: Path, digest: str, stride: int) -> Path:
    info = (Path(root) / "meta" / "info.json").read_bytes()
    key = hashlib.sha256(f"{Path(root).resolve()} {digest} {stride} ".encode() + info).hexdigest()[:16]
    return Path(folder) / key


def frame_numbers(length: int, stride: int) -> np.ndarray:
    """Every `stride`-th frame and the last."""
    return np.unique([*range(0, length, stride), length - 1])


def write_features(model: str, root: Path, cache: Path, folder: Path, stride: int) -> None:
    """tokens.npy (N, V, D) and pooled.npy (N, P) of every `stride`-th frame of the data set; nothing if it is there."""
    into = features_folder(root, folder, encoder_digest(model), stride)
    if (into / "pooled.npy").exists():
        return
    network = GRM.from_pretrained(model).network
    parts = [encode(network, episode, stride) for episode in read_decoded(root, cache)]
    into.mkdir(parents=True, exist_ok=True)
    for name, arrays in zip(("tokens", "pooled"), zip(*parts, strict=True), strict=True):  # pooled last: it says whole
        with (into / f"partial-{name}.npy").open("wb") as file:
            np.save(file, np.concatenate(arrays))
        (into / f"partial-{name}.npy").replace(into / f"{name}.npy")


@torch.inference_mode()
def encode(network: MultiViewNetwork, episode: Episode, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (T, V, D) of the views by name, and the pooled feature (T, P); views the encoder finds unusable count only
    where all of them are, since no arm here abstains.
    """
    names, picked = sorted(episode.views), frame_numbers(len(episode), stride)
    images = torch.from_numpy(np.stack([episode.views[name][picked] for name in names], 1)).permute(0, 1, 4, 2, 3)
    tokens = torch.cat([network.encode(part.float() / 255, names) for part in images.split(_CHUNK)])
    usable = network.usable_logit(tokens) > 0
    pooled = network.pool(tokens, usable | ~usable.any(-1, keepdim=True))
    return tokens.half().numpy(), pooled.half().numpy()


def read_clips(root: Path, cache: Path, folder: Path, digest: str, stride: int) -> Iterator[Clip]:
    """The data set's episodes, features in place of pictures. Call `write_features` before."""
    into = features_folder(root, folder, digest, stride)
    tokens, pooled = (np.load(into / f"{name}.npy", mmap_mode="r") for name in ("tokens", "pooled"))
    start = 0
    for episode in read_decoded(root, cache):
        numbers = frame_numbers(len(episode), stride)
        rows = slice(start, start + len(numbers))
        start = rows.stop
        views = tuple(sorted(episode.views))
        yield Clip(replace(episode, views={}), numbers, views, np.asarray(tokens[rows]), np.asarray(pooled[rows]))


@torch.no_grad()  # not inference_mode: heads are trained on these
def text_features(model: str, instructions: Sequence[str]) -> dict[str, torch.Tensor]:
    """The frozen text feature (E,) of every instruction."""
    network = GRM.from_pretrained(model).network
    return {instruction: network.text([instruction])[0].clone() for instruction in dict.fromkeys(instructions)}
