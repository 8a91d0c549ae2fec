"""Does the learner learn? Minutes, not seconds: `pytest -m slow tests/learning`."""

import numpy as np
import pytest
import torch

from policies import DemonstrationSAC, evaluate
from tests.policies.reaching import demonstration, reaching

pytestmark = pytest.mark.slow
