from dataclasses import replace

import numpy as np
import pytest

from grm.errors import TraceError
from grm.reward import Frame
from policies.classifier import fit_classifier

from ..tiny import square, tiny_network

EPISODE = square(0, length=20, views=("side", "top"))


@pytest.fixture(scope="module")
def classifier():
    return fit_classifier(tiny_network(), EPISODE, rng=np.random.default_rng(0))


def test_the_end_is_told_from_what_came_before(classifier):
    said = np.array([classifier.probability(frame) for frame in EPISODE.frames])
    assert said[-1] > 0.9
    assert (said[:15] < 0.5).all()


def test_it_is_the_same_for_the_same_generator(classifier):
    network = tiny_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    again = fit_classifier(network, EPISODE, rng=np.random.default_rng(0))
    other = fit_classifier(network, EPISODE, rng=np.random.default_rng(1))
    frame = EPISODE.frames[10]
    assert again.probability(frame) == classifier.probability(frame) != other.probability(frame)
    assert all((tensor == before[name]).all() for name, tensor in network.state_dict().items())


def test_without_a_camera_it_knows_it_abstains(classifier):
    views = EPISODE.frames[-1].views
    assert classifier.probability(Frame(views={"top": views["top"]})) is None
    assert classifier.probability(Frame(views={**views, "other": views["top"]})) is not None


@pytest.mark.parametrize("success", [np.zeros(20, bool), np.ones(20, bool)])
def test_a_demonstration_that_shows_one_class_only_is_refused(success):
    with pytest.raises(TraceError, match=f"has {success.sum()} frames that show success"):
        fit_classifier(tiny_network(), replace(EPISODE, success=success), rng=np.random.default_rng(0))
