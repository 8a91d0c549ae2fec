import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.wrappers import TimeLimit

from grm.errors import TraceError
from grm.reward import Task
from shaping import ModelPotential, PotentialShaping, StatePotential
from tests.shaping.mdp import TabularEnv, chain, state_of
from tests.shaping.test_potential import Brightness

STEPS = {"phi", "spread", "task_reward", "shaping_reward", "judged", "abstentions"}


class Table(StatePotential[dict[str, np.ndarray]]):
    """Φ by state; counts every question it is asked."""

    def __init__(self, *values: float | None) -> None:
        self.values = list(values)
        self.asked: list[int] = []
        super().__init__(self.look_up)

    def look_up(self, observation):
        self.asked.append(state_of(observation))
        return self.values[self.asked[-1]]


def run(env, actions):
    env.reset()
    return [env.step(action)[4]["shaping_reward"] for action in actions]


def test_by_hand_and_what_the_info_says():
    """Chain of two, γ = .9, w = 2: .9·2·.5 - 2·.2 = .5; then termination: 0 - 2·.5, though the model says 1 there."""
    env = PotentialShaping(TabularEnv(chain(2)), Table(0.2, 0.5, 1.0), gamma=0.9, weight=2.0)
    _, info = env.reset()
    assert info == {"begun": True, "phi": 0.2, "spread": 0.0, "judged": True}
    _, reward, terminated, truncated, info = env.step(1)
    assert (terminated, truncated) == (False, False)
    assert reward == pytest.approx(0.5)
    assert set(info) == STEPS | {"before", "after"}
    assert info["task_reward"] == 0.0
    assert info["phi"] == 0.5
    _, reward, terminated, _, info = env.step(1)
    assert terminated
    assert reward == pytest.approx(1 - 1)
    assert info["task_reward"] == 1.0
    assert info["shaping_reward"] == pytest.approx(-1.0)
    assert info["phi"] == 1.0
    assert info["judged"]


def test_truncation_keeps_the_potential_and_termination_wins_over_it():
    phi = Table(0.2, 0.5, 1.0)
    assert run(PotentialShaping(TabularEnv(chain(2), horizon=1), phi, gamma=0.9), [1]) == pytest.approx([0.25])
    both = PotentialShaping(TabularEnv(chain(2), horizon=2), phi, gamma=0.9)
    both.reset()
    both.step(1)
    _, _, terminated, truncated, info = both.step(1)
    assert (terminated, truncated) == (True, True)
    assert info["shaping_reward"] == pytest.approx(-0.5)


def test_either_side_of_a_time_limit():
    inside = TimeLimit(PotentialShaping(TabularEnv(chain(9), horizon=99), Table(*[0.1] * 10), gamma=0.9), 2)
    outside = PotentialShaping(TimeLimit(TabularEnv(chain(9), horizon=99), 2), Table(*[0.1] * 10), gamma=0.9)
    assert run(inside, [1, 1]) == run(outside, [1, 1]) == pytest.approx([-0.01, -0.01])


def test_one_judgement_per_state():
    phi = Table(0.2, 0.5, 0.7, 1.0)
    env = PotentialShaping(TabularEnv(chain(3)), phi, gamma=0.9)
    run(env, [1, 0, 1, 1])
    assert phi.asked == [0, 1, 1, 2, 3]
    env.reset()
    assert phi.asked == [0, 1, 1, 2, 3, 0]


def test_a_reset_in_the_middle_begins_anew():
    env = PotentialShaping(TabularEnv(chain(3)), Table(0.2, 0.5, 0.7, 1.0), gamma=0.9)
    assert run(env, [1, 1]) == pytest.approx([0.25, 0.13])
    assert run(env, [1]) == pytest.approx([0.25])


def test_abstentions_shape_nothing_and_are_counted_per_episode_and_in_all():
    env = PotentialShaping(TabularEnv(chain(4)), Table(0.2, None, 0.5, 0.6, None), gamma=0.9)
    for episode in (1, 2):
        _, info = env.reset()
        assert info["judged"]
        infos = [env.step(1)[4] for _ in range(4)]
        assert [info["judged"] for info in infos] == [False, False, True, True]  # a terminal state needs no judgement
        assert [info["abstentions"] for info in infos] == [1, 2, 2, 2]
        assert [info["shaping_reward"] for info in infos] == pytest.approx([0, 0, 0.9 * 0.6 - 0.5, -0.6])
        np.testing.assert_array_equal([info["phi"] for info in infos], [np.nan, 0.5, 0.6, np.nan])
        assert np.isnan(infos[0]["spread"])
        assert env.abstentions == 2 * episode


def test_abstaining_on_the_first_state():
    env = PotentialShaping(TabularEnv(chain(3)), Table(None, 0.5, 0.6, 1.0), gamma=0.9)
    _, info = env.reset()
    assert not info["judged"]
    assert run(env, [1, 1]) == pytest.approx([0, 0.04])
    assert env.abstentions == 1


