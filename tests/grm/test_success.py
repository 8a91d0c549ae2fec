import copy

import numpy as np
import pytest
import torch

from grm.errors import TraceError
from grm.models.multiview import GRM
from grm.reward import Frame
from grm.success import _balance, teach_success

from ..tiny import square, tiny_grm


@pytest.fixture(scope="module")
def model() -> GRM:
    return tiny_grm()


def cloud(rng: np.random.Generator, frames: int, centre: float, *, h: int = 256) -> np.ndarray:
    return rng.normal(size=(frames, h)) + centre


def said(model: GRM, standing: np.ndarray) -> np.ndarray:
    done = model.network.done
    logit = standing @ done.weight[0].detach().double().numpy() + done.bias.item()
    return 1 / (1 + np.exp(-logit))


def test_what_a_frame_stands_for_is_what_the_judge_reads_the_head_from(model):
    episode = square(3)
    task, frames = square(4).as_goal(), episode.frames
    frames[2] = Frame(views={}, time=frames[2].time)
    standing, judged = model.standing(task, frames), model.judge(task, frames)
    np.testing.assert_array_equal(np.isnan(standing).all(1), np.isnan(judged.success))
    shown = ~np.isnan(judged.success)
    np.testing.assert_allclose(said(model, standing[shown]), judged.success[shown], atol=1e-5)
    assert np.isnan(model.standing(task, [Frame(views={})])).all()


def test_verdicts_are_learned_and_hold_for_what_was_not_told(model):
    rng = np.random.default_rng(0)
    parts = [(cloud(rng, 20, -0.3), cloud(rng, 6, 0.3)) for _ in range(12)]
    standing = [np.concatenate(part) for part in parts]
    done = [np.arange(26) >= 20] * 12
    before = copy.deepcopy(model.network.state_dict())
    taught = teach_success(model, standing[:8], done[:8])
    right = np.concatenate([said(taught, s) > 0.5 for s in standing[8:]]) == np.concatenate(done[8:])
    assert right.mean() > 0.95
    after = taught.network.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == {"done.weight", "done.bias"}
    assert all(torch.equal(value, before[name]) for name, value in model.network.state_dict().items()), "the old one"
    assert taught.fuser is model.fuser
    unseen = np.full((3, 256), np.nan)
    again = teach_success(model, [*standing[:8], unseen], [*done[:8], np.ones(3, bool)])
    torch.testing.assert_close(again.network.done.weight, taught.network.done.weight)  # what shows nothing says nothing


def test_a_refuted_claim_weighs_more_than_its_few_frames(model):
    """A hundred and more frames look nothing like done, five of one rollout do: they are what it has to learn."""
    rng = np.random.default_rng(1)
    with torch.no_grad():
        model.network.done.weight.fill_(0.1)
        model.network.done.bias.fill_(0.0)
    trick = np.zeros(256)
    trick[:8] = 4.0
    fooled = [np.concatenate([cloud(rng, 60, -0.5), cloud(rng, 5, 0.3) + trick]) for _ in range(3)]
    real = [np.concatenate([cloud(rng, 60, -0.5), cloud(rng, 5, 0.3)]) for _ in range(3)]
    told = [np.zeros(65, bool)] * 3, [np.arange(65) >= 60] * 3
    assert all(said(model, one)[-5:].min() > 0.9 for one in fooled), "so it is believed"
    taught = teach_success(model, [*fooled[:2], *real[:2]], [*told[0][:2], *told[1][:2]])
    assert said(taught, fooled[2])[-5:].max() < 0.5 < said(taught, real[2])[-5:].min()


def test_every_rollout_says_as_much_of_each_kind_of_frame():
    y = torch.tensor([0.0, 0, 1, 1, 1, 0, 0, 0, 0])
    taken = torch.tensor([False, True, True, True, True, False, False, True, True])
    rollout = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1])
    weight = _balance(y, taken, rollout)
    assert float(weight.sum()) == pytest.approx(1)
    # Of the first, what is taken for done just before it is counts with the rest; of the second it is a kind apart.
    np.testing.assert_allclose(4 * weight, [1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2, 1 / 2, 1 / 2])


@pytest.mark.parametrize("done", [True, False])
def test_verdicts_of_one_kind_teach_nothing(model, done):
    found = 4 if done else 0
    with pytest.raises(TraceError, match=f"{found} of 4 usable frames show the task done; expected some that do and"):
        teach_success(model, [np.zeros((4, 256))], [np.full(4, done)])
