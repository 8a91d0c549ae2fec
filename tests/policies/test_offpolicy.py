import copy
import dataclasses
import functools
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from grm.errors import CheckpointError, TraceError
from policies import (
    ClonedPolicy,
    Collected,
    Demonstration,
    DemonstrationSAC,
    checkpoint,
    clone,
    elsewhere,
    instance_seeds,
    load_acting_policy,
    offpolicy,
)
from policies.bc import standardization
from policies.critics import CriticEnsemble, DemonstrationFeatures, EnsembleLinear
from policies.evidence import Evidence, Outcome
from policies.offpolicy import _Batch
from policies.replay import COLUMNS, EpisodeReplay

from .reaching import demonstration, reaching

torch.set_num_threads(1)
FAST = {
    "hidden": 16,
    "batch_size": 16,
    "updates_per_step": 1,
    "imitation_steps": 2,
    "cloned_rollouts": 1,
    "n_critics": 2,
}


@functools.cache
def cloned() -> ClonedPolicy:
    shown = demonstration()
    return clone(shown.observations, shown.actions / 2, rng=np.random.default_rng(0), steps=200, hidden=16)


def learner(**settings) -> DemonstrationSAC:
    return DemonstrationSAC(reaching(), demonstration(), cloned=copy.deepcopy(cloned()), **{**FAST, **settings})


def weights(model: DemonstrationSAC) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}


# ---------------------------------------------------------------------------------------------- the demonstration


def fields(**changes) -> dict[str, np.ndarray]:
    whole = demonstration()
    names = ("observations", "actions", "rewards", "next_observations", "terminated")
    return {name: getattr(whole, name).copy() for name in names} | changes


def test_a_demonstration_is_copied_and_read_only():
    arrays = fields()
    kept = Demonstration(**arrays)
    arrays["rewards"][:] = 9
    assert kept.rewards.tolist() == [0.0] * 9 + [1.0]
    with pytest.raises(ValueError, match="read-only"):
        kept.rewards[0] = 1
    assert len(kept) == 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"actions": np.full((10, 1), np.nan)}, "actions are not finite at step 0"),
        ({"rewards": np.zeros((10, 1))}, "expected 1 axes"),
        ({"rewards": np.zeros(9)}, "'rewards': 9"),
        ({name: array[:1] for name, array in fields().items()}, "at least 2"),
        ({name: array[:0] for name, array in fields().items()}, "has 0 steps"),
        ({"next_observations": np.zeros((10, 3))}, "next observations 3"),
        ({"terminated": np.ones(10, bool)}, "terminates at step 0"),
        ({"observations": fields()["observations"][::-1]}, "observation 1 is not the next observation of step 0"),
    ],
)
def test_malformed_demonstrations_are_refused(changes, words):
    with pytest.raises(TraceError, match=words):
        Demonstration(**fields(**changes))


def test_demonstrations_of_another_environment_are_refused():
    with pytest.raises(TraceError, match="observations have shape"):
        DemonstrationSAC(reaching(size=3), demonstration(), **FAST)
    with pytest.raises(TraceError, match="outside of"):
        DemonstrationSAC(reaching(), Demonstration(**fields(actions=np.full((10, 1), 2.5))), **FAST)


# ------------------------------------------------------------------------------------------------------- the parts


def test_the_batched_critics_are_the_separate_networks():
    observation_space, action_space = spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,))
    features = DemonstrationFeatures(observation_space, np.array([1.0, 2, 3]), np.array([0.5, 1, 2]))
    ensemble = CriticEnsemble(
        observation_space=observation_space,
        action_space=action_space,
        net_arch=[8, 8],
        features_extractor=features,
        features_dim=3,
        n_critics=3,
        share_features_extractor=False,
    )
    observations, actions = torch.randn(5, 3), torch.rand(5, 2)
    inputs = torch.cat([(observations - torch.tensor([1.0, 2, 3])) / torch.tensor([0.5, 1, 2]), actions], 1)
    for member in range(3):
        x = inputs
        for layer in ensemble.ensemble:
            if isinstance(layer, EnsembleLinear):
                x = nn.functional.linear(x, layer.weight[member].T, layer.bias[member, 0])
            elif isinstance(layer, nn.LayerNorm):
                x = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
            else:
                x = x.relu()
        torch.testing.assert_close(ensemble(observations, actions)[member], x)
        assert x.shape == (5, 1)
    torch.testing.assert_close(ensemble.q1_forward(observations, actions), ensemble(observations, actions)[0])


def test_the_better_proposal_is_taken(monkeypatch):
    model = learner(cloned_rollouts=0)
    observation = torch.zeros(3, 2)
    ours, theirs = model.policy.actor(observation, True), model.policy.cloned(observation)
    assert not torch.allclose(ours, theirs)
    for sign in (1, -1):
        gap = torch.sign(theirs - ours)[0, 0]
        monkeypatch.setattr(CriticEnsemble, "values", lambda self, o, a, s=sign * gap: (s * a[:, 0]).expand(2, -1))
        chosen = model.policy._predict(observation, deterministic=True)
        torch.testing.assert_close(chosen, theirs if sign > 0 else ours)
    model.policy.clone_is_better = True
    torch.testing.assert_close(model.policy._predict(observation, deterministic=True), theirs)


