"""The prover's time-to-go as a smooth function of the state: a potential that is right up to a known error, and cheap.

Asking a prover costs tens of milliseconds a state and its answers jump; a network that has seen thousands of them
answers at once, and what it cannot say is noise of a known size. It sees what the critic sees. Only for experiments on
how a potential should enter a learner: it knows the simulator.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from envs.metaworld import MetaWorldEnv
from grm.metrics import spearman

NOISE = 0.15
"""Standard deviation of the second prover's action noise, as in `MetaWorldEnv.time_to_go`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asked:
    """States and what the provers said of them."""

    states: Float[np.ndarray, "n s"]
    linear: Float[np.ndarray, " n"]
    """Share done, clip(1 - time-to-go / reference, 0, 1), mean over provers."""
    value: Float[np.ndarray, " n"]
    """gamma ** (time-to-go - 1), mean over provers, 0 for one that does not arrive."""
    visited: np.ndarray
    """Which of them the learner visited; the others are on the provers' ways on from there."""


def ask(
    env: MetaWorldEnv, rollouts: Iterable[tuple[int, np.ndarray]], *, per_rollout: int, gamma: float, seed: int
) -> Asked:
    """Play (instance seed, actions) back and ask two provers at `per_rollout` moments of each.

    What a prover passes on its way is labelled too, for nothing: there its time-to-go is known. `env` needs a horizon
    longer than a rollout and a proof together.
    """
    rng = np.random.default_rng(seed)
    states, linear, value, visited = [], [], [], []
    for instance, actions in rollouts:
        observation, _ = env.reset(seed=instance)
        reference = env.reference_time()
        picked = set(rng.integers(0, len(actions), per_rollout).tolist())
        for t, action in enumerate(actions):
            if t in picked:
                here, answers = env.snapshot(), []
                for k in range(2):
                    env.restore(here)
                    path, arrived = _prove(env, k * NOISE, limit=int(1.5 * reference), seed=k)
                    togo = np.arange(len(path) + 1, 0, -1.0) if arrived else np.full(len(path) + 1, np.inf)
                    answers.append(togo[0])
                    passed = slice(4, None, 3) if arrived else slice(len(path) - 1, None)
                    states += path[passed]
                    linear += np.clip(1 - togo[1:][passed] / reference, 0, 1).tolist()
                    value += (gamma ** (togo[1:][passed] - 1)).tolist()
                    visited += [False] * len(path[passed])
                env.restore(here)
                states.append(observation["state"])
                linear.append(float(np.clip(1 - np.array(answers) / reference, 0, 1).mean()))
                value.append(float((gamma ** (np.array(answers) - 1)).mean()))
                visited.append(True)
            observation, *_ = env.step(action)
    return Asked(
        states=np.array(states, np.float32),
        linear=np.array(linear, np.float32),
        value=np.array(value, np.float32),
        visited=np.array(visited),
    )


def _prove(env: MetaWorldEnv, noise: float, *, limit: int, seed: int) -> tuple[list[np.ndarray], bool]:
    """States after each decision of one perturbed expert, the last left out if it arrived; and whether it did."""
    rng, path = np.random.default_rng(seed), []
    for _ in range(limit):
        action = np.clip(env.expert_action() + rng.normal(0, noise, 4), -1, 1)
        observation, _, terminated, _, _ = env.step(action)
        if terminated:
            return path, True
        path.append(observation["state"])
    return path, False


class Distilled(nn.Module):
    """An MLP from state to (linear, value), both in [0, 1]."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, states: Float[np.ndarray, "n s"]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(states.mean(0)))
        self.register_buffer("scale", torch.tensor(np.maximum(states.std(0), 0.02)))
        self.network = nn.Sequential(
            nn.Linear(states.shape[1], 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2), nn.Sigmoid()
        )

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.network((states - self.mean) / self.scale)

    def answer(self, states: Sequence[np.ndarray]) -> Float[np.ndarray, "b 2"]:
        with torch.no_grad():
            return self(torch.tensor(np.stack(states))).double().numpy()


def distill(asked: Asked, *, seed: int, steps: int = 4000) -> Distilled:
    """Fit by mean squared error; half of every batch are states the learner visited."""
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Distilled(asked.states)
        states = torch.tensor(asked.states)
        targets = torch.tensor(np.stack([asked.linear, asked.value], 1))
        mine, others = np.flatnonzero(asked.visited), np.flatnonzero(~asked.visited)
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            rows = torch.as_tensor(np.concatenate([rng.choice(mine, 64), rng.choice(others, 64)]))
            blurred = states[rows] + 0.03 * model.scale * torch.randn(128, states.shape[1])
            loss = nn.functional.mse_loss(model(blurred), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


def agreement(model: Distilled, asked: Asked) -> dict[str, float]:
    """Spearman's correlation and mean absolute error with the provers, on visited states of rollouts not fitted."""
    rows = np.flatnonzero(asked.visited)
    found = model.answer(list(asked.states[rows]))
    return {
        "spearman": float(spearman(found[:, 0], asked.linear[rows])),
        "error_linear": float(np.abs(found[:, 0] - asked.linear[rows]).mean()),
        "error_value": float(np.abs(found[:, 1] - asked.value[rows]).mean()),
    }