def test_a_new_weight_holds_from_the_next_state_on():
    """1 · .2, then 3 · .5, then 3 · .7: .9·3·.5 - .2 and .9·3·.7 - 1.5."""
    env = PotentialShaping(TabularEnv(chain(3)), Table(0.2, 0.5, 0.7, 1.0), gamma=0.9)
    env.reset()
    env.weight = 3.0
    assert env.step(1)[4]["shaping_reward"] == pytest.approx(1.15)
    assert env.step(1)[4]["shaping_reward"] == pytest.approx(0.39)
    env.weight = 0.0
    assert env.step(1)[4]["shaping_reward"] == pytest.approx(-2.1)
    assert run(env, [1, 1]) == [0, 0]


@pytest.mark.parametrize("weight", [-0.1, np.nan, np.inf])
def test_weights_out_of_range(weight):
    with pytest.raises(TraceError, match="weight"):
        PotentialShaping(TabularEnv(chain(1)), Table(0, 1), gamma=0.9, weight=weight)
    env = PotentialShaping(TabularEnv(chain(1)), Table(0, 1), gamma=0.9)
    with pytest.raises(TraceError, match="weight"):
        env.weight = weight
    assert env.weight == 1.0


@pytest.mark.parametrize("gamma", [0.0, -1.0, 1.01, np.nan])
def test_gamma_out_of_range(gamma):
    with pytest.raises(TraceError, match="gamma"):
        PotentialShaping(TabularEnv(chain(1)), Table(0, 1), gamma=gamma)


class Corrupted(gym.Wrapper):
    """Puts one bad number into the observation or the reward of a step, or of the reset."""

    def __init__(self, env, where, value):
        super().__init__(env)
        self.where, self.value = where, value

    def reset(self, **kwargs):
        observation, info = self.env.reset(**kwargs)
        if self.where == "first":
            observation["state"][0] = self.value
        return observation, info

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self.where == "later":
            observation["state"][0] = self.value
        return observation, self.value if self.where == "reward" else reward, terminated, truncated, info


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_one_clear_error(value):
    constant = StatePotential(lambda _: 0.5)
    with pytest.raises(TraceError, match=rf"observation\['state'\] holds {value}"):
        PotentialShaping(Corrupted(TabularEnv(chain(2)), "first", value), constant, gamma=0.9).reset()
    for where, message in (
        ("later", rf"observation\['state'\] holds {value}"),
        ("reward", f"task reward holds {value}"),
    ):
        env = PotentialShaping(Corrupted(TabularEnv(chain(2)), where, value), constant, gamma=0.9)
        env.reset()
        with pytest.raises(TraceError, match=message):
            env.step(1)
    env = PotentialShaping(TabularEnv(chain(2)), Table(0.5, value, 0.5), gamma=0.9)
    env.reset()
    with pytest.raises(TraceError, match=f"the potential is {value}"):
        env.step(1)


def test_stepping_without_an_episode():
    env = PotentialShaping(TabularEnv(chain(1)), Table(0, 1), gamma=0.9)
    env.env.reset()
    with pytest.raises(ResetNeeded, match=r"\[0\]"):
        env.step(1)
    run(env, [1])
    with pytest.raises(ResetNeeded):
        env.step(1)


class Repeat(gym.Wrapper):
    """Every action twice, rewards added, as frame skips do."""

    def step(self, action):
        _, first, *_ = self.env.step(action)
        observation, second, terminated, truncated, info = self.env.step(action)
        return observation, first + second, terminated, truncated, info


def test_action_repeat_belongs_inside():
    """Φ = 0, .1, .2, .3, .4 in two decisions of two steps, γ = .9 per decision: γ² · .4 - 0 = .324.

    Shaped below the repeat the sum is (.09 + .08) + .9 (.07 + .06) = .287 and depends on the way.
    """
    phi = Table(*[i / 10 for i in range(10)])
    outside = PotentialShaping(Repeat(TabularEnv(chain(9), horizon=99)), phi, gamma=0.9)
    first, second = run(outside, [1, 1])
    assert first + 0.9 * second == pytest.approx(0.324)
    inside = Repeat(PotentialShaping(TabularEnv(chain(9), horizon=99), phi, gamma=0.9))
    inside.reset()
    assert inside.step(1)[1] + 0.9 * inside.step(1)[1] == pytest.approx(0.287)


def test_a_model_that_remembers_the_prefix():
    """Brightness 0 (abstains), 10, 20 of 255: potentials are means over the prefix, 5/255 and 10/255."""
    env = PotentialShaping(
        TabularEnv(chain(3)), ModelPotential(Brightness(), Task(instruction="go right")), gamma=0.9, weight=255.0
    )
    assert run(env, [1, 1]) == pytest.approx([0, 0.9 * 10 - 5])
    assert run(env, [1, 0, 1]) == pytest.approx([0, 0.9 * 20 / 3 - 5, 0.9 * 10 - 20 / 3])