def test_the_target_bootstraps_from_the_better_proposal_by_the_least_of_the_critics(monkeypatch):
    model = learner()
    zeros = torch.zeros(2, 2)
    batch = _Batch(
        features=zeros,
        actions=zeros[:, :1],
        returns=torch.tensor([2.0, 10]),
        bootstrap=torch.tensor([0.9, 0]),
        next_features=zeros,
        next_cloned=zeros[:, :1],
        shown=zeros[:, :1],
    )
    # First two columns: the actor's proposals, last two: the cloned ones; two critics.
    for values, best in (
        ([[3.0, 3, 5, 5], [4, 4, 6, 6]], 5),
        ([[8.0, 8, 5, 5], [7, 7, 6, 6]], 7),
        ([[99.0, 9, 5, 5], [4, 4, 6, 6]], 5),
    ):
        monkeypatch.setattr(CriticEnsemble, "values_of", lambda self, o, a, v=values: torch.tensor(v))
        torch.testing.assert_close(model._target(batch), torch.tensor([2 + 0.9 * best, 10]))


def test_batches_have_their_share_of_the_demonstration_and_are_normalised():
    model = learner(demonstration_fraction=0.25, imitation_steps=0, reward_scale=10.0, n_steps=1)
    model.learn_rollouts(1)
    mean, scale = standardization(demonstration().observations)
    shown = torch.tensor((demonstration().observations - mean) / scale)
    batches = list(model._batches(3, 16))
    assert len(batches) == 3
    for batch in batches:
        distance = torch.cdist(batch.features, shown).amin(1)
        assert (distance[12:] < 1e-5).all()
        assert (distance[:12] > 1e-5).all()
        torch.testing.assert_close(batch.shown[12:], batch.actions[12:])
        raw = batch.features * torch.tensor(scale) + torch.tensor(mean)
        torch.testing.assert_close(batch.shown[:12], model.policy.cloned(raw[:12]))
        last = distance[12:] + (batch.features[12:, 0] - shown[-1, 0]).abs() < 1e-5
        torch.testing.assert_close(batch.returns[12:], 10.0 * last)
        torch.testing.assert_close(batch.bootstrap[12:], 0.98 * ~last)


def test_actions_of_an_update_are_those_of_the_policy():
    model = learner()
    features = torch.randn(5, 2)
    observations = features * model.actor.features_extractor.standardize.scale
    observations += model.actor.features_extractor.standardize.mean
    state = torch.get_rng_state()
    actions, log_prob, mean = model._act(features)
    torch.set_rng_state(state)
    expected, expected_log_prob = model.actor.action_log_prob(observations)
    torch.testing.assert_close(actions, expected)
    torch.testing.assert_close(log_prob, expected_log_prob, atol=1e-3, rtol=1e-3)  # theirs adds 1e-6 to the slope
    torch.testing.assert_close(mean, model.actor(observations, deterministic=True))


def test_exploration_noise_lasts_and_its_level_changes_with_the_rollout():
    model = learner(exploration_noise=0.3)
    policy, levels = model.policy, []
    torch.manual_seed(0)
    for _ in range(200):
        policy.begin_rollout()
        policy._next_noise(torch.zeros(1, 1))
        levels.append(float(policy._level))
    assert 0 <= min(levels) < 0.03 < 0.27 < max(levels) <= 0.3
    noise = torch.cat([policy._next_noise(torch.zeros(1, 1)) for _ in range(5000)]).flatten() / policy._level.item()
    assert float(noise.std()) == pytest.approx(1, abs=0.1)
    assert float((noise[1:] * noise[:-1]).mean()) == pytest.approx(0.8, abs=0.1)


def test_the_critics_learn_what_the_demonstration_is_worth():
    """From the demonstration alone: 10 at its last step, gamma less for each step before."""
    model = learner(hidden=32, gamma=0.9, n_steps=3, batch_size=32, tau=0.05, learning_rate=3e-3, imitation_weight=0.0)
    model.replay_buffer = model.demonstration_buffer
    model.train(1000, 32)
    shown = demonstration()
    with torch.no_grad():
        values = model.critic.values(torch.tensor(shown.observations), torch.tensor(shown.actions / 2)).mean(0)
    np.testing.assert_allclose(values, 10 * 0.9 ** np.arange(9, -1, -1), atol=0.6)


def test_the_demonstration_buffer_holds_n_step_returns_to_its_end():
    model = learner(n_steps=3, gamma=0.5)
    batch = model.demonstration_buffer._get_samples(np.array([6, 7, 9]))
    np.testing.assert_allclose(batch.rewards[:, 0], [0, 0.25, 1])  # 9 is rewarded: two steps after 7
    np.testing.assert_allclose(batch.dones[:, 0], [0, 1, 1])
    np.testing.assert_allclose(batch.actions[:, 0], -0.75)  # -1.5 of ±2


# ------------------------------------------------------------------------------------------------------- learning


def test_rollouts_are_reported_and_can_be_stopped():
    model, records = learner(cloned_rollouts=9), []
    model.learn_rollouts(9, lambda record: records.append(record) or (len(records) < 3))
    assert [record.number for record in records] == [1, 2, 3] == list(range(1, model.rollouts + 1))
    assert records[0].elapsed_s < records[2].elapsed_s
    for record in records:
        assert record.mean_phi == 0.5  # abstentions, NaN, are left out
        assert record.task_reward == float(record.success)
        np.testing.assert_allclose(record.reward, record.task_reward - 0.01 * record.length, atol=1e-6)
    assert model.num_timesteps == sum(record.length for record in records) == model.replay_buffer.size()


def test_rollout_k_of_equal_seeds_starts_alike_whatever_happened_before():
    first, second = learner(seed=5), learner(seed=5, updates_per_step=2)
    for model in (first, second):
        model.learn_rollouts(2)
    at = [model.replay_buffer.observations[0, 0, 0] for model in (first, second)]
    assert at[0] == at[1]
    expected = reaching()
    expected.seed(instance_seeds(5, 2, "training")[1])
    assert expected.reset()[0, 0] in first.replay_buffer.observations[: first.replay_buffer.size(), 0, 0]


