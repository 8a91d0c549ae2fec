import numpy as np
import pytest

from grm.errors import TraceError
from grm.models.oracle import Oracle, progress_by_time
from grm.reward import Frame, Task, Thought
from grm.testing import check_process_reward

TASK = Task(instruction="open the door")
IMAGE = np.zeros((2, 2, 3), dtype=np.uint8)
TRUTH = np.array([0.0, 0.2, 0.5, 0.4, 0.9, 1.0])


def frames():
    return [Frame(views={"front": IMAGE}, time=float(t)) for t in range(len(TRUTH))]


def oracle(**keywords):
    return Oracle(progress_by_time(np.arange(len(TRUTH)), TRUTH), **keywords)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_laws(noise):
    check_process_reward(oracle(noise=noise, seed=3), TASK, frames())


def test_laws_with_abstentions():
    table = {"a": 0.1, "b": np.nan, "c": 0.7}
    model = Oracle(lambda thought: table[thought.text], noise=0.1)
    steps = [Thought(text=text) for text in "abc"]
    check_process_reward(model, TASK, steps)
    np.testing.assert_array_equal(model.judge(TASK, steps).judged, [True, False, True])


def test_without_noise_it_is_the_truth():
    judgement = oracle().judge(TASK, frames())
    np.testing.assert_array_equal(judgement.potential, TRUTH)
    np.testing.assert_array_equal(judgement.spread, 0)


def test_noise_has_its_size_depends_on_the_seed_and_is_independent_between_steps():
    model = Oracle(lambda step: 0.5, noise=0.05, seed=1)
    potential = model.judge(TASK, [0] * 2000).potential
    assert potential.std() == pytest.approx(0.05, rel=0.1)
    assert potential.mean() == pytest.approx(0.5, abs=0.005)
    assert abs(np.corrcoef(potential[:-1], potential[1:])[0, 1]) < 0.1
    other = Oracle(lambda step: 0.5, noise=0.05, seed=2).judge(TASK, [0] * 2000).potential
    assert abs(np.corrcoef(potential, other)[0, 1]) < 0.1
    assert model.judge(TASK, [0]).spread == [0.05]


def test_noise_is_clipped_to_the_range():
    potential = Oracle(lambda step: 1.0, noise=0.5).judge(TASK, [0] * 50).potential
    assert potential.max() == 1.0
    assert potential.min() >= 0


def test_branches_share_their_prefix():
    model = oracle(noise=0.2)
    steps = frames()
    [middle], _ = model.extend([model.start(TASK)], [steps[:3]])
    _, [one, two] = model.extend([middle, middle], [steps[3:], steps[4:]])
    assert one.potential[0] != two.potential[0]
    np.testing.assert_array_equal(one.potential, model.judge(TASK, steps).potential[3:])


def test_interpolated_and_held():
    progress = progress_by_time([1.0, 3.0], [0.2, 0.6])
    at = lambda seconds: progress(Frame(views={}, time=seconds))  # noqa: E731
    assert (at(0.0), at(2.0), at(9.0)) == pytest.approx((0.2, 0.4, 0.6))


def test_malformed():
    with pytest.raises(TraceError, match=r"step 3 is 1\.5"):
        Oracle(lambda step: step).judge(TASK, [0.0, 0.1, 0.2, 1.5])
    with pytest.raises(TraceError, match="noise is -1"):
        Oracle(lambda step: 0.0, noise=-1)
    for times, values in (([0, 0], [0, 1]), ([0, 1], [0]), ([], [])):
        with pytest.raises(TraceError, match="strictly increasing"):
            progress_by_time(times, values)
