"""Learners: a policy out of one demonstration and a few rollouts."""

from .bc import ClonedPolicy, clone
from .offpolicy import Demonstration, DemonstrationSAC, Rollout
from .rollout import Evaluation, evaluate, instance_seeds

__all__ = [
    "ClonedPolicy",
    "Demonstration",
    "DemonstrationSAC",
    "Evaluation",
    "Rollout",
    "clone",
    "evaluate",
    "instance_seeds",
]
