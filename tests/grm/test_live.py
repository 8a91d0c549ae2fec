import numpy as np
import pytest

from grm.errors import AbstainedError, TraceError
from grm.live import LiveReward
from grm.models.oracle import Oracle
from grm.reward import Frame, Task
from grm.testing import check_judgement

TASK = Task(instruction="open the door")


def frame(time):
    return Frame(views={}, time=time)


class Clock:
    """Stands still unless told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Slow(Oracle):
    """An oracle that takes as long as it is told, on a clock of its own."""

    def __init__(self, clock, progress=lambda step: step.time / 10):
        super().__init__(progress, noise=0.1)
        self.clock = clock
        self.takes_s = 0.0

    def extend(self, carries, steps):
        self.clock.now += self.takes_s
        return super().extend(carries, steps)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def model(clock):
    return Slow(clock)


@pytest.fixture
def live(clock, model):
    return LiveReward(model, TASK, deadline_s=0.05, clock=clock)


def test_live_equals_offline_also_when_late(clock, model, live):
    frames = [frame(t) for t in (0.0, 0.5, 2.0, 7.0)]
    seen = []
    for i, each in enumerate(frames):
        model.takes_s = 0.2 if i == 1 else 0.01  # the second is late, and still remembered
        seen.append(live.feed(each))
    assert [each.late for each in seen] == [False, True, False, False]
    offline = model.judge(TASK, frames)
    assert [each.potential for each in seen] == offline.potential.tolist()
    assert [each.spread for each in seen] == offline.spread.tolist()
    assert live.carry == 4
    check_judgement(seen[-1].judgement, 1)


def test_latency_and_age(clock, model, live):
    model.takes_s = 0.03
    new = live.feed(frame(1.5))
    assert (new.latency_s, new.age_s, new.time) == pytest.approx((0.03, 0.03, 1.5))
    clock.now += 0.1
    old = live.latest(max_age_s=0.2)
    assert old.age_s == pytest.approx(0.13)  # since the frame was handed over, not since the answer
    assert (old.latency_s, old.potential, old.late) == (new.latency_s, new.potential, False)


def test_exactly_on_time_is_not_late(clock, model, live):
    clock.now, model.takes_s = 0.0, 0.05
    assert not live.feed(frame(0)).late


def test_stale_is_an_abstention(clock, live):
    live.feed(frame(0.0))
    clock.now += 0.3
    with pytest.raises(AbstainedError, match=r"0\.300 s old; expected at most 0\.250 s"):
        live.latest(max_age_s=0.25)
    live.feed(frame(0.1))
    assert live.latest(max_age_s=0.25).time == 0.1


def test_nothing_yet(live):
    with pytest.raises(AbstainedError, match="no frame was fed"):
        live.latest(max_age_s=1e9)


@pytest.mark.parametrize("time", [1.0, 0.5])
def test_time_must_increase_and_a_refused_frame_leaves_no_trace(live, time):
    live.feed(frame(1.0))
    before = live.carry
    with pytest.raises(TraceError, match=r"after one of 1\.0 s"):
        live.feed(frame(time))
    assert live.carry == before
    assert live.feed(frame(1.1)).time == 1.1


def test_a_model_that_raises_leaves_no_trace(clock):
    model = Slow(clock, progress=lambda step: step.time)
    live = LiveReward(model, TASK, deadline_s=1.0, clock=clock)
    live.feed(frame(0.1))
    with pytest.raises(TraceError):
        live.feed(frame(5.0))  # progress 5
    assert live.carry == 1
    assert live.feed(frame(0.2)).judged
    assert live.carry == 2


def test_abstention_stays_one(clock):
    live = LiveReward(Slow(clock, progress=lambda step: np.nan), TASK, deadline_s=1.0, clock=clock)
    answer = live.feed(frame(0.0))
    assert not answer.judged
    assert np.isnan(answer.potential)
    assert np.isnan(answer.spread)
    assert not live.latest(max_age_s=1.0).judged


def test_default_clock_is_real():
    live = LiveReward(Oracle(lambda step: 0.5), TASK, deadline_s=30.0)
    answer = live.feed(frame(0.0))
    assert 0 < answer.latency_s < 30
    assert live.latest(max_age_s=30).age_s > answer.latency_s


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, float("nan")])
def test_deadline(model, deadline_s):
    with pytest.raises(TraceError, match="deadline_s"):
        LiveReward(model, TASK, deadline_s=deadline_s)
