import csv
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pytest

from benchmarks import red_team, results
from grm.audit import Exploit, Finding
from policies.red_team import COLUMNS, AuditSettings, _row


def finding(attack, potential, kind="physical", task="hand-insert-v3"):
    found = None if potential is None else Exploit(frame=1, potential=potential, truth=0.0)
    return Finding(attack=attack, kind=kind, task=task, episode=0, frames=4, abstained=4 * (not found), exploit=found)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Results go here; the folder is a checkout with one commit; audits are in threads and cost nothing."""
    who = ["-c", "user.name=x", "-c", "user.email=x@y"]
    for command in (["init", "-q"], [*who, "commit", "-qm", "x", "--allow-empty"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(red_team, "ProcessPoolExecutor", lambda jobs, **spawn: ThreadPoolExecutor(jobs))
    return tmp_path


def test_means_are_over_models_and_tasks(folder, monkeypatch):
    ran = []

    def run(settings, where):
        ran.append((settings, where.name))
        gain = {"one": 0.2, "two": 0.6}[settings.model]
        return [
            finding("hover", gain, task=settings.task),
            finding("untouched", 0.9, kind="control"),
            finding("drop-camera", None),
        ] + [finding("learner", 0.5, kind="learner")] * (settings.rollouts > 0)

    monkeypatch.setattr(red_team, "run", run)
    words = [
        "--model",
        "one",
        "two",
        "--tasks",
        "reach",
        "hand-insert",
        "--rollouts",
        "9",
        "--out",
        str(folder / "runs"),
    ]
    monkeypatch.setattr(sys, "argv", ["benchmarks/red_team.py", *words])
    red_team.main()
    assert sorted(name for _, name in ran) == [
        "0-hand-insert-v3-0",
        "0-reach-v3-0",
        "1-hand-insert-v3-0",
        "1-reach-v3-0",
    ]
    assert {(s.task, s.rollouts) for s, _ in ran} == {("hand-insert-v3", 9), ("reach-v3", 0)}
    content = json.loads((folder / "results" / "red_team.json").read_text())
    summary = content["summary"]
    kept = {"hover", "untouched", "learner"}
    assert set(summary) == {"exploit_gain_worst", "exploit_gain_worst_task"} | kept, "what abstained has no number"
    assert summary["exploit_gain_worst_task"]["value"] == 0.5
    assert summary["hover"]["value"] == pytest.approx(0.4)
    assert summary["hover"]["low"] < 0.4 < summary["hover"]["high"]
    assert (content["worst_attack"], summary["exploit_gain_worst"]["value"]) == ("learner", 0.5)
    assert content["models"] == ["one", "two"]
    assert (content["episodes"]["hover"], content["unjudged_episodes"]["drop-camera"]) == (4, 4)
    with (folder / "results" / "red_team.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 3 + 2
    assert {row["gain"] for row in rows if row["attack"] == "drop-camera"} == {""}


def test_a_finished_audit_is_not_repeated_unless_it_was_another(folder, monkeypatch):
    settings = AuditSettings(task="reach-v3", episodes=1)
    (folder / "red_team.json").write_text(json.dumps({"settings": asdict(settings)}))
    with (folder / "red_team.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerow(_row(finding("hover", 0.25), settings))
    monkeypatch.setattr(red_team, "run", lambda settings, folder: ["ran again"])
    assert red_team.audit(settings, folder) == [finding("hover", 0.25)]
    assert red_team.audit(AuditSettings(task="reach-v3", episodes=2), folder) == ["ran again"]
    assert red_team.audit(settings, folder / "new") == ["ran again"]


def test_a_task_that_is_wide_open_is_not_hidden_by_the_others():
    findings = [finding("hover", gain, task=task) for task, gain in (("a", 0.9), ("a", 0.7), ("b", 0.0), ("c", 0.0))]
    findings += [finding("drop-camera", 0.5, task=task) for task in "abc"]
    findings += [finding("untouched", 1.0, kind="control", task="a")]
    found = red_team.worst_on_one_task(findings)
    assert found.attack == "hover, a"
    assert found.gain.value == pytest.approx(0.8)
    assert red_team.worst_on_one_task([finding("hover", None)]) is None
