"""A potential of the learner's own: what a process reward said of its rollouts, as a smooth function of the state.

Why a learner should not be paid with a model's answers themselves:

- they are a function of pictures and of the prefix, which a critic of the state can only fit as noise; regressed on the
  state, what is left of them is their mean, and neighbouring states average their errors out;
- of the demonstration and of every success the time to go is known, and better than any model says it: the potential
  learns from these too, and what the model overrates is corrected where the learner goes;
- whoever fails where a model says done trusts it less (`policies/evidence.py`), and so follows it less;
- the scale is that of values, gamma ** time-to-go, which a horizon shorter than the potential's needs.

It is refitted as rollouts come, and everything stored is then paid anew under the newest one, so that a learner sees
one potential at a time (`docs/derivations.md`, sections 7, 8 and 11).
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from .bc import Standardize

BLUR = 0.05
"""Standard deviation of the noise on normalised states while fitting."""
CHUNK = 1024
"""States judged at once."""
SCALE_FLOOR = 0.03
"""Smallest scale an input is divided by; finer than the cloned policy's, for a potential must tell a near miss."""


class Guide(nn.Module):
    """An MLP from state to a value in (0, 1), with the demonstration's input normalisation inside."""

    def __init__(self, mean: Float[np.ndarray, " n"], scale: Float[np.ndarray, " n"], *, hidden: int = 64) -> None:
        super().__init__()
        self.standardize = Standardize(mean, scale)
        self.network = nn.Sequential(
            nn.Linear(len(mean), hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, 1),
            nn.Sigmoid(),
        )

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(batch, n) states to (batch,) values."""
        return self.network(self.standardize(states)).squeeze(1)

    def potential(
        self, states: Float[np.ndarray, "batch n"], *, pause: Callable[[], None] = lambda: None
    ) -> Float[np.ndarray, " batch"]:
        """As NumPy, in double precision so that shaping telescopes; `pause` is called every few milliseconds."""
        found = np.empty(len(states))
        for begin in range(0, len(states), CHUNK):
            rows = slice(begin, begin + CHUNK)
            with torch.no_grad():
                found[rows] = self(torch.tensor(states[rows], dtype=torch.float32)).double().numpy()
            pause()
        return found


def fit_guide(
    guide: Guide,
    states: Float[np.ndarray, "t n"],
    values: Float[np.ndarray, " t"],
    weights: Float[np.ndarray, " t"],
    *,
    rng: np.random.Generator,
    steps: int,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    pause: Callable[[], None] = lambda: None,
) -> None:
    """Fit further, in place: mean squared error, AdamW, a learning rate that falls along a cosine.

    Args:
        guide: changed in place; its normalisation stays.
        states: (t, n), finite.
        values: (t,) targets in [0, 1].
        weights: (t,) how often each is drawn, relative to the others; at least 0, not all 0.
        rng: draws the batches and the noise.
        steps: gradient steps.
        batch_size: states per gradient step, drawn with replacement.
        learning_rate: at the first step; it falls to zero.
        pause: called after each step.
    """
    generator = torch.Generator().manual_seed(int(rng.integers(2**63 - 1)))
    inputs, targets = torch.tensor(states), torch.tensor(values, dtype=torch.float32)
    drawn = torch.as_tensor(rng.choice(len(states), (steps, batch_size), p=weights / weights.sum()))
    optimizer = torch.optim.AdamW(guide.network.parameters(), lr=learning_rate, weight_decay=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for rows in drawn:
        blurred = guide.standardize(inputs[rows]) + BLUR * torch.randn(batch_size, inputs.shape[1], generator=generator)
        loss = nn.functional.mse_loss(guide.network(blurred).squeeze(1), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        pause()
