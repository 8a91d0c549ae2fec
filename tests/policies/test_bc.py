import numpy as np
import pytest
import torch

from grm.errors import TraceError
from policies.bc import SCALE_FLOOR, ClonedPolicy, Standardize, clone, standardization

torch.set_num_threads(1)


def line(t: int = 21) -> tuple[np.ndarray, np.ndarray]:
    x = np.linspace(-1, 1, t)
    return np.stack([x, np.full(t, 7.0)], 1).astype(np.float32), (0.8 * x)[:, None].astype(np.float32)


def test_constant_inputs_are_divided_by_the_floor_and_not_by_zero():
    mean, scale = standardization(np.array([[0.0, 3.0], [2.0, 3.0]]))
    np.testing.assert_allclose(mean, [1, 3])
    np.testing.assert_allclose(scale, [1, SCALE_FLOOR])


def test_standardize_by_hand_and_clipped():
    standardize = Standardize(np.array([1.0, 3.0]), np.array([2.0, 0.5]), limit=10)
    out = standardize(torch.tensor([[5.0, 3.25], [-1.0, 300.0]]))
    torch.testing.assert_close(out, torch.tensor([[2.0, 0.5], [-1.0, 10.0]]))


def test_clone_reproduces_the_demonstration():
    observations, actions = line()
    policy = clone(observations, actions, rng=np.random.default_rng(0), steps=300, noise=0.05, hidden=32)
    predicted, state = policy.predict(observations)
    assert state is None
    np.testing.assert_allclose(predicted[[0, 3, -4, -1]], actions[[0, 3, -4, -1]], atol=0.1)


def test_clone_follows_from_its_generator_and_leaves_torch_alone():
    observations, actions = line()
    before = torch.get_rng_state()
    first, again, other = (
        clone(observations, actions, rng=np.random.default_rng(seed), steps=3).predict(observations)[0]
        for seed in (0, 0, 1)
    )
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_normalisation_travels_with_the_weights():
    observations, actions = line()
    policy = clone(observations, actions, rng=np.random.default_rng(0), steps=3)
    twin = ClonedPolicy(np.zeros(2), np.ones(2), 1)
    assert not np.array_equal(twin.predict(observations)[0], policy.predict(observations)[0])
    twin.load_state_dict(policy.state_dict())
    np.testing.assert_array_equal(twin.predict(observations)[0], policy.predict(observations)[0])


@pytest.mark.parametrize(
    ("observations", "actions", "words"),
    [
        (np.zeros((1, 2)), np.zeros((1, 1)), "at least 2"),
        (np.zeros((3, 2)), np.zeros((4, 1)), "same t"),
        (np.full((3, 2), np.nan), np.zeros((3, 1)), "not all finite"),
        (np.zeros((3, 2)), np.full((3, 1), 1.5), "scale or clip"),
    ],
)
def test_bad_demonstrations_are_refused(observations, actions, words):
    with pytest.raises(TraceError, match=words):
        clone(observations, actions, rng=np.random.default_rng(0))
