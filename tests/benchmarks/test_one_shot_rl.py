import csv
import json
import sys

import numpy as np
import pytest

from benchmarks import one_shot_rl, results
from benchmarks.one_shot_rl import Table, bootstrap, draw, false_success_rate, rollouts_to_level, row_of, summarize
from grm.errors import GrmError
from policies.arms import CLONED, GRM_ONLY, GRM_SHAPED, SPARSE, arm_named
from policies.grid import Cell
from policies.log import COLUMNS, arm_folder
from policies.one_shot import OneShotSettings


def test_rollouts_to_level_by_hand():
    assert rollouts_to_level([True] * 20) == 20
    assert rollouts_to_level([True] * 19) is None, "a mean over 20 needs 20"
    assert rollouts_to_level([False] * 10 + [True] * 20) == 26, "16 of 11 to 26"
    assert rollouts_to_level(([True] * 3 + [False]) * 20) is None
    assert rollouts_to_level(([True] * 4 + [False]) * 20) == 20
    assert rollouts_to_level([True] * 20 + [False] * 50) == 20, "the first time counts, whatever comes after"


def row(task, seed, arm, final, to_80=30, **more):
    return {"task": task, "seed": seed, "arm": arm, "final_success": final, "rollouts": 100} | (
        {} if arm == "cloned" else {"rollouts_to_80": to_80, "minutes": 3.0, **dict.fromkeys(one_shot_rl.SECONDS, 1.0)}
    ) | more  # fmt: skip


ROWS = [
    row("hard", 0, "cloned", 0.1),
    row("hard", 1, "cloned", 0.3),
    row("easy", 0, "cloned", 0.9),
    row("hard", 0, "sparse", 0.5, None),
    row("hard", 1, "sparse", 0.7, 60),
    row("easy", 0, "sparse", 1.0, 20),
    row("hard", 0, "grm", 0.9, 40),
    row("hard", 1, "grm", 0.8, 50),
    row("easy", 0, "grm", 0.95, 20),
    row("hard", 0, "grm_only", 0.6, 50, false_successes=3, missed_successes=1),
]


def test_summary_by_hand():
    summary = summarize(ROWS, rollouts=100)
    assert summary["headline_tasks"] == 1.0
    assert summary["final_success"].value == pytest.approx(0.85), "of the hard task alone"
    assert summary["start_success"].value == pytest.approx(0.2)
    # Tasks weigh the same: hard is 45 against 80 (who never gets there counts as 100), easy 20 against 20.
    assert summary["rollouts_to_80_vs_sparse"].value == pytest.approx((45 + 20) / (80 + 20))
    assert summary["tasks_worse_than_sparse"] == 1.0, "easy, by 0.05"
    for key in ("false_success_rate", "grm_only.false_success_rate"):
        assert summary[key].value == pytest.approx(0.03)
    assert summary["no_env_reward_success"].value == pytest.approx(0.6)
    assert summary["sparse.never_at_80"] == pytest.approx(1 / 3)
    for key in ("rollouts_to_80_vs_dense", "features_success", "dense.final_success", "classifier.false_success_rate"):
        assert key not in summary, "what nobody measured has no number"


def test_answers_are_counted_where_a_person_is_asked():
    asked = [row("hard", seed, "grm_only_asked", 0.5, false_successes=0, answers=20 - seed) for seed in (0, 1)]
    summary = summarize([*ROWS, *asked], rollouts=100)
    assert summary["grm_only_asked.answers"].value == pytest.approx(19.5)
    assert "grm_only.answers" not in summary


def test_only_seeds_that_have_both_arms_are_compared():
    table = Table([*ROWS, row("hard", 2, "grm", 0.0, 99)], 100)
    assert table.ratio("rollouts_to_80", "grm", "sparse").value == pytest.approx(65 / 100)
    assert table.ratio("rollouts_to_80", "grm", "prover") is None


