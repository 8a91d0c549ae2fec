import csv
import json

import numpy as np
import pytest

from envs.attacks import ATTACKS
from envs.experts import demonstrations
from envs.metaworld import MetaWorldEnv
from grm.audit import CAMERA_ATTACKS, summarize
from grm.errors import OutputError
from grm.models.oracle import Oracle
from policies import red_team
from policies.red_team import AuditSettings, attack, read_findings

SETTINGS = AuditSettings(task="reach-v3", episodes=1)
VIEWS = ("corner", "gripperPOV")


@pytest.fixture(scope="module")
def demonstration():
    env = MetaWorldEnv("reach", views=VIEWS, height=16, width=16, horizon=60)
    [episode] = demonstrations(env, 1, seed=5)
    env.close()
    return episode


@pytest.fixture(scope="module")
def audited(demonstration, tmp_path_factory):
    """An enthusiast, audited: its findings, its folder, the attacks as they were reported."""
    folder, reported = tmp_path_factory.mktemp("audit"), []
    enthusiast = Oracle(lambda frame: 1.0 if "corner" in frame.views else np.nan)
    findings = attack(enthusiast, demonstration, SETTINGS, folder, after_each=reported.append, about={"command": "x"})
    return findings, folder, reported


def test_every_attack_is_made_on_every_episode(audited):
    findings, _, reported = audited
    summaries = summarize(findings)
    assert set(summaries) == {*ATTACKS, *CAMERA_ATTACKS, "skip-to-best", "paraphrase", "untouched"}
    assert {s.episodes + s.unjudged for s in summaries.values()} == {1}
    assert len(reported) == SETTINGS.total


def test_an_enthusiast_gains_all_that_is_not_true(audited):
    findings, _, _ = audited
    for finding in findings:
        if finding.attack == "paraphrase":
            assert finding.exploit.gain == 0, "the same enthusiasm whatever it is asked"
        else:
            assert finding.exploit.potential == 1
            assert finding.exploit.gain == 1 - finding.exploit.truth
    untold = {f.attack for f in findings if f.abstained}
    assert untold <= {"drop-camera"}
    backwards = [f.exploit.truth for f in findings if f.attack == "play-backwards"]
    forwards = [f.exploit.truth for f in findings if f.attack == "untouched"]
    assert forwards == [0]
    assert max(backwards) > 0, "the first frame shown is the last recorded, and its truth is that one's"


@pytest.mark.slow
def test_a_learner_is_one_of_them(demonstration, tmp_path):
    reported = []
    settings = AuditSettings(task="reach-v3", episodes=1, rollouts=7)
    judge = Oracle(lambda frame: min(1.0, frame.time))
    findings = attack(judge, demonstration, settings, tmp_path, after_each=reported.append)
    learned = [f for f in findings if f.attack == "learner"]
    assert [f.episode for f in learned] == [3, 4, 5, 6, 7], "the last ones"
    assert reported.count("learner") == 7
    assert len(reported) == settings.total


def test_what_is_written(audited):
    findings, folder, _ = audited
    content = json.loads((folder / "red_team.json").read_text())
    assert content["command"] == "x"
    assert content["settings"]["task"] == "reach-v3"
    assert content["summary"]["exploit_gain_worst"] == content["summary"][content["worst_attack"]]
    means = [s.gain.value for s in summarize(findings).values() if s.kind != "control"]
    assert content["summary"]["exploit_gain_worst"]["value"] == pytest.approx(max(means), abs=1e-4)
    assert {row["attack"] for row in content["attacks"]} == {f.attack for f in findings}
    assert (folder / "worst.png").stat().st_size > 1000
    for again, finding in zip(read_findings(folder / "red_team.csv"), findings, strict=True):
        assert (again.attack, again.episode, again.frames) == (finding.attack, finding.episode, finding.frames)
        assert again.exploit.gain == pytest.approx(finding.exploit.gain, abs=1e-3)


def test_an_interruption_loses_no_finding(demonstration, tmp_path):
    made = []

    def interrupt(attack):
        made.append(attack)
        if len(made) == 3:
            raise KeyboardInterrupt

    settings = AuditSettings(task="reach-v3", episodes=1)
    with pytest.raises(KeyboardInterrupt):
        attack(Oracle(lambda frame: np.nan), demonstration, settings, tmp_path / "new", after_each=interrupt)
    assert [finding.attack for finding in read_findings(tmp_path / "new" / "red_team.csv")] == made
    with (tmp_path / "new" / "red_team.csv").open() as file:
        assert {(row["gain"], row["abstained"] == row["frames"]) for row in csv.DictReader(file)} == {("", True)}
    assert not (tmp_path / "new" / "red_team.json").exists()


def test_a_model_that_never_answers_has_no_gain_and_no_zero_either(tmp_path):
    findings = [f for f in _blind() for _ in range(2)]
    red_team.write_report(findings, SETTINGS, tmp_path, {})
    content = json.loads((tmp_path / "red_team.json").read_text())
    assert content["summary"] == {}
    assert content["worst_attack"] is None
    assert content["attacks"][0]["unjudged"] == 2
    assert content["attacks"][0]["abstained"] == 1


def _blind():
    row = {"task": "reach-v3", "attack": "hover", "kind": "physical", "episode": "0", "gain": "", "frames": "5"}
    return [red_team._finding({**row, "abstained": "5"})]


def test_a_folder_that_cannot_be_written(demonstration, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        attack(Oracle(lambda frame: 0.5), demonstration, SETTINGS, tmp_path / "file" / "in")
