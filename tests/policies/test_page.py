import csv
import dataclasses
import json

import numpy as np
import pytest

from envs.metaworld import MetaWorldEnv
from grm.data.lerobot import read_episodes
from grm.models.multiview import GRM
from grm.report import Clip
from policies.arms import CLONED, GRM_ONLY, GRM_SHAPED, SPARSE
from policies.grid import Cell, write_metrics
from policies.log import COLUMNS, arm_folder
from policies.one_shot import OneShotSettings, horizon_of, run_arm
from policies.page import _notes, _verdict, expert_clip, recorded_clip, success_rates, write_grid_page, write_run_page

from .conftest import SETTINGS


def rates(cloned, sparse, grm):
    return {"cloned": cloned, "sparse": sparse, "grm": grm}


def write_rates(folder, **names):
    for arm, rate in names.items():
        arm_folder(folder, arm).mkdir(parents=True, exist_ok=True)
        (arm_folder(folder, arm) / "evaluation.json").write_text(json.dumps({"success_rate": rate}))


@pytest.mark.parametrize(
    ("sparse", "grm", "end"),
    [
        (0.50, 0.80, "the GRM helped."),
        (0.50, 0.53, "the GRM helped."),
        (0.50, 0.51, "the GRM made no difference."),
        (0.50, 0.50, "the GRM made no difference."),
        (0.50, 0.49, "the GRM made no difference."),
        (0.50, 0.47, "the GRM hurt."),
        (1.00, 0.00, "the GRM hurt."),
    ],
)
def test_verdict_says_what_happened(sparse, grm, end):
    settings = dataclasses.replace(SETTINGS, rollouts=150)
    sentence = _verdict(rates(0.3, sparse, grm), settings)
    assert sentence == (
        f"Success, from one demonstration and 150 rollouts: 30 % before, {100 * sparse:.0f} % with the sparse reward, "
        f"{100 * grm:.0f} % with the GRM. Here, on one seed, {end}"
    )


def test_verdict_of_a_run_without_some_of_the_arms_is_about_the_others():
    told = _verdict({"sparse": 0.5, "grm": 0.8}, dataclasses.replace(SETTINGS, rollouts=150))
    assert told == (
        "Success, from one demonstration and 150 rollouts: 50 % with the sparse reward, 80 % with the GRM. "
        "Here, on one seed, the GRM helped."
    )
    assert _verdict({"sparse": 0.5, "dense": 0.9}, SETTINGS).endswith("rollouts: 50 % with the sparse reward.")
    assert _verdict({"dense": 0.9}, SETTINGS) == "The table says what became of each arm."
    assert "not finished" in _verdict({"dense": None}, SETTINGS)


@pytest.mark.parametrize("missing", ["cloned", "sparse", "grm"])
def test_verdict_of_an_unfinished_run_claims_nothing(missing):
    sentence = _verdict(rates(0.0, 0.0, 1.0) | {missing: None}, SETTINGS)
    assert "not finished" in sentence
    assert "helped" not in sentence
    assert "%" not in sentence


def test_success_rates_of_what_is_there(tmp_path):
    assert success_rates(tmp_path) == rates(None, None, None)
    write_rates(tmp_path, cloned=0.0)
    assert success_rates(tmp_path) == rates(0.0, None, None), "a rate of zero is a rate"
    write_rates(tmp_path, grm=0.75)
    assert success_rates(tmp_path) == rates(0.0, None, 0.75)
    write_rates(tmp_path, sparse=0.5)
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
    write_rates(begun_copy, cloned=0.5, sparse=0.5, grm=1.0)
    for arm in ("sparse", "grm"):
        (arm_folder(begun_copy, arm) / "rollouts.csv").write_text("number,true_success\n1,False\n2,True\n")
    np.savez(
        arm_folder(begun_copy, "grm") / "last_failure.npz",
        seed=np.array(1),
        actions=np.zeros((horizon_of(demonstration), 4), np.float32),
        number=np.array(1),
    )
    page = write_run_page(SETTINGS, begun_copy, seconds=90.0).read_text()
    for words in (
        "50 % before, 50 % with the sparse reward, 100 % with the GRM.",
        "the GRM helped",
        "A failed rollout (number 1)",
        "success on 2 fresh instances",
    ):
        assert words in page, words
    assert "not finished" not in page
    assert "A late success" not in page


def test_a_recorded_rollout_plays_back_exactly(begun_copy, demonstration, quick_truth):
    """What the GRM said while learning is what it says now, also past a success that it did not see."""
    for arm in (GRM_SHAPED, GRM_ONLY):
        assert run_arm(dataclasses.replace(SETTINGS, rollouts=1), arm, begun_copy)
        own = arm_folder(begun_copy, arm.name)
        with (own / "rollouts.csv").open() as file:
            [row] = csv.DictReader(file)
        [recording] = own.glob("last_*.npz")
        model = GRM.from_pretrained(begun_copy / "grm")
        clip = recorded_clip(model, demonstration, recording, "A rollout", size=16)
        assert clip.title == "A rollout (number 1)"
        assert str(clip.outcome) == row["true_success"]
        assert len(clip.potential) == int(row["length"]) + 1
        assert {images.shape for images in clip.views.values()} == {(len(clip.potential), 16, 16, 3)}
        assert clip.potential[1:].mean() == pytest.approx(float(row["mean_phi"]), abs=1e-5)


def test_the_expert_on_another_instance(begun, demonstration, quick_truth):
    clip = expert_clip(GRM.from_pretrained(begun / "grm"), demonstration, seed=30_000, size=16)
    assert clip.outcome
    assert (clip.truth[0], clip.truth[-1]) == (0.0, 1.0)
    assert clip.rate_hz == 40.0
    assert clip.judged.all()


def some_cells(folder):
    return [
        Cell(settings=OneShotSettings(task=task, seed=seed), arm=arm, folder=folder / f"{task}-{seed}")
        for seed in (0, 1)
        for arm in (CLONED, SPARSE)
        for task in ("reach-v3", "push-v3")
    ]


def test_page_of_many_runs_counts_what_is_finished(tmp_path):
    cells = some_cells(tmp_path)
    write_rates(tmp_path / "reach-v3-0", cloned=0.0, sparse=0.5)
    write_rates(tmp_path / "reach-v3-1", sparse=1.0)
    write_grid_page(cells, tmp_path / "index.html", command="grm rl")
    page = (tmp_path / "index.html").read_text()
    for words in ("2 tasks · 2 arms · 3 of 8 cells finished", "75 % (2 of 2)", "0 % (1 of 2)", "not finished"):
        assert words in page, words


def test_metrics_hold_every_rollout_of_every_cell(tmp_path):
    cells = some_cells(tmp_path)
    own = arm_folder(tmp_path / "push-v3-1", "sparse")
    own.mkdir(parents=True)
    with (own / "rollouts.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows([dict.fromkeys(COLUMNS, ""), dict.fromkeys(COLUMNS, "")])
    write_metrics(cells, tmp_path / "metrics.csv")
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["task"], row["seed"], row["arm"]) for row in rows] == [("push-v3", "1", "sparse")] * 2
    assert list(rows[0]) == ["task", "seed", "arm", *COLUMNS]
