"""Why progress must not simply be paid: three small problems solved exactly, and one MuJoCo task that is learned.

Every reward below is made of the same *true* potential, so nothing here is the fault of a reward model. The three
problems share a corridor; docs/semantic_trap.md derives where each reward goes wrong, and this measures it: for every
discount the optimal policy is computed by value iteration, and its chance of ever doing the task; `threshold` bisects
the discount from which on it no longer does. Then a learner finds out by itself, on a drawer that is
to be opened, whose potential is how far it is open.
"""

import argparse
import csv
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
from jaxtyping import Bool, Float
from stable_baselines3.common.vec_env import DummyVecEnv, VecExtractDictObs

from envs.experts import demonstrations
from envs.metaworld import MetaWorldEnv
from grm.data.episodes import Episode
from grm.metrics import expected_interval
from policies.offpolicy import Demonstration, DemonstrationSAC
from policies.rollout import instance_seeds
from shaping import shaping_reward

from .results import RESULTS, write_result

PICTURE = Path(__file__).parents[1] / "docs" / "semantic_trap.png"
GAMMAS = tuple(np.round(np.linspace(0.5, 0.995, 100), 3).tolist())

Reward = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]
"""What a transition pays: of task reward, Φ(s), Φ(s′), whether s′ ends the episode, and γ; shapes broadcast."""

REWARDS: dict[str, Reward] = {
    "task alone": lambda r, phi, after, ends, gamma: r + 0 * after,
    "progress": lambda r, phi, after, ends, gamma: 0 * r + after,
    "task + progress": lambda r, phi, after, ends, gamma: r + after,
    "task + 0.1 progress": lambda r, phi, after, ends, gamma: r + 0.1 * after,
    "differences": lambda r, phi, after, ends, gamma: 0 * r + after - phi,
    "task + differences": lambda r, phi, after, ends, gamma: r + after - phi,
    "task + differences, 0 at the end": lambda r, phi, after, ends, gamma: r + np.where(ends, 0, after) - phi,
    "shaping, Φ kept at the end": lambda r, phi, after, ends, gamma: r + gamma * after - phi,
    "shaping (ours)": lambda r, phi, after, ends, gamma: r + shaping_reward(phi, after, ends, gamma),
}


@dataclass(frozen=True, eq=False)
class Problem:
    """A small MDP: `chance[s, a, s′]`, the task reward of arriving, Φ, and which states end the episode."""

    chance: Float[np.ndarray, "s a s"]
    task_reward: Float[np.ndarray, " s"]
    phi: Float[np.ndarray, " s"]
    ends: Bool[np.ndarray, " s"]
    done: int
    """The state in which the task is done."""

    def paid(self, reward: Reward, gamma: float) -> Float[np.ndarray, "s a"]:
        """Expected reward of every action."""
        each = reward(self.task_reward[None, :], self.phi[:, None], self.phi[None, :], self.ends[None, :], gamma)
        return (self.chance * each[:, None, :]).sum(-1)

    def optimal(self, reward: Reward, gamma: float) -> np.ndarray:
        """An optimal action for every state, by policy iteration, which is exact; the task's favourite breaks ties."""
        paid, live = self.paid(reward, gamma), ~self.ends
        forward = self.chance[:, :, self.done].argmax(1)
        policy = np.full(len(self.phi), self.chance.shape[1] - 1)
        rows = np.arange(len(policy))
        while True:
            moves = self.chance[rows, policy] * live[:, None] * live[None, :]
            value = np.linalg.solve(np.eye(len(policy)) - gamma * moves, paid[rows, policy] * live)
            q = paid + gamma * self.chance @ (value * live)
            better = q.max(1) > q[rows, policy] + 1e-9
            if not better[live].any():
                ties = q[rows, forward] > q.max(1) - 1e-9
                return np.where(ties & (self.chance[rows, forward, self.done] > 0), forward, policy)
            policy = np.where(better, q.argmax(1), policy)

    def success(self, policy: np.ndarray, steps: int = 2000) -> float:
        """The chance of doing the task, from state 0, within so many steps."""
        moves = self.chance[np.arange(len(policy)), policy].copy()
        moves[self.ends] = np.eye(len(policy))[self.ends]
        return float(np.linalg.matrix_power(moves, steps)[0, self.done])


