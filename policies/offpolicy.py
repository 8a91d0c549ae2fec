"""Soft actor-critic taught to start from one demonstration.

What is added to Stable-Baselines3's SAC, and whose idea it is:

- a fixed share of every batch comes from the demonstration, and the critics are an ensemble with layer normalisation,
  updated several times per decision (RLPD: Ball et al. 2023, "Efficient Online Reinforcement Learning with Offline
  Data");
- two proposals: a behaviour-cloned policy proposes an action beside the actor's own, and the better by Q is taken, for
  acting and in the TD target (IBRL: Hu et al. 2023, "Imitation Bootstrapped Reinforcement Learning"); better means
  that every critic of the ensemble says so;
- successes become demonstrations: a rollout that solved the task joins the demonstration, and the cloned policy is
  trained a little further on all of them (self-imitation: Oh et al. 2018);
- n-step returns, which a shaped reward needs most: n steps of signal against one error of the potential.

Time is counted in rollouts, because a rollout is what costs a person something. One rollout: one episode is collected,
then `updates_per_step` gradient updates are made per decision of it.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

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
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.sac.policies import ContinuousCritic, SACPolicy
from torch import nn

from grm.errors import CheckpointError, TraceError

from .bc import ClonedPolicy, Standardize, clone, fit, standardization
from .rollout import check_single, instance_seeds, succeeded

SCHEMA = 1
"""Version of the checkpoint folder's layout."""
ACTOR_INTERVAL = 2
"""Critic updates per actor update."""


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


