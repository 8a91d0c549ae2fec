import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecExtractDictObs
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper

from grm.errors import TraceError
from grm.reward import Task
from shaping import ModelPotential
from shaping.sb3 import VecPotentialShaping
from tests.shaping.mdp import TabularEnv, chain, state_of
from tests.shaping.test_potential import Brightness
from tests.shaping.test_wrapper import Table


class Spy(Table):
    """Records which environments were asked about, and in what states."""

    def __init__(self, *values):
        super().__init__(*values)
        self.log = []

    def reset(self, indices, observations):
        self.log.append(("reset", list(indices), [state_of(o) for o in observations]))
        return super().advance(indices, observations)

    def advance(self, indices, observations):
        self.log.append(("advance", list(indices), [state_of(o) for o in observations]))
        return super().advance(indices, observations)


def make(potential, *, lengths=(2, 5), horizon=3, **kwargs) -> VecPotentialShaping:
    venv = DummyVecEnv([lambda n=n: TabularEnv(chain(n), horizon=horizon) for n in lengths])
    return VecPotentialShaping(venv, potential, gamma=0.9, **kwargs)


def test_auto_reset_by_hand():
    """Environment 0 terminates after two steps, environment 1 is truncated after three in state 3; both start in 0."""
    phi = Spy(0.2, 0.5, 0.6, 0.7, 0.8, 0.9)
    venv = make(phi)
    venv.reset()
    rewards, infos = [], []
    for _ in range(3):
        observation, reward, ended, info = venv.step(np.array([1, 1]))
        rewards.append(reward)
        infos.append(info)
    up, last = 0.9 * 0.5 - 0.2, 0.9 * 0.7 - 0.6  # Φ(3) is kept at the truncation
    np.testing.assert_allclose(rewards, [[up, up], [1 - 0.5, 0.9 * 0.6 - 0.5], [up, last]], rtol=1e-6)
    assert rewards[0].dtype == np.float32
    assert ended.tolist() == [False, True]
    assert infos[2][1]["TimeLimit.truncated"]
    assert observation["state"].ravel().tolist() == [1, 0]
    assert infos[1][0]["phi"] == 0.6  # the model's opinion of the terminal state; the reward took 0
    assert infos[1][0]["task_reward"] == 1.0
    assert infos[2][1]["phi"] == 0.7
    assert phi.log == [
        ("reset", [0, 1], [0, 0]),
        ("advance", [0, 1], [1, 1]),
        ("advance", [0, 1], [2, 2]),
        ("reset", [0], [0]),
        ("advance", [0, 1], [1, 3]),
        ("reset", [1], [0]),
    ]


def test_reset_infos_carry_the_first_judgement():
    venv = make(Spy(0.2, 0.5, 0.6, 0.7, 0.8, 0.9))
    venv.reset()
    assert venv.reset_infos == [{"begun": True, "phi": 0.2, "spread": 0.0, "judged": True}] * 2


def test_the_whole_batch_is_one_model_call_and_prefixes_stay_apart():
    """Brightness is 10 s of 255; means over each environment's own prefix, begun anew after a reset."""
    model = Brightness()
    venv = make(ModelPotential(model, Task(instruction="go right")), weight=255.0)
    venv.reset()
    infos = [venv.step(np.array([1, 0]))[3] for _ in range(2)]
    assert model.calls == [2, 2, 2, 1]
    assert [info[0]["phi"] * 255 for info in infos] == pytest.approx([5, 10])
    assert np.isnan([info[1]["phi"] for info in infos]).all()
    info = venv.step(np.array([1, 1]))[3]
    assert info[0]["phi"] * 255 == pytest.approx(5)  # black, 10: not 0, 10, 20, 0, 10
    assert info[1]["phi"] * 255 == pytest.approx(2.5)
    assert info[1]["abstentions"] == 3
    assert venv.abstentions == 3 + 2  # and environment 0: from its black first frame, twice


def test_abstentions_of_one_environment_leave_the_other_alone():
    venv = make(Spy(0.2, None, 0.6, 0.7, 0.8, 0.9))
    venv.reset()
    _, reward, _, infos = venv.step(np.array([1, 0]))
    np.testing.assert_allclose(reward, [0, 0.9 * 0.2 - 0.2], rtol=1e-6)
    assert [info["judged"] for info in infos] == [False, True]
    assert [info["abstentions"] for info in infos] == [1, 0]
    infos = venv.step(np.array([1, 0]))[3]
    assert infos[0]["abstentions"] == 2  # still told of the ended episode
    assert venv.step(np.array([0, 0]))[3][0]["abstentions"] == 0
    assert venv.abstentions == 2