def corridor(*, risk: float = 0.0, quit_: bool = False, length: int = 10) -> Problem:
    """States 0 … length-1 with Φ = s / length, then `done` (Φ = 1) and `lost` (Φ = 0), from which nothing leads back.

    Actions: back, stay, forward, and with `quit_` end the episode where one stands, as a failure. The last step of all
    fails with probability `risk` and leads to `lost`; nothing ends there: the block lies behind the table.
    """
    done, lost, given_up = length, length + 1, length + 2
    count = given_up + length
    phi = np.concatenate([np.arange(length) / length, [1.0, 0.0], np.arange(length) / length])
    chance = np.zeros((count, 4, count))
    for s in range(length):
        chance[s, 0, max(s - 1, 0)] = chance[s, 1, s] = 1
        if s + 1 < length:
            chance[s, 2, s + 1] = 1
        else:
            chance[s, 2, done], chance[s, 2, lost] = 1 - risk, risk
        chance[s, 3, given_up + s if quit_ else s] = 1
    ends = np.zeros(count, bool)
    ends[done] = ends[given_up:] = True
    for s in (done, *range(lost, count)):
        chance[s, :, s] = 1
    return Problem(chance=chance, task_reward=np.eye(count)[done], phi=phi, ends=ends, done=done)


PROBLEMS = {"lingering": corridor(), "risky": corridor(risk=0.6), "quitting": corridor(risk=0.6, quit_=True)}
"""Finishing is sure; it succeeds with .4 only; the same, and one may give up."""


def attempts(problem: Problem, reward: Reward, gamma: float) -> bool:
    """Whether the optimal policy tries to do the task at all."""
    return problem.success(problem.optimal(reward, gamma)) > 1e-6


def threshold(problem: Problem, reward: Reward) -> float | None:
    """The discount from which on the optimal policy no longer tries; None if it always does, 0 if it never does."""
    low, high = 0.01, 0.9999
    if attempts(problem, reward, high):
        return None
    if not attempts(problem, reward, low):
        return 0.0
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if attempts(problem, reward, middle) else (low, middle)
    return (low + high) / 2


TASK = "drawer-open-v3"
ROLLOUTS, HORIZON = 40, 100
LEARNED = ("task alone", "progress", "task + progress", "task + 0.1 progress", "task + differences", "shaping (ours)")


class Opening(gym.Wrapper):
    """The drawer, paid as `reward` says; `info` has Φ, the share of the way it is open."""

    def __init__(self, reward: Reward, gamma: float) -> None:
        super().__init__(MetaWorldEnv(TASK, horizon=HORIZON))
        self.reward, self.gamma = reward, gamma
        self._phi = 0.0

    def reset(self, *, seed=None, options=None):
        observation, info = self.env.reset(seed=seed, options=options)
        self._phi = openness(self.env.unwrapped.raw_state)
        return observation, info

    def step(self, action):
        observation, task_reward, terminated, truncated, info = self.env.step(action)
        before, self._phi = self._phi, openness(self.env.unwrapped.raw_state)
        paid = self.reward(
            np.array(task_reward), np.array(before), np.array(self._phi), np.array(terminated), self.gamma
        )
        return observation, float(paid), terminated, truncated, {**info, "task_reward": task_reward, "phi": self._phi}


def openness(raw: Float[np.ndarray, " 39"]) -> float:
    """How far the drawer is open, in [0, 1], from Meta-World's handle and goal positions; success is 3 cm before 1."""
    return float(np.clip(1 - (raw[5] - raw[37]) / 0.2, 0, 1))


def shown(episode: Episode, raw: Float[np.ndarray, "t 39"], reward: Reward, gamma: float) -> Demonstration:
    """The demonstration, paid alike."""
    phi, ends = np.array([openness(row) for row in raw]), np.zeros(len(raw) - 1, bool)
    ends[-1] = episode.succeeded
    return Demonstration(
        observations=episode.state[:-1],
        actions=episode.actions[:-1],
        rewards=reward(episode.rewards[:-1].astype(float), phi[:-1], phi[1:], ends, gamma),
        next_observations=episode.state[1:],
        terminated=ends,
    )