def test_without_a_seed_the_environment_is_not_reset_twice():
    model = learner(seed=None)
    [env] = model.env.envs
    model.learn_rollouts(3)
    assert len(env.unwrapped.starts) == 4  # once to begin, then by itself after each of three episodes


def test_successes_join_the_demonstration_and_teach_the_cloned_policy():
    model = learner(cloned_rollouts=9)
    before, records = weights(model), []
    model.learn_rollouts(4, lambda record: records.append(record) and None)
    solved = [record for record in records if record.success]
    assert solved, "the cloned policy should solve this line"
    assert model.demonstration_buffer.size() == 10 + sum(record.length for record in solved)
    assert model.demonstration_buffer.dones[: model.demonstration_buffer.size()].sum() == 1 + len(solved)
    assert any(not torch.equal(before[k], v) for k, v in weights(model).items() if k.startswith("cloned.network"))
    alone = learner(cloned_rollouts=9, imitation_steps=0).learn_rollouts(4)
    assert alone.demonstration_buffer.size() == 10
    assert all(torch.equal(before[k], v) for k, v in weights(alone).items() if k.startswith("cloned."))


def test_normalisation_never_moves():
    model = learner()
    before = weights(model)
    model.learn_rollouts(2)
    for name, tensor in weights(model).items():
        assert torch.equal(before[name], tensor) or "standardize" not in name
    assert "critic_target.features_extractor.standardize.scale" in before


def test_one_step_returns_and_a_fixed_entropy_coefficient_work():
    model = learner(n_steps=1, ent_coef=0.1, demonstration_fraction=0.0).learn_rollouts(2)
    assert model.replay_buffer.n_steps == 1
    assert model.rollouts == 2


def test_an_interrupted_rollout_is_forgotten(monkeypatch):
    model = learner().learn_rollouts(1)
    kept = model.replay_buffer.size()
    step, calls = model.env.step, []

    def interrupt(action):
        calls.append(action)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(action)

    monkeypatch.setattr(model.env, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.learn_rollouts(1)
    assert (model.rollouts, model.replay_buffer.size(), model.num_timesteps) == (1, kept, kept)
    assert not model.policy.cloned_only
    model.learn_rollouts(1)
    assert model.rollouts == 2
    ends = model.replay_buffer.dones[: model.replay_buffer.size(), 0]
    assert ends.sum() == 2
    assert ends[-1]


def test_nan_from_the_environment_is_named():
    with pytest.raises(TraceError, match="decision 4 is not finite"):
        DemonstrationSAC(reaching(broken_at=4), demonstration(), **FAST).learn_rollouts(1)
    with pytest.raises(TraceError, match="first observation"):
        DemonstrationSAC(reaching(broken_at=0), demonstration(), **FAST).learn_rollouts(1)


# ---------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("settings", [{}, {"ent_coef": 0.1}, {"buffer_size": 20}, {"guidance": 1.0}])
def test_a_resumed_run_continues_exactly(tmp_path, settings):
    whole = learner(**settings).learn_rollouts(2)
    whole.save_checkpoint(tmp_path / "at_2")
    whole.learn_rollouts(2)
    torch.rand(7)  # what others draw in between must not matter
    resumed = DemonstrationSAC.load_checkpoint(tmp_path / "at_2", reaching())
    assert resumed.rollouts == 2
    resumed.learn_rollouts(2)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, resumed.policy.state_dict()[name]), name
    np.testing.assert_array_equal(whole.replay_buffer.rewards, resumed.replay_buffer.rewards)
    assert (whole.num_timesteps, whole._n_updates) == (resumed.num_timesteps, resumed._n_updates)


def test_a_checkpoint_replaces_the_old_one_and_predicts_the_same(tmp_path):
    model = learner().learn_rollouts(1)
    for _ in range(2):
        model.save_checkpoint(tmp_path / "run")
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "run").iterdir()) == [
        "config.json",
        "replay",
        "weights",
    ]
    again = DemonstrationSAC.load_checkpoint(tmp_path / "run", reaching())
    observation = np.array([[1.3, 0.0]], np.float32)
    np.testing.assert_array_equal(
        model.predict(observation, deterministic=True)[0], again.predict(observation, deterministic=True)[0]
    )


