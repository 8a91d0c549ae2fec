from dataclasses import replace

import numpy as np
import pytest

from envs.metaworld import VIEWS, MetaWorldEnv
from grm.data.lerobot import read_episodes
from grm.errors import TraceError
from grm.models.multiview import GRM
from policies import onlookers
from policies.arms import DENSE, PROVER
from policies.one_shot import world_of
from policies.onlookers import DenseOnlooker, ModelOnlooker, Opinion, ProverOnlooker, look_at, play_back


@pytest.fixture(scope="module")
def demonstration(begun):
    [episode] = read_episodes(begun / "demonstration", [0])
    return episode


@pytest.fixture(scope="module")
def model(begun):
    return GRM.from_pretrained(begun / "grm")


@pytest.mark.parametrize("pessimism", [0.0, 1.5])
def test_the_model_says_live_what_it_says_of_the_whole_episode(demonstration, model, pessimism):
    judgement = model.judge(demonstration.as_goal(), demonstration.frames)
    opinions = look_at(ModelOnlooker(model, demonstration.as_goal(), pessimism=pessimism), demonstration)
    expected = np.maximum(0, judgement.potential - pessimism * judgement.spread)
    np.testing.assert_allclose([opinion.phi for opinion in opinions], expected, atol=1e-6)
    np.testing.assert_allclose([opinion.success for opinion in opinions], judgement.success, atol=1e-6)
    assert opinions[0].features.shape == (model.network.frame_features,)
    assert (opinions[0].features != opinions[-1].features).any()


def test_one_view_of_three(demonstration, model):
    alone = replace(demonstration, views={VIEWS[0]: demonstration.views[VIEWS[0]]})
    onlooker = ModelOnlooker(model, alone.as_goal(), views=VIEWS[:1])
    expected = model.judge(alone.as_goal(), alone.frames)
    opinions = look_at(onlooker, demonstration)
    np.testing.assert_allclose([opinion.phi for opinion in opinions], expected.potential, atol=1e-6)


def test_a_model_that_sees_nothing_has_no_opinion(demonstration, model):
    blind = replace(demonstration, views={name: 0 * images for name, images in demonstration.views.items()})
    onlooker = ModelOnlooker(model, demonstration.as_goal())
    silent = type("Silent", (), {"start": model.start, "features": model.features})()

    def extend(carries, steps):
        carries, [judgement] = model.extend(carries, steps)
        nothing = np.full(1, np.nan)
        return carries, [replace(judgement, potential=nothing, spread=nothing, judged=np.zeros(1, bool))]

    silent.extend = extend
    onlooker.model = silent
    assert {(opinion.phi, opinion.success) for opinion in look_at(onlooker, blind)} == {(None, None)}


def test_the_simulator_is_asked_by_playing_back(demonstration):
    env = world_of(demonstration, DENSE)
    states, opinions = play_back(DenseOnlooker(), demonstration, env)
    np.testing.assert_allclose(states, demonstration.state, atol=1e-3)
    phi = np.array([opinion.phi for opinion in opinions])
    assert phi[0] == 0
    assert ((phi >= 0) & (phi <= 1)).all()
    assert phi[-1] > phi[1], "the hand-written reward grows towards the goal"


def test_the_prover_is_asked_now_and_then(demonstration, monkeypatch):
    asked = []

    def progress(env, provers):
        asked.append(env.snapshot().decisions)
        return 0.1 * len(asked)

    monkeypatch.setattr(MetaWorldEnv, "true_progress", progress)
    monkeypatch.setattr(onlookers, "PROVER_INTERVAL", 5)
    _, opinions = play_back(ProverOnlooker(), demonstration, world_of(demonstration, PROVER))
    phi = [opinion.phi for opinion in opinions]
    assert asked == [t for t in range(5, len(phi), 5) if t != len(phi) - 1]
    assert phi[:11] == [0.0] * 5 + [0.1] * 5 + [0.2]
    assert phi[-1] == 1.0


@pytest.mark.parametrize("change", ["seed", "actions"])
def test_a_demonstration_from_elsewhere_is_noticed(demonstration, change):
    changed = {"seed": None, "actions": np.zeros_like(demonstration.actions)}[change]
    with pytest.raises(TraceError, match="does not end in success when it is played back"):
        play_back(DenseOnlooker(), replace(demonstration, **{change: changed}), world_of(demonstration))


def test_an_opinion_of_nothing_is_none():
    assert (Opinion().phi, Opinion().success, Opinion().features) == (None, None, None)
