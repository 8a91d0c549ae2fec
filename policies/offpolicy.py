"""Soft actor-critic taught to start from one demonstration.

What is added to Stable-Baselines3's SAC, and whose idea it is:

- a fixed share of every batch comes from the demonstration, and the critics are an ensemble with layer normalisation,
  updated several times per decision (RLPD: Ball et al. 2023, "Efficient Online Reinforcement Learning with Offline
  Data");
- two proposals: a behaviour-cloned policy proposes an action beside the actor's own, and the better by Q is taken, for
  acting and in the TD target (IBRL: Hu et al. 2023, "Imitation Bootstrapped Reinforcement Learning");
- the actor stays near the cloned policy unless the critics have a reason (TD3+BC: Fujimoto & Gu 2021, "A Minimalist
  Approach to Offline Reinforcement Learning"): before the first successes the critics know nothing of where the
  learner is, and an actor that climbs them undoes what the demonstration taught;
- noise that lasts: the cloned policy corrects white noise as fast as it comes, so exploring means to drift;
- successes become demonstrations: a rollout that solved the task joins the demonstration, and the cloned policy is
  trained a little further on all of them (self-imitation: Oh et al. 2018);
- while successes are few, the failures that the process reward says got furthest are shown, too, up to where they did
  (the elite of the cross-entropy method: Rubinstein & Kroese 2004; filtered behaviour cloning);
- n-step returns, which a shaped reward needs most: n steps of signal against one error of the potential;
- a potential of its own, if there is a process reward to learn one from (`policies/guide.py`), and as long as it hardly
  succeeds, and the process reward is right about it, a shorter horizon: what lies further ahead is left to the guide
  (HuRL: Cheng et al. 2021, "Heuristic-Guided Reinforcement Learning");
- the cloned policy acts alone as long as it succeeds more often than what the critics choose (`policies/evidence.py`).

Time is counted in rollouts, because a rollout is what costs a person something. One rollout: one episode is collected,
then `updates_per_step` gradient updates are made per decision of it.
"""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch import nn

from grm.errors import CheckpointError, TraceError
from shaping import shaping_reward

from .bc import ClonedPolicy, clone, fit, standardization
from .checkpoint import load_optimizer, optimizer_weights, read_checkpoint, write_checkpoint
from .collecting import Rollout, Watch
from .critics import CriticEnsemble, DemonstrationFeatures
from .demonstration import COLUMNS, Collected, Demonstration
from .evidence import Evidence
from .guide import SCALE_FLOOR, Guide, fit_guide
from .proposals import ProposalPolicy, dump_acting_policy
from .replay import COLUMNS as REPLAY_COLUMNS
from .replay import EpisodeReplay
from .rollout import check_single, instance_seeds

DEMONSTRATION = 0
"""Number of the demonstration where rollouts are numbered from 1."""
ELITE_SHARE = 5
"""Rollouts made for each failure that may be in the elite: of few, the best is not good."""
GUIDE_INTERVAL = 5
"""Rollouts from one fit of the guide to the next."""
GUIDE_STEPS = (1500, 200)
"""Gradient steps of the guide's first fit, and of each later one."""
GUIDE_WEIGHTS = (10.0, 3.0, 1.0)
"""How often the guide is shown a state of the demonstration, of a success, and of any other rollout."""
ACTOR_INTERVAL = 2
"""Critic updates per actor update."""
ENTROPY_LEARNING_RATE = 3e-3
"""Of the entropy coefficient. A decision's advantage is about (1 - gamma) Q, a few hundredths where success is rare; at
the networks' own learning rate the coefficient stays above that for a hundred rollouts, and the actor stays random."""


class _Batch(NamedTuple):
    """What one update sees; observations are normalised."""

    features: torch.Tensor
    actions: torch.Tensor
    returns: torch.Tensor
    """(batch,) scaled n-step returns."""
    bootstrap: torch.Tensor
    """(batch,) what the value n steps later is multiplied by, 0 where the task ended before."""
    next_features: torch.Tensor
    next_cloned: torch.Tensor
    """The cloned policy's proposals n steps later."""
    shown: torch.Tensor
    """What the actor should not stray from: the action where it was demonstrated, else the cloned policy's."""


