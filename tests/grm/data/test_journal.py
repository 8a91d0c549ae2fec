import json

import pytest

from grm.data.journal import Journal, fingerprint
from grm.errors import TraceError


def test_what_was_written_is_there_again(tmp_path):
    path = tmp_path / "deep" / "journal.jsonl"
    journal = Journal(path)
    journal.append("a", {"value": 1})
    journal.append("b", {"value": "ки\n"})
    journal.append("a", {"value": 2})
    again = Journal(path)
    assert len(again) == 2
    assert again.get("a") == {"value": 2}
    assert again.get("b") == {"value": "ки\n"}
    assert again.get("c") is None
    assert len(path.read_text().splitlines()) == 3, "append-only"


@pytest.mark.parametrize("kept", [1, 10, -1])
def test_a_line_cut_short_by_a_crash_is_dropped_and_the_next_one_is_whole(tmp_path, kept):
    path = tmp_path / "journal.jsonl"
    Journal(path).append("a", {"value": 1})
    torn = json.dumps({"key": "b", "value": 2})
    with path.open("a") as file:
        file.write(torn[:kept])
    journal = Journal(path)
    assert "a" in journal
    assert "b" not in journal
    journal.append("c", {"value": 3})
    assert [Journal(path).get(key) for key in "abc"] == [{"value": 1}, None, {"value": 3}]


@pytest.mark.parametrize("line", ["garbage", "[1]", '{"value": 1}', '{"key": []}'])
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "journal.jsonl"
    Journal(path).append("a", {})
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(TraceError, match=r"journal\.jsonl, line 2"):
        Journal(path)


def test_without_a_path_it_is_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    journal = Journal()
    journal.append("a", {"value": 1})
    assert journal.get("a") == {"value": 1}
    assert list(tmp_path.iterdir()) == []


def test_a_fingerprint_is_of_the_content():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