def test_a_new_weight_holds_from_the_next_state_on():
    venv = make(Spy(0.2, 0.5, 0.6, 0.7, 0.8, 0.9))
    venv.reset()
    venv.weight = 3.0
    np.testing.assert_allclose(venv.step(np.array([1, 0]))[1], [0.9 * 3 * 0.5 - 0.2, 0.9 * 3 * 0.2 - 0.2], rtol=1e-6)
    assert venv.weight == 3.0


def test_below_an_extractor_the_images_are_gone_only_for_the_learner():
    venv = VecExtractDictObs(make(ModelPotential(Brightness(), Task(instruction="go right"))), "state")
    assert venv.reset().tolist() == [[0], [0]]
    for _ in range(3):
        observation, _, _, infos = venv.step(np.array([1, 1]))
    assert observation.tolist() == [[1], [0]]
    assert infos[1]["terminal_observation"].tolist() == [3]
    assert infos[1]["phi"] * 255 == pytest.approx(15)  # (0 + 10 + 20 + 30) / 4


def test_n_step_returns_of_the_replay_buffer_telescope():
    """Tasks that pay nothing: an n-step return is γ^n Φ_n - Φ_0, Φ_n = 0 if it ended, Φ_n kept if it was cut short."""
    table = np.array([0.2, 0.9, 0.1, 0.7, 0.4, 1.0])
    venv = VecPotentialShaping(
        DummyVecEnv([lambda: TabularEnv(chain(5, reward=0.0), horizon=7)]), Table(*table), gamma=0.9
    )
    buffer = NStepReplayBuffer(
        200, spaces.Box(0, 9, (1,)), spaces.Discrete(2), device="cpu", n_envs=1, n_steps=3, gamma=0.9
    )
    rng = np.random.default_rng(0)
    before = venv.reset()["state"]
    for _ in range(90):
        action = rng.integers(2, size=1)
        after, reward, ended, infos = venv.step(action)
        reached = infos[0]["terminal_observation"]["state"][None] if ended[0] else after["state"]
        buffer.add(before, reached, action, reward, ended, infos)
        before = after["state"]
    batch = buffer._get_samples(np.arange(80))
    begin = table[batch.observations.numpy().astype(int).ravel()]
    end = table[batch.next_observations.numpy().astype(int).ravel()]
    alive, discount = 1 - batch.dones.numpy().ravel(), batch.discounts.numpy().ravel()
    np.testing.assert_allclose(batch.rewards.numpy().ravel(), discount * alive * end - begin, atol=1e-5)
    assert 0 < alive.sum() < 80
    assert len(np.unique(discount.round(5))) == 3  # whole returns, and ones cut by either kind of end


def test_an_array_observation_needs_no_dict():
    class Flat(TabularEnv):
        def __init__(self):
            super().__init__(chain(3))
            self.observation_space = self.observation_space["state"]

        def _observe(self):
            return super()._observe()["state"]

    class Look(Table):
        def look_up(self, observation):
            return self.values[int(observation[0])]

    venv = VecPotentialShaping(DummyVecEnv([Flat]), Look(0.2, 0.5, 0.6, 1.0), gamma=0.9)
    venv.reset()
    np.testing.assert_allclose(venv.step(np.array([1]))[1], [0.25], rtol=1e-6)


class Tampered(VecEnvWrapper):
    """A vectorised environment with one thing wrong."""

    def __init__(self, venv, what):
        super().__init__(venv)
        self.what = what

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        observations, rewards, ended, infos = self.venv.step_wait()
        if self.what == "reward":
            rewards[1] = np.nan
        elif self.what == "observation":
            observations["state"][1] = np.inf
        elif ended[0]:
            del infos[0]["terminal_observation"]
        return observations, rewards, ended, infos


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("reward", "task reward of environment 1 holds nan"),
        ("observation", r"observation of environment 1\['state'\] holds inf"),
        ("terminal", r"infos\[0\]\['terminal_observation'\]"),
    ],
)
def test_one_clear_error(what, message):
    inner = Tampered(DummyVecEnv([lambda n=n: TabularEnv(chain(n)) for n in (1, 4)]), what)
    venv = VecPotentialShaping(inner, Spy(*[0.5] * 5), gamma=0.9)
    venv.reset()
    with pytest.raises(TraceError, match=message):
        venv.step(np.array([1, 1]))
