import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import evaluation, results
from benchmarks.evaluation import (
    TARGETS,
    aggregate,
    pooled_tpr,
    read_finished,
    read_scored,
    validation_split,
    verdicts,
    write_scored,
)
from grm.cli.train import _read_split
from grm.data.episodes import Episode
from grm.data.lerobot import EpisodeWriter
from grm.errors import TraceError
from grm.evaluate import Scored
from grm.metrics import Interval
from grm.models.multiview import GRM, Architecture, MultiViewNetwork

from ..tiny import square

TASKS = ("bin-picking-v3", "door-lock-v3")


def film(seed: int, task: str, behaviour: str = "expert", **known) -> Episode:
    return square(seed, task=task, behaviour=behaviour, size=16, length=10, **known)


def save_card(folder: Path, card: dict) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(card.get("seed", 0))
        network = MultiViewNetwork(Architecture(image_size=16, features=16, text_features=8, text_buckets=64))
    GRM(network).save_pretrained(folder, card)
    return folder


def save_model(folder: Path, seed: int, command: str) -> str:
    return str(save_card(folder, {"command": command, "seed": seed}))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data sets of two held-out tasks and of one that was trained on; the first has been visited, and has failures."""
    root = tmp_path_factory.mktemp("world")
    falling = np.concatenate([np.linspace(0, 0.8, 5), np.linspace(0.8, 0, 5)]).astype(np.float32)
    for task in TASKS:
        EpisodeWriter(root / "evaluation" / "demonstrations" / task).append(film(10_000, task))
        held_out = [film(1, task), film(2, task, "wander")]
        EpisodeWriter(root / "evaluation" / "held-out" / task).append(*held_out)
    visited = replace(film(3, TASKS[0], "learner", views=("top", "side")), progress=falling)
    EpisodeWriter(root / "evaluation" / "visited" / TASKS[0]).append(visited)
    # Failures that lie about their progress: if anybody believed them, the other numbers would show it.
    failures = [replace(film(s, TASKS[0], "wander"), progress=np.ones(10, np.float32)) for s in (4, 5, 6)]
    EpisodeWriter(root / "evaluation" / "failures" / TASKS[0]).append(*failures)
    trained = [film(s, "right-v3", "wander" if s in (2, 3) else "expert") for s in range(8)]
    EpisodeWriter(root / "train" / "right-v3").append(*trained)
    return root


@pytest.fixture
def run(world, tmp_path, monkeypatch):
    """Calls the benchmark on the world with one gradient step; returns the result it wrote."""
    for command in (
        ["init", "-q"],
        ["-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", "x", "--allow-empty"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    (tmp_path / "data").mkdir()
    for suite in ("demonstrations", "held-out", "visited", "failures"):
        (tmp_path / "data" / suite).symlink_to(world / "evaluation" / suite)
    command = f"grm train --data {world / 'train'} --out x --validation 0.25 --bfloat16"
    models = [save_model(tmp_path / f"model-{seed}", seed, command) for seed in (0, 7)]

    def call(*more: str) -> dict:
        words = ["evaluation.py", "--models", *models, "--data", str(tmp_path / "data"), "--tasks", *TASKS]
        words += ["--train-data", str(world / "train"), "--cache", str(world / "decoded"), "--steps", "1"]
        monkeypatch.setattr(sys, "argv", [*words, "--jobs", "1", *more])
        evaluation.main()
        return json.loads((tmp_path / "results" / "evaluation.json").read_text())

    return call


def test_models_against_the_truth_and_resumed(run, tmp_path, monkeypatch, capsys):
    content = run()
    summary = content["summary"]
    assert set(TARGETS) <= set(summary)
    assert list(summary)[: len(TARGETS)] == list(TARGETS)
    assert {"mae_visited", "abstained", "voc_plus_zero_shot", "tpr_at_fpr0_zero_shot", "adapt_cpu_minutes"} <= set(
        summary
    )
    assert content["seeds"] == [0, 7]
    # Experts and wanderers of two tasks, one visited episode and three failures; the wanderers all fail.
    assert content["episodes"] == {
        "held-out": 4,
        "visited": 1,
        "failures": 3,
        "training": 2,
        "failed": 6,
        "succeeded": 2,
    }
    with (tmp_path / "results" / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted((row["seed"], row["task"], row["arm"]) for row in rows) == sorted(
        (seed, task, arm)
        for seed in ("0", "7")
        for task, arms in ((TASKS[0], 2), (TASKS[1], 2), ("right-v3", 1))
        for arm in ("zero-shot", "one-shot")[:arms]
    )
    assert "kendall_tau                          " in capsys.readouterr().out

    # All of it is there: nothing is judged again. A killed run's unfinished line is taken back.
    def refuse(*args, **known):
        raise AssertionError("judged again")

    monkeypatch.setattr(evaluation, "adapt", refuse)
    monkeypatch.setattr(evaluation, "score_all", refuse)
    lines = (tmp_path / "data" / "units.jsonl").read_text()
    assert len(lines.splitlines()) == 6
    (tmp_path / "data" / "units.jsonl").write_text(lines + '{"key": "bin-')
    assert run()["summary"] == summary
    assert (tmp_path / "data" / "units.jsonl").read_text() == lines
    with pytest.raises(AssertionError, match="judged again"):
        run("--steps", "2")


def test_failures_count_at_their_end_only(run, tmp_path):
    run("--train-data")
    lines = read_finished(tmp_path / "data").values()
    [unit] = [line for line in lines if line["task"] == TASKS[0] and line["seed"] == 0]
    scored = read_scored(tmp_path / "data" / "units" / f"{unit['key']}.npz")
    for arm in ("zero-shot", "one-shot"):
        failures, visited = scored[arm, "failures"], scored[arm, "visited"]
        assert [len(item.potential) for item in failures] == [2, 2, 2]
        assert all(np.isnan(item.truth).all() and not item.episode.succeeded for item in failures)
        assert [len(item.potential) for item in visited] == [10]
        assert visited[0].visited
        expert, wander = scored[arm, "held-out"]
        assert np.isfinite([expert.wrong_goal, expert.wrong_instruction, expert.own_goal]).all()
        assert np.isnan([wander.wrong_goal, wander.wrong_instruction, wander.own_goal]).all()
    before, after = (scored[arm, "held-out"][0].potential for arm in ("zero-shot", "one-shot"))
    assert (before != after).any(), "one arm is adapted"


def test_the_demonstration_is_never_evaluated(tmp_path):
    for suite in ("demonstrations", "held-out"):
        EpisodeWriter(tmp_path / suite / TASKS[0]).append(film(10_000, TASKS[0]))
    with pytest.raises(TraceError, match="expert on instance 10000"):
        evaluation.prepare(TASKS[0], tmp_path, tmp_path / "decoded")


def test_data_nobody_trained_on_is_judged_whole_but_for_its_goal(run, world, tmp_path):
    with pytest.raises(TraceError, match="expected data nobody was trained on"):
        run("--unseen-data", str(world / "train"))
    assert not (tmp_path / "data" / "units.jsonl").exists()

    other = tmp_path / "other" / "right-v3"
    EpisodeWriter(other).append(*(film(s, "right-v3", "expert" if s == 21 else "wander") for s in (20, 21, 22)))
    content = run("--train-data", "--unseen-data", str(other.parent))
    assert content["episodes"]["training"] == 2
    assert "spearman_train_tasks" in content["summary"]

    failed = tmp_path / "failed" / "right-v3"
    EpisodeWriter(failed).append(film(30, "right-v3", "wander"))
    with pytest.raises(TraceError, match="no success among its episodes"):
        run("--train-data", "--unseen-data", str(failed))


def test_unseen_episodes_are_those_that_training_held_out(tmp_path):
    folders = [tmp_path / "plain" / name for name in ("left-v3", "right-v3")]
    for folder in folders:
        EpisodeWriter(folder).append(*(film(seed, folder.name) for seed in range(5)))
    command = f"grm train --data {folders[1]} {folders[0]} --out 'a b' --validation 0.3"
    model = Path(save_model(tmp_path / "model", 0, command))
    _, held = _read_split([folders[1], folders[0]], 0.3, None)
    split = validation_split(model, [tmp_path / "plain"])
    assert list(split) == folders
    predicted = {
        (root.name, i) for root, (remainder, every) in split.items() for i in range(5) if i % every == remainder
    }
    assert predicted == {(episode.task, episode.seed) for episode in held}
    assert len(predicted) == 3

    with pytest.raises(TraceError, match=r"holds no episode of .*left-v3 out"):
        validation_split(
            Path(save_model(tmp_path / "other", 0, f"grm train --data {folders[1]} --out x")), [folders[0]]
        )
    with pytest.raises(TraceError, match="holds no episode"):
        validation_split(Path(save_model(tmp_path / "all", 0, command.replace("0.3", "0.0"))), folders)

    before = {"command": command, "from": {"command": command}}
    assert validation_split(save_card(tmp_path / "later", before), folders) == split
    before["from"] = {"command": command.replace("0.3", "0.2"), "from": before["from"]}
    with pytest.raises(TraceError, match="held other episodes of"):
        validation_split(save_card(tmp_path / "leaky", before), folders)
    for shown in ("0.0", "0.3"):  # in another order, another episode is held out
        before["from"] = {"command": f"grm train --data {tmp_path / 'plain'} --out x --validation {shown}"}
        with pytest.raises(TraceError, match="held other episodes of"):
            validation_split(save_card(tmp_path / f"leaky-{shown}", before), folders)
    before["from"] = {"command": "grm train --data no/longer/there --out x --validation 0.0"}
    assert validation_split(save_card(tmp_path / "fresh", before), folders) == split


def scored(task: str, behaviour: str, potential, truth, *, done: float, succeeded: bool) -> Scored:
    potential, truth = np.array(potential, float), np.array(truth, float)
    episode = film(0, task, behaviour)
    short = {name: getattr(episode, name)[: len(truth)] for name in ("state", "actions", "rewards")}
    success = np.zeros(len(truth), bool)
    success[-1] = succeeded
    episode = replace(episode, views={}, **short, success=success, progress=truth.astype(np.float32), seed=None)
    return Scored(
        episode=episode,
        potential=potential,
        spread=np.full(len(truth), 0.1),
        truth=truth,
        success=np.full(len(truth), done),
        voc_minus=1.0,
    )


def test_judgements_come_back_as_they_were_filed(tmp_path):
    one = scored("a", "expert", [0.1, np.nan, 0.9], [0, 0.5, 1], done=0.75, succeeded=True)
    other = replace(scored("a", "learner", [0.3, 0.2], [0, 0.1], done=0.5, succeeded=False), own_goal=0.25)
    write_scored(tmp_path / "units" / "x.npz", {("one-shot", "held-out"): [one], ("one-shot", "visited"): [other]})
    found = read_scored(tmp_path / "units" / "x.npz")
    assert list(found) == [("one-shot", "held-out"), ("one-shot", "visited")]
    for item, back in ((one, found["one-shot", "held-out"][0]), (other, found["one-shot", "visited"][0])):
        for name in ("potential", "spread", "truth", "success"):
            np.testing.assert_array_equal(getattr(back, name), getattr(item, name))
        np.testing.assert_array_equal([back.voc_minus, back.own_goal], [item.voc_minus, item.own_goal])
        assert (back.demonstration, back.visited) == (item.demonstration, item.visited)
        assert back.completion == item.completion
        assert back.episode.seed is None


def test_means_over_models_then_over_tasks(tmp_path):
    """Task a: visited order 1 and -1 of two models, mean 0; task b: 1 and 1. Mean over tasks one half."""
    orders = {("m", "a"): [0, 0.5, 1], ("n", "a"): [1, 0.5, 0], ("m", "b"): [0, 0.5, 1], ("n", "b"): [0, 0.1, 0.2]}
    lines = []
    for (model, task), potential in orders.items():
        items = {
            ("one-shot", "held-out"): [scored(task, "expert", [0, 1], [0, 1], done=0.6, succeeded=True)],
            ("one-shot", "visited"): [scored(task, "learner", potential, [0, 0.2, 0.4], done=0.1, succeeded=False)],
            # Of the two failures of task a, one looks more done to model m than any success of either task.
            ("one-shot", "failures"): [
                scored(
                    task,
                    "wander",
                    [0, 0],
                    [np.nan] * 2,
                    done=0.7 if (model, task) == ("m", "a") else 0.5,
                    succeeded=False,
                )
            ],
            ("zero-shot", "held-out"): [scored(task, "expert", [1, 0], [0, 1], done=0.6, succeeded=True)],
        }
        write_scored(tmp_path / "units" / f"{model}{task}.npz", items)
        known = {"model": model, "model_hash": model, "seed": 0, "split": "held-out", "task": task}
        lines.append({"key": model + task, **known, "adapt_minutes": 1.0 if model == "m" else 2.0})
    for model in "mn":
        items = [scored("c", "wander", [0, 0.1, 0.3], [0, 0.3, 0.1], done=0.9, succeeded=False)]
        write_scored(tmp_path / "units" / f"{model}c.npz", {("zero-shot", "training"): items})
        lines.append(
            {"key": f"{model}c", "model": model, "model_hash": model, "seed": 0, "split": "training", "task": "c"}
        )
    table = aggregate(lines, tmp_path)
    summary = table.summary
    assert summary["spearman_visited"] == Interval(0.5, 0.0, 1.0)
    assert summary["adapt_minutes"] == Interval(1.5, 1.5, 1.5)
    assert summary["voc_plus"].value == pytest.approx(1)
    assert summary["voc_plus_zero_shot"].value == pytest.approx(-1)
    assert "spearman_visited_zero_shot" not in summary, "nobody was asked"
    assert summary["spearman_train_tasks"].value == pytest.approx(0.5)
    assert "spearman_off_demo" not in summary, "failures have no truth, and training tasks are not held out"
    # Model m recognises nothing above 0.7, model n everything above 0.5; without task a in a resample m does too.
    assert summary["tpr_at_fpr0"] == Interval(0.5, 0.5, 1.0)
    assert table.episodes == {"held-out": 2, "visited": 2, "failures": 2, "training": 1, "failed": 4, "succeeded": 2}
    assert [(row["model"], row["task"], row["arm"]) for row in table.rows][:2] == [
        ("m", "a", "one-shot"),
        ("m", "a", "zero-shot"),
    ]
    assert table.rows[0]["episodes"] == 3
    assert table.rows[0]["failed"] == 2
    assert "adapt_minutes" not in table.rows[1]


def test_one_threshold_for_all_tasks():
    easy = np.array([0.9, 0.8]), np.array([0.1])
    hard = np.array([0.5, np.nan]), np.array([0.6, np.nan])
    # Above 0.6 are two of four: an abstention on a success is a miss.
    found = pooled_tpr([{"a": easy, "b": hard}], 0.0, np.random.default_rng(0))
    assert found == Interval(0.5, 0.0, 1.0)
    nothing = np.zeros(0), np.array([0.1])
    assert pooled_tpr([{"a": nothing}], 0.0, np.random.default_rng(0)) is None


def test_verdicts():
    summary = {
        "spearman_visited": Interval(0.8, 0.7, 0.9),
        "voc_plus": Interval(0.97, 0.9, 0.99),
        "wrong_instruction_ratio": Interval(0.1, 0.0, 0.3),
        "adapt_minutes": Interval(2.5, 2.0, 3.0),
        "tpr_at_fpr0": Interval(0.95, 0.9, 1.0),
    }
    said = verdicts(summary, failed=1000)
    assert list(said) == list(TARGETS)
    assert {name: said[name] for name in summary} == {
        "spearman_visited": "met",
        "voc_plus": "missed",
        "wrong_instruction_ratio": "met",
        "adapt_minutes": "missed",
        "tpr_at_fpr0": "met",
    }
    assert said["falling_f1"] == "not measured"
    assert verdicts(summary, failed=999)["tpr_at_fpr0"] == "missed: 999 failures are too few"
