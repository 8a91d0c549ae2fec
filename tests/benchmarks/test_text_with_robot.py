import json
import sys
from pathlib import Path

from benchmarks.text import with_robot


def test_labels_go_up_to_the_first_error():
    wrong = next(one for one in with_robot.draw(50, 0) if 0 <= one.first_error < len(one.steps) - 1)
    found = with_robot.labelled(wrong)
    first = wrong.first_error
    assert found.labels[: first + 1] == (*[1.0] * first, 0.0)
    assert set(found.labels[first + 1 :]) == {None}
    assert all(with_robot.labelled(one).first_error == -1 for one in with_robot.draw(20, 0, right=True))


def test_the_table_is_what_the_command_wrote(monkeypatch):
    asked, written = [], {}

    def run(command, *, check):
        asked.extend(command)
        solutions = Path(command[command.index("--data") + 2])
        assert len(solutions.read_text().splitlines()) == 6
        table = Path(command[-1])
        table.mkdir()
        tasks = {"arithmetic": {"mae_off_demo": 0.1}, "door-unlock-v3": {"mae_off_demo": 0.2, "voc_plus": 0.9}}
        (table / "evaluation.json").write_text(json.dumps({"tasks": tasks}))

    monkeypatch.setattr(with_robot.subprocess, "run", run)
    monkeypatch.setattr(with_robot, "write_result", lambda name, summary, **about: written.update(about, s=summary))
    sizes = ["--solutions", "20", "--language-steps", "1", "--fit-steps", "1", "--tested", "6"]
    monkeypatch.setattr(sys, "argv", ["with_robot.py", *sizes])
    with_robot.main()
    assert asked[1:4] == ["-m", "grm", "evaluate"]
    assert written["s"] == {
        "arithmetic.mae_off_demo": 0.1,
        "door-unlock-v3.mae_off_demo": 0.2,
        "door-unlock-v3.voc_plus": 0.9,
    }
    assert [row["task"] for row in written["rows"]] == ["arithmetic", "door-unlock-v3"]
