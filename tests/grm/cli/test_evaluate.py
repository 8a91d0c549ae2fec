import csv
import dataclasses
import json

import numpy as np
import pytest

from grm import train as grm_train
from grm.cli.evaluate import find_suite
from grm.data.replay import write_replay
from grm.evaluate import METRICS, by_task, score_all
from grm.models.multiview import GRM

from ...tiny import square, tiny_grm
from .conftest import contents, grm, write_dataset

BEHAVIOURS = ("undo", "expert", "expert", "learner")


def episodes(task: str, behaviours=BEHAVIOURS, **named):
    return [square(k, task=task, behaviour=b, length=12, **named) for k, b in enumerate(behaviours)]


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """Two tasks, whose demonstration is episode 1. Read-only."""
    root = tmp_path_factory.mktemp("suite")
    for task in ("left-v3", "right-v3"):
        write_dataset(root / task, episodes(task))
    return root


def test_what_is_written(tmp_path, suite, tiny, capsys):
    out = tmp_path / "out"
    assert grm("evaluate", "--data", suite, "--model", tiny, "--out", out, "--seed", 3, "--stride", 2) == 0
    said = capsys.readouterr().out
    for words in ("6 episodes of 2 task(s)", "spearman_visited", "tpr_at_fpr0", "wrong_instruction_ratio"):
        assert words in said, words
    written = {"evaluation.json", "table.csv", "potential.svg", "risk_coverage.svg", "reliability.svg"}
    assert set(contents(out)) == written

    content = json.loads((out / "evaluation.json").read_text())
    command = f"grm evaluate --data {suite} --out {out} --model {tiny} --stride 2 --seed 3"
    assert content["command"] == command
    assert content["demonstrations"] == {task: f"{suite / task}#1" for task in ("left-v3", "right-v3")}
    counts = {"episodes": 3, "frames": 21, "demonstrations": 1, "visited_episodes": 1, "failed_episodes": 2}
    assert content["tasks"]["left-v3"].items() >= counts.items()
    assert content["pooled"].items() >= {name: 2 * count for name, count in counts.items()}.items()
    assert {"value", "low", "high"} == set(content["summary"]["spearman_visited"])
    assert set(content["summary"]) <= set(METRICS)
    assert "adapt_minutes" not in content["summary"]

    # The same numbers by hand: the demonstration's last frame is the goal, and it is not judged itself.
    model = GRM.from_pretrained(tiny)
    found = find_suite([suite / "left-v3", suite / "right-v3"])
    goals = {task: part.demonstration.frames[-1] for task, part in found.items()}
    assert [source.index for source in found["left-v3"].others] == [0, 2, 3]
    others = [episode for part in found.values() for episode in part.episodes()]
    expected = by_task(score_all(model, others, goals, stride=2, rng=np.random.default_rng(3)))
    for task, metrics in expected.items():
        for name, value in metrics.items():
            assert content["tasks"][task][name] == pytest.approx(value, abs=1e-4), name

    with (out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["task"] for row in rows] == ["left-v3", "right-v3", "pooled"]
    assert float(rows[0]["mae_visited"]) == content["tasks"]["left-v3"]["mae_visited"]


def test_each_task_is_judged_by_a_model_adapted_to_its_demonstration(tmp_path, suite, monkeypatch, capsys):
    source = tmp_path / "model"
    tiny_grm().save_pretrained(source)
    write_replay(source, [square(9, task="up-v3"), square(10, task="up-v3", behaviour="undo")])
    before = contents(source)
    adapt, calls = grm_train.adapt, []

    def watched(model, demonstration, replay, *, steps, seed, after_step):
        calls.append((demonstration.task, demonstration.seed, [e.task for e in replay], steps, seed))
        return adapt(model, demonstration, replay, steps=steps, seed=seed, after_step=after_step)

    monkeypatch.setattr(grm_train, "adapt", watched)
    out = tmp_path / "out"
    assert grm("evaluate", "--data", suite, "--model", source, "--out", out, "--adapt", 2) == 0
    content = json.loads((out / "evaluation.json").read_text())
    assert [call[2:] for call in calls] == [(["up-v3", "up-v3"], 2, 0)] * 2
    assert [call[0] for call in calls] == ["left-v3", "right-v3"]
    assert content["summary"]["adapt_minutes"]["value"] >= 0
    assert "adapt_minutes" in capsys.readouterr().out
    assert contents(source) == before


