"""The acting policy: actor and cloned policy propose, the critics choose (IBRL: Hu et al. 2023).

It can be sent to another process or machine as bytes, without the learner it belongs to.
"""

import json
import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.sac.policies import SACPolicy

from grm.errors import CheckpointError

from .bc import ClonedPolicy
from .critics import CriticEnsemble, DemonstrationFeatures

NOISE_MEMORY = 0.8
"""Correlation of the exploration noise from one decision to the next."""


class ProposalPolicy(SACPolicy):
    """Actor and cloned policy both propose an action; the one with the higher Q, by the least of the critics, is taken.

    `cloned_only` makes it explore as the cloned policy does: in the first rollouts the critics know nothing yet. Where
    it does not explore, `clone_is_better` does, as what it learned from says (`policies/evidence.py`). Where
    the policy is asked to explore, the cloned proposal gets Gaussian noise that lasts from decision to decision; its
    standard deviation is drawn for each rollout, evenly from 0 to `exploration_noise`, so that some rollouts are
    precise and some see much. The actor brings its own.
    """

    def __init__(self, *args: Any, cloned: ClonedPolicy, exploration_noise: float = 0.3, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cloned = cloned.requires_grad_(False)
        self.exploration_noise = exploration_noise
        self.cloned_only = self.clone_is_better = False
        self._noise: torch.Tensor | None = None
        self._level = torch.zeros(1)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> CriticEnsemble:
        """An ensemble with layer normalisation."""
        return CriticEnsemble(**self._update_features_extractor(self.critic_kwargs, features_extractor)).to(self.device)

    def begin_rollout(self) -> None:
        """Forget the noise; the next decision that explores draws a new level and a new start."""
        self._noise = None

    def continue_rollout(self, before: "ProposalPolicy") -> None:
        """Take over in the middle of a rollout from a policy with other weights: with its noise, and who acts."""
        self._noise, self._level, self.cloned_only = before._noise, before._level, before.cloned_only

    def _predict(self, observation: torch.Tensor, deterministic: bool = False) -> torch.Tensor:
        cloned = self.cloned(observation)
        if not deterministic:
            cloned = (cloned + self._next_noise(cloned)).clamp(-1, 1)
        if self.clone_is_better if deterministic else self.cloned_only:
            return cloned
        proposals = torch.stack([self.actor(observation, deterministic), cloned])
        batch = len(observation)
        values = self.critic.values(observation.repeat(2, 1), proposals.flatten(0, 1)).amin(0).view(2, batch)
        return proposals[values.argmax(0), torch.arange(batch)]

    def _next_noise(self, action: torch.Tensor) -> torch.Tensor:
        fresh = torch.randn_like(action)
        if self._noise is None or self._noise.shape != action.shape:
            self._noise = fresh
            self._level = self.exploration_noise * torch.rand(len(action), 1)
        else:
            self._noise = NOISE_MEMORY * self._noise + math.sqrt(1 - NOISE_MEMORY**2) * fresh
        return self._level * self._noise


def dump_acting_policy(policy: ProposalPolicy, *, hidden: int, n_critics: int, cloned_only: bool) -> bytes:
    """A policy without its target critics and optimisers as safetensors bytes; `load_acting_policy` reads them."""
    weights = {
        name: tensor.contiguous().clone()
        for name, tensor in policy.state_dict().items()
        if not name.startswith("critic_target.")
    }
    assert isinstance(policy.action_space, spaces.Box)
    about = {
        "observation_size": spaces.flatdim(policy.observation_space),
        "low": policy.action_space.low.tolist(),
        "high": policy.action_space.high.tolist(),
        "exploration_noise": policy.exploration_noise,
        "hidden": hidden,
        "n_critics": n_critics,
        "cloned_only": cloned_only,
        "clone_is_better": policy.clone_is_better,
    }
    return save_tensors(weights, {"policy": json.dumps(about)})


def load_acting_policy(data: bytes) -> ProposalPolicy:
    """The policy of `DemonstrationSAC.acting_policy`: `begin_rollout()` before each episode, then `predict`.

    `predict(observation, deterministic=False)` takes (n,) or (batch, n) observations and explores as the learner would.

    Raises:
        CheckpointError: not what `acting_policy` wrote.
    """
    try:
        header_size = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + header_size])["__metadata__"]["policy"])
        weights = load_tensors(data)
    except (ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"the acting policy cannot be read ({error!r}); expected `acting_policy()`'s bytes"
        ) from error
    size, hidden = about["observation_size"], about["hidden"]
    mean, scale = np.zeros(size, np.float32), np.ones(size, np.float32)  # the saved ones take their place
    actions = spaces.Box(np.array(about["low"], np.float32), np.array(about["high"], np.float32))
    policy = ProposalPolicy(
        spaces.Box(-np.inf, np.inf, (size,), np.float32),
        actions,
        lambda _: 0.0,
        net_arch=[hidden, hidden],
        n_critics=about["n_critics"],
        features_extractor_class=DemonstrationFeatures,
        features_extractor_kwargs={"mean": mean, "scale": scale},
        cloned=ClonedPolicy(mean, scale, len(about["low"]), hidden=hidden),
        exploration_noise=about["exploration_noise"],
    )
    missing, surplus = policy.load_state_dict(weights, strict=False)
    if surplus or any(not name.startswith("critic_target.") for name in missing):
        raise CheckpointError(
            f"the acting policy lacks {missing} and has {surplus}; expected `acting_policy()`'s bytes"
        )
    policy.cloned_only, policy.clone_is_better = about["cloned_only"], about["clone_is_better"]
    policy.set_training_mode(False)
    return policy
