"""A person's answers: who stands by says whether it is done when the success head says so, and when it does not see it.

Paid is what the person says, and the rollout ends, so a head that is fooled, or blind, costs a rollout and teaches
nothing wrong. Every answer teaches the success head (`grm.success`): refuted claims are pictures of just that by which
this learner fools it, and successes it missed of what it does not know yet (VICE-RAQ: Singh et al. 2019, "End-to-End
Robotic Reinforcement Learning without Reward Engineering", asks about states likely to be successes, too). What the
head was believed about since somebody last looked is judged again by the head that knows better, and taken back where
it thinks otherwise (`DemonstrationSAC.retract`).

A learner finds ever new ways to fool a head, so answers that are all given in the beginning are spent where they are
needed least: the first `FIRST` are given as soon as there is something to say, the others spread over what remains.

A rollout is kept as its instance and actions; simulated again, these are the pictures.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from envs.metaworld import MetaWorldEnv
from grm.data.episodes import Episode
from grm.models.multiview import GRM
from grm.reward import Task
from grm.success import teach_success

from .blind import taken_again
from .gold import Answer, StableSuccess
from .onlookers import ModelOnlooker, look_at

FIRST = 8
"""Answers until whom somebody stands by at every rollout."""


class Lessons:
    """What a success head is taught: rollouts as the frozen network sees them, each seen once.

    Args:
        model: the GRM whose head it is.
        task: with the goal picture it judges by.
        episodes: what it is taught from the outset, the demonstration first.
    """

    def __init__(self, model: GRM, task: Task, episodes: Sequence[Episode]) -> None:
        self.model, self.task = model, task
        self._standing: list[np.ndarray] = []
        self._done: list[np.ndarray] = []
        for episode in episodes:
            self.add(episode)

    def add(self, episode: Episode) -> None:
        """One more rollout of which it is known in which frames it was done."""
        self._standing.append(self.model.standing(self.task, episode.frames))
        self._done.append(episode.success)

    def taught(self) -> GRM:
        """The GRM with the head that knows all of it."""
        return teach_success(self.model, self._standing, self._done)


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


class Witness:
    """Whoever stands by now and then while one arm learns, and what the onlooker learns from that.

    What is known of earlier rollouts is on disk, in the folders `answers` and `believed`, so a run that goes on after
    `finished` rollouts has the same head again.

    Args:
        onlooker: whose model gets a new head with each answer.
        folder: of the arm.
        world: as the demonstration was recorded in, with its views.
        demonstration: what the onlooker was shown of it.
        lessons: with what is known from the outset.
        stable: when the head is believed.
        answers: how many there are.
        rollouts: over which they are spread.
        finished: rollouts that are over already.
        seed: of who stands by when.
    """

    def __init__(
        self,
        onlooker: ModelOnlooker,
        folder: Path,
        world: MetaWorldEnv,
        demonstration: Episode,
        lessons: Lessons,
        stable: StableSuccess,
        *,
        answers: int,
        rollouts: int,
        finished: int,
        seed: int,
    ) -> None:
        self.onlooker, self.folder, self.world, self.demonstration = onlooker, folder, world, demonstration
        self.lessons, self.stable = lessons, stable
        self.answers, self.rollouts, self.seed = answers, rollouts, seed
        self._learn(self._kept("answers", finished))

    def attends(self, number: int) -> bool:
        """Whether somebody stands by at rollout `number`."""
        given = len(self._kept("answers", number - 1))
        return attends(number, self.rollouts, given=given, answers=self.answers, seed=self.seed)

    def after(self, number: int, *, seed: int, actions: np.ndarray, success: bool, answer: Answer | None) -> list[int]:
        """Remember rollout `number`, and learn from the answer if there was one; returns the rollouts to retract.

        These are those that the head was believed about since the answer before, and that it believes no longer.
        """
        kind = "believed" if answer is None else "answers"
        if answer is not None or success:
            keep_rollout(self.folder / kind, number, seed=seed, actions=actions, answer=answer)
        if answer is None:
            return []
        *earlier, this = self._kept("answers", number)
        self._learn([this])
        if answer.right:
            return []
        since = int(earlier[-1].stem) if earlier else 0
        paths = [path for path in self._kept("believed", number) if int(path.stem) > since]
        return [
            int(path.stem)
            for path, episode in zip(paths, read_rollouts(paths, self.world, self.demonstration), strict=True)
            if not self._believes(episode)
        ]

    def close(self) -> None:
        """Write the GRM with the head that knows all answers to `grm`, and leave the world."""
        self.onlooker.model.save_pretrained(self.folder / "grm", {"answers": len(self._kept("answers", self.rollouts))})
        self.world.close()

    def _kept(self, kind: str, rollouts: int) -> list[Path]:
        return kept(self.folder / kind, rollouts)

    def _believes(self, episode: Episode) -> bool:
        self.stable.begin()
        return any(self.stable(opinion.success) for opinion in look_at(self.onlooker, episode)[1:])

    def _learn(self, answers: list[Path]) -> None:
        for episode in read_rollouts(answers, self.world, self.demonstration):
            self.lessons.add(episode)
        if answers:
            self.onlooker.model = self.lessons.taught()
