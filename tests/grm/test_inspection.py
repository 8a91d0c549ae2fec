import numpy as np
import pytest

from grm.data.recordings import Recording
from grm.errors import TraceError
from grm.inspection import Inspection, Stretch, every_frame, inspect, near_duplicates, regressions, stalls, triage
from grm.metrics import Completion
from grm.reward import Frame, Judgement, ProcessReward, Task

NAN = float("nan")


def inspection(potential, *, success=None, name="one", every=1, **known) -> Inspection:
    values = np.array(potential, float)
    nothing = np.full(len(values), NAN)
    return Inspection(
        name=name,
        time_s=np.arange(len(values)) * 0.5,
        frame=np.arange(len(values)) * every,
        potential=values,
        spread=np.where(np.isnan(values), NAN, 0.1),
        judged=~np.isnan(values),
        incremental=nothing,
        forward=nothing,
        backward=nothing,
        absolute=nothing,
        success=nothing if success is None else np.array([success] * len(values), float),
        **known,
    )


def seconds(*potential) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(len(potential), dtype=float), np.array(potential, float)


@pytest.mark.parametrize(
    ("potential", "expected"),
    [
        ((0, 0.2, 0.5, 0.9), []),
        ((0, 0.5, 0.42, 0.5, 0.9), []),  # shallower than 0.1
        ((0, 0.5, 0.4, 0.9), [(1, 2, 0.1)]),
        ((0, 0.6, 0.5, 0.55, 0.3, 0.7), [(1, 4, 0.3)]),  # a wiggle does not end it
        ((0, 0.6, 0.4, 0.5, 0.2, 0.9), [(1, 2, 0.2), (3, 4, 0.3)]),  # a rise of 0.1 does
        ((0.8, 0.5), [(0, 1, 0.3)]),  # still falling at the end
        ((0.3, 0.5, 0.5, 0.2), [(2, 3, 0.3)]),  # from the last moment at the peak
        ((), []),
    ],
)
def test_regressions_go_from_a_peak_to_the_lowest_point(potential, expected):
    found = regressions(*seconds(*potential))
    assert [(s.start_s, s.end_s, pytest.approx(s.depth)) for s in found] == expected


@pytest.mark.parametrize(
    ("potential", "expected"),
    [
        ((0, 0.2, 0.4, 0.6), []),
        ((0, 0.3, 0.32, 0.3, 0.35, 0.6), [(1, 4)]),
        ((0, 0.3, 0.3, 0.6), []),  # one second only
        ((0.1, 0.1, 0.1, 0.1, 0.5, 0.5, 0.5, 0.8), [(0, 3), (4, 6)]),
        ((0.5, 0.96, 0.97, 0.98, 0.99), []),  # done is no stall
        ((), []),
    ],
)
def test_stalls_are_stretches_without_change(potential, expected):
    assert [(s.start_s, s.end_s) for s in stalls(*seconds(*potential))] == expected


@pytest.mark.parametrize(
    ("potential", "success", "succeeded", "verdict", "advice"),
    [
        ((0, 0.5, 0.9), 0.8, True, Completion.SUCCESS, "keep"),
        ((0, 0.5, 0.9), 0.8, None, Completion.SUCCESS, "keep"),
        ((0, 0.5, 0.9), 0.8, False, Completion.SUCCESS, "look"),
        ((0, 0.5, 0.9), 0.2, True, Completion.PARTIAL, "look"),
        ((0, 0.5, 0.9), 0.2, False, Completion.PARTIAL, "weight"),
        ((0, 0.7, 0.4, 0.97), None, None, Completion.SUCCESS, "weight"),
        ((0, 0.1, 0.3), 0.0, False, Completion.FAIL, "drop"),
        ((0, 0.5, NAN), 0.9, True, None, "look"),
    ],
)
def test_verdict_and_advice(potential, success, succeeded, verdict, advice):
    one = inspection(potential, success=success, succeeded=succeeded)
    assert (one.verdict, one.advice) == (verdict, advice)


