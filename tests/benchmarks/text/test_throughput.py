import sys

import pytest

from benchmarks.text import throughput
from benchmarks.text.throughput import measure
from grm.text.conventions import CONVENTIONS
from tests.grm.text.tiny_judges import QUESTION, STEPS, judge


@pytest.mark.parametrize("convention", CONVENTIONS.values(), ids=CONVENTIONS)
def test_one_forward_per_solution(convention):
    model = judge(convention)
    found = measure(model, [(QUESTION, tuple(STEPS[:count])) for count in (5, 2, 1)], rounds=1, device="cpu")
    assert found["forwards_per_solution"] == 1
    assert found["ratio"] > 0
    assert found["tokens_per_s"] > 0
    whole = [len(model.asker.ask(QUESTION, STEPS[:count]).tokens) for count in (5, 2, 1)]
    assert found["padding"] == pytest.approx(1 - sum(whole) / (3 * max(whole)))


def test_it_writes_its_table(monkeypatch):
    written = {}
    monkeypatch.setattr(throughput, "write_result", lambda name, summary, **about: written.update(about, s=summary))
    monkeypatch.setattr(sys, "argv", ["throughput.py", "--rounds", "1", "--solutions", "3", "--sizes", "tiny"])
    throughput.main()
    assert written["device"] == "cpu"
    assert len(written["rows"]) == len(CONVENTIONS)
    assert written["s"]["tiny_qwen_forwards_per_solution"] == 1
