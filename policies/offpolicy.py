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
- n-step returns, which a shaped reward needs most: n steps of signal against one error of the potential.

Time is counted in rollouts, because a rollout is what costs a person something. One rollout: one episode is collected,
then `updates_per_step` gradient updates are made per decision of it.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, ContinuousCritic, SACPolicy
from torch import nn

from grm.errors import CheckpointError, TraceError

from .bc import ClonedPolicy, Standardize, clone, fit, standardization
from .rollout import check_single, instance_seeds, succeeded

SCHEMA = 1
"""Version of the checkpoint folder's layout."""
ACTOR_INTERVAL = 2
"""Critic updates per actor update."""
ENTROPY_LEARNING_RATE = 3e-3
"""Of the entropy coefficient. A decision's advantage is about (1 - gamma) Q, a few hundredths where success is rare; at
the networks' own learning rate the coefficient stays above that for a hundred rollouts, and the actor stays random."""
NOISE_MEMORY = 0.8
"""Correlation of the exploration noise from one decision to the next."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Demonstration:
    """One episode that shows how, as transitions; the arrays are copied and read-only.

    The rewards are the learner's own: shaped if the environment's are. Actions are in the environment's units.

    Raises:
        TraceError: fewer than two steps, unequal lengths, numbers that are not finite, an end before the last step, or
            steps that do not follow from one another.
    """

    observations: Float[np.ndarray, "t n"]
    actions: Float[np.ndarray, "t a"]
    rewards: Float[np.ndarray, " t"]
    next_observations: Float[np.ndarray, "t n"]
    terminated: Bool[np.ndarray, " t"]

    def __post_init__(self) -> None:
        for name, ndim, dtype in (
            ("observations", 2, np.float32),
            ("actions", 2, np.float32),
            ("rewards", 1, np.float32),
            ("next_observations", 2, np.float32),
            ("terminated", 1, np.bool_),
        ):
            array = np.array(getattr(self, name), dtype=dtype)
            if array.ndim != ndim:
                raise TraceError(
                    f"the demonstration's {name} have shape {array.shape}; expected {ndim} axes, the first of them time"
                )
            if not np.isfinite(array).all():
                step = int(np.argwhere(~np.isfinite(array))[0][0])
                raise TraceError(
                    f"the demonstration's {name} are not finite at step {step}; cut it before or record another"
                )
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        names = ("observations", "actions", "rewards", "next_observations", "terminated")
        lengths = {name: len(getattr(self, name)) for name in names}
        if len(set(lengths.values())) > 1:
            raise TraceError(
                f"the demonstration's arrays have the lengths {lengths}; expected one row of each per step"
            )
        if len(self) < 2:
            raise TraceError(
                f"the demonstration has {len(self)} steps; expected at least 2, record one that does the task"
            )
        if self.observations.shape != self.next_observations.shape:
            raise TraceError(
                f"the demonstration's observations have {self.observations.shape[1]} numbers and the next observations "
                f"{self.next_observations.shape[1]}; expected as many"
            )
        if self.terminated[:-1].any():
            raise TraceError(
                f"the demonstration terminates at step {int(self.terminated[:-1].argmax())} of {len(self)}; expected "
                f"one episode, which may terminate at its last step only: cut it there"
            )
        follows = np.isclose(self.observations[1:], self.next_observations[:-1], atol=1e-5).all(axis=1)
        if not follows.all():
            step = int((~follows).argmax()) + 1
            raise TraceError(
                f"the demonstration's observation {step} is not the next observation of step {step - 1}; expected "
                f"consecutive steps of one episode, without gaps"
            )

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """What `learn_rollouts` reports after each rollout and its updates."""

    number: int
    """1 for the learner's first rollout, also after a resume."""
    success: bool
    length: int
    """Decisions."""
    reward: float
    """Undiscounted sum of what the learner was paid, shaping included, before `reward_scale`."""
    task_reward: float
    """Undiscounted sum of what the task paid."""
    mean_phi: float | None
    """Mean of the judged `phi` in the infos; None if there was none."""
    elapsed_s: float
    """Seconds this learner has spent in finished rollouts and their updates, resumed sessions included."""