def test_what_was_reached_and_when():
    one = inspection([0, NAN, 0.3, 0.6, 0.55, 0.5])
    assert (one.final, one.best) == (0.5, 0.6)
    assert one.milestones_s == {0.25: 1.0, 0.5: 1.5}
    assert one.regressions == [Stretch(1.5, 2.5, 0.1)]
    silent = inspection([NAN, NAN])
    assert np.isnan([silent.final, silent.best]).all()
    assert (silent.milestones_s, silent.regressions, silent.stalls, silent.agrees) == ({}, [], [], None)


def test_the_worst_come_first():
    episodes = [
        inspection([0, 0.9], success=0.9, name="good"),
        inspection([0, 0.6], success=0.1, name="half"),
        inspection([0, 0.2], success=0.1, name="bad"),
        inspection([0, 0.1], success=0.1, name="worse"),
        inspection([0, 0.9], success=0.9, succeeded=False, name="mislabelled"),
        inspection([0, NAN], name="silent"),
    ]
    assert [one.name for one in triage(episodes)] == ["silent", "mislabelled", "worse", "bad", "half", "good"]


def test_frames_between_judged_ones_lie_on_a_line_and_nothing_crosses_an_abstention():
    values = every_frame(inspection([0.0, 0.4, NAN, 0.8, 0.6], every=2), 9)
    np.testing.assert_allclose(values, [0, 0.2, 0.4, NAN, NAN, NAN, 0.8, 0.7, 0.6])


class Counting(ProcessReward[Frame, int]):
    """Φ is how many frames it has seen, of 100; it counts calls."""

    calls = 0

    def start(self, task: Task) -> int:
        assert task.instruction == "open it"
        return 0

    def extend(self, carries, steps):
        self.calls += 1
        ends = [carry + len(prefix) for carry, prefix in zip(carries, steps, strict=True)]
        judgements = [
            Judgement(
                potential=np.arange(carry + 1, end + 1) / 100,
                spread=np.zeros(end - carry),
                judged=np.ones(end - carry, bool),
            )
            for carry, end in zip(carries, ends, strict=True)
        ]
        return ends, judgements


def test_a_recording_is_judged_in_parts_with_one_memory():
    picture = np.zeros((4, 4, 3), np.uint8)
    frames = [Frame(views={"top": picture}, time=0.1 * t) for t in range(160)]
    recording = Recording.of_frames("mine", "open it", frames, 10.0, succeeded=False)
    model, heard = Counting(), []
    found = inspect(model, recording, None, stride=2, after_each=heard.append)
    assert model.calls == 3
    assert heard == [32, 32, 17]
    np.testing.assert_allclose(found.potential, np.arange(1, 82) / 100)
    np.testing.assert_allclose(found.time_s, np.array([*range(0, 160, 2), 159]) / 10)
    np.testing.assert_array_equal(found.frame, [*range(0, 160, 2), 159])
    assert np.isnan(found.success).all()
    assert (found.succeeded, found.verdict) == (False, Completion.PARTIAL)
    with pytest.raises(TraceError, match="none holds no frame"):
        inspect(model, Recording.of_frames("none", "open it", [], 10.0), None)


def test_near_duplicates_are_copies_and_not_the_same_scene():
    rng = np.random.default_rng(0)
    scene, noise = rng.uniform(0.2, 0.8, 16 * 256), rng.normal(0, 0.003, 16 * 256)
    moved = scene.copy()
    moved[::20] += 0.2
    prints = {"a": scene, "again": scene + noise, "moved": moved, "shorter": scene[:256], "none": np.zeros(0)}
    ones = [inspection([0, 1], name=name, fingerprint=print_) for name, print_ in prints.items()]
    ones.append(inspection([0, 1], name="none too"))
    assert near_duplicates(ones) == [("a", "again")]
