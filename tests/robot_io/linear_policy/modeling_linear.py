from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor, nn

from .configuration_linear import LinearConfig


class LinearPolicy(PreTrainedPolicy):
    config_class = LinearConfig
    name = "linear"

    def __init__(self, config: LinearConfig, **_) -> None:
        super().__init__(config)
        state, action = config.robot_state_feature.shape[0], config.action_feature.shape[0]
        self.map = nn.Linear(state, config.chunk_size * action)

    def get_optim_params(self):
        return self.parameters()

    def reset(self) -> None:
        pass

    def forward(self, batch: dict[str, Tensor], reduction: str = "mean"):
        error = (self.predict_action_chunk(batch) - batch["action"]).square().mean((1, 2))
        return (error if reduction == "none" else error.mean()), {}

    def predict_action_chunk(self, batch: dict[str, Tensor], **_) -> Tensor:
        return self.map(batch["observation.state"]).unflatten(-1, (self.config.chunk_size, -1))

    def select_action(self, batch: dict[str, Tensor], **_) -> Tensor:
        return self.predict_action_chunk(batch)[:, 0]