class DemonstrationFeatures(BaseFeaturesExtractor):
    """Observations normalised by the demonstration's statistics, which are saved with the weights."""

    def __init__(self, observation_space: spaces.Space, mean: np.ndarray, scale: np.ndarray) -> None:
        super().__init__(observation_space, features_dim=len(mean))
        self.standardize = Standardize(mean, scale)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """(batch, n) to (batch, n)."""
        return self.standardize(observations)


class EnsembleLinear(nn.Module):
    """`members` linear layers in one batched product: (members, batch, inputs) to (members, batch, outputs)."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5  # as torch initialises nn.Linear
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return torch.baddbmm(self.bias, inputs, self.weight)


class CriticEnsemble(ContinuousCritic):
    """Q functions with layer normalisation, evaluated together; `forward` is Stable-Baselines3's."""

    def __init__(self, *, n_critics: int, net_arch: list[int], **kwargs: Any) -> None:
        super().__init__(n_critics=0, net_arch=net_arch, **kwargs)
        self.n_critics = n_critics
        size = self.features_extractor.features_dim + spaces.flatdim(self.action_space)
        layers: list[nn.Module] = []
        for width in net_arch:
            # No gain and bias: the next layer has its own, and elementwise work is what an update spends its time on.
            norm = nn.LayerNorm(width, elementwise_affine=False)
            layers += [EnsembleLinear(n_critics, size, width), norm, nn.ReLU(inplace=True)]
            size = width
        self.ensemble = nn.Sequential(*layers, EnsembleLinear(n_critics, size, 1))

    def values(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """(batch, n) observations and (batch, a) actions to (members, batch) values."""
        return self.values_of(self.extract_features(observations, self.features_extractor), actions)

    def values_of(self, features: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """As `values`, of observations that are normalised already."""
        inputs = torch.cat([features, actions], dim=1)
        return self.ensemble(inputs.expand(self.n_critics, *inputs.shape)).squeeze(-1)

    def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(batch, 1) values of each member."""
        return tuple(self.values(obs, actions).unsqueeze(-1))

    def q1_forward(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """(batch, 1) values of the first member."""
        return self.values(obs, actions)[0].unsqueeze(-1)


class ProposalPolicy(SACPolicy):
    """Actor and cloned policy both propose an action; the one with the higher Q, by the least of the critics, is taken.

    `cloned_only` makes it act as the cloned policy does, for the first rollouts: the critics know nothing yet. Where
    the policy is asked to explore, the cloned proposal gets Gaussian noise that lasts from decision to decision; its
    standard deviation is drawn for each rollout, evenly from 0 to `exploration_noise`, so that some rollouts are
    precise and some see much. The actor brings its own.
    """

    def __init__(self, *args: Any, cloned: ClonedPolicy, exploration_noise: float = 0.3, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cloned = cloned.requires_grad_(False)
        self.exploration_noise = exploration_noise
        self.cloned_only = False
        self._noise: torch.Tensor | None = None
        self._level = torch.zeros(1)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> CriticEnsemble:
        """An ensemble with layer normalisation."""
        return CriticEnsemble(**self._update_features_extractor(self.critic_kwargs, features_extractor)).to(self.device)

    def begin_rollout(self) -> None:
        """Forget the noise; the next decision that explores draws a new level and a new start."""
        self._noise = None

    def _predict(self, observation: torch.Tensor, deterministic: bool = False) -> torch.Tensor:
        cloned = self.cloned(observation)
        if not deterministic:
            cloned = (cloned + self._next_noise(cloned)).clamp(-1, 1)
        if self.cloned_only:
            return cloned
        proposals = torch.stack([self.actor(observation, deterministic), cloned])
        batch = len(observation)
        values = self.critic.values(observation.repeat(2, 1), proposals.flatten(0, 1)).amin(0).view(2, batch)
        return proposals[values.argmax(0), torch.arange(batch)]

    def _next_noise(self, action: torch.Tensor) -> torch.Tensor:
        fresh = torch.randn_like(action)
        if self._noise is None or self._noise.shape != action.shape:
            self._noise = fresh
            self._level = self.exploration_noise * torch.rand(len(action), 1)
        else:
            self._noise = NOISE_MEMORY * self._noise + math.sqrt(1 - NOISE_MEMORY**2) * fresh
        return self._level * self._noise


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
            with 0 successes do not join the demonstration.
        imitation_weight: factor, in the actor's loss, of its mean action's mean squared distance from the cloned
            policy's, and from the action itself in the batch's share of demonstration.
        cloned_rollouts: first rollouts acted by the noisy cloned policy alone.
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
    replay_buffer: NStepReplayBuffer

    def __init__(
        self,
        env: VecEnv,
        demonstration: Demonstration,
        *,
        gamma: float = 0.98,
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
        _check_fit(demonstration, env)
        self._settings: dict[str, Any] = {
            "gamma": gamma,
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
            n_steps=n_steps,
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
        if n_steps == 1:  # Stable-Baselines3 then chooses a buffer without discounts; one class serves both
            self.replay_buffer = NStepReplayBuffer(
                buffer_size, self.observation_space, self.action_space, device=self.device, n_steps=1, gamma=gamma
            )
        if self.ent_coef_optimizer is not None:
            self.ent_coef_optimizer.param_groups[0]["lr"] = ENTROPY_LEARNING_RATE
        self.set_logger(Logger(None, []))  # Stable-Baselines3's default makes a temporary folder per call
        self.demonstration = demonstration
        self.demonstration_buffer = NStepReplayBuffer(
            len(demonstration) + buffer_size,
            self.observation_space,
            self.action_space,
            device=self.device,
            n_steps=n_steps,
            gamma=gamma,
        )
        last = len(demonstration) - 1
        for step in range(len(demonstration)):
            terminated = bool(demonstration.terminated[step])
            self.demonstration_buffer.add(
                demonstration.observations[step],
                demonstration.next_observations[step],
                self.policy.scale_action(demonstration.actions[step]),
                demonstration.rewards[step],
                np.array([terminated or step == last]),
                [{"TimeLimit.truncated": step == last and not terminated}],
            )

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
        watch = _Watch()
        if self.seed is None and self._last_obs is None:
            self._last_obs = self.env.reset()
        for _ in range(rollouts):
            record = self._rollout(watch)
            if on_rollout is not None and on_rollout(record) is False:
                break
        return self

    def _rollout(self, watch: "_Watch") -> Rollout:
        began = time.perf_counter()
        if self.seed is not None:
            self.env.seed(instance_seeds(self.seed, self.rollouts + 1, "training")[-1])
            self._last_obs = self.env.reset()
        if not np.isfinite(self._last_obs).all():
            raise TraceError("the first observation of a rollout is not finite; check the sensor or the simulation")
        _, callback = self._setup_learn(1, watch, reset_num_timesteps=False)
        self.policy.begin_rollout()
        self.policy.cloned_only = self.rollouts < self.cloned_rollouts
        replay, taught, steps = self.replay_buffer, self.demonstration_buffer, self.num_timesteps
        before = replay.pos, replay.full, taught.pos, taught.full
        finished = False
        try:
            self.collect_rollouts(self.env, callback, self.train_freq, replay, learning_starts=0)
            self.policy.cloned_only = False
            self.train(self.updates_per_step * watch.length, self.batch_size)
            if watch.success and self.imitation_steps:
                self._imitate(replay.pos, watch.length)
            finished = True
        finally:
            self.policy.cloned_only = False
            if not finished:
                # Half an episode must not stay: n-step returns would run on from it into the next one.
                replay.pos, replay.full, taught.pos, taught.full = before
                self.num_timesteps = steps
                self._last_obs = None
        self.rollouts += 1
        self._elapsed_s += time.perf_counter() - began
        return Rollout(
            number=self.rollouts,
            success=watch.success,
            length=watch.length,
            reward=watch.reward,
            task_reward=watch.task_reward,
            mean_phi=float(np.mean(watch.phi)) if watch.phi else None,
            elapsed_s=self._elapsed_s,
        )

    def _imitate(self, end: int, length: int) -> None:
        """The rollout before `end` of the replay buffer joins the demonstration; the cloned policy learns from all."""
        source, target = self.replay_buffer, self.demonstration_buffer
        rows = (end - length + np.arange(length)) % source.buffer_size
        room = (target.pos + np.arange(length)) % target.buffer_size
        for name in _COLUMNS:
            getattr(target, name)[room] = getattr(source, name)[rows]
        target.full = target.full or target.pos + length >= target.buffer_size
        target.pos = (target.pos + length) % target.buffer_size
        size = target.size()
        fit(
            self.policy.cloned,
            target.observations[:size, 0],
            target.actions[:size, 0],
            rng=self.rng,
            steps=self.imitation_steps,
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

        A folder of `config.json`, `weights.safetensors` and `replay.npz`; one that exists is replaced only when the new
        one is complete. Continuing is exact between rollouts with a `seed`, on the same machine and thread count.
        """
        folder = Path(folder)
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        weights = {f"policy.{name}": tensor for name, tensor in self.policy.state_dict().items()}
        for name, optimizer in self._optimizers().items():
            for index, state in optimizer.state_dict()["state"].items():
                weights |= {f"{name}.{index}.{key}": tensor for key, tensor in state.items()}
        if self.log_ent_coef is not None:
            weights["log_ent_coef"] = self.log_ent_coef.detach()
        weights["torch_rng"] = torch.get_rng_state()
        save_file(
            {name: tensor.contiguous().clone() for name, tensor in weights.items()}, partial / "weights.safetensors"
        )
        arrays = {f"original.{name}": getattr(self.demonstration, name) for name in _DEMONSTRATION}
        for name, buffer in self._buffers().items():
            arrays |= {f"{name}.{column}": getattr(buffer, column)[: buffer.size()] for column in _COLUMNS}
        np.savez(partial / "replay.npz", **arrays)
        config = {
            "schema": SCHEMA,
            "observation_size": int(self.observation_space.shape[0]),
            "action_size": int(self.action_space.shape[0]),
            "settings": self._settings,
            "rollouts": self.rollouts,
            "elapsed_s": self._elapsed_s,
            "num_timesteps": self.num_timesteps,
            "updates": self._n_updates,
            "positions": {name: [buffer.pos, buffer.full] for name, buffer in self._buffers().items()},
            "rng": self.rng.bit_generator.state,
        }
        (partial / "config.json").write_text(json.dumps(config, indent=1))
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)

    @classmethod
    def load_checkpoint(cls, folder: Path | str, env: VecEnv) -> Self:
        """The learner as it was saved, on `env`; `learn_rollouts` continues where it stopped.

        Raises:
            CheckpointError: no checkpoint, one of another schema, or one that does not fit `env`.
        """
        folder = Path(folder)
        try:
            config = json.loads((folder / "config.json").read_text())
            weights = load_file(folder / "weights.safetensors")
            with np.load(folder / "replay.npz", allow_pickle=False) as file:
                replay = dict(file)
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder} is not a readable checkpoint ({error}); expected config.json, weights.safetensors and "
                f"replay.npz as `save_checkpoint` writes them"
            ) from error
        if config.get("schema") != SCHEMA:
            raise CheckpointError(f"{folder} has schema {config.get('schema')}; expected {SCHEMA}, train it again")
        check_single(env)
        for what, space in (("observation", env.observation_space), ("action", env.action_space)):
            if (saved := config[f"{what}_size"]) != (given := spaces.flatdim(space)):
                raise CheckpointError(
                    f"{folder} was trained with {saved} {what} numbers and the environment has {given}; expected as "
                    f"many: make the environment with the settings of the training run"
                )
        demonstration = Demonstration(**{name: replay[f"original.{name}"] for name in _DEMONSTRATION})
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
        for name, optimizer in self._optimizers().items():
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key, tensor in weights.items():
                owner, _, rest = key.partition(".")
                if owner == name:
                    index, _, entry = rest.partition(".")
                    state.setdefault(int(index), {})[entry] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        if self.log_ent_coef is not None:
            with torch.no_grad():
                self.log_ent_coef.copy_(weights["log_ent_coef"])
        for name, buffer in self._buffers().items():
            for column in _COLUMNS:
                rows = replay[f"{name}.{column}"]
                getattr(buffer, column)[: len(rows)] = rows
            buffer.pos, buffer.full = config["positions"][name]
        self.rollouts, self._elapsed_s = config["rollouts"], config["elapsed_s"]
        self.num_timesteps, self._n_updates = config["num_timesteps"], config["updates"]
        self.rng.bit_generator.state = config["rng"]
        torch.set_rng_state(weights["torch_rng"])

    def _buffers(self) -> dict[str, NStepReplayBuffer]:
        return {"replay": self.replay_buffer, "demonstration": self.demonstration_buffer}

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizers = {"actor_optimizer": self.actor.optimizer, "critic_optimizer": self.critic.optimizer}
        if self.ent_coef_optimizer is not None:
            optimizers["ent_coef_optimizer"] = self.ent_coef_optimizer
        return optimizers


