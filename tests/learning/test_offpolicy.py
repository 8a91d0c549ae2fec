"""Does the learner learn? `pytest -m slow tests/learning`."""

import numpy as np
import pytest
import torch

from policies import DemonstrationSAC, evaluate
from policies.bc import ClonedPolicy, standardization
from tests.policies.reaching import demonstration, reaching

pytestmark = pytest.mark.slow


def test_it_outgrows_a_cloned_policy_that_has_learned_nothing():
    torch.set_num_threads(1)
    shown = demonstration()
    torch.manual_seed(0)
    untrained = ClonedPolicy(*standardization(shown.observations), 1, hidden=64)
    # From 1 to 2 away at 0.2 a decision, in 15 decisions: standing still never gets there.
    assert evaluate(untrained, reaching(), episodes=20, seed=0).success_rate < 0.2
    learner = DemonstrationSAC(reaching(), shown, hidden=64, cloned=untrained, seed=0)
    records = []
    learner.learn_rollouts(40, lambda record: records.append(record) and None)
    assert np.mean([record.success for record in records[-10:]]) >= 0.9
    assert evaluate(learner, reaching(), episodes=20, seed=0).success_rate >= 0.9
