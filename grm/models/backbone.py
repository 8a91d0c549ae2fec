"""Image encoders: one shared by all views, from torchvision."""

import functools
import itertools

import torch
import torchvision
from torch import nn
from torchvision.ops import Conv2dNormActivation

from ..errors import CheckpointError


def build_backbone(name: str, features: int) -> nn.Module:
    """An encoder (batch, 3, h, w) in [0, 1] -> (batch, features).

    `compact` is four strided convolutions with group normalisation, made for 64 x 64 pixels and two CPU cores. Any
    other name is a torchvision classifier (`resnet18`, `convnext_tiny`, …) without weights, for machines with a GPU.
    Raises `CheckpointError` for a name torchvision does not have.
    """
    if name == "compact":
        widths = (3, 32, 64, 128, 128)
        layers = [
            Conv2dNormActivation(
                fan_in,
                fan_out,
                kernel_size=5 if fan_in == 3 else 3,
                stride=2,
                norm_layer=lambda channels: nn.GroupNorm(8, channels),
                activation_layer=nn.SiLU,
            )
            for fan_in, fan_out in itertools.pairwise(widths)
        ]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(widths[-1] * 16, features))
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise CheckpointError(f"unknown backbone {name!r}; expected 'compact' or a torchvision classifier")
    return nn.Sequential(torchvision.models.get_model(name, weights=None, num_classes=features))


class HashedText(nn.Module):
    """Text or a camera's name to a vector: the mean of hashed word and letter-trigram embeddings.

    Bojanowski et al. 2017, "Enriching Word Vectors with Subword Information": needs no vocabulary, so words and names
    never seen in training still get a vector, close to that of words spelt alike.
    """

    def __init__(self, buckets: int, features: int) -> None:
        super().__init__()
        self.buckets = buckets
        self.embedding = nn.EmbeddingBag(buckets, features, mode="mean")

    def forward(self, texts: list[str]) -> torch.Tensor:
        """(len(texts), features)."""
        tokens = [_tokens(text, self.buckets) for text in texts]
        offsets = torch.tensor([0, *[len(t) for t in tokens[:-1]]]).cumsum(0)
        device = self.embedding.weight.device
        flat = torch.tensor([token for row in tokens for token in row])
        return self.embedding(flat.to(device), offsets.to(device))


@functools.lru_cache(maxsize=4096)  # the same few instructions and cameras, frame after frame
def _tokens(text: str, buckets: int) -> tuple[int, ...]:
    """Buckets of its words and letter trigrams."""
    words = text.lower().replace("_", " ").replace("-", " ").split() or [""]
    pieces = [*words, *(f"#{w}#"[i : i + 3] for w in words for i in range(len(w)))]
    return tuple(_stable_hash(piece) % buckets for piece in pieces)


def _stable_hash(text: str) -> int:
    """FNV-1a, 32 bits: Python's own hash is salted anew in every process."""
    value = 2166136261
    for byte in text.encode():
        value = ((value ^ byte) * 16777619) & 0xFFFFFFFF
    return value