_COLUMNS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
_DEMONSTRATION = ("observations", "actions", "rewards", "next_observations", "terminated")


class _Watch(BaseCallback):
    """Checks every step and adds up what a `Rollout` reports."""

    def __init__(self) -> None:
        super().__init__()
        self._begin()

    def _begin(self) -> None:
        self.length, self.reward, self.task_reward, self.success = 0, 0.0, 0.0, False
        self.phi: list[float] = []

    def _on_rollout_start(self) -> None:
        self._begin()

    def _on_step(self) -> bool:
        [info], [reward], [ended] = self.locals["infos"], self.locals["rewards"], self.locals["dones"]
        observation = info["terminal_observation"] if ended else self.locals["new_obs"]
        self.length += 1
        if not (np.isfinite(observation).all() and np.isfinite(reward)):
            raise TraceError(
                f"the observation or the reward of decision {self.length} is not finite; check the sensor or "
                f"the simulation"
            )
        self.reward += float(reward)
        self.task_reward += float(info.get("task_reward", reward))
        phi = info.get("phi")
        if phi is not None and np.isfinite(phi):
            self.phi.append(float(phi))
        if ended:
            self.success = succeeded(info)
        return True


def _check_fit(demonstration: Demonstration, env: VecEnv) -> None:
    for what, array, space in (
        ("observations", demonstration.observations, env.observation_space),
        ("actions", demonstration.actions, env.action_space),
    ):
        if not isinstance(space, spaces.Box) or array.shape[1:] != space.shape:
            raise TraceError(
                f"the demonstration's {what} have shape {array.shape[1:]} and the environment's are {space}; expected "
                f"one environment for both"
            )
    low, high = env.action_space.low, env.action_space.high
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise TraceError(f"the environment's actions are in {env.action_space}; expected finite bounds")
    if (demonstration.actions < low - 1e-4).any() or (demonstration.actions > high + 1e-4).any():
        raise TraceError(
            f"the demonstration's actions reach from {demonstration.actions.min():.3g} to "
            f"{demonstration.actions.max():.3g}, outside of {env.action_space}; clip them, as the environment does"
        )
