"""The GRM as a reward model of LeRobot: `lerobot-train --reward_model.type=grm` trains, checkpoints and resumes it.

LeRobot trains on single frames drawn from anywhere. Each comes here with three more of its episode: the first, one a
little earlier, and the last, which is lent to the others of the batch as their goal and never to its own episode. What
is asked of them is what `grm.train` asks. Labels are the column `progress` where the dataset has one, and time where
not: then every episode is taken for a success.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lerobot.configs.rewards import RewardModelConfig
from lerobot.optim.optimizers import AdamWConfig
from lerobot.processor import (
    DeviceProcessorStep,
    PolicyAction,
    PolicyProcessorPipeline,
    TransitionKey,
    policy_action_to_transition,
    transition_to_policy_action,
)
from lerobot.processor.converters import batch_to_transition
from lerobot.rewards.pretrained import PreTrainedRewardModel
from torch import Tensor, nn

from grm.data.pairs import hops_of_pairs
from grm.errors import TraceError
from grm.fusion import LeastFusion
from grm.models.multiview import GRM, Architecture, MultiViewNetwork
from grm.train import CERTAIN, two_hot

IMAGES = "observation.images."
PROGRESS = "progress"
_FAR = 1_000_000
"""Frames: as an offset, LeRobot takes it for the episode's first or last frame."""


@RewardModelConfig.register_subclass("grm")
@dataclass
class GRMConfig(RewardModelConfig):
    """What `--reward_model.*` sets."""

    checkpoint: str = ""
    """What training begins with: a folder, a Hub id, or nothing for the packaged one."""
    architecture: Architecture | None = None
    """The checkpoint's, unless told otherwise; then weights are random."""
    step_back: int = 5
    """Frames between a frame and the one before it that it is compared with."""
    goal_dropout: float = 0.1
    """Chance that a frame is judged without a goal."""
    learning_rate: float = 1e-4
    weight_decay: float = 0.05

    @property
    def observation_delta_indices(self) -> list[int]:
        """First, earlier, this and last frame."""
        return [-_FAR, -self.step_back, 0, _FAR]

    def get_optimizer_preset(self) -> AdamWConfig:
        """As `grm.train` has it."""
        return AdamWConfig(lr=self.learning_rate, weight_decay=self.weight_decay, grad_clip_norm=1.0)