class DemonstrationSAC(SAC):
    """SAC that starts from one demonstration and counts in rollouts; the module's docstring says what is added.

    Call `learn_rollouts`, not `learn`. Checkpoints are `save_checkpoint` and `load_checkpoint`: safetensors, npz and
    JSON, no pickle. (The inherited `save` and `load` are Stable-Baselines3's zip, which unpickles: not for files of
    unknown origin, and they know nothing of the demonstration.)

    The reward is multiplied by `reward_scale` in one place, the TD target; buffers hold what the environment paid.

    Args:
        env: one environment with flat observations, as a `VecEnv`; see `check_single`.
        demonstration: of the same environment, with the rewards this learner would have been paid.
        gamma: discount per decision; shaping must use the same.
        guidance: weight of a potential of the learner's own, 0 for none. It is learned from the demonstration, from
            successes and from the `phi` in the infos (which a `VecPotentialShaping` of weight 0 reports; without any it
            learns from successes alone), and it shapes the reward here: the environment must pay the task's alone.
        guided_gamma: the learner's own discount while it is guided and never succeeds, at most `gamma`, which it
            becomes as the last rollouts all succeed, or the process reward turns out to be wrong. The potential is one
            of `gamma` throughout: a decision that keeps up with it is paid 0. Smaller means more faith in it;
            `docs/derivations.md`, section 11, has what that buys and what it costs.
        elite: rollouts, at most, that stand for successes that are missing: as long as fewer have succeeded, the
            failures with the highest `phi` in the infos are in the demonstration, up to where it was highest, one for
            every `ELITE_SHARE` rollouts made; better ones and successes take their place. 0 for successes alone.
        n_steps: decisions summed in a return before the critic takes over.
        reward_scale: makes rewards large against the entropy term, which else drowns them.
        demonstration_fraction: share of each batch drawn from the demonstration, in [0, 1).
        updates_per_step: gradient updates per decision.
        batch_size: transitions per update.
        n_critics: size of the ensemble.
        hidden: width of the two hidden layers of actor and critics.
        learning_rate: of actor and critics (Adam).
        tau: how far the target critics move towards the critics per update.
        ent_coef: entropy coefficient, or `auto` (`auto_0.1` starts at 0.1) for SAC's own adjustment.
        exploration_noise: largest standard deviation; see `ProposalPolicy`.
        imitation_steps: gradient steps of the cloned policy after each success, on the demonstration and all successes;
            with 0 neither these nor an elite join the demonstration.
        imitation_weight: factor, in the actor's loss, of its mean action's mean squared distance from the cloned
            policy's, and from the action itself in the batch's share of demonstration.
        cloned_rollouts: first rollouts acted by the noisy cloned policy alone; later ones are as it fares.
        buffer_size: transitions kept.
        seed: of everything random here, and of the instance each rollout runs on: rollout k of two learners with equal
            seeds starts from the same state. None leaves the environment's own sequence of instances alone.
        cloned: the cloned policy, if it is not to be trained here.

    Raises:
        TraceError: the demonstration does not fit the environment.
    """

    policy: ProposalPolicy
    critic: CriticEnsemble
    critic_target: CriticEnsemble
    replay_buffer: EpisodeReplay

    def __init__(
        self,
        env: VecEnv,
        demonstration: Demonstration,
        *,
        gamma: float = 0.98,
        guidance: float = 0.0,
        guided_gamma: float = 0.9,
        elite: int = 0,
        n_steps: int = 5,
        reward_scale: float = 10.0,
        demonstration_fraction: float = 0.25,
        updates_per_step: int = 2,
        batch_size: int = 128,
        n_critics: int = 3,
        hidden: int = 128,
        learning_rate: float = 3e-4,
        tau: float = 0.01,
        ent_coef: float | str = "auto_0.1",
        exploration_noise: float = 0.3,
        imitation_steps: int = 200,
        imitation_weight: float = 0.3,
        cloned_rollouts: int = 5,
        buffer_size: int = 50_000,
        seed: int | None = 0,
        cloned: ClonedPolicy | None = None,
    ) -> None:
        check_single(env)
        demonstration.check_fit(env.observation_space, env.action_space)
        self._settings: dict[str, Any] = {
            "gamma": gamma,
            "guidance": guidance,
            "guided_gamma": guided_gamma,
            "elite": elite,
            "n_steps": n_steps,
            "reward_scale": reward_scale,
            "demonstration_fraction": demonstration_fraction,
            "updates_per_step": updates_per_step,
            "batch_size": batch_size,
            "n_critics": n_critics,
            "hidden": hidden,
            "learning_rate": learning_rate,
            "tau": tau,
            "ent_coef": ent_coef,
            "exploration_noise": exploration_noise,
            "imitation_steps": imitation_steps,
            "imitation_weight": imitation_weight,
            "cloned_rollouts": cloned_rollouts,
            "buffer_size": buffer_size,
            "seed": seed,
        }
        if guidance and not (guidance > 0 and 0 < guided_gamma <= gamma):
            raise TraceError(
                f"guidance is {guidance} and guided_gamma {guided_gamma}; expected a weight of at least 0 and a "
                f"discount in (0, {gamma}], gamma's"
            )
        if elite < 0:
            raise TraceError(f"elite is {elite}; expected a number of rollouts, 0 for none")
        self.guidance, self.guided_gamma, self.elite = guidance, guided_gamma, elite
        self.pause: Callable[[], None] = lambda: None
        """Called every few milliseconds while this learns or saves, for what must not wait longer."""
        self.evidence = Evidence()
        self._clone_acts = False
        self.reward_scale = reward_scale
        self.updates_per_step = updates_per_step
        self.imitation_steps = imitation_steps
        self.imitation_weight = imitation_weight
        self.cloned_rollouts = cloned_rollouts
        self.demonstration_rows = round(batch_size * demonstration_fraction)
        self.rng = np.random.default_rng(seed)
        self.rollouts = 0
        """Finished rollouts."""
        self._elapsed_s = 0.0
        mean, scale = standardization(demonstration.observations)
        if cloned is None:
            low, high = env.action_space.low, env.action_space.high
            scaled = 2 * (demonstration.actions - low) / (high - low) - 1
            cloned = clone(demonstration.observations, scaled, rng=self.rng, hidden=hidden)
        super().__init__(
            ProposalPolicy,
            env,
            learning_rate=learning_rate,
            buffer_size=buffer_size,
            batch_size=batch_size,
            tau=tau,
            gamma=gamma,
            replay_buffer_class=EpisodeReplay,  # its own n_steps would choose a class without them at 1
            replay_buffer_kwargs={"n_steps": n_steps, "gamma": gamma},
            ent_coef=ent_coef,
            train_freq=(1, "episode"),
            learning_starts=0,
            seed=seed,
            device="cpu",  # networks this small lose more to a GPU's latency than they gain
            policy_kwargs={
                "net_arch": [hidden, hidden],
                "n_critics": n_critics,
                "features_extractor_class": DemonstrationFeatures,
                "features_extractor_kwargs": {"mean": mean, "scale": scale},
                "optimizer_kwargs": {"fused": True},
                "cloned": cloned,
                "exploration_noise": exploration_noise,
            },
        )
        if self.ent_coef_optimizer is not None:
            self.ent_coef_optimizer.param_groups[0]["lr"] = ENTROPY_LEARNING_RATE
        self._say_who_is_better()
        self.set_logger(Logger(None, []))  # Stable-Baselines3's default makes a temporary folder per call
        self.demonstration = demonstration
        self.demonstration_buffer = EpisodeReplay(
            len(demonstration) + buffer_size,
            self.observation_space,
            self.action_space,
            device=self.device,
            n_steps=n_steps,
            gamma=gamma,
        )
        self._store(demonstration, self.demonstration_buffer)
        self.demonstration_buffer.finish(len(demonstration), DEMONSTRATION, success=True)
        self.guide: Guide | None = None
        if guidance:
            self.guide = Guide(*standardization(demonstration.observations, floor=SCALE_FLOOR))

    def learn_rollouts(self, rollouts: int, on_rollout: Callable[[Rollout], bool | None] | None = None) -> Self:
        """Run `rollouts` more rollouts, each followed by its updates.

        Args:
            rollouts: how many.
            on_rollout: called after each; everything is consistent then, so it may save a checkpoint. Learning stops
                early if it returns False.

        Raises:
            TraceError: an observation or a reward is not finite.
            KeyboardInterrupt: and whatever else interrupts a rollout. The unfinished rollout is forgotten and would be
                run again; the learner can be saved.
        """
        watch = Watch()
        if self.seed is None and self._last_obs is None:
            self._last_obs = self.env.reset()
        for _ in range(rollouts):
            record = self._rollout(watch)
            if on_rollout is not None and on_rollout(record) is False:
                break
        return self

    def _rollout(self, watch: Watch) -> Rollout:
        began = time.perf_counter()
        if self.seed is not None:
            self.env.seed(instance_seeds(self.seed, self.rollouts + 1, "training")[-1])
            self._last_obs = self.env.reset()
        if not np.isfinite(self._last_obs).all():
            raise TraceError("the first observation of a rollout is not finite; check the sensor or the simulation")
        _, callback = self._setup_learn(1, watch, reset_num_timesteps=False)
        self.policy.begin_rollout()
        self.policy.cloned_only = self.cloned_only
        with self._forgotten_unless_finished():
            self.collect_rollouts(self.env, callback, self.train_freq, self.replay_buffer, learning_starts=0)
            self.policy.cloned_only = False
            # What the wrapper judged last is the state an episode ended in; of the first it tells nobody but `reset`.
            phi = np.array([np.nan, *watch.phi[:-1]])
            self._learn(watch.length, success=watch.success, phi=phi, cloned=self.cloned_only)
        return self._finished(
            began,
            success=watch.success,
            length=watch.length,
            reward=watch.reward,
            task_reward=watch.task_reward,
            mean_phi=_mean(np.array(watch.phi)),
        )

    def learn_from(self, episode: Collected) -> Rollout:
        """Learn from one episode that was collected elsewhere as if it had been the next rollout of `learn_rollouts`.

        It joins the replay and its updates follow; a success joins the demonstration. Of an episode in which a person
        intervened, only those steps do (HIL-SERL: Luo et al. 2024), and what followed the last of them to a success:
        what came before is what had to be mended. As a success of the learner's own it does not count.
        `acting_policy` gives what to collect the next one with.

        Raises:
            TraceError: the episode is not of this learner's spaces.
            KeyboardInterrupt: and whatever else interrupts; the episode is forgotten then and may be given again.
        """
        began = time.perf_counter()
        episode.check_fit(self.observation_space, self.action_space)
        with self._forgotten_unless_finished():
            self._store(episode, self.replay_buffer)
            self.num_timesteps += len(episode)
            self._learn(
                len(episode),
                success=episode.success,
                phi=episode.phi,
                cloned=episode.cloned,
                intervened=episode.intervened,
            )
        return self._finished(
            began,
            success=episode.success,
            length=len(episode),
            reward=float(episode.rewards.sum()),
            task_reward=episode.task_reward,
            mean_phi=None if episode.phi is None else _mean(episode.phi),
        )

    @property
    def cloned_only(self) -> bool:
        """Whether the next rollout is to be acted by the noisy cloned policy alone."""
        return self.rollouts < self.cloned_rollouts or self._clone_acts

    def _say_who_is_better(self) -> None:
        self.policy.clone_is_better = self.rollouts < self.cloned_rollouts or self.evidence.clone_is_better

    @property
    def own_gamma(self) -> float:
        """Discount of the next updates: from `guided_gamma` to `gamma`, its horizon geometric in the faith.

        That is how far the process reward is trusted, times how often the learner failed of late.
        """
        if self.guide is None:
            return self.gamma
        faith = self.evidence.trust * (1 - self.evidence.success_rate)
        return 1 - (1 - self.guided_gamma) ** faith * (1 - self.gamma) ** (1 - faith)

    def relabel(
        self,
        rewards: Mapping[int, Float[np.ndarray, " t"]] | None,
        phi: Mapping[int, Float[np.ndarray, " t"]] | None = None,
    ) -> None:
        """Replace the rewards of everything stored, after the process reward was refitted say; nothing else changes.

        All at once, since targets under two potentials are targets for two different critics; the critics learned the
        old one and need some updates to forget it (`docs/derivations.md`, section 8).

        Args:
            rewards: those of each step of each rollout by its number (`Rollout.number`); 0 is the demonstration.
                Rollouts the replay has dropped may be left out. A guided learner wants the task's own. None leaves them
                as they are, for a guided learner whose process reward alone has changed.
            phi: what the process reward now says of each step's observation, by rollout, NaN where it abstains; the
                guide is fitted again. None leaves it alone.

        Raises:
            TraceError: rewards of a stored step are missing or not finite. Nothing was replaced then.
        """
        buffers = self._buffers().values()
        for buffer in buffers:
            if rewards is not None:
                buffer.check_relabels(rewards, finite=True)
            if phi is not None:
                buffer.check_relabels({DEMONSTRATION: np.full(len(self.demonstration), np.nan), **phi}, finite=False)
        if rewards is not None:
            self.demonstration = replace(self.demonstration, rewards=rewards[DEMONSTRATION])
        for buffer in buffers:
            if rewards is not None:
                buffer.replace("paid", rewards)
                buffer.replace("rewards", rewards)
            if phi is not None:
                buffer.replace("phi", {DEMONSTRATION: np.full(len(self.demonstration), np.nan), **phi})
        if self.guide is not None:
            if phi is not None:
                self._fit_guide(self.guide, GUIDE_STEPS[0])
            self._shape(self.guide)

    def retract(self, rollouts: Collection[int]) -> None:
        """These rollouts, by `Rollout.number`, were no successes after all; nothing happens for those that were none.

        What their end paid is taken back and it becomes a truncation, they leave the demonstration, and the cloned
        policy is fitted to what is left of it. For a learner whose environment pays the task's reward alone, as a
        guided one's does: under a shaping wrapper the last payment held the potential, too, and `relabel` has to say
        what it is now.

        Raises:
            TraceError: a rollout that has not been made. Nothing is retracted then.
        """
        made = len(self.evidence.outcomes)
        unknown = sorted(number for number in rollouts if not 1 <= number <= made)
        if unknown:
            raise TraceError(f"rollout {unknown[0]} is to be retracted; expected one of the {made} made so far")
        wrong = [number for number in rollouts if self.evidence.outcomes[number - 1].success]
        if not wrong:
            return
        self.evidence.fail(wrong)
        self.replay_buffer.fail(wrong)
        self.demonstration_buffer.drop(wrong)
        if self.guide is not None:
            self._shape(self.guide)
        if self.imitation_steps:
            self._fit_clone()

    def stored_steps(self) -> dict[int, int]:
        """By number, how many steps a label of each rollout must have: all up to the last that is stored."""
        replay, taught = self.replay_buffer.stored_steps(), self.demonstration_buffer.stored_steps()
        return {number: max(replay.get(number, 0), taught.get(number, 0)) for number in replay | taught}

    def acting_policy(self) -> bytes:
        """What collects the next rollout, as safetensors bytes to be sent to it: `load_acting_policy` reads them.

        Half a megabyte in a millisecond. The weights are copies: learning may go on meanwhile.
        """
        return dump_acting_policy(
            self.policy,
            hidden=self._settings["hidden"],
            n_critics=self._settings["n_critics"],
            cloned_only=self.cloned_only,
        )

    def _store(self, episode: Demonstration | Collected, buffer: EpisodeReplay) -> None:
        last = len(episode) - 1
        for step in range(len(episode)):
            buffer.add_transition(
                episode.observations[step],
                episode.next_observations[step],
                self.policy.scale_action(episode.actions[step]),
                episode.rewards[step],
                terminated=bool(episode.terminated[step]),
                truncated=step == last and not episode.terminated[step],
            )

    @contextmanager
    def _forgotten_unless_finished(self) -> Iterator[None]:
        """Whatever interrupts: half an episode must not stay, n-step returns would run on from it into the next one."""
        replay, taught, steps = self.replay_buffer, self.demonstration_buffer, self.num_timesteps
        before, known = (replay.pos, replay.full, taught.pos, taught.full), len(self.evidence.outcomes)
        shown = taught.rows() if self.elite else {}  # some may leave from among them
        finished = False
        try:
            yield
            finished = True
        finally:
            self.policy.cloned_only = False
            if not finished:
                replay.pos, replay.full, taught.pos, taught.full = before
                taught.put_back(shown)
                del self.evidence.outcomes[known:]
                self.num_timesteps = steps
                self._last_obs = None

    def _learn(
        self,
        length: int,
        *,
        success: bool,
        phi: Float[np.ndarray, " length"] | None,
        cloned: bool | None,
        intervened: Bool[np.ndarray, " length"] | None = None,
    ) -> None:
        """Learn from the last `length` steps of the replay buffer, which are one rollout."""
        rows = self.replay_buffer.finish(length, self.rollouts + 1, success=success, phi=phi)
        helped = np.zeros(length, bool) if intervened is None else intervened
        self.evidence.add(phi, cloned=cloned, success=success, helped=bool(helped.any()))
        if self.guide is not None:
            if self.rollouts % GUIDE_INTERVAL == 0:
                self._fit_guide(self.guide, GUIDE_STEPS[self.rollouts > 0])
            self._shape(self.guide)
            self.replay_buffer.gamma = self.demonstration_buffer.gamma = self.own_gamma
        self.train(self.updates_per_step * length, self.batch_size)
        if (success and self.imitation_steps) or helped.any():
            well_done = helped.copy()
            if success:
                well_done[np.flatnonzero(helped)[-1] + 1 if helped.any() else 0 :] = True
            self._imitate(rows[well_done])
        self._choose_elite()

    def _fit_guide(self, guide: Guide, steps: int) -> None:
        """Fit to the time to go where it is known, and to the process reward's opinion where not."""
        replay, taught = self.replay_buffer, self.demonstration_buffer
        mine = np.arange(replay.size())
        shown = np.flatnonzero(taught.episode[: taught.size()] == DEMONSTRATION)
        togo = np.concatenate([taught.togo[shown], replay.togo[mine]])
        by_model = (1 - replay.phi[mine]) * len(self.demonstration)
        believed = np.concatenate([taught.togo[shown], by_model])
        weights = np.repeat(GUIDE_WEIGHTS[::2], (len(shown), len(mine)))
        weights[len(shown) :][np.isfinite(replay.togo[mine])] = GUIDE_WEIGHTS[1]
        decisions = np.where(np.isfinite(togo), togo, believed)
        known = np.isfinite(decisions)
        states = np.concatenate([taught.observations[shown, 0], replay.observations[mine, 0]])
        values = self.gamma ** decisions[known]
        fit_guide(guide, states[known], values, weights[known], rng=self.rng, steps=steps, pause=self.pause)

    def _shape(self, guide: Guide) -> None:
        """Pay for everything stored under the guide as it is now."""
        for buffer in self._buffers().values():
            rows = slice(buffer.size())
            states, next_states = (x[rows, 0] for x in (buffer.observations, buffer.next_observations))
            phi, next_phi = (guide.potential(x, pause=self.pause) for x in (states, next_states))
            terminated = (buffer.dones * (1 - buffer.timeouts))[rows, 0] > 0
            weight = self.guidance * self.evidence.trust
            shaping = weight * shaping_reward(phi, next_phi, terminated, self.gamma)
            buffer.rewards[rows, 0] = buffer.paid[rows] + shaping

    def _finished(self, began: float, **about: Any) -> Rollout:
        self.rollouts += 1
        self._clone_acts = self.evidence.clone_acts(self.rng)
        self._say_who_is_better()
        self._elapsed_s += time.perf_counter() - began
        return Rollout(number=self.rollouts, elapsed_s=self._elapsed_s, **about)

    def _imitate(self, rows: Int[np.ndarray, " k"]) -> None:
        """These rows of the replay buffer join the demonstration; the cloned policy learns from all of it."""
        self.demonstration_buffer.take(self.replay_buffer, rows)
        self._fit_clone()

    def _choose_elite(self) -> None:
        """Of the failures, those that got furthest are in the demonstration, as many as successes are missing."""
        if not (self.elite and self.imitation_steps):
            return
        outcomes, taught = self.evidence.outcomes, self.demonstration_buffer
        failures = {number for number, outcome in enumerate(outcomes, 1) if outcome.failed_alone}
        missing = self.elite - sum(outcome.success for outcome in outcomes)
        count = max(0, min(missing, len(outcomes) // ELITE_SHARE))
        ways = self.replay_buffer.ways_up(failures) if count else {}
        chosen = set(sorted(ways, key=lambda number: ways[number][0], reverse=True)[:count])
        there = failures & set(taught.stored_steps())
        if chosen == there:
            return
        taught.drop(there - chosen)
        for number in sorted(chosen - there):
            taught.take(self.replay_buffer, ways[number][1])
        self._fit_clone()

    def _fit_clone(self) -> None:
        """The cloned policy is trained a little further on all of the demonstration."""
        shown = self.demonstration_buffer
        size = shown.size()
        fit(
            self.policy.cloned,
            shown.observations[:size, 0],
            shown.actions[:size, 0],
            rng=self.rng,
            steps=self.imitation_steps,
            pause=self.pause,
        )

    def train(self, gradient_steps: int, batch_size: int = 128) -> None:
        """`gradient_steps` updates of the critics, every second one of actor and entropy coefficient."""
        self.policy.set_training_mode(True)
        actor_parameters = list(self.actor.parameters())
        critic_parameters = [parameter.data for parameter in self.critic.parameters()]
        target_parameters = [parameter.data for parameter in self.critic_target.parameters()]
        for update, batch in enumerate(self._batches(gradient_steps, batch_size)):
            with torch.no_grad():
                target = self._target(batch)
            values = self.critic.values_of(batch.features, batch.actions)
            critic_loss = 0.5 * (values - target).square().mean(1).sum()
            self.critic.optimizer.zero_grad()
            critic_loss.backward()
            self.critic.optimizer.step()
            torch._foreach_lerp_(target_parameters, critic_parameters, self.tau)
            self.pause()
            if update % ACTOR_INTERVAL:
                continue

            actions, log_prob, mean = self._act(batch.features)
            entropy = -log_prob.mean()
            if self.ent_coef_optimizer is not None and self.log_ent_coef is not None:
                ent_coef = self.log_ent_coef.detach().exp()
                ent_coef_loss = self.log_ent_coef * (entropy.detach() - self.target_entropy)
                self.ent_coef_optimizer.zero_grad()
                ent_coef_loss.backward()
                self.ent_coef_optimizer.step()
            else:
                ent_coef = self.ent_coef_tensor
            actor_loss = -ent_coef * entropy - self.critic.values_of(batch.features, actions).mean()
            if self.imitation_weight:
                actor_loss = actor_loss + self.imitation_weight * nn.functional.mse_loss(mean, batch.shown)
            self.actor.optimizer.zero_grad()
            actor_loss.backward(inputs=actor_parameters)
            self.actor.optimizer.step()
        self._n_updates += gradient_steps

    def _act(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The actor's random actions, their log-probabilities and its deterministic actions.

        What `Actor.action_log_prob` does, without building a distribution object each time.
        """
        latent = self.actor.latent_pi(features)
        mean, log_std = self.actor.mu(latent), self.actor.log_std(latent).clamp(LOG_STD_MIN, LOG_STD_MAX)
        noise = torch.randn_like(mean)
        raw = mean + log_std.exp() * noise
        # The logarithm of tanh's slope, 1 - tanh², in the form that does not underflow.
        log_slope = 2 * (math.log(2) - raw - nn.functional.softplus(-2 * raw))
        log_prob = (-0.5 * noise.square() - log_std - log_slope - 0.5 * math.log(2 * math.pi)).sum(1)
        return raw.tanh(), log_prob, mean.tanh()

    def _target(self, batch: _Batch) -> torch.Tensor:
        """(batch,) n-step return plus the better proposal's value, without an entropy bonus, as in RLPD."""
        actions, _, _ = self._act(batch.next_features)
        proposals = torch.cat([actions, batch.next_cloned])
        values = self.critic_target.values_of(batch.next_features.repeat(2, 1), proposals).amin(0)
        return batch.returns + batch.bootstrap * values.view(2, -1).amax(0)

    def _batches(self, count: int, batch_size: int) -> Iterator[_Batch]:
        """`count` batches, each with its fixed share of demonstration; indices come from this learner's own generator.

        Drawn, normalised and shown to the cloned policy all at once, which is several times cheaper: no buffer and no
        cloned policy changes between the updates of one rollout.
        """
        parts = []
        for buffer, rows in (
            (self.replay_buffer, batch_size - self.demonstration_rows),
            (self.demonstration_buffer, self.demonstration_rows),
        ):
            if rows:
                drawn = buffer._get_samples(self.rng.integers(buffer.size(), size=count * rows))
                parts.append([column.view(count, rows, column.shape[1]) for column in drawn])
        whole = (torch.cat(columns, dim=1) for columns in zip(*parts, strict=True))
        observations, actions, next_observations, dones, rewards, discounts = whole
        with torch.no_grad():
            shown = actions
            if self.imitation_weight:
                own = batch_size - self.demonstration_rows
                shown = torch.cat([self.policy.cloned(observations[:, :own]), actions[:, own:]], dim=1)
            columns = _Batch(
                features=self.actor.features_extractor(observations),
                actions=actions,
                returns=self.reward_scale * rewards.squeeze(2),
                bootstrap=((1 - dones) * discounts).squeeze(2),
                next_features=self.actor.features_extractor(next_observations),
                next_cloned=self.policy.cloned(next_observations),
                shown=shown,
            )
        return map(_Batch._make, zip(*columns, strict=True))

    def save_checkpoint(self, folder: Path | str) -> None:
        """Write everything needed to continue exactly: weights, optimisers, replay, random state, counters.

        A folder of `config.json` and the files it names; killed at any moment, it holds the old checkpoint or the new
        one. Continuing is exact between rollouts with a `seed`, on the same machine and thread count.
        """
        weights = {f"policy.{name}": tensor for name, tensor in self.policy.state_dict().items()}
        for name, optimizer in self._optimizers().items():
            weights |= optimizer_weights(name, optimizer)
        if self.guide is not None:
            weights |= {f"guide.{name}": tensor for name, tensor in self.guide.state_dict().items()}
        if self.log_ent_coef is not None:
            weights["log_ent_coef"] = self.log_ent_coef.detach()
        weights["torch_rng"] = torch.get_rng_state()
        arrays = {f"original.{name}": getattr(self.demonstration, name) for name in COLUMNS}
        for name, buffer in self._buffers().items():
            arrays |= {f"{name}.{column}": getattr(buffer, column)[: buffer.size()] for column in REPLAY_COLUMNS}
        config = {
            "observation_size": int(self.observation_space.shape[0]),
            "action_size": int(self.action_space.shape[0]),
            "settings": self._settings,
            "rollouts": self.rollouts,
            "outcomes": self.evidence.to_lists(),
            "clone_acts": self._clone_acts,
            "elapsed_s": self._elapsed_s,
            "num_timesteps": self.num_timesteps,
            "updates": self._n_updates,
            "positions": {name: [buffer.pos, buffer.full] for name, buffer in self._buffers().items()},
            "rng": self.rng.bit_generator.state,
        }
        write_checkpoint(Path(folder), config, weights, arrays, pause=self.pause)

    @classmethod
    def load_checkpoint(cls, folder: Path | str, env: VecEnv) -> Self:
        """The learner as it was saved, on `env`; `learn_rollouts` continues where it stopped.

        Raises:
            CheckpointError: no checkpoint, one of another schema, or one that does not fit `env`.
        """
        folder = Path(folder)
        config, weights, replay = read_checkpoint(folder)
        check_single(env)
        for what, space in (("observation", env.observation_space), ("action", env.action_space)):
            if (saved := config[f"{what}_size"]) != (given := spaces.flatdim(space)):
                raise CheckpointError(
                    f"{folder} was trained with {saved} {what} numbers and the environment has {given}; expected as "
                    f"many: make the environment with the settings of the training run"
                )
        demonstration = Demonstration(**{name: replay[f"original.{name}"] for name in COLUMNS})
        mean, scale = standardization(demonstration.observations)
        cloned = ClonedPolicy(mean, scale, config["action_size"], hidden=config["settings"]["hidden"])
        learner = cls(env, demonstration, **config["settings"], cloned=cloned)
        learner._restore(folder, config, weights, replay)
        return learner

    def _restore(
        self,
        folder: Path,
        config: Mapping[str, Any],
        weights: dict[str, torch.Tensor],
        replay: Mapping[str, np.ndarray],
    ) -> None:
        try:
            self.policy.load_state_dict(
                {k.removeprefix("policy."): v for k, v in weights.items() if k[:7] == "policy."}
            )
        except RuntimeError as error:
            raise CheckpointError(f"{folder} does not fit this learner: {' '.join(str(error).split())}") from error
        if self.guide is not None:
            self.guide.load_state_dict({k.removeprefix("guide."): v for k, v in weights.items() if k[:6] == "guide."})
        for name, optimizer in self._optimizers().items():
            load_optimizer(name, optimizer, weights)
        if self.log_ent_coef is not None:
            with torch.no_grad():
                self.log_ent_coef.copy_(weights["log_ent_coef"])
        for name, buffer in self._buffers().items():
            for column in REPLAY_COLUMNS:
                rows = replay[f"{name}.{column}"]
                getattr(buffer, column)[: len(rows)] = rows
            buffer.pos, buffer.full = config["positions"][name]
        self.evidence = Evidence.from_lists(config["outcomes"])
        self._clone_acts = config["clone_acts"]
        self.rollouts, self._elapsed_s = config["rollouts"], config["elapsed_s"]
        self._say_who_is_better()
        self.num_timesteps, self._n_updates = config["num_timesteps"], config["updates"]
        self.rng.bit_generator.state = config["rng"]
        torch.set_rng_state(weights["torch_rng"])

    def _buffers(self) -> dict[str, EpisodeReplay]:
        return {"replay": self.replay_buffer, "demonstration": self.demonstration_buffer}

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizers = {"actor_optimizer": self.actor.optimizer, "critic_optimizer": self.critic.optimizer}
        if self.ent_coef_optimizer is not None:
            optimizers["ent_coef_optimizer"] = self.ent_coef_optimizer
        return optimizers


def _mean(phi: Float[np.ndarray, " t"]) -> float | None:
    judged = phi[np.isfinite(phi)]
    return float(judged.mean()) if len(judged) else None
