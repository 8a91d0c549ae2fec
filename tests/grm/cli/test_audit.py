import json

import pytest

from grm import cli
from grm.audit import Exploit, Finding
from grm.cli import audit
from grm.errors import OutputError
from policies import red_team

from .conftest import contents, grm


def finding(attack, kind, potential, truth):
    found = None if potential is None else Exploit(frame=3, potential=potential, truth=truth)
    return Finding(attack=attack, kind=kind, task="reach-v3", episode=0, frames=9, abstained=0, exploit=found)


FINDINGS = [finding("untouched", "control", 0.9, 0.0), finding("hover", "physical", 0.75, 0.25)]
FINDINGS += [finding("drop-camera", "perception", None, None)]


def test_what_is_asked_for_is_what_is_run(tmp_path, monkeypatch, capsys):
    asked = []

    def run(settings, folder, *, after_each, after_adaptation_step, about):
        asked.append((settings, folder, about))
        after_adaptation_step(5)
        after_each("hover")
        return FINDINGS

    monkeypatch.setattr(red_team, "run", run)
    words = [
        "--task",
        "reach",
        "--adapt",
        "5",
        "--episodes",
        "2",
        "--rollouts",
        "7",
        "--demo-seed",
        "3",
        "--model",
        "m",
    ]
    assert grm("audit", *words, "--out", tmp_path / "audit") == 0
    [(settings, folder, about)] = asked
    assert settings == red_team.AuditSettings(task="reach-v3", demo_seed=3, model="m", adapt=5, episodes=2, rollouts=7)
    assert folder == tmp_path / "audit"
    assert about["command"].startswith("grm audit")
    json.dumps(about)
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if "│" in line]
    assert [row.split()[1] for row in rows] == ["untouched", "hover", "drop-camera"]
    assert "0.50 [0.50, 0.50]" in rows[1]
    assert "0.75 − 0.25" in rows[1]
    assert "–" in rows[2]
    assert "wrote red_team.json" in said


def test_the_defaults_are_those_of_the_settings():
    verb, settings = cli.Audit(out=None), red_team.AuditSettings()
    for name in ("demo_seed", "model", "adapt", "episodes", "rollouts"):
        assert getattr(verb, name) == getattr(settings, name)


def test_the_worst_attack_stands_out_and_controls_do_not():
    styles = [row.style for row in audit.table(FINDINGS, title="x").rows]
    assert styles == ["dim", "bold", ""], "control, worst, not judged"


def test_an_interruption_says_where_the_rows_are(tmp_path, monkeypatch, capsys):
    def run(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(red_team, "run", run)
    assert grm("audit", "--task", "reach", "--out", tmp_path / "audit") == 130
    said = "".join(capsys.readouterr().out.split())
    assert "interrupted" in said
    assert "red_team.csv" in said
    assert "wrote" not in said


def test_refusals(refused, tmp_path, monkeypatch):
    assert "unknown task 'fold'" in refused("audit", "--task", "fold", "--out", tmp_path / "a")
    for wrong in (("--episodes", 0), ("--rollouts", -1), ("--adapt", -1)):
        assert "expected at least one episode" in refused("audit", "--task", "reach", *wrong, "--out", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert "exists already" in refused("audit", "--task", "reach", "--out", tmp_path / "full")
    assert contents(tmp_path / "full") == {"notes.txt": b"mine"}
    assert "checkpoint" in refused("audit", "--task", "reach", "--model", tmp_path / "full", "--out", tmp_path / "b")


def test_a_full_disk_is_one_error(refused, tmp_path, monkeypatch):
    def run(*args, **kwargs):
        raise OutputError("the disk is full")

    monkeypatch.setattr(red_team, "run", run)
    assert "the disk is full" in refused("audit", "--task", "reach", "--out", tmp_path / "a")


@pytest.mark.slow
def test_a_whole_audit(tiny, tmp_path):
    out = tmp_path / "audit"
    assert grm("audit", "--task", "reach", "--model", tiny, "--adapt", 0, "--episodes", 1, "--out", out) == 0
    assert set(contents(out)) == {"red_team.csv", "red_team.json", "worst.png"}
    content = json.loads((out / "red_team.json").read_text())
    assert -1 <= content["summary"]["exploit_gain_worst"]["value"] <= 1
    assert content["commit"]
