"""The smallest policy that LeRobot's trainer can weight by sample: a linear map from state to an action chunk.

Those that come with LeRobot and can be weighted start from weights that have to be downloaded. Found by
`--policy.discover_packages_path=linear_policy`, with this folder's parent on the path.
"""

from .configuration_linear import LinearConfig

__all__ = ["LinearConfig"]
