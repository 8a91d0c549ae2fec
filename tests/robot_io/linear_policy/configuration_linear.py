from dataclasses import dataclass

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode
from lerobot.optim.optimizers import AdamConfig


@PreTrainedConfig.register_subclass("linear")
@dataclass
class LinearConfig(PreTrainedConfig):
    chunk_size: int = 3
    normalization_mapping = dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> AdamConfig:
        return AdamConfig(lr=1e-2)

    def get_scheduler_preset(self) -> None:
        return None

    def validate_features(self) -> None:
        pass
