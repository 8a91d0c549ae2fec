import numpy as np
import pytest

from grm.errors import TraceError
from grm.models.prefix import PrefixReward
from grm.reward import Frame, Task
from grm.testing import check_process_reward

TASK = Task(instruction="count")
FRAMES = [Frame(views={"top": np.full((2, 2, 3), t, np.uint8)}, time=t / 10) for t in range(5)]


def share(task, frames):
    assert task is TASK
    return float("nan") if len(frames) == 3 else len(frames) / 5


def test_it_obeys_the_laws_and_asks_about_everything_so_far():
    model = PrefixReward(share)
    check_process_reward(model, TASK, FRAMES)
    judgement = model.judge(TASK, FRAMES)
    np.testing.assert_array_equal(judgement.potential, [0.2, 0.4, np.nan, 0.8, 1.0])
    np.testing.assert_array_equal(judgement.judged, [True, True, False, True, True])
    np.testing.assert_array_equal(judgement.spread, [0, 0, np.nan, 0, 0])


@pytest.mark.parametrize("wrong", [1.2, -0.1, float("inf")])
def test_a_score_that_is_no_progress_is_refused(wrong):
    with pytest.raises(TraceError, match=rf"says {wrong} after 1 frames; expected progress in \[0, 1\]"):
        PrefixReward(lambda task, frames: wrong).judge(TASK, FRAMES)
