import json
import sys

import numpy as np

from benchmarks.text import thinking
from benchmarks.text.thinking import FORMAT, SHORT, draw, labels_of, make_base, true_chain
from grm.text.generative import agrees_on_outcome, agrees_on_process, training_text


def test_a_true_chain_agrees_with_the_labels():
    for i, (problem, truth) in enumerate(draw(np.random.default_rng(0), 40, SHORT)):
        assert (truth.first_error >= 0) == bool(i % 2)
        chain = true_chain(problem, truth)
        assert agrees_on_process(chain, FORMAT)
        assert agrees_on_outcome(chain, FORMAT)
        known = [label for label in labels_of(truth) if label is not None]
        assert chain.text.count("\n") + 1 == len(known)
        _, text = training_text(chain, FORMAT)
        assert text.endswith(FORMAT.no if i % 2 else FORMAT.yes)


def test_a_small_run(monkeypatch):
    base, found = make_base(solutions=300, steps=2), []
    monkeypatch.setattr(thinking, "make_base", lambda steps: base)
    monkeypatch.setattr(thinking, "MAX_TOKENS", 8)
    monkeypatch.setattr(thinking, "write_result", lambda *a, **k: json.dumps(found.append((a, k)) or [k["seeds"]]))
    # What an untrained network writes cannot be read: true chains stand in for it.
    chains = {}
    drawn = thinking.draw

    def remembered(rng, count, lengths):
        solutions = drawn(rng, count, lengths)
        chains.update({(t.question, t.steps): true_chain(p, t).text for p, t in solutions})
        return solutions

    monkeypatch.setattr(thinking, "draw", remembered)
    written = thinking.written
    monkeypatch.setattr(
        thinking, "written", lambda truth, text: written(truth, chains.get((truth.question, truth.steps), text))
    )
    sizes = ["--solutions", "12", "--seed-solutions", "6", "--exam", "8", "--generator-steps", "1", "--fit-steps", "2"]
    monkeypatch.setattr(sys, "argv", ["thinking.py", *sizes, "--batch", "4", "--seeds", "1"])
    thinking.main()
    [((name, summary), about)] = found
    assert name == "text_thinking"
    assert summary["passed_process"].value == 1
    arms = ["direct", "generator", "process", "outcome", "unfiltered", "process_K4"]
    assert [row["verifier"] for row in about["rows"]] == 2 * arms
    assert summary["written.short.direct"].value == 0 < summary["written.short.process"].value
    assert "f1.long.process_minus_direct" in summary
