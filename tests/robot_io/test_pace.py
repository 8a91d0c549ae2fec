import pytest

from robot_io.pace import Pacer

from .fake import Clock


def make(rate_hz: float = 20.0):
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.now += seconds

    pacer = Pacer(rate_hz, clock=clock, sleep=sleep)
    pacer.start()
    return pacer, clock


def test_deadlines_are_absolute_so_that_nothing_drifts():
    pacer, clock = make()
    for busy in (0.01, 0.049, 0.0, 0.03) * 25:
        clock.now += busy
        assert pacer.wait() is False
    assert clock.now == pytest.approx(105.0)
    timing = pacer.timing()
    assert (timing.ticks, timing.overruns) == (100, 0)
    assert timing.period_ms == pytest.approx(50)
    assert timing.jitter_ms_max == pytest.approx(0, abs=1e-6)


def test_an_overrun_is_counted_and_the_grid_stays():
    pacer, clock = make()
    clock.now += 0.07  # 20 ms too late
    assert pacer.wait() is True
    assert clock.now == pytest.approx(100.07)
    assert pacer.wait() is False
    assert clock.now == pytest.approx(100.10)
    clock.now += 0.18  # misses three turns altogether: they are left out, not made up for
    assert pacer.wait() is True
    assert pacer.wait() is False
    assert clock.now == pytest.approx(100.30)
    timing = pacer.timing()
    assert (timing.ticks, timing.overruns, timing.overrun_rate) == (4, 2, 0.5)
    assert timing.jitter_ms_max == pytest.approx(130)


def test_a_little_late_is_no_overrun():
    pacer, clock = make()
    clock.now += 0.054
    assert pacer.wait() is False
    clock.now += 0.056
    assert pacer.wait() is True


def test_a_pause_is_no_period():
    pacer, clock = make()
    pacer.wait()
    clock.now += 60
    pacer.start()
    pacer.wait()
    assert pacer.timing().jitter_ms_max == pytest.approx(0, abs=1e-6)


def test_nothing_measured_is_nothing_wrong_and_no_rate_is_refused():
    timing = Pacer(10).timing()
    assert (timing.ticks, timing.overruns, timing.overrun_rate, timing.jitter_ms_p99) == (0, 0, 0.0, 0.0)
    with pytest.raises(ValueError, match="rate_hz is 0"):
        Pacer(0)


def test_real_time_is_kept():
    pacer = Pacer(100)
    pacer.start()
    for _ in range(30):
        pacer.wait()
    timing = pacer.timing()
    assert timing.period_ms > 9.5
    assert timing.period_ms < 11.5 or timing.overruns