@pytest.mark.parametrize("killed_at", ["save_file", "write_array", "replace", "unlink"])
def test_killed_while_writing_the_old_checkpoint_or_the_new_one_is_whole(tmp_path, monkeypatch, killed_at):
    model = learner().learn_rollouts(1)
    model.save_checkpoint(tmp_path / "run")
    model.learn_rollouts(1)

    def killed(*arguments, **others):
        raise KeyboardInterrupt

    owner = {"save_file": checkpoint, "write_array": np.lib.format, "replace": checkpoint.os, "unlink": Path}[killed_at]
    with monkeypatch.context() as patch:
        patch.setattr(owner, killed_at, killed)
        with pytest.raises(KeyboardInterrupt):
            model.save_checkpoint(tmp_path / "run")
    found = DemonstrationSAC.load_checkpoint(tmp_path / "run", reaching())
    assert found.rollouts == (2 if killed_at == "unlink" else 1)
    model.save_checkpoint(tmp_path / "run")
    assert len(list((tmp_path / "run").iterdir())) == 3


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    learner().save_checkpoint(tmp_path / "run")
    with pytest.raises(CheckpointError, match="trained with 2 observation numbers and the environment has 3"):
        DemonstrationSAC.load_checkpoint(tmp_path / "run", reaching(size=3))
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        DemonstrationSAC.load_checkpoint(tmp_path / "nothing", reaching())
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    for changes, words in (
        ({"schema": 0}, "schema 0"),
        ({"settings": config["settings"] | {"n_critics": 5}}, "not fit"),
    ):
        (tmp_path / "run" / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(CheckpointError, match=words):
            DemonstrationSAC.load_checkpoint(tmp_path / "run", reaching())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    (tmp_path / "run" / config["files"]["weights"]).write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        DemonstrationSAC.load_checkpoint(tmp_path / "run", reaching())


# ------------------------------------------------------------------------------------------- episodes from elsewhere


def distant(**settings) -> DemonstrationSAC:
    env = reaching()
    world = elsewhere(env.observation_space, env.action_space)
    return DemonstrationSAC(world, demonstration(), cloned=copy.deepcopy(cloned()), **{**FAST, **settings})


def stored(model: DemonstrationSAC, number: int, *, success: bool, **changes) -> Collected:
    """Rollout `number` of a learner, as whoever collected it would hand it over."""
    replay = model.replay_buffer
    rows = np.flatnonzero(replay.episode[: replay.size()] == number)
    arrays = {
        "observations": replay.observations[rows, 0],
        "actions": model.policy.unscale_action(replay.actions[rows, 0]),
        "rewards": replay.rewards[rows, 0],
        "next_observations": replay.next_observations[rows, 0],
        "terminated": (replay.dones * (1 - replay.timeouts))[rows, 0] > 0,
        "phi": replay.phi[rows],
    }
    return Collected(**arrays | {"success": success, "task_reward": float(success)} | changes)


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_an_episode_from_elsewhere_is_learned_from_as_from_a_rollout_of_ones_own(monkeypatch, guidance):
    train = DemonstrationSAC.train
    # Acting draws from the same generator as training, and only one of the two learners acts.
    monkeypatch.setattr(
        DemonstrationSAC, "train", lambda self, *args: (torch.manual_seed(self.rollouts), train(self, *args))
    )
    settings = {"cloned_rollouts": 2, "guidance": guidance, "exploration_noise": 2.0}
    here, there, records = learner(**settings), distant(**settings), []
    cloned = [here.cloned_only]

    def after(record):
        records.append(record)
        cloned.append(here.cloned_only)

    here.learn_rollouts(8, after)
    assert {record.success for record in records} == {True, False}, "both kinds should be compared"
    paid = [here.replay_buffer.paid[here.replay_buffer.episode == number] for number in range(1, 9)]
    for record in records:
        assert there.cloned_only == cloned[record.number - 1]
        episode = stored(
            here,
            record.number,
            success=record.success,
            rewards=paid[record.number - 1],
            cloned=cloned[record.number - 1],
        )
        again = there.learn_from(episode)
        assert (again.number, again.success, again.length) == (record.number, record.success, record.length)
        assert (again.task_reward, again.mean_phi) == (record.task_reward, record.mean_phi)
        assert again.reward == pytest.approx(record.reward, abs=1e-5)
    assert (there.num_timesteps, there._n_updates) == (here.num_timesteps, here._n_updates)
    for name, buffer in here._buffers().items():
        for column in COLUMNS:
            np.testing.assert_array_equal(getattr(there._buffers()[name], column), getattr(buffer, column))
    for name, tensor in weights(here).items():
        assert torch.equal(tensor, there.policy.state_dict()[name]), name


def test_interventions_of_a_failure_join_the_demonstration_and_nothing_runs_on_over_their_gaps():
    here = DemonstrationSAC(reaching(horizon=7), demonstration(), cloned=copy.deepcopy(cloned()), **FAST)
    here.learn_rollouts(1)
    intervened = np.array([0, 1, 1, 1, 0, 0, 1], bool)
    failure = stored(here, 1, success=False, intervened=intervened)
    there = distant(n_steps=3)
    before = weights(there)
    there.learn_from(failure)
    taught = there.demonstration_buffer
    assert taught.size() == 10 + 4
    np.testing.assert_array_equal(taught.step[10:14], [1, 2, 3, 6])
    np.testing.assert_array_equal(taught.observations[10:14, 0], failure.observations[intervened])
    batch = taught._get_samples(np.arange(10, 14))
    np.testing.assert_allclose(batch.discounts[:, 0], 0.98 ** np.array([3, 2, 1, 1]), rtol=1e-6)
    np.testing.assert_array_equal(batch.next_observations, failure.next_observations[[3, 3, 3, 6]])
    assert not batch.dones.any(), "nobody was done: the critic goes on from there"
    assert any(not torch.equal(before[k], v) for k, v in weights(there).items() if k.startswith("cloned.network"))
    assert there.evidence.success_rate == 0
    assert there.evidence.outcomes[0].helped
    alone = distant()
    alone.learn_from(stored(here, 1, success=False))
    assert alone.demonstration_buffer.size() == 10


def test_of_a_success_that_a_person_helped_to_what_had_to_be_mended_is_not_imitated():
    here = DemonstrationSAC(reaching(horizon=7), demonstration(), cloned=copy.deepcopy(cloned()), **FAST)
    here.learn_rollouts(1)
    there = distant(guidance=1.0)
    helped = stored(here, 1, success=True, intervened=np.array([0, 0, 1, 0, 1, 0, 0], bool), phi=np.ones(7))
    there.learn_from(helped)
    assert there.demonstration_buffer.step[10:14].tolist() == [2, 4, 5, 6]
    assert there.evidence.trust == 1
    assert there.evidence.success_rate == 0
    assert there.replay_buffer.togo[:7].tolist() == [7, 6, 5, 4, 3, 2, 1], "it is known how far it was, all the same"


def test_malformed_episodes_from_elsewhere_are_refused_and_leave_no_trace(monkeypatch):
    here, there = learner(cloned_rollouts=9).learn_rollouts(1), distant()
    with pytest.raises(TraceError, match="`intervened` has shape"):
        stored(here, 1, success=True, intervened=np.zeros(3, bool))
    with pytest.raises(TraceError, match="collected episode's rewards are not finite at step 0"):
        stored(here, 1, success=True, rewards=np.full_like(stored(here, 1, success=True).rewards, np.nan))
    good = stored(here, 1, success=True)
    with pytest.raises(TraceError, match="collected episode's actions reach"):
        there.learn_from(stored(here, 1, success=True, actions=good.actions - 3))
    monkeypatch.setattr(DemonstrationSAC, "_imitate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        there.learn_from(good)
    assert (there.rollouts, there.num_timesteps, there.replay_buffer.size()) == (0, 0, 0)
    with pytest.raises(gym.error.Error, match="learn_from"):
        there.learn_rollouts(1)


def test_relabelling_replaces_every_stored_reward_or_none():
    model = learner(cloned_rollouts=9).learn_rollouts(3)
    replay, taught = model.replay_buffer, model.demonstration_buffer
    lengths = {0: 10} | {k: int((replay.episode[: replay.size()] == k).sum()) for k in (1, 2, 3)}
    rewards = {k: 100.0 * k + np.arange(length) for k, length in lengths.items()}
    before = taught.rewards.copy(), replay.rewards.copy()
    for broken, words in (
        ({k: v for k, v in rewards.items() if k != 2}, "nothing was given for episode 2"),
        (rewards | {3: rewards[3][:-1]}, "new labels of episode 3"),
        (rewards | {0: np.full(10, np.nan)}, "new labels of episode 0"),
    ):
        with pytest.raises(TraceError, match=words):
            model.relabel(broken)
        np.testing.assert_array_equal(taught.rewards, before[0])
        np.testing.assert_array_equal(replay.rewards, before[1])
    model.relabel(rewards)
    np.testing.assert_array_equal(replay.rewards[: replay.size(), 0], np.concatenate([rewards[k] for k in (1, 2, 3)]))
    at = np.flatnonzero(taught.episode[: taught.size()] > 0)
    assert len(at), "a success should have joined"
    np.testing.assert_array_equal(taught.rewards[at, 0], 100.0 * taught.episode[at] + taught.step[at])
    np.testing.assert_array_equal(taught.rewards[:10, 0], np.arange(10.0))
    np.testing.assert_array_equal(model.demonstration.rewards, np.arange(10.0))


def test_dropped_episodes_need_no_new_rewards():
    model = learner(cloned_rollouts=9, buffer_size=20, imitation_steps=0).learn_rollouts(5)
    kept = set(model.replay_buffer.episode.tolist())
    assert 5 in kept
    assert 1 not in kept
    model.relabel({0: np.zeros(10)} | {k: np.full(15, float(k)) for k in kept})
    np.testing.assert_array_equal(model.replay_buffer.rewards[:, 0], model.replay_buffer.episode)


@pytest.mark.parametrize("cloned_rollouts", [9, 0])
def test_the_acting_policy_acts_as_the_learner_does(cloned_rollouts):
    model = learner(cloned_rollouts=cloned_rollouts).learn_rollouts(2)
    data = model.acting_policy()
    policy = load_acting_policy(data)
    assert policy.cloned_only == (cloned_rollouts == 9)
    model.policy.cloned_only = policy.cloned_only
    observations = np.array([[1.3, 0.0], [0.2, 0.0]], np.float32)
    for deterministic in (True, False):
        chosen = []
        for actor in (model.policy, policy):
            torch.manual_seed(3)
            actor.begin_rollout()
            chosen.append(actor.predict(observations, deterministic=deterministic)[0])
        np.testing.assert_array_equal(*chosen)
    assert np.abs(chosen[0]).max() > 0.1
    model.policy.cloned_only = False
    model.learn_rollouts(1)
    assert any(not torch.equal(v, policy.state_dict()[k]) for k, v in weights(model).items() if k.startswith("critic."))
    for broken in (b"", data[:100], data[:-8]):
        with pytest.raises(CheckpointError, match="acting policy cannot be read"):
            load_acting_policy(broken)


# ------------------------------------------------------------------------------------------------------ the elite


def failures(*heights: float, lead: int = 3) -> list[Collected]:
    """Rollouts of seven decisions that failed; the state after the first `lead` was the highest."""
    here = DemonstrationSAC(reaching(horizon=7), demonstration(), cloned=copy.deepcopy(cloned()), **FAST)
    here.learn_rollouts(1)
    phi = np.full((len(heights), 7), 0.1)
    phi[:, 0], phi[:, lead] = np.nan, heights
    return [stored(here, 1, success=False, phi=row) for row in phi]


def in_demonstration(model: DemonstrationSAC) -> dict[int, list[int]]:
    """Steps of each episode that is shown."""
    shown = model.demonstration_buffer
    episode, step = shown.episode[: shown.size()], shown.step[: shown.size()]
    return {number: step[episode == number].tolist() for number in np.unique(episode).tolist()}


def test_what_got_furthest_is_shown_until_there_are_successes(monkeypatch):
    """By hand: one place for every two rollouts, two places, and each success takes one."""
    monkeypatch.setattr(offpolicy, "ELITE_SHARE", 2)
    model, demo = distant(elite=2), list(range(10))
    first, second, third, fourth, blind = failures(0.3, 0.5, 0.4, 0.6, np.nan)
    blind = dataclasses.replace(blind, phi=np.full(7, np.nan))
    for episode, shown in (
        (first, {}),  # of one, the best is not good
        (second, {2: [0, 1, 2]}),
        (blind, {2: [0, 1, 2]}),
        (third, {2: [0, 1, 2], 4: [0, 1, 2]}),
        (fourth, {2: [0, 1, 2], 5: [0, 1, 2]}),
        (dataclasses.replace(first, success=True), {5: [0, 1, 2], 6: list(range(7))}),
        (dataclasses.replace(first, success=True), {6: list(range(7)), 7: list(range(7))}),
    ):
        before = weights(model)
        there = set(in_demonstration(model))
        model.learn_from(episode)
        assert in_demonstration(model) == {0: demo, **shown}
        changed = any(not torch.equal(before[k], v) for k, v in weights(model).items() if k.startswith("cloned.net"))
        assert changed == (there != set(in_demonstration(model))), "the cloned policy learns what is shown"
    model.retract([6])
    model.learn_from(blind)
    assert in_demonstration(model) == {0: demo, 5: [0, 1, 2], 7: list(range(7))}, "a place is free; 6 has lost its own"


def test_a_resumed_learner_has_its_elite(tmp_path):
    whole = distant(elite=5)
    for episode in failures(0.3, 0.4, 0.5, 0.7, 0.6, 0.2, 0.1, 0.1, 0.1):
        whole.learn_from(episode)
    whole.save_checkpoint(tmp_path)
    assert set(in_demonstration(whole)) == {0, 4}
    [better] = failures(0.65)
    torch.manual_seed(0)
    whole.learn_from(better)
    assert set(in_demonstration(whole)) == {0, 4, 10}, "ten rollouts, two places"
    resumed = DemonstrationSAC.load_checkpoint(tmp_path, whole.env)
    torch.manual_seed(0)
    resumed.learn_from(better)
    assert in_demonstration(resumed) == in_demonstration(whole)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, resumed.policy.state_dict()[name]), name


def test_who_imitates_nothing_has_no_elite():
    model = distant(elite=5, imitation_steps=0)
    for episode in failures(*[0.9] * 5):
        model.learn_from(episode)
    assert set(in_demonstration(model)) == {0}


def test_the_critic_goes_on_where_the_way_up_ends():
    model = distant(elite=5, n_steps=3)
    for episode in failures(0.3, 0.3, 0.3, 0.3, 0.9):
        model.learn_from(episode)
    assert in_demonstration(model)[5] == [0, 1, 2]
    batch = model.demonstration_buffer._get_samples(np.arange(10, 13))
    np.testing.assert_allclose(batch.discounts[:, 0], 0.98 ** np.array([3, 2, 1]), rtol=1e-6)
    assert not batch.dones.any()


def test_who_failed_under_a_persons_hand_or_never_rose_is_no_elite():
    helped = [
        dataclasses.replace(one, intervened=np.eye(7, dtype=bool)[1]) for one in failures(0.9, 0.8, 0.7, 0.6, 0.5)
    ]
    model = distant(elite=5)
    for episode in helped:
        model.learn_from(episode)
    assert in_demonstration(model) == {0: list(range(10)), **{number: [1] for number in range(1, 6)}}
    model = distant(elite=5)
    for episode in failures(*[0.9] * 5, lead=0):
        model.learn_from(dataclasses.replace(episode, phi=np.linspace(0.9, 0.1, 7)))
    assert in_demonstration(model) == {0: list(range(10))}
    model = distant()
    for episode in failures(*[0.9] * 5):
        model.learn_from(episode)
    assert in_demonstration(model) == {0: list(range(10))}, "nobody asked for one"
    with pytest.raises(TraceError, match="elite is -1; expected a number of rollouts"):
        distant(elite=-1)


def test_an_interrupted_rollout_leaves_the_elite_as_it_was(monkeypatch):
    model = distant(elite=5)
    for episode in failures(0.3, 0.4, 0.5, 0.6, 0.7):
        model.learn_from(episode)
    before = model.demonstration_buffer.rows()
    assert set(in_demonstration(model)) == {0, 5}

    def interrupt():
        assert set(in_demonstration(model)) == {0, 6}, "the better one was just put in its place"
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "_fit_clone", interrupt)
    [better] = failures(0.9)
    with pytest.raises(KeyboardInterrupt):
        model.learn_from(better)
    assert model.rollouts == len(model.evidence.outcomes) == 5
    for name, column in model.demonstration_buffer.rows().items():
        np.testing.assert_array_equal(column, before[name], err_msg=name)


