import numpy as np
import pytest
import torch

from policies.guide import Guide, fit_guide


def test_a_guide_learns_a_function_of_the_state_and_weights_say_whom_to_believe():
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    states = rng.uniform(-1, 1, (300, 2)).astype(np.float32)
    states.setflags(write=False)
    truth = 0.5 + 0.4 * states[:, 0]
    guide = Guide(np.zeros(2, np.float32), np.ones(2, np.float32))
    assert np.abs(guide.potential(states) - truth).mean() > 0.1
    noisy = np.clip(truth + rng.normal(0, 0.1, 300), 0, 1)
    fit_guide(guide, states, noisy, np.ones(300), rng=rng, steps=1000)
    # Nearer to the truth than the labels are, which are off by .08: neighbours average the noise out.
    assert np.abs(guide.potential(states) - truth).mean() < 0.03
    assert guide.potential(states).dtype == np.float64
    both = np.concatenate([np.zeros(300), np.ones(300)])
    twice = np.concatenate([states, states])
    fit_guide(guide, twice, both, np.repeat([3.0, 1.0], 300), rng=rng, steps=600)
    assert guide.potential(states).mean() == pytest.approx(0.25, abs=0.03)


def test_normalisation_is_inside_and_fitting_draws_only_from_its_generator():
    guide = Guide(np.array([5.0], np.float32), np.array([2.0], np.float32))
    plain = Guide(np.zeros(1, np.float32), np.ones(1, np.float32))
    plain.network.load_state_dict(guide.network.state_dict())
    np.testing.assert_allclose(guide.potential(np.array([[7.0]])), plain.potential(np.array([[1.0]])), rtol=1e-6)
    before = torch.get_rng_state()
    for model in (guide, plain):
        states = np.array([[5.0], [7.0]]) if model is guide else np.array([[0.0], [1.0]])
        rng = np.random.default_rng(1)
        fit_guide(model, states.astype(np.float32), np.array([0.2, 0.8]), np.ones(2), rng=rng, steps=20)
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_allclose(guide.potential(np.array([[6.0]])), plain.potential(np.array([[0.5]])), rtol=1e-4)
