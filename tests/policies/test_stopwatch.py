import pytest

from policies import stopwatch
from policies.stopwatch import PARTS, Stopwatch


def test_a_part_within_a_part_is_not_counted_twice(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 32.0])
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(now))
    watch = Stopwatch()  # 0
    with watch("simulate"), watch("render"):  # learn 1, from 1; simulate 2, from 3
        pass  # render 4, from 7; simulate 8, from 15
    assert watch.lap() == {"simulate": 10.0, "render": 4.0, "judge": 0.0, "save": 0.0, "learn": 17.0}
    assert watch.lap() == dict.fromkeys(PARTS, 0.0) | {"learn": 1.0}


def test_time_goes_on_after_an_error(monkeypatch):
    now = iter([0.0, 1.0, 2.0, 4.0])
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(now))
    watch = Stopwatch()
    with pytest.raises(KeyError), watch("judge"):
        raise KeyError
    assert watch.lap() == dict.fromkeys(PARTS, 0.0) | {"learn": 3.0, "judge": 1.0}