# ------------------------------------------------------------------------------------------------------ the guide


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_retracted_successes_pay_nothing_teach_nothing_and_count_as_failures(guidance, tmp_path):
    model = learner(guidance=guidance, cloned_rollouts=9, exploration_noise=0.0).learn_rollouts(4)
    assert [outcome.success for outcome in model.evidence.outcomes] == [True] * 4
    shown = model.demonstration_buffer
    before, order = weights(model), shown.episode[: shown.size()].copy()
    kept = {name: getattr(shown, name)[: shown.size()][(order != 2) & (order != 3)] for name in COLUMNS}
    model.retract([2, 3])
    assert [outcome.success for outcome in model.evidence.outcomes] == [True, False, False, True]
    for name in set(COLUMNS) - {"rewards"}:
        np.testing.assert_array_equal(getattr(shown, name)[: shown.size()], kept[name], err_msg=name)
    assert set(shown.episode[: shown.size()].tolist()) == {0, 1, 4}
    replay = model.replay_buffer
    for number in (1, 2, 3, 4):
        rows, right = np.flatnonzero(replay.episode[: replay.size()] == number), number in (1, 4)
        assert (replay.paid[rows[:-1]] == np.float32(-0.01)).all()
        assert (replay.paid[rows[-1]] > 0.9) if right else (replay.paid[rows[-1]] == 0)
        assert (replay.dones[rows[-1], 0], replay.timeouts[rows[-1], 0]) == (1, not right), "not the end of the task"
        assert np.isfinite(replay.togo[rows]).all() == right
        if not guidance:
            np.testing.assert_array_equal(replay.rewards[rows, 0], replay.paid[rows])
    changed = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in changed} == {"cloned"}, "fitted to what is left"
    state = model.rng.bit_generator.state
    model.retract([2])
    assert model.rng.bit_generator.state == state, "it is none already"
    with pytest.raises(TraceError, match="rollout 5 is to be retracted; expected one of the 4 made so far"):
        model.retract([1, 5])
    assert model.evidence.outcomes[0].success
    model.save_checkpoint(tmp_path)
    model.learn_rollouts(2)
    again = DemonstrationSAC.load_checkpoint(tmp_path, reaching()).learn_rollouts(2)
    for name, tensor in weights(model).items():
        assert torch.equal(tensor, again.policy.state_dict()[name]), name