def test_a_learners_data_set_may_lie_apart(suite, tmp_path):
    visited = write_dataset(tmp_path / "visited", episodes("left-v3", ("learner", "learner")))
    found = find_suite([visited, suite / "left-v3", suite / "left-v3"])
    assert list(found) == ["left-v3"]
    assert str(found["left-v3"].source) == f"{suite / 'left-v3'}#1"
    assert len(found["left-v3"]) == 5, "a folder named twice is read once"
    assert [e.behaviour for e in found["left-v3"].episodes()] == ["learner"] * 2 + [BEHAVIOURS[i] for i in (0, 2, 3)]


def test_data_that_cannot_be_evaluated(refused, tmp_path, tiny):
    given = ("--model", tiny, "--out", tmp_path / "out")
    failures = write_dataset(tmp_path / "failures", episodes("left-v3", ("undo", "stall")))
    message = refused("evaluate", "--data", failures, *given)
    assert "failures has no successful expert episode of 'left-v3'" in message
    alone = write_dataset(tmp_path / "alone", episodes("left-v3", ("expert",)))
    assert "has only the demonstration of 'left-v3'" in refused("evaluate", "--data", alone, *given)
    unlabelled = write_dataset(tmp_path / "unlabelled", episodes("left-v3", ("expert", "undo"), known=False))
    assert "no episode of 'left-v3' in" in refused("evaluate", "--data", unlabelled, *given)
    assert "holds no LeRobotDataset" in refused("evaluate", "--data", tmp_path / "nowhere", *given)
    assert not list((tmp_path / "out").iterdir())


def test_settings_and_outputs_that_cannot_be(refused, suite, tiny, tmp_path):
    given = ("evaluate", "--data", suite, "--model", tiny, "--out", tmp_path / "out")
    assert "adapt is -1" in refused(*given, "--adapt", -1)
    assert "stride 0" in refused(*given, "--stride", 0)
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "exists already" in refused(*given[:-1], tmp_path / "full")
    assert "no checkpoint folder" in refused(*given[:-3], tmp_path / "no-model", *given[-2:])


def test_partly_labelled_is_enough(tmp_path, tiny):
    mixed = [square(0), square(1, behaviour="undo"), dataclasses.replace(square(2, known=False), behaviour="learner")]
    data = write_dataset(tmp_path / "data", mixed)
    assert grm("evaluate", "--data", data, "--model", tiny, "--out", tmp_path / "out") == 0
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert "mae_off_demo" in content["summary"]
    assert "mae_visited" not in content["summary"]


def test_robots_and_reasoning_in_one_table(tmp_path, suite, tiny, capsys, refused):
    right = {"problem": "p", "steps": ["x0 = 3", "x1 = x0 + 1 = 4"], "label": -1}
    wrong = {"problem": "p", "steps": ["x0 = 3", "x1 = x0 + 1 = 5"], "label": 1}
    chains = tmp_path / "chains.jsonl"
    chains.write_text("".join(json.dumps(one) + "\n" for one in (right, wrong)))
    given = ("evaluate", "--data", suite / "left-v3", chains, "--model", tiny, "--stride", 2)
    assert "expected --text-judge" in refused(*given, "--out", tmp_path / "none")
    out = tmp_path / "both"
    assert grm(*given, "--text-judge", "arithmetic", "--out", out) == 0
    said = capsys.readouterr().out
    assert "by task" in said
    assert "chains" in said
    content = json.loads((out / "evaluation.json").read_text())
    assert set(content["tasks"]) == {"left-v3", "chains"}
    assert content["tasks"]["chains"]["kendall_tau"] == 1
    assert content["tasks"]["chains"]["episodes"] == 2
    alone = tmp_path / "alone"
    assert grm("evaluate", "--data", suite / "left-v3", "--model", tiny, "--stride", 2, "--out", alone) == 0
    assert json.loads((alone / "evaluation.json").read_text())["summary"] == content["summary"], "of robots alone"
    only = tmp_path / "only"
    assert grm("evaluate", "--data", chains, "--text-judge", "arithmetic", "--out", only) == 0
    assert json.loads((only / "evaluation.json").read_text())["summary"]["mae_off_demo"]["value"] == 0
