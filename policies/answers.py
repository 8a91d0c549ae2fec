"""A person's answers: somebody stands by, is asked when the success head says done, and speaks up when it does not.

Paid is what the person says, and the rollout ends, so a head that is fooled, or blind, costs a rollout and teaches
nothing wrong. What was said then teaches the GRM, adapted once more with all of it at a few of the answers: refuted
claims are pictures of just that by which this learner fools it, and successes it missed of what it does not know yet
(VICE-RAQ: Singh et al. 2019, "End-to-End Robotic Reinforcement Learning without Reward Engineering", asks about states
likely to be successes, too). Once all answers are used up, the head is believed.

An answer is kept as its rollout's instance and actions; simulated again, these are the pictures.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from envs.metaworld import MetaWorldEnv
from grm.data.episodes import Episode

from .blind import taken_again

SCHEDULE = (4, 10, 20)
"""Answers after which the GRM is adapted anew; where fewer may be asked for, only these."""


def due(answers: int) -> int:
    """Of so many answers, how many the GRM should have been adapted with."""
    return max((count for count in SCHEDULE if count <= answers), default=0)


def keep_answer(folder: Path, number: int, *, seed: int, actions: np.ndarray, answer: int) -> None:
    """Write down what was answered to rollout `number`: `folder/0007.npz`, whole or not at all.

    `answer` is for how many decisions it had been done, 0 if it was not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{number:04d}.partial.npz"
    np.savez(partial, seed=np.array(seed), actions=actions, answer=np.array(answer))
    partial.replace(folder / f"{number:04d}.npz")


def answered(folder: Path, rollouts: int) -> list[Path]:
    """The answers to the first `rollouts` rollouts, in order."""
    return sorted(path for path in folder.glob("[0-9]*[0-9].npz") if int(path.stem) <= rollouts)


def read_answers(paths: list[Path], env: MetaWorldEnv, demonstration: Episode) -> list[Episode]:
    """The answered rollouts as episodes of behaviour `learner`; nobody knows how far along their frames are.

    Args:
        paths: of `answered`.
        env: as the demonstration was recorded in, with its views.
        demonstration: of the same task.
    """
    episodes = []
    for path in paths:
        with np.load(path, allow_pickle=False) as data:
            again = taken_again(env, demonstration, int(data["seed"]), data["actions"], stop=False)
            success = np.arange(len(again)) >= len(again) - int(data["answer"])
            unknown = np.full(len(again), np.nan, np.float32)
            episodes.append(replace(again, success=success, progress=unknown, behaviour="learner"))
    return episodes