def learn(name: str, seed: int, gamma: float, evaluations: int) -> dict[str, object]:
    """What a learner paid by this reward ends up doing: success, Φ at the end and length of fresh episodes."""
    reward = REWARDS[name]
    relative, raw = MetaWorldEnv(TASK, horizon=HORIZON), MetaWorldEnv(TASK, horizon=HORIZON, state="raw")
    [episode], [same] = demonstrations(relative, 1, seed=seed), demonstrations(raw, 1, seed=seed)
    env = VecExtractDictObs(DummyVecEnv([lambda: Opening(reward, gamma)]), "state")
    learner = DemonstrationSAC(env, shown(episode, same.state, reward, gamma), gamma=gamma, seed=seed)
    learner.learn_rollouts(ROLLOUTS)
    succeeded, reached, lengths = [], [], []
    for instance in instance_seeds(seed, evaluations, "evaluation"):
        env.seed(instance)
        observation, ended, length = env.reset(), False, 0
        while not ended:
            action, _ = learner.predict(observation, deterministic=True)
            observation, _, [ended], [info] = env.step(action)
            length += 1
        succeeded.append(info["success"])
        reached.append(info["phi"])
        lengths.append(length)
    return {
        "reward": name,
        "seed": seed,
        "success": float(np.mean(succeeded)),
        "phi_at_the_end": round(float(np.mean(reached)), 3),
        "length": float(np.mean(lengths)),
    }


def draw() -> None:
    """Success by discount for the three problems, and what was learned: whatever of it is among the results."""
    import matplotlib.pyplot as plt

    def table(name: str) -> list[dict[str, str]]:
        path = RESULTS / f"{name}.csv"
        return list(csv.DictReader(path.open(newline=""))) if path.exists() else []

    rows, learned = table("semantic_trap"), table("semantic_trap_learned")
    names = list(REWARDS)
    colours = dict(zip(names, plt.get_cmap("tab10").colors, strict=False))
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.6), layout="constrained", width_ratios=[1, 1, 1, 1.1])
    for axis, problem in zip(axes, PROBLEMS, strict=False):
        for number, name in enumerate(names):
            of = [r for r in rows if r["problem"] == problem and r["reward"] == name]
            shift = 0.006 * (number - len(names) / 2)  # so that lines on top of one another can be told apart
            axis.plot(
                [float(r["gamma"]) for r in of],
                [float(r["success"]) + shift for r in of],
                color=colours[name],
                label=name,
                lw=3.5 if "ours" in name else 1.5,
                ls="-" if "ours" in name else "--",
            )
        axis.set(title=problem, xlabel="discount γ", ylim=(-0.08, 1.08))
    axes[0].set_ylabel("the optimal policy does the task")
    for place, name in enumerate(LEARNED):
        values = [float(r["success"]) for r in learned if r["reward"] == name]
        if values:
            axes[3].barh(place, np.mean(values), color=colours[name])
            axes[3].plot(values, [place] * len(values), "k|", ms=8)
    axes[3].set(title="a drawer, learned (γ = .98)", xlabel="success on fresh instances", xlim=(-0.02, 1.05))
    axes[3].set_yticks(range(len(LEARNED)), LEARNED)
    axes[3].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)


def solve() -> None:
    """The three problems: who does the task, by discount, and from which discount on nobody tries."""
    rows = [
        {"problem": problem, "reward": name, "gamma": g, "success": round(mdp.success(mdp.optimal(reward, g)), 4)}
        for (problem, mdp), (name, reward), g in itertools.product(PROBLEMS.items(), REWARDS.items(), GAMMAS)
    ]
    summary: dict[str, float] = {}
    for (problem, mdp), (name, reward) in itertools.product(PROBLEMS.items(), REWARDS.items()):
        found = threshold(mdp, reward)
        print(f"{problem:10} {name:36} {'always tries' if found is None else f'gives up from {found:.4f} on'}")
        if found is not None:
            summary[f"{problem}: {name}"] = found
    write_result("semantic_trap", summary, seeds=[], rows=rows)


def train(seeds: Sequence[int], evaluations: int) -> None:
    """The drawer."""
    learned: list[dict[str, object]] = []
    for seed, name in itertools.product(seeds, LEARNED):
        learned.append(learn(name, seed, 0.98, evaluations))
        print(learned[-1])
    rng, summary = np.random.default_rng(0), {}
    for name, key in itertools.product(LEARNED, ("success", "phi_at_the_end", "length")):
        values = [float(str(r[key])) for r in learned if r["reward"] == name]
        summary[f"{key}: {name}"] = expected_interval(values, rng)
    write_result("semantic_trap_learned", summary, seeds=seeds, rows=learned, rollouts=ROLLOUTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=["problems", "drawer"], default=["problems", "drawer"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--evaluations", type=int, default=20)
    options = parser.parse_args()
    if "problems" in options.parts:
        solve()
    if "drawer" in options.parts:
        train(options.seeds, options.evaluations)
    draw()


if __name__ == "__main__":
    main()
