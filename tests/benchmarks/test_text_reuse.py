import numpy as np
import pytest

from benchmarks.text.reuse import BEAMS, DEPTH, EXPANSIONS, Forgetful, search, texts_of
from grm.reward import Task, Thought
from grm.testing import check_process_reward
from grm.text.conventions import TRL

from ..grm.text.models import Scripted
from ..grm.text.tiny_judges import QUESTION, STEPS, judge


def test_without_memory_a_judge_says_the_same():
    thoughts = [Thought(text=step) for step in STEPS]
    forgetful = Forgetful(judge(TRL))
    check_process_reward(forgetful, Task(instruction=QUESTION), thoughts)
    alone = judge(TRL).judge(Task(instruction=QUESTION), thoughts)
    np.testing.assert_allclose(forgetful.judge(Task(instruction=QUESTION), thoughts).potential, alone.potential)


def test_tokens_are_those_that_the_network_read():
    """Every step is as long as another here, so that the counts follow from the numbers of candidates alone."""
    step = STEPS[0]
    model = judge(TRL)
    policy = Scripted(lambda prompt, k: step)
    carried, tokens, _ = search(model, model, policy, QUESTION, 0)
    again, tokens_again, _ = search(model, Forgetful(model), policy, QUESTION, 0)
    assert texts_of(carried) == texts_of(again) == {(step,) * DEPTH}
    lengths = [model.asker.ask(QUESTION, [step] * n).reads[-1] + 1 for n in range(1, DEPTH + 1)]
    assert tokens_again == BEAMS * EXPANSIONS * sum(lengths)
    assert tokens == BEAMS * EXPANSIONS * lengths[-1], "one whole reading, in parts, for each line of candidates"
    assert carried.best.score == pytest.approx(again.best.score, abs=1e-5)
