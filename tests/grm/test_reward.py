import dataclasses

import numpy as np
import pytest

from grm.errors import AbstainedError, TraceError
from grm.reward import Frame, Judgement, PerspectiveJudgement, ProcessReward, ScoredJudgement, ScoreKind, Task, Thought

IMAGE = np.zeros((4, 6, 3), dtype=np.uint8)


def judgement(potential, judged=None):
    potential = np.array(potential, dtype=float)
    judged = ~np.isnan(potential) if judged is None else np.array(judged)
    return Judgement(potential=potential, spread=np.where(judged, 0.1, np.nan), judged=judged)


def test_frame_takes_any_cameras():
    frame = Frame(views={"front": IMAGE, "wrist": IMAGE[:2]}, time=1.5)
    assert set(frame.views) == {"front", "wrist"}
    assert Frame(views={}).time == 0.0


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (IMAGE.astype(np.float32), r"'front' is dtype float32; expected .* uint8"),
        (IMAGE.tolist(), r"'front' is list"),
        (IMAGE.transpose(2, 0, 1), r"shape \(3, 4, 6\); .*transpose\(1, 2, 0\)"),
        (IMAGE[..., 0], r"shape \(4, 6\)"),
        (IMAGE[..., :1], r"shape \(4, 6, 1\)"),
        (IMAGE[:0], r"shape \(0, 6, 3\)"),
    ],
)
def test_frame_refuses_other_images(image, message):
    with pytest.raises(TraceError, match=message):
        Frame(views={"front": image})


@pytest.mark.parametrize("time", [np.nan, np.inf])
def test_frame_time_is_finite(time):
    with pytest.raises(TraceError, match="finite seconds"):
        Frame(views={}, time=time)


@pytest.mark.parametrize("instruction", ["", " \n"])
def test_task_says_what_to_do(instruction):
    with pytest.raises(TraceError, match="instruction is empty"):
        Task(instruction=instruction)


def test_judgement_has_one_of_each_per_step():
    assert len(judgement([0.1, 0.2])) == 2
    good = np.zeros(2)
    for broken in (
        {"potential": good, "spread": np.zeros(3), "judged": np.ones(2, bool)},
        {"potential": good, "spread": good, "judged": np.ones(1, bool)},
        {"potential": good[None], "spread": good[None], "judged": np.ones((1, 2), bool)},
    ):
        with pytest.raises(TraceError, match="three vectors of one length"):
            Judgement(**broken)


def test_last():
    assert judgement([np.nan, 0.7]).last() == 0.7
    for abstained in ([0.7, np.nan], []):
        with pytest.raises(AbstainedError, match="abstained on the last step"):
            judgement(abstained).last()


def test_richer_judgements_are_checked_too():
    good, judged = np.zeros(2), np.ones(2, bool)
    with pytest.raises(TraceError):
        ScoredJudgement(potential=good, spread=np.zeros(3), judged=judged, score=good, kind=ScoreKind.VALUE)
    with pytest.raises(TraceError):
        PerspectiveJudgement(
            potential=good,
            spread=np.zeros(3),
            judged=judged,
            incremental=good,
            forward=good,
            backward=good,
            absolute=good,
            success=good,
        )


@pytest.mark.parametrize(
    "value",
    [Frame(views={}), Thought(text="a"), Task(instruction="a"), judgement([0.5])],
    ids=lambda v: type(v).__name__,
)
def test_values_are_frozen(value):
    name = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, None)


class Counting(ProcessReward[str, int]):
    """Step n has potential n / 10."""

    def start(self, task):
        return 0

    def extend(self, carries, steps):
        judgements = [
            judgement((carry + 1 + np.arange(len(new))) / 10) for carry, new in zip(carries, steps, strict=True)
        ]
        return [carry + len(new) for carry, new in zip(carries, steps, strict=True)], judgements


def test_judge_is_one_extend_from_the_start():
    np.testing.assert_allclose(Counting().judge(Task(instruction="count"), list("abc")).potential, [0.1, 0.2, 0.3])


def test_a_process_reward_needs_both_halves():
    class Half(ProcessReward[str, int]):
        def start(self, task):
            return 0

    with pytest.raises(TypeError, match="extend"):
        Half()
