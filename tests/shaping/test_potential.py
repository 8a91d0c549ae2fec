from collections.abc import Sequence

import numpy as np
import pytest

from grm.errors import TraceError
from grm.reward import Frame, Judgement, ProcessReward, Task
from grm.testing import check_process_reward
from shaping import ModelPotential, StatePotential, frame_of, shaping_reward

TASK = Task(instruction="open the door")


class Brightness(ProcessReward[Frame, tuple[float, ...]]):
    """Mean brightness so far, per mille of 255 · 4; its carry is all brightnesses. Abstains on black frames."""

    def __init__(self, spread: float = 0.0) -> None:
        self.spread = spread
        self.calls: list[int] = []

    def start(self, task: Task) -> tuple[float, ...]:
        return ()

    def extend(
        self, carries: Sequence[tuple[float, ...]], steps: Sequence[Sequence[Frame]]
    ) -> tuple[list[tuple[float, ...]], list[Judgement]]:
        self.calls.append(len(carries))
        out, judgements = [], []
        for carry, frames in zip(carries, steps, strict=True):
            potential = []
            for frame in frames:
                brightness = float(np.mean([view.mean() for view in frame.views.values()])) / 255
                carry = (*carry, brightness)
                potential.append(np.mean(carry) if brightness else np.nan)
            judged = ~np.isnan(np.array(potential, dtype=float))
            out.append(carry)
            judgements.append(
                Judgement(
                    potential=np.array(potential, dtype=float),
                    spread=np.where(judged, self.spread, np.nan),
                    judged=judged,
                )
            )
        return out, judgements


def seen(brightness: int) -> dict[str, np.ndarray]:
    return {"state": np.zeros(2), "pixels.corner": np.full((4, 5, 3), brightness, dtype=np.uint8)}


def test_the_test_model_obeys_the_laws():
    check_process_reward(Brightness(), TASK, [frame_of(seen(b)) for b in (51, 0, 102)])


def test_shaping_reward_by_hand():
    np.testing.assert_allclose(
        shaping_reward(np.array([0.5, 0.5, 0.2]), np.array([0.8, 0.8, np.nan]), np.array([False, True, True]), 0.9),
        [0.9 * 0.8 - 0.5, -0.5, -0.2],
    )
    assert shaping_reward(0.5, 0.8, True, 0.9) == pytest.approx(-0.5)  # a plain bool, whose ~ would be -2
    assert np.isnan(shaping_reward(0.5, np.nan, False, 0.9))
    assert np.isnan(shaping_reward(np.nan, 0.5, True, 0.9))
    assert shaping_reward(np.zeros((4, 1)), np.ones(3), False, 0.5).shape == (4, 3)


def test_each_environment_has_its_own_prefix_and_all_are_judged_in_one_call():
    model = Brightness()
    potential = ModelPotential(model, TASK)
    first = potential.reset([0, 1, 2], [seen(51), seen(102), seen(255)])
    np.testing.assert_allclose(first.potential, [0.2, 0.4, 1.0])
    later = potential.advance([2, 0], [seen(51), seen(102)])
    np.testing.assert_allclose(later.potential, [0.6, 0.3])  # means of (1, .2) and (.2, .4)
    np.testing.assert_allclose(potential.reset([2], [seen(51)]).potential, [0.2])
    np.testing.assert_allclose(potential.advance([1, 2], [seen(204), seen(204)]).potential, [0.6, 0.5])
    assert model.calls == [3, 2, 1, 2]


def test_an_abstention_is_passed_on_and_the_carry_continues():
    potential = ModelPotential(Brightness(), TASK, pessimism=1.0)
    first = potential.reset([0], [seen(0)])
    assert not first.judged[0]
    assert np.isnan(first.potential[0])
    assert np.isnan(first.spread[0])
    np.testing.assert_allclose(potential.advance([0], [seen(204)]).potential, [0.4])  # the black frame is remembered


def test_pessimism_subtracts_the_spread_and_stops_at_zero():
    potential = ModelPotential(Brightness(spread=0.15), TASK, pessimism=2.0)
    judgement = potential.reset([0, 1], [seen(204), seen(51)])
    np.testing.assert_allclose(judgement.potential, [0.5, 0.0])
    np.testing.assert_allclose(judgement.spread, [0.15, 0.15])


