import itertools
import math

import numpy as np
import pytest

from envs.reasoning import make_chain
from grm.errors import AbstainedError, TraceError
from grm.reward import Judgement, ProcessReward, Task, Thought
from grm.search.beam import beam_search
from grm.testing import check_process_reward
from grm.text.arithmetic import ArithmeticJudge

TASK = Task(instruction="spell it")
WORD = "abcdefgh"


class Spelling(ProcessReward[str, str]):
    """Φ is the share of the word spelt so far, abstaining on what the word does not contain; counts what it judges."""

    def __init__(self):
        self.judged = self.calls = 0

    def start(self, task):
        return ""

    def extend(self, carries, steps):
        self.calls += 1
        answers = [self._one(carry, new) for carry, new in zip(carries, steps, strict=True)]
        return [carry for carry, _ in answers], [judgement for _, judgement in answers]

    def _one(self, carry, new):
        self.judged += len(new)
        potential = []
        for step in new:
            carry += step
            right = sum(a == b for a, b in zip(carry, WORD, strict=False))
            potential.append(right / len(WORD) if step in WORD else math.nan)
        values = np.array(potential, float)
        return carry, Judgement(potential=values, spread=values * 0, judged=~np.isnan(values))


def letters(*choices):
    """Proposes the same letters everywhere, over and over."""

    def expand(prefixes, count):
        return [list(itertools.islice(itertools.cycle(choices), count)) for _ in prefixes]

    return expand


def any_letter(prefixes, count):
    """Proposes the right letter last, after wrong ones."""
    return [["h"] * (count - 1) + [WORD[len(prefix) % 8]] for prefix in prefixes]


def test_the_toy_obeys_the_laws():
    check_process_reward(Spelling(), TASK, list(WORD))


def test_it_finds_the_word():
    found = beam_search(Spelling(), TASK, any_letter, depth=8, finished=lambda steps: len(steps) == 8)
    assert "".join(found.best.steps) == WORD
    assert found.best.score == 1
    assert found.best.finished


def test_each_step_is_judged_once_and_the_reuse_is_what_the_issue_asks():
    """4 beams, 4 expansions, 8 rounds of 16: 128 steps instead of 16 * (1 + ... + 8) = 576."""
    model = Spelling()
    found = beam_search(model, TASK, letters(*WORD), depth=8)
    assert model.judged == found.judged == found.n_proposed == 128
    assert found.judged_without_reuse == 576
    assert found.reuse == pytest.approx(128 / 576)
    assert found.reuse <= 0.3
    assert model.calls == 8, "one batch a round"


def test_sizes_are_counted_where_asked():
    found = beam_search(Spelling(), TASK, letters("a", "b"), depth=2, beams=1, expansions=2, size=lambda s: ord(s) - 96)
    # Round 1: a 1, b 2. The beam is a; round 2: aa, ab.
    assert found.judged == 1 + 2 + 1 + 2
    assert found.judged_without_reuse == 1 + 2 + (1 + 1) + (1 + 2)


def test_a_beam_of_one_is_greedy_and_a_wider_one_looks_further():
    class Trap(Spelling):
        """z first looks better and leads nowhere."""

        def _one(self, carry, new):
            [step] = new
            carry += step
            value = {"z": 0.5, "a": 0.4}.get(carry, 0.9 if carry.startswith("a") else 0.1)
            return carry, Judgement(potential=np.array([value]), spread=np.zeros(1), judged=np.ones(1, bool))

    narrow = beam_search(Trap(), TASK, letters("z", "a"), depth=2, beams=1, expansions=2)
    copies = beam_search(Trap(), TASK, letters("z", "a"), depth=2, beams=2, expansions=2)
    wide = beam_search(Trap(), TASK, letters("z", "a"), depth=2, beams=2, expansions=2, key=lambda step: step)
    assert [one.best.steps[0] for one in (narrow, copies, wide)] == ["z", "z", "a"]


def test_abstentions_come_last_and_are_counted():
    found = beam_search(Spelling(), TASK, letters("?", "h"), depth=1, beams=2, expansions=1)
    assert [trace.steps for trace in found.traces] == [("h",), ("?",)]
    assert (found.n_abstained, found.best.steps) == (1, ("h",))
    nothing = beam_search(Spelling(), TASK, letters("?"), depth=2)
    with pytest.raises(AbstainedError, match="no score"):
        _ = nothing.best


def test_duplicates_are_judged_once():
    model = Spelling()
    found = beam_search(model, TASK, letters("a", "b"), depth=2, beams=2, expansions=4, key=lambda step: step)
    assert (found.n_proposed, found.n_duplicates, model.judged) == (8 + 8, 6 + 4, 2 + 4)


def test_finished_traces_are_set_aside_and_come_before_better_unfinished_ones():
    found = beam_search(
        Spelling(), TASK, letters("a", "h"), depth=3, beams=2, expansions=2, finished=lambda steps: steps[-1] == "h"
    )
    assert [trace.finished for trace in found.traces] == sorted((t.finished for t in found.traces), reverse=True)
    assert found.best.finished
    assert found.best.steps == ("a", "h")
    assert any(trace.steps == ("a", "a", "a") for trace in found.traces)


def test_a_prefix_that_cannot_go_on_is_kept_as_it_is():
    def expand(prefixes, count):
        return [["a", "b"][:count] if len(prefix) < 2 else [] for prefix in prefixes]

    found = beam_search(Spelling(), TASK, expand, depth=9, beams=2, expansions=2)
    assert found.best.steps == ("a", "b")
    assert not found.best.finished
    assert all(len(trace.steps) == 2 for trace in found.traces)
    empty = beam_search(Spelling(), TASK, lambda prefixes, count: [[] for _ in prefixes], depth=3)
    assert empty.traces == ()
    assert math.isnan(empty.reuse)


def test_what_is_refused():
    with pytest.raises(TraceError, match="beams 0"):
        beam_search(Spelling(), TASK, letters("a"), depth=1, beams=0)
    with pytest.raises(TraceError, match="expand gave"):
        beam_search(Spelling(), TASK, lambda prefixes, count: [["a"] * (count + 1)], depth=1)
    with pytest.raises(TraceError, match="expand gave"):
        beam_search(Spelling(), TASK, lambda prefixes, count: [], depth=1)


def test_it_knows_neither_text_nor_robots_but_serves_thoughts():
    """A proposer that errs two times in three: the true judge of arithmetic keeps the chain clean."""
    chain = make_chain(np.random.default_rng(3), length=8)
    rng = np.random.default_rng(0)

    def expand(prefixes, count):
        proposals = []
        for prefix in prefixes:
            right = chain.steps[len(prefix)]
            head, _, value = right.text.rpartition("= ")
            wrong = Thought(text=f"{head}= {(int(value) + 1) % 7}", parents=right.parents)
            given = len(prefix) < 2
            proposals.append([right if given or rng.random() < 1 / 3 else wrong for _ in range(count)])
        return proposals

    found = beam_search(ArithmeticJudge(), chain.task, expand, depth=8, finished=lambda steps: len(steps) == 8)
    assert found.best.score == 1
    assert [step.text for step in found.best.steps] == [step.text for step in chain.steps]