def test_an_ablation_is_set_against_the_whole_on_its_own_tasks_and_seeds():
    summary = summarize([*ROWS, row("hard", 1, "grm_forward", 0.6, None)], rollouts=100)
    assert summary["grm_forward.final_success_minus_grm"].value == pytest.approx(0.6 - 0.8)
    assert summary["grm_forward.rollouts_to_80_vs_grm"].value == pytest.approx(100 / 50)
    assert "grm_backward.final_success_minus_grm" not in summary


def test_intervals_widen_with_tasks_that_disagree():
    def of(values):
        return bootstrap({str(k): [{"a": v}, {"a": v}] for k, v in enumerate(values)}, lambda mean: mean["a"])

    same, apart = of([0.5] * 6), of([0.2, 0.8] * 3)
    assert same == (0.5, 0.5, 0.5)
    assert apart.value == pytest.approx(0.5)
    assert apart.low < 0.4 < 0.6 < apart.high
    assert bootstrap({}, lambda mean: mean["a"]) is None
    seeds = bootstrap({"one": [{"a": 0.0}, {"a": 1.0}]}, lambda mean: mean["a"])
    assert (seeds.low, seeds.high) == (0.0, 1.0), "seeds are drawn again within a task"


def write_cell(folder, arm, rate, rows=()):
    own = arm_folder(folder, arm.name)
    own.mkdir(parents=True)
    (own / "evaluation.json").write_text(json.dumps({"success_rate": rate}))
    if rows:
        with (own / "rollouts.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(dict.fromkeys(COLUMNS, 0) | r for r in rows)


def write_config(folder, commit="c1"):
    (folder / "config.json").write_text(json.dumps({"settings": {"task": "reach-v3"}, "commit": commit}))


def cell(folder, arm, task="reach-v3", seed=0):
    return Cell(settings=OneShotSettings(task=task, seed=seed), arm=arm, folder=folder)


def test_a_row_counts_what_the_head_said_against_the_truth(tmp_path):
    said = [True, True, False, False] * 10
    true = [True, False, True, False] * 10
    rows = [
        {"success": s, "true_success": t, "length": 10, "abstained": 1, "learn_s": 3.0}
        for s, t in zip(said, true, strict=True)
    ]
    write_cell(tmp_path, GRM_ONLY, 0.4, rows)
    write_config(tmp_path)
    found = row_of(cell(tmp_path, GRM_ONLY))
    assert (found["false_successes"], found["missed_successes"]) == (10, 10)
    assert found["abstained"] == pytest.approx(0.1)
    assert found["final_success"] == 0.4
    assert found["rollouts_to_80"] is None
    assert found["success_25"] == pytest.approx(13 / 25)
    assert found["success_50"] == pytest.approx(7 / 15), "of what there is of the second block"
    assert (found["learn_s"], found["minutes"]) == (120.0, 2.0)
    assert false_success_rate([found], "grm_only").value == 0.25


def test_what_the_head_said_alone_is_counted_apart(tmp_path):
    entry = {"length": 10, "abstained": 0, "answer": "", "retracted": 0}
    rows = [
        entry | {"attended": True, "success": False, "true_success": False, "answer": 0, "retracted": 2},
        entry | {"attended": True, "success": True, "true_success": True, "answer": 3},
        *[entry | {"attended": False, "success": True, "true_success": t} for t in (True, True, False)],
    ]
    arm = arm_named("grm_only_asked")
    write_cell(tmp_path, arm, 0.4, rows)
    write_config(tmp_path)
    found = row_of(cell(tmp_path, arm))
    assert (found["answers"], found["retracted"]) == (2, 2)
    assert (found["unattended"], found["unattended_true_successes"], found["false_successes"]) == (3, 2, 1)


def test_a_report_of_a_part_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(results, "this_commit", lambda: "abc")
    runs = tmp_path / "runs"
    rows = [{"success": k > 5, "true_success": k > 5, "length": 10} for k in range(30)]
    for arm in (CLONED, SPARSE, GRM_SHAPED):
        write_cell(runs / "reach-v3-0", arm, 0.1 if arm == CLONED else 0.9, () if arm == CLONED else rows)
    write_config(runs / "reach-v3-0")
    command = ["one_shot_rl.py", "--report", "--out", str(runs), "--tasks", "reach", "push", "--seeds", "0", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--arms", "cloned", "sparse", "grm", "dense", "--name", "some"])
    one_shot_rl.main()
    found = json.loads((tmp_path / "results" / "some.json").read_text())
    assert (found["cells_done"], found["cells_planned"]) == (3, 16)
    assert found["commits_of_runs"] == ["c1"]
    assert found["summary"]["final_success"] == {"value": 0.9, "low": 0.9, "high": 0.9}
    assert found["seeds"] == [0]
    with (tmp_path / "results" / "some.csv").open(newline="") as file:
        assert [r["arm"] for r in csv.DictReader(file)] == ["cloned", "sparse", "grm"]
    assert (runs / "curves.png").stat().st_size > 1000
    assert "3 of 16 cells" in capsys.readouterr().out


def test_nothing_finished_is_no_result(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    one_shot_rl.report([cell(tmp_path / "nowhere", SPARSE)], 150, "some", tmp_path / "some.png", merge=False)
    assert not (tmp_path / "results").exists()
    assert "nothing to report" in capsys.readouterr().out


def test_rows_measured_on_another_machine_are_kept_and_those_measured_again_replaced(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(one_shot_rl, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(results, "this_commit", lambda: "abc")
    rows = [{"success": k > 5, "true_success": k > 5, "length": 10} for k in range(30)]

    def measure(machine, commit, final, *extra):
        run = tmp_path / machine / "reach-v3-0"
        for arm in (SPARSE, GRM_SHAPED) if machine == "first" else (GRM_SHAPED,):
            write_cell(run, arm, final, rows)
        write_config(run, commit)
        command = ["one_shot_rl.py", "--report", "--out", str(tmp_path / machine), "--tasks", "reach", "--seeds", "0"]
        monkeypatch.setattr(sys, "argv", [*command, "--arms", "sparse", "grm", "--name", "some", *extra])
        one_shot_rl.main()
        with (tmp_path / "results" / "some.csv").open(newline="") as file:
            return {r["arm"]: (r["commit"], float(r["final_success"])) for r in csv.DictReader(file)}

    assert measure("first", "123e4567", 0.5) == {"sparse": ("123e4567", 0.5), "grm": ("123e4567", 0.5)}
    assert measure("second", "c2", 0.9, "--merge") == {"sparse": ("123e4567", 0.5), "grm": ("c2", 0.9)}
    found = json.loads((tmp_path / "results" / "some.json").read_text())
    assert found["commits_of_runs"] == ["123e4567", "c2"]
    assert found["summary"]["rollouts_to_80_vs_sparse"]["value"] == 1.0, "what is read back counts as before"
    assert measure("third", "c2", 0.9) == {"grm": ("c2", 0.9)}


def test_curves_are_drawn_per_task(tmp_path):
    rows = [{"true_success": bool(np.sin(k) > 0)} for k in range(40)]
    found = []
    for task in ("reach-v3", "push-v3", "door-lock-v3"):
        write_cell(tmp_path / task, SPARSE, 0.5, rows)
        write_config(tmp_path / task)
        found.append(row_of(cell(tmp_path / task, SPARSE, task)))
    draw(Table(found, 25), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_cells_that_failed_keep_nothing_else_from_running(tmp_path, monkeypatch, capsys):
    ran = []

    def run(rl):
        ran.append(rl.arms)
        raise GrmError("the arm reach-v3 0 sparse did not finish")

    monkeypatch.setattr(one_shot_rl.Rl, "run", run)
    command = ["one_shot_rl.py", "--out", str(tmp_path), "--tasks", "reach", "--seeds", "0"]
    monkeypatch.setattr(sys, "argv", [*command, "--arms", "sparse", "grm_features", "grm_added", "--name", "some"])
    with pytest.raises(SystemExit, match="1"):
        one_shot_rl.main()
    assert ran == [("sparse",), ("grm_features",), ("grm_added",)]
    assert capsys.readouterr().out.count("did not finish") == 3
