import csv
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import demo, results
from benchmarks.results import write_result
from grm.metrics import Interval
from policies.log import arm_folder

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Results go here; the folder is a checkout with one commit."""
    for command in (
        ["init", "-q"],
        ["-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", "x", "--allow-empty"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/render.py", "--size", "96"])
    return tmp_path / "results"


def test_a_result_says_how_it_was_made(folder):
    rows = [{"seed": 0, "a": 1.5}, {"seed": 1, "b": "x"}]
    summary = {"ratio": 20.123456, "success": Interval(0.5, 0.25, 0.754321)}
    path = write_result("render", summary, seeds=[0, 1], rows=rows, size=96)
    assert path == folder / "render.json"
    content = json.loads(path.read_text())
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()
    assert commit.startswith(content.pop("commit").removesuffix("+"))
    assert content == {
        "command": "python -m benchmarks.render --size 96",
        "seeds": [0, 1],
        "summary": {"ratio": 20.1235, "success": {"value": 0.5, "low": 0.25, "high": 0.7543}},
        "size": 96,
    }
    with (folder / "render.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"seed": "0", "a": "1.5", "b": ""}, {"seed": "1", "a": "", "b": "x"}]


@pytest.mark.parametrize(
    ("script", "module"),
    [
        ("/a/benchmarks/text/pav.py", "benchmarks.text.pav"),
        ("/benchmarks/benchmarks/baselines/__main__.py", "benchmarks.baselines"),
        ("elsewhere.py", "elsewhere"),
    ],
)
def test_the_command_names_the_module(folder, monkeypatch, script, module):
    monkeypatch.setattr(sys, "argv", [script])
    assert json.loads(write_result("x", {}, seeds=[]).read_text())["command"] == f"python -m {module}"


def test_a_changed_checkout_is_marked(folder):
    (folder.parent / "file").touch()
    subprocess.run(["git", "add", "file"], cwd=folder.parent, check=True)
    assert json.loads(write_result("x", {}, seeds=[]).read_text())["commit"].endswith("+")


def test_a_result_written_again_in_one_run_is_of_one_checkout(folder):
    first = json.loads(write_result("x", {"a": 1.0}, seeds=[0]).read_text())["commit"]
    subprocess.run(["git", "add", "results"], cwd=folder.parent, check=True)
    assert json.loads(write_result("x", {"a": 2.0}, seeds=[0, 1]).read_text())["commit"] == first
    assert not first.endswith("+")


def test_without_rows_there_is_no_table(folder):
    write_result("x", {"a": 1.0}, seeds=[0])
    assert [path.name for path in folder.iterdir()] == ["x.json"]


@pytest.mark.parametrize("value", [float("nan"), Interval(float("nan"), 0.0, 0.0), float("inf")])
def test_what_could_not_be_measured_is_no_result(folder, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_result("x", {"a": value}, seeds=[0])
    assert not (folder / "x.json").exists()


def test_what_is_committed_is_a_result():
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        content = json.loads(path.read_text())
        assert content["command"].startswith("python -m benchmarks."), path.name
        assert content["commit"], path.name
        assert isinstance(content["seeds"], list), path.name
        for key, value in content["summary"].items():
            assert isinstance(value, float | int) or set(value) == {"value", "low", "high"}, (path.name, key)


@pytest.fixture
def demos(folder, tmp_path, monkeypatch):
    """Calls of `grm demo` by the benchmark: (task, resume); each leaves what a finished run leaves."""
    calls = []

    def run(self):
        calls.append((self.task, self.resume))
        finish(self.out)

    monkeypatch.setattr(demo.Demo, "run", run)
    monkeypatch.setattr(demo, "write_result", write_result)
    monkeypatch.setattr(
        sys, "argv", ["demo.py", "--tasks", "reach", "door-unlock", "--seeds", "0", "--out", str(tmp_path / "runs")]
    )
    return calls


def finish(run: Path, *, grm: float | None = 0.75) -> None:
    for arm, rate in {"cloned": 0.25, "sparse": 0.5, "grm": grm}.items():
        own = arm_folder(run, arm)
        own.mkdir(parents=True, exist_ok=True)
        if arm != "cloned":
            (own / "rollouts.csv").write_text("number,success\n1,True\n")
        if rate is not None:
            (own / "evaluation.json").write_text(json.dumps({"success_rate": rate}))
    (run / "minutes.json").write_text('{"minutes": 3.0}')
    (run / "config.json").write_text("{}")


def test_demo_runs_what_is_missing_and_goes_on_with_what_was_interrupted(demos, folder, tmp_path):
    finish(tmp_path / "runs" / "reach-0", grm=None)  # Ctrl-C: minutes and a page, but no evaluation
    demo.main()
    assert demos == [("reach", True), ("door-unlock", False)]
    content = json.loads((folder / "demo.json").read_text())
    assert content["seeds"] == [0]
    assert content["summary"]["reach_grm"]["value"] == 0.75
    assert content["summary"]["door-unlock_cloned"]["value"] == 0.25
    assert content["summary"]["minutes"]["value"] == 3.0
    with (folder / "demo_rollouts.csv").open() as file:
        assert [(row["task"], row["arm"], row["number"]) for row in csv.DictReader(file)] == [
            (task, arm, "1") for task in ("reach", "door-unlock") for arm in ("sparse", "grm")
        ]
    demos.clear()
    demo.main()
    assert demos == [], "what is finished is not repeated"


@pytest.mark.parametrize("name", ["demo", "evaluation", "render"])
def test_every_benchmark_explains_itself(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"benchmarks.{name}").main()
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.slow
def test_render_measures_something(folder, monkeypatch):
    from benchmarks import render

    monkeypatch.setattr(sys, "argv", ["render.py", "--rounds", "1", "--size", "32"])
    render.main()
    summary = json.loads((folder / "render.json").read_text())["summary"]
    assert summary["ratio_fast"] > 1
    assert summary["frames_per_s_own"] > 0
