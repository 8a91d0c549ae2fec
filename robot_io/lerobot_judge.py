"""A reward model of LeRobot as a judge of episodes: SARM, Robometer, TOPReward, a classifier, or a third party's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from draccus.utils import DecodingError
from lerobot.configs.rewards import RewardModelConfig
from lerobot.rewards import make_reward_model, make_reward_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins

from grm.errors import CheckpointError, TraceError
from grm.models.prefix import PrefixReward
from grm.reward import Frame, Task

IMAGES = "observation.images."


class LeRobotScorer:
    """Shows the model, at every frame, what a LeRobotDataset would have shown it then: the frames its config asks for.

    Frames before the beginning are the first one, as LeRobot has it; those that have not happened yet are the newest.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self._process, _ = make_reward_pre_post_processors(model.config)

    @torch.inference_mode()
    def __call__(self, task: Task, frames: Sequence[Frame]) -> float:
        """Progress after the last frame; NaN if a camera shows nothing. Raises `TraceError` if the model cannot."""
        offsets, now = self.model.config.observation_delta_indices, len(frames) - 1
        chosen = [frames[min(max(now + offset, 0), now)] for offset in offsets or [0]]
        names = sorted({name for frame in frames for name in frame.views})
        if any(name not in frame.views for frame in chosen for name in names):
            return float("nan")
        batch: dict[str, Any] = {"task": [task.instruction]}
        for name in names:
            film = torch.from_numpy(np.stack([frame.views[name] for frame in chosen])).permute(0, 3, 1, 2).float() / 255
            batch[IMAGES + name] = (film if offsets else film[0])[None]
        try:
            [reward] = self.model.compute_reward(self._process(batch)).flatten().tolist()
        except KeyError as error:
            raise TraceError(
                f"{type(self.model).__name__} asks for {error}, and is shown the cameras {', '.join(names)}; expected "
                f"a recording with the cameras it was trained on: choose them with --cameras"
            ) from error
        return reward


def load_lerobot_judge(source: str) -> PrefixReward:
    """From a folder that `lerobot-train` wrote, or a Hub id. Raises `CheckpointError` if there is no such model."""
    register_third_party_plugins()
    if not Path(source).is_dir() and source.count("/") != 1:
        raise CheckpointError(f"{source} is no folder and no Hub id; expected a reward model that lerobot-train wrote")
    try:
        config = RewardModelConfig.from_pretrained(source)
        config.pretrained_path = source
        return PrefixReward(LeRobotScorer(make_reward_model(config)))
    except (OSError, ValueError, DecodingError) as error:
        raise CheckpointError(
            f"{source} holds no reward model that LeRobot can load ({error}); expected its config.json and "
            f"model.safetensors"
        ) from error