@pytest.mark.parametrize("pessimism", [-1.0, np.nan, np.inf])
def test_pessimism_out_of_range(pessimism):
    with pytest.raises(TraceError, match="pessimism"):
        ModelPotential(Brightness(), TASK, pessimism=pessimism)


def test_to_step_replaces_the_observation_layout():
    potential = ModelPotential(Brightness(), TASK, to_step=lambda image: Frame(views={"only": image}))
    np.testing.assert_allclose(potential.reset([7], [np.full((2, 2, 3), 51, dtype=np.uint8)]).potential, [0.2])


def test_advance_before_reset():
    potential = ModelPotential(Brightness(), TASK)
    potential.reset([0], [seen(51)])
    with pytest.raises(TraceError, match=r"\[1\].*reset"):
        potential.advance([0, 1], [seen(51), seen(51)])


def test_frame_of_takes_every_view_and_keeps_no_reference_to_the_buffer():
    observation = {**seen(51), "pixels.wrist": np.full((2, 3, 3), 9, dtype=np.uint8)}
    frame = frame_of(observation)
    observation["pixels.corner"][:] = 0
    assert set(frame.views) == {"corner", "wrist"}
    assert (frame.views["corner"] == 51).all()
    assert frame.views["wrist"].shape == (2, 3, 3)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ({"state": np.zeros(2)}, r"\['state'\].*no image"),
        (np.zeros(3), "ndarray.*to_step"),
        ({"pixels.corner": np.zeros((4, 5, 3))}, "corner.*float64"),
    ],
)
def test_frame_of_says_what_is_missing(observation, message):
    with pytest.raises(TraceError, match=message):
        frame_of(observation)


def test_a_state_potential_abstains_with_none():
    judgement = StatePotential[float](lambda x: None if x < 0 else x).advance([0, 1], [-1.0, 0.25])
    np.testing.assert_array_equal(judgement.potential, [np.nan, 0.25])
    np.testing.assert_array_equal(judgement.spread, [np.nan, 0.0])
    np.testing.assert_array_equal(judgement.judged, [False, True])


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.1])
def test_a_potential_that_is_no_number_in_range_is_an_error(value):
    with pytest.raises(TraceError, match=f"the potential is {value}"):
        StatePotential[float](lambda x: x).reset([0, 1], [0.5, value])


class Broken(Brightness):
    def __init__(self, judgement: Judgement) -> None:
        super().__init__()
        self.judgement = judgement

    def extend(self, carries, steps):
        return list(carries), [self.judgement for _ in carries]


@pytest.mark.parametrize(
    ("potential", "spread", "message"),
    [
        ([0.5], [np.nan], "spread"),
        ([0.5], [-1.0], "spread"),
        ([np.nan], [0.0], "potential is nan"),
        ([], [], "lengths"),
    ],
)
def test_a_model_that_breaks_the_laws_is_an_error(potential, spread, message):
    judgement = Judgement(
        potential=np.array(potential, dtype=float),
        spread=np.array(spread, dtype=float),
        judged=np.ones(len(potential), dtype=bool),
    )
    with pytest.raises(TraceError, match=message):
        ModelPotential(Broken(judgement), TASK, pessimism=1.0).reset([0], [seen(51)])


class Sighted(Brightness):
    """Brightness that says what it saw: the newest brightness and how many there were."""

    def features(self, carry: tuple[float, ...]) -> np.ndarray:
        return np.array([carry[-1], len(carry)], np.float32)


def test_features_are_of_the_newest_observation_of_each_environment():
    potential = ModelPotential(Sighted(), TASK)
    potential.reset([0, 1], [seen(51), seen(102)])
    potential.advance([1], [seen(255)])
    np.testing.assert_allclose(potential.features(0), [0.2, 1])
    np.testing.assert_allclose(potential.features(1), [1.0, 2])


def test_models_that_do_not_say_what_they_saw_have_no_features():
    potential = ModelPotential(Brightness(), TASK)
    potential.reset([0], [seen(51)])
    assert potential.features(0) is None
    assert StatePotential(lambda o: 0.5).features(0) is None