def test_who_imitates_no_success_has_nothing_to_forget_in_the_cloned_policy():
    model = learner(imitation_steps=0, cloned_rollouts=9, exploration_noise=0.0).learn_rollouts(1)
    before = weights(model)
    model.retract([1])
    assert not model.evidence.outcomes[0].success
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


def test_a_buffer_that_has_gone_round_forgets_the_right_rows():
    model = learner()
    observation, action = np.zeros(model.observation_space.shape), np.zeros(model.action_space.shape)
    buffer = EpisodeReplay(7, model.observation_space, model.action_space, n_steps=1, gamma=0.9)
    for number in (1, 2, 3):
        for step in range(3):
            buffer.add_transition(
                observation, observation, action, 10 * number + step, terminated=step == 2, truncated=False
            )
        buffer.finish(3, number, success=True)
    buffer.drop([2])
    assert (buffer.size(), buffer.full, buffer.pos) == (4, False, 4)
    assert buffer.paid[:4].tolist() == [12, 30, 31, 32], "the two oldest had gone before"
    assert buffer.episode[:4].tolist() == [1, 3, 3, 3]


def test_the_ways_up_of_a_buffer_that_has_gone_round():
    model = learner()
    observation, action = np.zeros(model.observation_space.shape), np.zeros(model.action_space.shape)
    buffer = EpisodeReplay(8, model.observation_space, model.action_space, n_steps=1, gamma=0.9)
    for number, phi in ((1, [0.1, 0.9, 0.2]), (2, [np.nan, 0.3, 0.4]), (3, [0.1, 0.2, 0.6])):
        for step in range(3):
            buffer.add_transition(observation, observation, action, 0.0, terminated=False, truncated=step == 2)
        buffer.finish(3, number, success=False, phi=np.array(phi))
    assert buffer.episode[:8].tolist() == [3, 1, 1, 2, 2, 2, 3, 3]
    ways = buffer.ways_up([1, 2, 3])
    assert set(ways) == {2, 3}, "the way to the top of 1 has lost its beginning"
    assert ways[2][0] == pytest.approx(0.4)
    assert ways[2][1].tolist() == [3, 4]
    assert ways[3][0] == pytest.approx(0.6)
    assert ways[3][1].tolist() == [6, 7]
    assert buffer.ways_up([]) == {}
    buffer.phi[3:6] = [np.nan, 0.4, 0.3]
    assert set(buffer.ways_up([2, 3])) == {3}, "a rollout of one's own is first judged in its second state"