class GRMRewardModel(PreTrainedRewardModel):
    """All cameras of the dataset, whichever they are; `grm` is the model that judges whole episodes."""

    config_class = GRMConfig
    name = "grm"

    def __init__(self, config: GRMConfig, dataset_stats: Any = None, dataset_meta: Any = None, **_: Any) -> None:
        super().__init__(config)
        self.config: GRMConfig = config
        if config.architecture is None:
            self.network = GRM.from_pretrained(config.checkpoint).network
            config.architecture = self.network.architecture
        else:
            self.network = MultiViewNetwork(config.architecture)
        self._starts, self._lengths = np.zeros(0, np.int64), np.zeros(0, np.int64)
        if dataset_meta is not None:
            self._starts = np.array(dataset_meta.episodes["dataset_from_index"], np.int64)
            self._lengths = np.array(dataset_meta.episodes["length"], np.int64)

    @property
    def grm(self) -> GRM:
        """The same weights as a judge of episodes; save it with `save_pretrained` for `grm inspect --model`."""
        return GRM(self.network)

    def compute_reward(self, batch: Mapping[str, Any]) -> Tensor:
        """Progress (B,) in [0, 1] of B frames with the first of their episode, and no goal picture."""
        with torch.inference_mode():
            seen, text = self._see(batch)
            init, now = seen[:, 0], seen[:, 2]
            goal = self.network.no_goal.expand_as(init)
            forward = self.network.expected_hop(self.network.hop_logits(text, init, goal, init, now)).mean(-1)
            absolute = self._progress(text, init, goal, now)
        known = [x.double().cpu().numpy()[None] for x in (forward, absolute)]
        nothing = np.full_like(known[0], np.nan)
        potential, _ = LeastFusion()(nothing[0], nothing, known[0], nothing, known[1])
        return torch.from_numpy(potential).float()

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """Loss and its parts, for training."""
        network = self.network
        seen, text = self._see(batch)
        init, before, now, last = seen.unbind(1)
        progress, earlier = self._labels(batch)
        donors = self._donors(batch)
        known = torch.from_numpy(donors >= 0).to(init.device)
        goal = torch.where(known[:, None], last[torch.from_numpy(donors).to(init.device)], network.no_goal)

        befores = torch.stack([before, init, goal], 1)
        logits = network.hop_logits(text[:, None], init[:, None], goal[:, None], befores, now[:, None])
        froms = np.stack([np.nan_to_num(earlier), np.zeros_like(progress), np.ones_like(progress)], 1)
        hops = hops_of_pairs(froms, np.broadcast_to(progress[:, None], froms.shape))
        asked = np.stack([~np.isnan(earlier), np.ones_like(donors, bool), donors >= 0], 1)
        losses = {"hop": _cross_entropy(logits, hops, asked)}

        along, done = network.absolute_logits(text, init, goal, now)
        losses["absolute"] = _cross_entropy(along, 2 * progress - 1, np.ones_like(donors, bool))
        end = torch.from_numpy((progress >= 1).astype(np.float32)).to(done)
        sure = torch.from_numpy(((progress >= 1) | (progress < CERTAIN)).astype(np.float32)).to(done)
        losses["success"] = 0.5 * F.binary_cross_entropy_with_logits(done, end, sure)
        total = torch.stack(list(losses.values())).sum()
        return total, {f"{name}_loss": loss.item() for name, loss in losses.items()}

    def get_optim_params(self) -> Iterator[nn.Parameter]:
        """All of the network's."""
        return self.network.parameters()

    def push_model_to_hub(self, cfg: Any, **_: Any) -> None:
        """LeRobot 0.6.1 passes arguments that its own base class does not take."""
        super().push_model_to_hub(cfg)

    def _see(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Features (B, 4, P) of the first, earlier, this and last frame, and of the texts (B, E)."""
        names = sorted(key.removeprefix(IMAGES) for key in batch if key.startswith(IMAGES) and not key.endswith("_pad"))
        views = [batch[IMAGES + name] for name in names]
        if not views or any(view.ndim != 5 or view.shape[1] != 4 for view in views):
            shapes = {name: tuple(view.shape) for name, view in zip(names, views, strict=True)}
            raise TraceError(
                f"the batch's images are {shapes or 'none'}; expected (B, 4, 3, h, w) of each camera: the first frame "
                f"of the episode, one {self.config.step_back} earlier, the frame itself and the last one"
            )
        size = self.network.architecture.image_size
        small = [
            F.interpolate(view.flatten(0, 1), size=(size, size), mode="bilinear", antialias=True) for view in views
        ]
        tokens = self.network.encode(torch.stack(small, 1), names)
        frames = self.network.pool(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))
        return frames.unflatten(0, (-1, 4)), self.network.text(list(batch["task"]))

    def _progress(self, text: Tensor, init: Tensor, goal: Tensor, now: Tensor) -> Tensor:
        along, _ = self.network.absolute_logits(text, init, goal, now)
        return ((self.network.expected_hop(along).mean(-1) + 1) / 2).clamp(0, 1)

    def _labels(self, batch: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Progress (B,) of each frame and of the earlier one; NaN for the latter where nobody knows."""
        if PROGRESS in batch:
            progress = batch[PROGRESS].flatten().double().cpu().numpy()
            if not ((progress >= 0) & (progress <= 1)).all():
                raise TraceError(f"column {PROGRESS!r} holds {progress.min()} to {progress.max()}; expected [0, 1]")
            return progress, np.full_like(progress, np.nan)
        episode = batch["episode_index"].flatten().cpu().numpy()
        if len(self._lengths) <= episode.max():
            raise TraceError(
                f"the batch has neither a column {PROGRESS!r} nor episodes whose length is known; expected a dataset "
                f"with that column, or a model made with `dataset_meta`, as lerobot-train makes it"
            )
        frame = batch["index"].flatten().cpu().numpy() - self._starts[episode]
        last = np.maximum(self._lengths[episode] - 1, 1)
        return frame / last, np.maximum(frame - self.config.step_back, 0) / last

    def _donors(self, batch: Mapping[str, Any]) -> np.ndarray:
        """For each frame another of its task and of another episode, whose end is its goal; -1 for none."""
        episode, task = batch["episode_index"].flatten().cpu().numpy(), np.array(batch["task"])
        donors = np.full(len(episode), -1)
        for e in range(len(episode)):
            able = np.flatnonzero((task == task[e]) & (episode != episode[e]))
            if len(able) and (not self.training or torch.rand(()).item() >= self.config.goal_dropout):
                donors[e] = able[int(torch.randint(len(able), ()))]
        return donors


def make_grm_pre_post_processors(
    config: GRMConfig, dataset_stats: Any = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]], PolicyProcessorPipeline[PolicyAction, PolicyAction]
]:
    """Move a batch to the device, its progress with it; nothing is normalised, since the network sees pictures."""
    return (
        PolicyProcessorPipeline(
            steps=[DeviceProcessorStep(device=config.device or "cpu")],
            name="grm_preprocessor",
            to_transition=_with_progress,
        ),
        PolicyProcessorPipeline(
            steps=[DeviceProcessorStep(device="cpu")],
            name="grm_postprocessor",
            to_transition=policy_action_to_transition,
            to_output=transition_to_policy_action,
        ),
    )


def _with_progress(batch: dict[str, Any]) -> Any:
    """LeRobot's own conversion drops the columns that it does not know."""
    transition = batch_to_transition(batch)
    if PROGRESS in batch:
        transition[TransitionKey.COMPLEMENTARY_DATA][PROGRESS] = batch[PROGRESS]
    return transition


def _cross_entropy(logits: Tensor, values: np.ndarray, asked: np.ndarray) -> Tensor:
    """Of values (…) in [-1, 1] under logits (…, members, bins), mean over what was asked."""
    targets = torch.from_numpy(two_hot(values, logits.shape[-1])).to(logits)[..., None, :]
    errors = -(targets * logits.log_softmax(-1)).sum(-1).mean(-1)
    weights = torch.from_numpy(asked).to(errors)
    return (errors * weights).sum() / weights.sum().clamp(min=1)
