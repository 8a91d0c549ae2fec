"""What a session's two processes think with: a policy that acts on the GRM's features, and a GRM with a learner."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from ..data.episodes import Episode
from ..errors import OutputError
from ..models.checkpoint import locate
from ..models.multiview import GRM, Carry, packaged_checkpoint
from ..reward import Frame, Judgement, Task

if TYPE_CHECKING:
    from robot_io.replay import Attempt


@dataclass(frozen=True)
class MakePolicy:
    """Makes what acts, in the robot's process."""

    instruction: str

    def __call__(self, folder: Path) -> "ActingOnFeatures":
        """From the folder of the GRM whose features it sees."""
        import torch

        torch.set_num_threads(1)
        return ActingOnFeatures(GRM.from_pretrained(folder), self.instruction)


class ActingOnFeatures:
    """A learner's policy on proprioception and the GRM's features of the newest pictures."""

    def __init__(self, model: GRM, instruction: str) -> None:
        self._model, self._task = model, Task(instruction=instruction)
        self._carry = model.start(self._task)
        self._policy: Any = None
        self._cloned = False

    def load(self, policy: bytes) -> None:
        """See `robot_io.actor.ActingPolicy`."""
        from policies.proposals import load_acting_policy

        fresh = load_acting_policy(policy)
        self._cloned = fresh.cloned_only
        if self._policy is not None:
            fresh.continue_rollout(self._policy)
        self._policy = fresh

    def begin(self) -> bool:
        """See `robot_io.actor.ActingPolicy`."""
        self._carry = self._model.start(self._task)
        self._policy.begin_rollout()
        self._policy.cloned_only = self._cloned
        return self._cloned

    def act(self, observation: Mapping[str, np.ndarray], *, explore: bool) -> Float[np.ndarray, " a"]:
        """See `robot_io.actor.ActingPolicy`."""
        views = {key.removeprefix("pixels."): value for key, value in observation.items() if key != "state"}
        [self._carry], _ = self._model.extend([self._carry], [[Frame(views=views)]])
        seen = np.concatenate([observation["state"], self._model.features(self._carry)])
        action, _ = self._policy.predict(seen, deterministic=not explore)
        return action


@dataclass(frozen=True)
class MakeMind:
    """Makes what judges and learns, in the learner's process: adapts and clones one demonstration, or goes on."""

    out: Path
    demo: Path
    episode: int
    instruction: str
    model: str
    grm: Path | None
    steps: int
    gamma: float
    guidance: float
    updates_per_step: int
    seed: int
    threads: int
    refit_every: int = 0
    card: dict[str, Any] = field(default_factory=dict)

    def __call__(self, checkpoint: Path | None, report: Callable[[str], None]) -> "GrmMind":
        """See `robot_io.learner.MakeMind`."""
        import torch

        from robot_io.replay import read_attempt

        torch.set_num_threads(self.threads)
        model, task, folder = self.judge(report)
        report("cloning the demonstration" if checkpoint is None else "reading the checkpoint")
        if checkpoint is not None and (checkpoint / REFITTED).exists():
            model = GRM.from_pretrained(checkpoint / REFITTED)
        return GrmMind(self, model, task, folder, read_attempt(self.demo, self.episode), checkpoint)

    def refit(self, model: GRM, rollouts: "Sequence[Attempt]", between: Callable[[], None]) -> GRM:
        """The GRM, told what became of the session's own rollouts; calls `between` after every step."""
        from ..data.lerobot import read_episodes
        from ..data.replay import read_replay
        from ..train import refit

        [shown] = read_episodes(self.demo, [self.episode])
        replay = list(read_replay(locate(self.model, packaged_checkpoint())))
        told = [_episode(rollout, shown) for rollout in rollouts]
        return refit(model, shown, told, replay, steps=REFIT_STEPS, after_step=lambda _: between())

    def judge(self, report: Callable[[str], None]) -> tuple[GRM, Task, Path]:
        """The adapted GRM, which is made if it is not there yet, the task, and the GRM's folder."""
        from ..data.lerobot import read_episodes

        [episode] = read_episodes(self.demo, [self.episode])
        folder = self.grm or self.out / "grm"
        if not (folder / "config.json").exists():
            if self.grm is not None:
                raise OutputError(f"{self.grm} holds no GRM; expected a folder that `grm adapt` wrote")
            report("adapting the GRM to the demonstration")
            self._adapt(episode, folder)
        task = Task(instruction=self.instruction or episode.instruction, goal=episode.frames[-1])
        return GRM.from_pretrained(folder), task, folder

    def _adapt(self, episode: Any, folder: Path) -> None:
        from ..data.replay import read_replay
        from ..train import adapt

        old = GRM.from_pretrained(self.model)
        replay = list(read_replay(locate(self.model, packaged_checkpoint())))
        new = adapt(old, episode, replay, steps=self.steps, seed=self.seed)
        partial = folder.with_name(f".{folder.name}")
        new.save_pretrained(partial, self.card)
        partial.replace(folder)