def test_the_guide_pays_for_everything_under_its_newest_self():
    model = learner(guidance=0.5, cloned_rollouts=9, guided_gamma=0.7, n_steps=1).learn_rollouts(6)
    weight = 0.5 * model.evidence.trust
    for buffer in (model.replay_buffer, model.demonstration_buffer):
        rows = slice(buffer.size())
        now, after = (model.guide.potential(x[rows, 0]) for x in (buffer.observations, buffer.next_observations))
        ended = (buffer.dones * (1 - buffer.timeouts))[rows, 0] > 0
        np.testing.assert_allclose(
            buffer.rewards[rows, 0], buffer.paid[rows] + weight * (0.98 * after * ~ended - now), atol=1e-5
        )
        assert np.ptp(now) > 0.05, "a constant would agree with anything"
    assert learner().guide is None


def outcomes(*successes: bool, claim: float | None = None) -> Evidence:
    return Evidence([Outcome(cloned=False, success=success, claim=claim) for success in successes])


def test_the_horizon_grows_with_the_successes_of_the_last_25_rollouts():
    model = learner(guidance=1.0, guided_gamma=0.5)
    assert model.own_gamma == pytest.approx(0.5)
    for successes, expected in ((0, 0.5), (25, 0.98), (50, 0.98)):
        model.evidence = outcomes(*[True] * successes)
        assert model.own_gamma == pytest.approx(expected)
    model.evidence = outcomes(*[True] * 12, *[False] * 13)
    assert model.own_gamma == pytest.approx(1 - 0.5**0.52 * 0.02**0.48)
    model = learner(guidance=1.0, guided_gamma=0.5, cloned_rollouts=99).learn_rollouts(3)
    assert 0.5 < model.own_gamma < 0.98
    assert model.replay_buffer.gamma == model.demonstration_buffer.gamma == model.own_gamma


