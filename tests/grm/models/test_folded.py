import numpy as np
import pytest
import torch

from grm.models.folded import MOST_CAMERAS, FoldedHeads
from grm.models.multiview import GRM, Architecture, MultiViewNetwork
from grm.reward import Frame, Task

TINY = Architecture(image_size=16, features=16, text_features=8, text_buckets=64)


@pytest.fixture
def network() -> MultiViewNetwork:
    """Random, with outspoken heads and norms that are not the identity."""
    torch.manual_seed(3)
    network = MultiViewNetwork(TINY).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        for member in network.members:
            member[-1].weight *= 5
        network.absolute[-1].weight *= 5
        network.usable.bias += 10
    return network


def folded(network: MultiViewNetwork) -> FoldedHeads:
    n = network
    return FoldedHeads(
        n.hop, n.members, n.standing, n.absolute, n.done, n.centres, names=n.names, name_shift=n.name_shift
    )


@torch.no_grad()
def test_the_folded_heads_answer_as_the_networks_own(network):
    heads = folded(network)
    init, goal, before, after = torch.randn(4, 7, network.frame_features)
    text = torch.randn(7, TINY.text_features)
    moments = heads.moment(torch.stack([before, after]))
    assert moments.shape == (2, 7, heads.both + heads.hidden)
    anchors = torch.stack([heads.anchor(*of) for of in zip(text, init, goal, strict=True)])
    asked = anchors + moments[1, :, : heads.both]
    hops = heads.hops(asked[:, : heads.hidden] + moments[0, :, heads.both :])
    expected = network.expected_hop(network.hop_logits(text, init, goal, before, after))
    assert expected.std(0).min() > 0.05, "heads that say one thing prove nothing"
    assert expected.std(1).min() > 0.01
    torch.testing.assert_close(hops, expected, atol=1e-5, rtol=1e-5)
    along, done = network.absolute_logits(text, init, goal, after)
    along, done = (network.expected_hop(along) + 1) / 2, done.sigmoid()
    assert along.std(0).min() > 0.01
    assert along.std(1).min() > 0.01
    assert done.std() > 0.01
    absolute, success = heads.standing(asked[:, heads.hidden :])
    torch.testing.assert_close(absolute, along, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(success, done, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_names_add_is_remembered_for_some_and_forgotten_with_the_weights(network):
    heads = folded(network)
    for views in (("top", "side"), ("side",), *((f"camera {k}",) for k in range(MOST_CAMERAS + 3)), ("top", "side")):
        torch.testing.assert_close(heads.shift(views), network.shift(views))
        assert heads.shift(views) is heads.shift(views)
    assert len(heads._shifts) <= MOST_CAMERAS
    network.names.embedding.weight += 1.0
    assert not heads.fresh


@torch.no_grad()
def test_broadcast_questions_are_the_questions_one_by_one(network):
    text, init, goal = torch.randn(5, TINY.text_features), *torch.randn(2, 5, network.frame_features)
    befores, afters = torch.randn(2, 5, 3, network.frame_features)
    every = network.hop_logits(
        text[:, None, None], init[:, None, None], goal[:, None, None], befores[:, :, None], afters[:, None]
    )
    assert every.shape == (5, 3, 3, TINY.members, TINY.bins)
    first = network.hop[0]
    for b in range(3):
        for a in range(3):
            before, after = befores[:, b], afters[:, a]
            whole = torch.cat([init, goal, before, after, after - before, goal - after, text], -1)
            shared = network.hop[2](network.hop[1](first(whole)))
            plain = torch.stack([member(shared) for member in network.members], -2)
            torch.testing.assert_close(every[:, b, a], plain, atol=1e-4, rtol=1e-4)
    whole = torch.cat([init, goal, afters[:, 0], goal - afters[:, 0], text], -1)
    shared = network.standing(whole)
    along, done = network.absolute_logits(text, init, goal, afters[:, 0])
    assert along.shape == (5, TINY.members, TINY.bins)
    torch.testing.assert_close(along.flatten(-2), network.absolute(shared), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(done, network.done(shared).squeeze(-1), atol=1e-4, rtol=1e-4)


def test_heads_are_folded_anew_once_the_network_is_another(network):
    rng = np.random.default_rng(0)
    frames = [Frame(views={"top": rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)}) for _ in range(4)]
    task, model = Task(instruction="open it", goal=frames[-1]), GRM(network)
    before = model.judge(task, frames)
    heads = model._heads
    assert heads.fresh
    assert model._heads is heads
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    network.hop_logits(*torch.randn(1, TINY.text_features), *torch.randn(4, network.frame_features)).sum().backward()
    optimizer.step()
    assert not heads.fresh
    trained = model.judge(task, frames)
    assert np.abs(trained.forward[1:] - before.forward[1:]).max() > 1e-3
    again = MultiViewNetwork(TINY)
    again.load_state_dict(network.state_dict())
    np.testing.assert_allclose(GRM(again).judge(task, frames).forward, trained.forward, atol=1e-5)
    heads = model._heads
    network.load_state_dict(MultiViewNetwork(TINY).state_dict())
    assert not heads.fresh