class GrmMind:
    """A GRM that judges, and a learner that acts on its features; see `robot_io.learner.Mind`."""

    def __init__(
        self,
        made: MakeMind,
        model: GRM,
        task: Task,
        grm: Path,
        shown: "Attempt",
        checkpoint: Path | None,
    ) -> None:
        from gymnasium import spaces

        from policies.collecting import elsewhere
        from policies.demonstration import Demonstration
        from policies.offpolicy import DemonstrationSAC

        class Sliced(DemonstrationSAC):
            """Draws batches for a few updates at a time: all at once takes longer than a frame should wait."""

            def train(self, gradient_steps: int, batch_size: int = 128) -> None:
                for begin in range(0, gradient_steps, _SLICE):
                    super().train(min(_SLICE, gradient_steps - begin), batch_size)

        self.model, self.task, self.grm, self.scalars = model, task, grm, shown.scalars
        self._made = made
        self._refitted = checkpoint is not None and (checkpoint / REFITTED).exists()
        self._told: deque[tuple[int, Attempt]] = deque(maxlen=REFIT_ROLLOUTS)
        carry, seen = model.start(task), []
        for state, frame in zip(shown.state, shown.frames, strict=True):
            [carry], _ = model.extend([carry], [[frame]])
            seen.append(self.observe(state, carry))
        observations = np.stack(seen)
        space = spaces.Box(-np.inf, np.inf, observations.shape[1:], np.float32)
        env = elsewhere(space, spaces.Box(-1.0, 1.0, shown.actions.shape[1:], np.float32))
        if checkpoint is not None:
            self._learner = Sliced.load_checkpoint(checkpoint / "policy", env)
        else:
            self._learner = Sliced(
                env,
                Demonstration(**_transitions(shown, observations)),
                gamma=made.gamma,
                guidance=made.guidance,
                updates_per_step=made.updates_per_step,
                seed=made.seed,
            )

    def observe(self, state: Float[np.ndarray, " n"], carry: Carry) -> Float[np.ndarray, " m"]:
        """Proprioception, and what the GRM's encoder saw."""
        return np.concatenate([state, self.model.features(carry)]).astype(np.float32)

    def learn(
        self, attempt: "Attempt", observations: np.ndarray, judgement: Judgement, between: Callable[[], None]
    ) -> None:
        """See `robot_io.learner.Mind`."""
        from policies.demonstration import Collected

        collected = Collected(
            **_transitions(attempt, observations),
            success=attempt.success,
            task_reward=float(attempt.rewards.sum()),
            intervened=attempt.interventions,
            cloned=attempt.cloned,
            phi=judgement.potential[:-1],
        )
        self._learner.pause = between
        rollout = self._learner.learn_from(collected)
        if self._made.refit_every:
            self._told.append((rollout.number, attempt))
            if rollout.number % self._made.refit_every == 0:
                self._refit(between)

    def _refit(self, between: Callable[[], None]) -> None:
        """Go on with a GRM that knows the last rollouts, and with what it says of them; of older ones nobody says."""
        self.model = self._made.refit(self.model, [attempt for _, attempt in self._told], between)
        self._refitted = True
        said: dict[int, np.ndarray] = {n: np.full(steps, np.nan) for n, steps in self._learner.stored_steps().items()}
        for number, attempt in self._told:
            said[number] = self.model.judge(self.task, attempt.frames).potential[:-1]
            between()
        self._learner.relabel(None, said)

    def policy(self) -> bytes:
        """See `robot_io.learner.Mind`."""
        return self._learner.acting_policy()

    def updates(self) -> int:
        """See `robot_io.learner.Mind`."""
        return self._learner._n_updates

    def save(self, folder: Path) -> None:
        """See `robot_io.learner.Mind`."""
        self._learner.save_checkpoint(folder / "policy")
        if self._refitted:
            self.model.save_pretrained(folder / REFITTED, self._made.card)


def _episode(attempt: "Attempt", shown: Episode) -> Episode:
    """As training data: of the demonstrated task, done at its end or not, and nobody knows how far along."""
    steps = len(attempt.actions)
    return Episode(
        task=shown.task,
        instruction=shown.instruction,
        views=attempt.views,
        rate_hz=shown.rate_hz,
        state=attempt.state.astype(np.float32),
        actions=np.pad(attempt.actions, ((0, 1), (0, 0))),
        rewards=np.pad(attempt.rewards, (0, 1)),
        success=np.arange(steps + 1) == (steps if attempt.success else -1),
        progress=np.full(steps + 1, np.nan, np.float32),
        behaviour="learner",
    )


def _transitions(attempt: "Attempt", observations: Float[np.ndarray, "T+1 m"]) -> dict[str, Any]:
    """As a learner takes them, with the task's own rewards."""
    ends = np.zeros(len(attempt.rewards), bool)
    ends[-1] = attempt.terminated
    return {
        "observations": observations[:-1],
        "actions": np.clip(attempt.actions, -1, 1),
        "rewards": attempt.rewards,
        "next_observations": observations[1:],
        "terminated": ends,
    }


REFITTED = "grm"
"""Folder, in a checkpoint, of a GRM that is not the adapted one any more."""
REFIT_ROLLOUTS = 30
"""Last rollouts whose pictures are kept for refitting: some hundred megabytes."""
REFIT_STEPS = 60
_SLICE = 8
"""Updates whose batches are drawn at once; even, since every second one is the actor's, too."""
