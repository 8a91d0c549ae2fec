"""Behaviour cloning of one demonstration: the policy that proposes actions while the critic learns to judge them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from grm.errors import TraceError

SCALE_FLOOR = 0.1
"""Smallest scale an input is divided by: one that is constant in the demonstration must not explode elsewhere.

In metres it is about how far objects lie apart from one instance to the next, which one demonstration cannot show."""


class Standardize(nn.Module):
    """Inputs minus a fixed mean, over a fixed scale, clipped to ±`limit`; both are stored with the weights.

    They come from the demonstration and never move, so the critic is never asked about inputs whose meaning shifted.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, mean: Float[np.ndarray, " n"], scale: Float[np.ndarray, " n"], *, limit: float = 10.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32))
        self.limit = limit

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(batch, n) in the environment's units to (batch, n) of order one."""
        return ((inputs - self.mean) / self.scale).clamp(-self.limit, self.limit)


class ClonedPolicy(nn.Module):
    """An MLP from observation to action in [-1, 1], with the demonstration's input normalisation inside."""

    def __init__(
        self, mean: Float[np.ndarray, " n"], scale: Float[np.ndarray, " n"], action_size: int, *, hidden: int = 256
    ) -> None:
        super().__init__()
        self.standardize = Standardize(mean, scale)
        self.network = nn.Sequential(
            nn.Linear(len(mean), hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, action_size),
            nn.Tanh(),
        )

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """(batch, n) observations to (batch, action size) actions in [-1, 1]."""
        return self.network(self.standardize(observations))

    def predict(
        self,
        observation: Float[np.ndarray, "batch n"],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Float[np.ndarray, "batch a"], None]:
        """Actions as NumPy, in the call that Stable-Baselines3's models have; the policy is always deterministic."""
        with torch.no_grad():
            return self(torch.as_tensor(observation, dtype=torch.float32)).numpy(), None


def standardization(
    observations: Float[np.ndarray, "t n"], *, floor: float = SCALE_FLOOR
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Mean and scale of each input over a demonstration; the scale is its standard deviation, at least `floor`.

    The floor is in the inputs' own units (metres for positions): what moved less than that in the demonstration is
    treated as having moved that much.
    """
    return observations.mean(axis=0), np.maximum(observations.std(axis=0), floor)


def clone(
    observations: Float[np.ndarray, "t n"],
    actions: Float[np.ndarray, "t a"],
    *,
    rng: np.random.Generator,
    steps: int = 1000,
    noise: float = 0.2,
    hidden: int = 256,
) -> ClonedPolicy:
    """Train a new policy to act as one demonstration did; see `fit`.

    Args:
        observations: (t, n), finite, t at least 2.
        actions: (t, a) in [-1, 1].
        rng: draws the initial weights, the batches and the noise.
        steps: gradient steps.
        noise: see `fit`.
        hidden: width of the two hidden layers.

    Raises:
        TraceError: fewer than two steps, unequal lengths, numbers that are not finite, actions outside [-1, 1].
    """
    observations, actions = np.asarray(observations, np.float32), np.asarray(actions, np.float32)
    if observations.ndim != 2 or actions.ndim != 2 or len(observations) != len(actions) or len(actions) < 2:
        raise TraceError(
            f"observations of shape {observations.shape} and actions of shape {actions.shape} were given to clone; "
            f"expected (t, n) and (t, a) with the same t, at least 2"
        )
    if not (np.isfinite(observations).all() and np.isfinite(actions).all()):
        raise TraceError("observations or actions to clone are not all finite; drop the steps with NaN first")
    if np.abs(actions).max() > 1 + 1e-6:
        raise TraceError(f"actions reach {np.abs(actions).max():.3g}; expected [-1, 1], scale or clip them first")
    mean, scale = standardization(observations)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**63 - 1)))
        policy = ClonedPolicy(mean, scale, actions.shape[1], hidden=hidden)
    fit(policy, observations, actions, rng=rng, steps=steps, noise=noise)
    return policy


def fit(
    policy: ClonedPolicy,
    observations: Float[np.ndarray, "t n"],
    actions: Float[np.ndarray, "t a"],
    *,
    rng: np.random.Generator,
    steps: int,
    batch_size: int = 128,
    noise: float = 0.2,
    learning_rate: float = 1e-3,
    pause: Callable[[], None] = lambda: None,
) -> None:
    """Train `policy` further on these steps: mean squared error, Adam, a learning rate that falls along a cosine.

    Args:
        policy: changed in place; its normalisation stays.
        observations: (t, n), finite.
        actions: (t, a) in [-1, 1].
        rng: draws the batches and the noise.
        steps: gradient steps.
        batch_size: transitions per gradient step, drawn with replacement.
        noise: standard deviation of Gaussian noise added to the *normalised* inputs, so that a state slightly off the
            demonstration gets the action of its neighbour.
        learning_rate: at the first step; it falls to zero.
        pause: called after each step.
    """
    generator = torch.Generator().manual_seed(int(rng.integers(2**63 - 1)))
    inputs, targets = torch.tensor(observations), torch.tensor(actions)
    policy.network.requires_grad_(True)
    optimizer = torch.optim.Adam(policy.network.parameters(), lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for _ in range(steps):
        rows = torch.randint(len(targets), (batch_size,), generator=generator)
        blur = noise * torch.randn(batch_size, inputs.shape[1], generator=generator)
        loss = nn.functional.mse_loss(policy.network(policy.standardize(inputs[rows]) + blur), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        pause()
    policy.network.requires_grad_(False)