class EnsembleNorm(nn.Module):
    """Layer normalisation over the last axis, with a gain and a bias of its own for each member."""

    def __init__(self, members: int, size: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(members, 1, size))
        self.bias = nn.Parameter(torch.zeros(members, 1, size))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(members, batch, size) to the same."""
        return nn.functional.layer_norm(inputs, inputs.shape[-1:]) * self.gain + self.bias


class CriticEnsemble(ContinuousCritic):
    """Q functions with layer normalisation, evaluated together; `forward` is Stable-Baselines3's."""

    def __init__(self, *, n_critics: int, net_arch: list[int], **kwargs: Any) -> None:
        super().__init__(n_critics=0, net_arch=net_arch, **kwargs)
        self.n_critics = n_critics
        size = self.features_extractor.features_dim + spaces.flatdim(self.action_space)
        layers: list[nn.Module] = []
        for width in net_arch:
            layers += [EnsembleLinear(n_critics, size, width), EnsembleNorm(n_critics, width), nn.ReLU()]
            size = width
        self.ensemble = nn.Sequential(*layers, EnsembleLinear(n_critics, size, 1))

    def values(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """(batch, n) observations and (batch, a) actions to (members, batch) values."""
        features = self.extract_features(observations, self.features_extractor)
        inputs = torch.cat([features, actions], dim=1)
        return self.ensemble(inputs.expand(self.n_critics, *inputs.shape)).squeeze(-1)

    def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(batch, 1) values of each member."""
        return tuple(self.values(obs, actions).unsqueeze(-1))

    def q1_forward(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """(batch, 1) values of the first member."""
        return self.values(obs, actions)[0].unsqueeze(-1)


def actor_is_better(values: torch.Tensor) -> torch.Tensor:
    """Whether all members prefer the actor's proposal: (members, 2, batch) values, actor's then cloned, to (batch,).

    The better by mean or minimum would be the actor's too often: it climbs the critics' errors, the cloned policy does
    not. Comparing within each member cancels the error that both proposals share.
    """
    return (values[:, 0] > values[:, 1]).all(0)


class ProposalPolicy(SACPolicy):
    """Actor and cloned policy both propose an action; the actor's is taken where all critics rate it higher.

    `cloned_only` makes it act as the cloned policy does, for the first rollouts: the critics know nothing yet.
    `exploration_noise` is the standard deviation of Gaussian noise on the cloned proposal where the policy is asked to
    explore; the actor brings its own.
    """

    def __init__(self, *args: Any, cloned: ClonedPolicy, exploration_noise: float = 0.1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cloned = cloned.requires_grad_(False)
        self.exploration_noise = exploration_noise
        self.cloned_only = False

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> CriticEnsemble:
        """An ensemble with layer normalisation."""
        return CriticEnsemble(**self._update_features_extractor(self.critic_kwargs, features_extractor)).to(self.device)

    def _predict(self, observation: torch.Tensor, deterministic: bool = False) -> torch.Tensor:
        cloned = self.cloned(observation)
        if not deterministic:
            cloned = (cloned + self.exploration_noise * torch.randn_like(cloned)).clamp(-1, 1)
        if self.cloned_only:
            return cloned
        proposals = torch.stack([self.actor(observation, deterministic), cloned])
        batch = len(observation)
        values = self.critic.values(observation.repeat(2, 1), proposals.flatten(0, 1)).view(-1, 2, batch)
        return torch.where(actor_is_better(values)[:, None], proposals[0], proposals[1])


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
        learning_rate: of actor, critics and entropy coefficient (Adam).
        tau: how far the target critics move towards the critics per update.
        ent_coef: entropy coefficient, or `auto` (`auto_0.1` starts at 0.1) for SAC's own adjustment.
        exploration_noise: see `ProposalPolicy`.
        imitation_steps: gradient steps of the cloned policy after each success, on the demonstration and all successes;
            with 0 successes do not join the demonstration.
        imitation_weight: factor, in the actor's loss, of the mean squared error of its mean action on the batch's share
            of demonstration (Nair et al. 2018, without the filter).
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
        exploration_noise: float = 0.1,
        imitation_steps: int = 200,
        imitation_weight: float = 1.0,
        cloned_rollouts: int = 10,
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
        """`gradient_steps` updates of critics, actor and entropy coefficient."""
        self.policy.set_training_mode(True)
        actor_parameters = list(self.actor.parameters())
        for update in range(gradient_steps):
            batch = self._sample(batch_size)
            with torch.no_grad():
                target = self._target(batch)
            values = self.critic.values(batch.observations, batch.actions)
            critic_loss = 0.5 * (values - target).square().mean(1).sum()
            self.critic.optimizer.zero_grad()
            critic_loss.backward()
            self.critic.optimizer.step()
            polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
            if update % ACTOR_INTERVAL:
                continue

            actions, log_prob = self.actor.action_log_prob(batch.observations)
            if self.ent_coef_optimizer is not None and self.log_ent_coef is not None:
                ent_coef = self.log_ent_coef.detach().exp()
                ent_coef_loss = -(self.log_ent_coef * (log_prob.detach().mean() + self.target_entropy))
                self.ent_coef_optimizer.zero_grad()
                ent_coef_loss.backward()
                self.ent_coef_optimizer.step()
            else:
                ent_coef = self.ent_coef_tensor
            actor_loss = (ent_coef * log_prob - self.critic.values(batch.observations, actions).mean(0)).mean()
            if self.imitation_weight and self.demonstration_rows:
                shown = slice(batch_size - self.demonstration_rows, None)
                mean = self.actor(batch.observations[shown], deterministic=True)
                actor_loss = actor_loss + self.imitation_weight * nn.functional.mse_loss(mean, batch.actions[shown])
            self.actor.optimizer.zero_grad()
            actor_loss.backward(inputs=actor_parameters)
            self.actor.optimizer.step()
        self._n_updates += gradient_steps

    def _target(self, batch: ReplayBufferSamples) -> torch.Tensor:
        """(batch,) n-step return plus the better proposal's value, without an entropy bonus, as in RLPD."""
        actions, _ = self.actor.action_log_prob(batch.next_observations)
        proposals = torch.cat([actions, self.policy.cloned(batch.next_observations)])
        values = self.critic_target.values(batch.next_observations.repeat(2, 1), proposals)
        values = values.view(len(values), 2, -1)
        best = torch.where(actor_is_better(values), *values.amin(0))
        assert batch.discounts is not None
        bootstrap = (1 - batch.dones) * batch.discounts
        return self.reward_scale * batch.rewards.squeeze(1) + bootstrap.squeeze(1) * best

    def _sample(self, batch_size: int) -> ReplayBufferSamples:
        """A batch with its fixed share of demonstration; indices come from this learner's own generator."""
        parts = []
        for buffer, count in (
            (self.replay_buffer, batch_size - self.demonstration_rows),
            (self.demonstration_buffer, self.demonstration_rows),
        ):
            if count:
                parts.append(buffer._get_samples(self.rng.integers(buffer.size(), size=count)))
        return ReplayBufferSamples(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

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
