import dataclasses
import json

import numpy as np
import pytest

from envs.metaworld import MetaWorldEnv
from grm.data.lerobot import read_episodes
from grm.report import Clip
from policies.collecting import Rollout
from policies.one_shot import horizon_of
from policies.page import _notes, _verdict, success_rates, write_run_page

from .conftest import SETTINGS


def rates(before, sparse, shaped):
    return {"before": before, "sparse": sparse, "shaped": shaped}


def write_rates(folder, **names):
    for name, rate in names.items():
        arm, kind = name.split("_")
        (folder / arm).mkdir(exist_ok=True)
        (folder / arm / f"{kind}.json").write_text(json.dumps({"success_rate": rate}))


@pytest.mark.parametrize(
    ("sparse", "shaped", "end"),
    [
        (0.50, 0.80, "shaping helped."),
        (0.50, 0.53, "shaping helped."),
        (0.50, 0.51, "shaping made no difference."),
        (0.50, 0.50, "shaping made no difference."),
        (0.50, 0.49, "shaping made no difference."),
        (0.50, 0.47, "shaping hurt."),
        (1.00, 0.00, "shaping hurt."),
    ],
)
def test_verdict_says_what_happened(sparse, shaped, end):
    settings = dataclasses.replace(SETTINGS, rollouts=150)
    sentence = _verdict(rates(0.3, sparse, shaped), settings)
    assert sentence == (
        f"From one demonstration and 150 rollouts: 30 % success before, {100 * sparse:.0f} % with the sparse reward, "
        f"{100 * shaped:.0f} % with the GRM's shaping. Here, on one seed, {end}"
    )


@pytest.mark.parametrize("missing", ["before", "sparse", "shaped"])
def test_verdict_of_an_unfinished_run_claims_nothing(missing):
    sentence = _verdict(rates(0.0, 0.0, 1.0) | {missing: None}, SETTINGS)
    assert "not finished" in sentence
    assert "helped" not in sentence
    assert "%" not in sentence


def test_success_rates_of_what_is_there(tmp_path):
    assert success_rates(tmp_path) == rates(None, None, None)
    write_rates(tmp_path, shaped_before=0.0)
    assert success_rates(tmp_path) == rates(0.0, None, None), "a rate of zero is a rate"
    write_rates(tmp_path, sparse_before=0.0, shaped_evaluation=0.75)
    assert success_rates(tmp_path) == rates(0.0, None, 0.75)
    write_rates(tmp_path, sparse_evaluation=0.5)
    assert success_rates(tmp_path) == rates(0.0, 0.5, 0.75)


@pytest.fixture(scope="module")
def demonstration(begun):
    [episode] = read_episodes(begun / "demonstration", [0])
    return episode


@pytest.fixture
def quick_truth(monkeypatch):
    """Asking the prover at every frame is slow, and not what is tested here."""
    monkeypatch.setattr(MetaWorldEnv, "true_progress", lambda env: float(env.succeeded))


def clip(potential, truth):
    potential = np.array(potential, float)
    judged = ~np.isnan(potential)
    return Clip(
        title="A clip",
        views={"top": np.zeros((len(potential), 4, 4, 3), np.uint8)},
        rate_hz=10.0,
        potential=potential,
        spread=np.where(judged, 0.0, np.nan),
        judged=judged,
        outcome=False,
        truth=None if truth is None else np.array(truth, float),
    )


def test_notes_compare_with_the_truth(demonstration):
    *_, note = _notes([clip([0.0, 0.25, np.nan, 0.5], [0.0, 0.5, 0.7, 1.0])], demonstration)
    assert note == "A clip: rank correlation of Φ with the truth 1.00, mean error 0.25."


@pytest.mark.parametrize(
    ("potential", "truth"),
    [
        ([0.1, 0.2], None),
        ([0.1, 0.2], [0.0, 0.0]),  # a correlation with a constant is undefined
        ([0.3, 0.3], [0.0, 1.0]),
        ([np.nan, np.nan], [0.0, 1.0]),
        ([np.nan, 0.2], [0.0, 1.0]),
    ],
)
def test_notes_claim_nothing_of_what_cannot_be_compared(demonstration, potential, truth):
    assert len(_notes([clip(potential, truth)], demonstration)) == len(_notes([], demonstration)) == 2


def test_page_of_a_run_that_only_began(begun_copy, quick_truth):
    path = write_run_page(SETTINGS, begun_copy, seconds=90.0)
    assert path == begun_copy / "index.html"
    page = path.read_text()
    for words in ("Move the gripper to the goal", "not finished", "grm demo --task reach", "The expert, on another"):
        assert words in page, words
    assert "A failed rollout" not in page


def test_page_shows_what_the_arms_left(begun_copy, demonstration, quick_truth):
    write_rates(begun_copy, sparse_before=0.5, sparse_evaluation=0.5, shaped_evaluation=1.0)
    header = ",".join(Rollout.__dataclass_fields__)
    for arm in ("sparse", "shaped"):
        (begun_copy / arm / "rollouts.csv").write_text(f"{header}\n1,False,50,0.0,0.0,,2.0\n2,True,9,1.0,1.0,,3.0\n")
    np.savez(
        begun_copy / "shaped" / "last_failure.npz",
        seed=np.array(1),
        actions=np.zeros((horizon_of(demonstration), 4), np.float32),
        number=np.array(1),
    )
    page = write_run_page(SETTINGS, begun_copy, seconds=90.0).read_text()
    for words in (
        "50 % success before, 50 % with the sparse reward, 100 % with the GRM&#x27;s shaping",
        "shaping helped",
        "A failed rollout (number 1)",
        "success on 2 fresh instances",
    ):
        assert words in page, words
    assert "not finished" not in page
    assert "A late success" not in page