def test_a_process_reward_that_calls_failures_done_loses_weight_and_shortens_no_horizon():
    """Three failures said to be done: one of four presumed right. The horizon then is nearly the potential's."""
    model = learner(guidance=0.5, guided_gamma=0.5, cloned_rollouts=9, n_steps=1).learn_rollouts(2)
    model.evidence = outcomes(False, False, False, claim=1.0)
    assert model.evidence.trust == pytest.approx(0.25)
    assert model.own_gamma == pytest.approx(1 - 0.5**0.25 * 0.02**0.75)
    model._shape(model.guide)
    rows, buffer = slice(model.replay_buffer.size()), model.replay_buffer
    now, after = (model.guide.potential(x[rows, 0]) for x in (buffer.observations, buffer.next_observations))
    ended = (buffer.dones * (1 - buffer.timeouts))[rows, 0] > 0
    np.testing.assert_allclose(
        buffer.rewards[rows, 0], buffer.paid[rows] + 0.5 * 0.25 * (0.98 * after * ~ended - now), atol=1e-5
    )


def test_the_cloned_policy_acts_as_long_as_it_succeeds_more_often():
    model = learner(cloned_rollouts=0).learn_rollouts(1)
    model.evidence = Evidence([Outcome(cloned, cloned, None) for cloned in (True, False) for _ in range(15)])
    model._clone_acts = False
    model.learn_rollouts(1)
    assert model.cloned_only
    acting = load_acting_policy(model.acting_policy())
    assert acting.cloned_only
    assert acting.clone_is_better, "where nobody explores, the better one acts"
    observation = np.array([1.3, 0.0], np.float32)
    cloned = model.policy.unscale_action(model.policy.cloned(torch.tensor(observation)[None]).numpy())[0]
    for policy in (model, acting):
        np.testing.assert_allclose(policy.predict(observation, deterministic=True)[0], cloned, atol=1e-6)
    model.learn_rollouts(1)
    assert not model.cloned_only, "every other rollout at most"
    model.evidence = Evidence([Outcome(cloned, not cloned, None) for cloned in (True, False) for _ in range(15)])
    model.learn_rollouts(1)
    assert not model.cloned_only


def test_who_acted_is_what_is_said_of_the_episode_not_what_was_asked_for_meanwhile():
    here = DemonstrationSAC(reaching(horizon=7), demonstration(), cloned=copy.deepcopy(cloned()), **FAST)
    here.learn_rollouts(1)
    there = distant(cloned_rollouts=9)
    for said in (False, True, None):
        there.learn_from(stored(here, 1, success=True, cloned=said))
    assert [outcome.cloned for outcome in there.evidence.outcomes] == [False, True, None]
    assert sum(there.evidence._counts(cloned=True)) == pytest.approx(2.2), "the prior's 1.2 and one rollout"


def test_what_a_process_reward_says_is_replaced_also_where_the_replay_has_dropped_a_success():
    model = learner(guidance=1.0, cloned_rollouts=9, buffer_size=40).learn_rollouts(5)
    kept, steps = set(model.replay_buffer.episode.tolist()), model.stored_steps()
    assert steps.keys() - kept - {0}, "a success that is a demonstration still, and has left the replay"
    paid = model.replay_buffer.paid.copy()
    model.relabel(None, {number: np.full(length, 0.25) for number, length in steps.items()})
    for buffer in model._buffers().values():
        np.testing.assert_array_equal(buffer.phi[: buffer.size()], 0.25)
    np.testing.assert_array_equal(model.replay_buffer.paid, paid)


def test_an_interrupted_rollout_leaves_no_evidence(monkeypatch):
    model = learner().learn_rollouts(2)
    monkeypatch.setattr(model, "train", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model.learn_rollouts(1)
    assert len(model.evidence.outcomes) == 2


def test_who_is_not_guided_has_its_own_horizon():
    assert learner(guided_gamma=0.5).learn_rollouts(1).replay_buffer.gamma == 0.98


def test_the_guide_learns_the_time_to_go_where_it_is_known_and_the_process_rewards_opinion_where_not():
    model = learner(guidance=1.0, cloned_rollouts=9)
    model._fit_guide(model.guide, 800)
    shown = demonstration().observations
    np.testing.assert_allclose(model.guide.potential(shown), 0.98 ** np.arange(10, 0, -1), atol=0.02)
    # Behind the start nothing was shown; a failure there is believed to be as good as done.
    position = np.zeros((16, 2), np.float32)
    position[:, 0] = np.linspace(1.8, 2.3, 16)
    failure = Collected(
        observations=position[:-1],
        actions=np.zeros((15, 1)),
        rewards=np.zeros(15),
        next_observations=position[1:],
        terminated=np.zeros(15, bool),
        success=False,
        task_reward=0.0,
        phi=np.r_[np.nan, np.full(14, 0.9)],
    )
    model.learn_from(failure)
    model._fit_guide(model.guide, 800)
    np.testing.assert_allclose(model.guide.potential(position[2:-1]), 0.98 ** (0.1 * 10), atol=0.02)
    corrected = {1: np.zeros(15)}
    model.relabel({0: demonstration().rewards, 1: np.zeros(15)}, phi=corrected)
    np.testing.assert_allclose(model.guide.potential(position[2:-1]), 0.98**10, atol=0.02)
    np.testing.assert_array_equal(model.replay_buffer.phi[:15], 0)


def test_guides_that_cannot_be_are_refused():
    for settings in ({"guidance": -1.0}, {"guidance": 1.0, "guided_gamma": 0.99}):
        with pytest.raises(TraceError, match="guidance is"):
            learner(**settings)
    with pytest.raises(TraceError, match="`phi` reaches from 2 to 2"):
        stored(learner(cloned_rollouts=9).learn_rollouts(1), 1, success=True, phi=np.full(10, 2.0)[:10])
