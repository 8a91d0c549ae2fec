"""Learners: a policy out of one demonstration and a few rollouts."""

from .bc import ClonedPolicy, clone
from .collecting import Rollout, elsewhere
from .demonstration import Collected, Demonstration
from .offpolicy import DemonstrationSAC
from .proposals import load_acting_policy
from .rollout import Evaluation, evaluate, instance_seeds

__all__ = [
    "ClonedPolicy",
    "Collected",
    "Demonstration",
    "DemonstrationSAC",
    "Evaluation",
    "Rollout",
    "clone",
    "elsewhere",
    "evaluate",
    "instance_seeds",
    "load_acting_policy",
]
