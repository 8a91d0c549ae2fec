"""A person's answers: who stands by says whether it is done when the success head says so, and when it does not see it.

Paid is what the person says, and the rollout ends, so a head that is fooled, or blind, costs a rollout and teaches
nothing wrong. What contradicts the head teaches the GRM, whose heads are adapted once more with all that was said so
far: refuted claims are pictures of just that by which this learner fools it, and successes it missed of what it does
not know yet (VICE-RAQ: Singh et al. 2019, "End-to-End Robotic Reinforcement Learning without Reward Engineering", asks
about states likely to be successes, too). What the head was believed about since somebody last looked is judged again
by the GRM that knows better, and taken back where it thinks otherwise (`DemonstrationSAC.retract`).

A learner finds ever new ways to fool a head, so answers that are all given in the beginning are spent where they are
needed least: the first `FIRST` are given as soon as there is something to say, the others spread over what remains.

A rollout is kept as its instance and actions; simulated again, these are the pictures.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from envs.metaworld import MetaWorldEnv
from grm.data.episodes import Episode

from .blind import taken_again

FIRST = 8
"""Answers until whom somebody stands by at every rollout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a person said at the end of a rollout."""

    done_for: int
    """For how many decisions it has been done, 0 for a no."""
    claimed: bool
    """Whether the head had said that it is done; if not, the person spoke up unasked."""

    @property
    def right(self) -> bool:
        """Whether the head was."""
        return self.claimed and self.done_for > 0


def attends(number: int, rollouts: int, *, given: int, answers: int, seed: int) -> bool:
    """Whether somebody stands by at rollout `number` of `rollouts`, when `given` of `answers` are used up."""
    left = answers - given
    if given < FIRST or not left:
        return left > 0
    return np.random.default_rng([seed, number]).random() * (rollouts - number + 1) < left


def keep_rollout(folder: Path, number: int, *, seed: int, actions: np.ndarray, answer: Answer | None) -> None:
    """Write down rollout `number` and what was said of it: `folder/0007.npz`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {} if answer is None else {"done_for": np.array(answer.done_for), "claimed": np.array(answer.claimed)}
    partial = folder / f"{number:04d}.partial.npz"
    np.savez(partial, seed=np.array(seed), actions=actions, **said)
    partial.replace(folder / f"{number:04d}.npz")


def kept(folder: Path, rollouts: int) -> list[Path]:
    """What was kept of the first `rollouts` rollouts, in order."""
    return sorted(path for path in folder.glob("[0-9]*[0-9].npz") if int(path.stem) <= rollouts)


def read_answer(path: Path) -> Answer:
    """What was said of a rollout that was kept with an answer."""
    with np.load(path, allow_pickle=False) as data:
        return Answer(done_for=int(data["done_for"]), claimed=bool(data["claimed"]))


def known(answers: list[Path]) -> list[Path]:
    """Of these answers, those the GRM should have been adapted with: up to the last that contradicts the head."""
    wrong = [number for number, path in enumerate(answers, 1) if not read_answer(path).right]
    return answers[: max(wrong, default=0)]


def read_rollouts(paths: list[Path], env: MetaWorldEnv, demonstration: Episode) -> list[Episode]:
    """Kept rollouts as episodes of behaviour `learner`; nobody knows how far along their frames are.

    Those without an answer show no frame as done.

    Args:
        paths: of `kept`.
        env: as the demonstration was recorded in, with its views.
        demonstration: of the same task.
    """
    episodes = []
    for path in paths:
        with np.load(path, allow_pickle=False) as data:
            again = taken_again(env, demonstration, int(data["seed"]), data["actions"], stop=False)
            done_for = int(data["done_for"]) if "done_for" in data else 0
        success = np.arange(len(again)) >= len(again) - done_for
        unknown = np.full(len(again), np.nan, np.float32)
        episodes.append(replace(again, success=success, progress=unknown, behaviour="learner"))
    return episodes
