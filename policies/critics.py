"""Critics as an ensemble with layer normalisation, and the fixed normalisation of what they see.

Layer normalisation keeps values of actions nobody tried from running away: Ball et al. 2023 (RLPD), section 4.2.
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.sac.policies import ContinuousCritic
from torch import nn

from .bc import Standardize


class DemonstrationFeatures(BaseFeaturesExtractor):
    """Observations normalised by the demonstration's statistics, which are saved with the weights."""

    def __init__(self, observation_space: spaces.Space, mean: np.ndarray, scale: np.ndarray) -> None:
        super().__init__(observation_space, features_dim=len(mean))
        self.standardize = Standardize(mean, scale)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """(batch, n) to (batch, n)."""
        return self.standardize(observations)


class EnsembleLinear(nn.Module):
    """`members` linear layers in one batched product: (members, batch, inputs) to (members, batch, outputs)."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5  # as torch initialises nn.Linear
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return torch.baddbmm(self.bias, inputs, self.weight)


class CriticEnsemble(ContinuousCritic):
    """Q functions with layer normalisation, evaluated together; `forward` is Stable-Baselines3's."""

    def __init__(self, *, n_critics: int, net_arch: list[int], **kwargs: Any) -> None:
        super().__init__(n_critics=0, net_arch=net_arch, **kwargs)
        self.n_critics = n_critics
        size = self.features_extractor.features_dim + spaces.flatdim(self.action_space)
        layers: list[nn.Module] = []
        for width in net_arch:
            # No gain and bias: the next layer has its own, and elementwise work is what an update spends its time on.
            norm = nn.LayerNorm(width, elementwise_affine=False)
            layers += [EnsembleLinear(n_critics, size, width), norm, nn.ReLU(inplace=True)]
            size = width
        self.ensemble = nn.Sequential(*layers, EnsembleLinear(n_critics, size, 1))

    def values(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """(batch, n) observations and (batch, a) actions to (members, batch) values."""
        return self.values_of(self.extract_features(observations, self.features_extractor), actions)

    def values_of(self, features: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """As `values`, of observations that are normalised already."""
        inputs = torch.cat([features, actions], dim=1)
        return self.ensemble(inputs.expand(self.n_critics, *inputs.shape)).squeeze(-1)

    def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(batch, 1) values of each member."""
        return tuple(self.values(obs, actions).unsqueeze(-1))

    def q1_forward(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """(batch, 1) values of the first member."""
        return self.values(obs, actions)[0].unsqueeze(-1)
