"""Small tabular problems solved exactly, and played as gymnasium environments."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class TabularMDP:
    """S states, A actions. What is paid after a terminal state is reached is nothing."""

    transition: np.ndarray
    """P(s' | s, a), (S, A, S)."""
    reward: np.ndarray
    """r(s, a, s'), (S, A, S)."""
    terminal: np.ndarray
    """(S,) bool."""
    gamma: float

    def with_reward(self, reward: np.ndarray) -> "TabularMDP":
        return TabularMDP(transition=self.transition, reward=reward, terminal=self.terminal, gamma=self.gamma)

    def policies(self) -> Iterator[np.ndarray]:
        """All deterministic stationary policies, (S,) each; terminal states always say 0."""
        states, actions, _ = self.transition.shape
        yield from map(
            np.array, itertools.product(*[range(1) if self.terminal[s] else range(actions) for s in range(states)])
        )

    def value(self, policy: np.ndarray) -> np.ndarray:
        """v of a deterministic policy, (S,), by one linear solve; 0 at terminal states."""
        rows = np.arange(len(policy))
        alive = ~self.terminal
        expected = (self.transition * self.reward).sum(-1)[rows, policy] * alive
        onward = self.transition[rows, policy] * alive[:, None] * alive[None, :]
        return np.linalg.solve(np.eye(len(policy)) - self.gamma * onward, expected)

    def action_value(self, value: np.ndarray) -> np.ndarray:
        """q, (S, A), of acting once and then being worth `value`; 0 at terminal states."""
        q = (self.transition * (self.reward + self.gamma * np.where(self.terminal, 0.0, value))).sum(-1)
        return q * ~self.terminal[:, None]

    def solve(self) -> np.ndarray:
        """q*, (S, A), exact: the best of all deterministic policies (one of them is best in every state)."""
        return self.action_value(np.max([self.value(policy) for policy in self.policies()], axis=0))

    def optimal_actions(self) -> np.ndarray:
        """Which actions are optimal, ties included, (S, A) bool; all of them at terminal states."""
        q = self.solve()
        return q >= q.max(-1, keepdims=True) - 1e-9


def random_mdp(rng: np.random.Generator) -> TabularMDP:
    """4 live states, 2 terminal ones, 3 actions of which one is another's twin in two states (so that ties exist)."""
    states, actions = 6, 3
    transition = rng.dirichlet(np.full(states, 0.5), size=(states, actions))
    reward = rng.integers(-2, 3, size=(states, actions, states)).astype(float)
    transition[:2, 1], reward[:2, 1] = transition[:2, 0], reward[:2, 0]
    terminal = np.array([False] * 4 + [True] * 2)
    return TabularMDP(transition=transition, reward=reward, terminal=terminal, gamma=float(rng.uniform(0.5, 0.99)))


class TabularEnv(gym.Env[dict[str, np.ndarray], int]):
    """A tabular problem to play. The observation shows the state as a number and as the brightness of a picture."""

    def __init__(self, mdp: TabularMDP, *, start: int = 0, horizon: int = 8, seed: int = 0) -> None:
        self.mdp = mdp
        self.start = start
        self.horizon = horizon
        self.rng = np.random.default_rng(seed)
        states, actions, _ = mdp.transition.shape
        self.observation_space = gym.spaces.Dict(
            {
                "state": gym.spaces.Box(0, states, (1,), np.float32),
                "pixels.corner": gym.spaces.Box(0, 255, (4, 5, 3), np.uint8),
            }
        )
        self.action_space = gym.spaces.Discrete(actions)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state, self.time = self.start, 0
        return self._observe(), {"begun": True}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        before = self.state
        self.state = int(self.rng.choice(len(self.mdp.terminal), p=self.mdp.transition[before, action]))
        self.time += 1
        reward = float(self.mdp.reward[before, action, self.state])
        ended = bool(self.mdp.terminal[self.state])
        return self._observe(), reward, ended, self.time >= self.horizon, {"before": before, "after": self.state}

    def _observe(self) -> dict[str, np.ndarray]:
        picture = np.full((4, 5, 3), 10 * self.state, dtype=np.uint8)
        return {"state": np.array([self.state], dtype=np.float32), "pixels.corner": picture}


def state_of(observation: dict[str, np.ndarray]) -> int:
    return int(observation["state"][0])


def chain(length: int, *, gamma: float = 0.9, reward: float = 1.0) -> TabularMDP:
    """States 0 … length; action 1 steps right, 0 stays. The last state is terminal and pays `reward` on arrival."""
    transition = np.zeros((length + 1, 2, length + 1))
    for s in range(length + 1):
        transition[s, 0, s] = transition[s, 1, min(s + 1, length)] = 1
    rewards = np.zeros_like(transition)
    rewards[:-1, :, length] = reward
    return TabularMDP(transition=transition, reward=rewards, terminal=np.arange(length + 1) == length, gamma=gamma)
