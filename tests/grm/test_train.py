import copy
import dataclasses
import json

import numpy as np
import pytest
import torch

from grm.data.episodes import Episode
from grm.errors import CheckpointError, DivergedError, TraceError
from grm.labels import from_time
from grm.metrics import value_order_correlation
from grm.models.checkpoint import load_weights
from grm.models.multiview import GRM, Architecture, MultiViewNetwork
from grm.train import Trainer, TrainSettings, _augment, _balance, _schedule, _two_hot, adapt

SIZE = 16
TINY = Architecture(image_size=SIZE, features=32, text_features=8, text_buckets=64)
SETTINGS = TrainSettings(steps=6, episodes_per_step=4, frames_per_episode=4, shift=1, seed=5)


def moving_square(
    seed: int, *, task: str = "right", views=("top", "side"), length: int = 12, size: int = SIZE
) -> Episode:
    """A white square walks from one side to the other; where it is is how far along it is."""
    generator = np.random.default_rng(seed)
    at = np.rint(np.linspace(0, size - 4, length)).astype(int)
    row = int(generator.integers(size - 4))
    film = np.full((length, size, size, 3), 40, np.uint8)
    film += generator.integers(0, 30, (size, size, 1), dtype=np.uint8)
    for t, column in enumerate(at if task == "right" else at[::-1]):
        film[t, row : row + 4, column : column + 4] = 255
    images = {name: film if index == 0 else np.ascontiguousarray(film[:, ::-1]) for index, name in enumerate(views)}
    return Episode(
        task=f"{task}-v0",
        instruction=f"move the square to the {task}",
        views=images,
        rate_hz=10.0,
        state=np.zeros((length, 2), np.float32),
        actions=np.zeros((length, 2), np.float32),
        rewards=np.zeros(length, np.float32),
        success=np.arange(length) == length - 1,
        progress=np.linspace(0, 1, length, dtype=np.float32),
        seed=seed,
    )


EPISODES = [moving_square(seed, task=task) for seed in range(3) for task in ("right", "left")]


def network(seed: int = 0) -> MultiViewNetwork:
    torch.manual_seed(seed)
    return MultiViewNetwork(TINY)


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=0, msg=name)


class Interrupted(Exception):
    pass


def interrupt_at(step: int):
    def after_step(trainer: Trainer) -> None:
        if trainer.step == step:
            raise Interrupted

    return after_step


@pytest.fixture(scope="module")
def uninterrupted() -> Trainer:
    trainer = Trainer(network(), EPISODES, SETTINGS)
    trainer.run()
    return trainer


def test_deterministic_by_seed(uninterrupted):
    torch.manual_seed(99)  # nothing of the global generator enters
    again = Trainer(network(), EPISODES, SETTINGS)
    again.run()
    assert_same(weights(again.network), weights(uninterrupted.network))
    other = Trainer(network(), EPISODES, dataclasses.replace(SETTINGS, seed=6))
    other.run()
    assert (other.network.hop[0].weight != again.network.hop[0].weight).any()


def test_every_step_is_told_and_recorded(uninterrupted):
    steps = []
    trainer = Trainer(network(), EPISODES, dataclasses.replace(SETTINGS, steps=2))
    trainer.run(after_step=lambda t: steps.append((t.step, t.network.training)))
    assert steps == [(1, True), (2, True)]
    assert not trainer.network.training
    assert [row["step"] for row in uninterrupted.history] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite([row["hop_loss"], row["success_loss"]]).all() for row in uninterrupted.history)


def test_training_changes_every_part_of_the_network():
    trainer = Trainer(network(), EPISODES, dataclasses.replace(SETTINGS, steps=3, goal_dropout=0.5))
    trainer.run()
    before, after = weights(network()), weights(trainer.network)
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_resumed_is_as_uninterrupted(uninterrupted, tmp_path):
    first = Trainer(network(), EPISODES, SETTINGS)
    with pytest.raises(Interrupted):
        first.run(after_step=interrupt_at(3))
    assert not first.network.training, "interrupted is evaluated all the same"
    GRM(first.network).save_pretrained(tmp_path)
    first.save_state(tmp_path)
    second = Trainer(network(seed=8), EPISODES, SETTINGS)
    load_weights(tmp_path, second.network)
    second.resume(tmp_path)
    assert second.step == 3
    second.run()
    assert_same(weights(second.network), weights(uninterrupted.network))
    losses = [[row["hop_loss"] for row in t.history] for t in (second, uninterrupted)]
    assert losses[0] == losses[1]
    second.run()
    assert second.step == 6, "a finished run has nothing left to do"


def test_what_cannot_be_resumed(tmp_path):
    trainer = Trainer(network(), EPISODES, SETTINGS)
    with pytest.raises(CheckpointError, match=r"no training\.json"):
        trainer.resume(tmp_path)
    trainer.run()
    trainer.save_state(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"training.json", "optimizer.safetensors"}
    changed = dataclasses.replace(SETTINGS, learning_rate=2e-3, steps=7)
    with pytest.raises(CheckpointError, match="other steps, learning_rate"):
        Trainer(network(), EPISODES, changed).resume(tmp_path)
    path = tmp_path / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors cannot be read"):
        trainer.resume(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors cannot be read"):
        trainer.resume(tmp_path)


def test_a_save_that_fails_leaves_the_old_state(tmp_path, monkeypatch):
    trainer = Trainer(network(), EPISODES, dataclasses.replace(SETTINGS, steps=1))
    trainer.run()
    trainer.save_state(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.save_state(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_loss_falls_and_order_rises_on_a_moving_square():
    episodes = [moving_square(seed, task=task) for seed in range(8) for task in ("right", "left")]
    fresh = [moving_square(seed, task=task) for seed in range(50, 53) for task in ("right", "left")]

    def order(model: GRM) -> float:
        scores = []
        for episode, donor in zip(fresh, fresh[2:] + fresh[:2], strict=True):  # the next one of the same task
            assert donor.task == episode.task
            scores.append(value_order_correlation(model.judge(donor.as_goal(), episode.frames).potential))
        return float(np.mean(scores))

    settings = TrainSettings(steps=80, episodes_per_step=8, frames_per_episode=6, shift=1, learning_rate=3e-3)
    trainer = Trainer(network(), episodes, settings)
    before = order(GRM(trainer.network))
    trainer.run()
    losses = [row["hop_loss"] for row in trainer.history]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.3
    after = order(GRM(trainer.network))
    assert after > 0.9
    assert after > before + 0.2


@pytest.mark.parametrize(
    ("episodes", "found"),
    [
        ([], "no episodes to train on"),
        ([moving_square(0), moving_square(1, views=("top",))], r"different views: side, top; top"),
        ([dataclasses.replace(moving_square(0), progress=np.full(12, np.nan, np.float32))], "12 unknown"),
    ],
)
def test_episodes_that_cannot_be_trained_on(episodes, found):
    with pytest.raises(TraceError, match=found):
        Trainer(network(), episodes, SETTINGS)


def test_a_batch_draws_references_within_the_task_and_goals_from_other_episodes(monkeypatch):
    episodes = [moving_square(seed, task=task) for seed in range(3) for task in ("right", "left")]
    for index, episode in enumerate(episodes):  # a pixel says which episode it is of, and which frame of it
        film = (20 * index + np.arange(12, dtype=np.uint8))[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
        episodes[index] = dataclasses.replace(episode, views={"top": film})
    monkeypatch.setattr("grm.train._augment", lambda images, shift, generator: torch.from_numpy(images))
    settings = dataclasses.replace(SETTINGS, episodes_per_step=64, view_dropout=0.9)
    batch = Trainer(network(), episodes, settings)._draw(np.random.default_rng(0))
    assert batch.images.shape == (64, 6, 1, SIZE, SIZE, 3)
    assert batch.present.all(), "the only view may not be dropped"
    assert 0.7 < batch.has_goal.mean() < 1
    which, when = np.divmod(batch.images[:, :, 0, 0, 0, 0].numpy(), 20)
    own = which[:, 0]
    np.testing.assert_array_equal(which[:, :4], own[:, None].repeat(4, 1))
    np.testing.assert_allclose(batch.potential, when[:, :4] / 11, atol=1e-6)
    np.testing.assert_array_equal(batch.success, when[:, :4] == 11)
    np.testing.assert_array_equal(when[:, 0], 11, err_msg="how it ended is in every draw")
    np.testing.assert_array_equal(when[:, 4], 0, err_msg="an initial frame is a first one")
    np.testing.assert_array_equal(when[:, 5], 11, err_msg="a goal is a last frame")
    for reference in (4, 5):
        np.testing.assert_array_equal(which[:, reference] % 2, own % 2, err_msg="of the same task")
    assert (which[:, 5] != own).all(), "a clip's own end may never be its goal while there is another"
    assert 0.1 < (which[:, 4] != own).mean() < 0.6
    assert batch.instructions == [episodes[index].instruction for index in own]


class Brightness(MultiViewNetwork):
    """Features are brightness, and what was asked of the heads is kept."""

    def encode(self, images, names):
        return images.mean((2, 3, 4))[..., None].expand(*images.shape[:2], TINY.features)

    def pool(self, tokens, present):
        return tokens.mean(-2)

    def hop_logits(self, text, init, goal, before, after):
        self.asked = torch.stack([init, goal, before, after])[..., 0]
        return super().hop_logits(text, init, goal, before, after)


def test_every_ordered_pair_and_both_anchors_are_asked_with_their_own_labels(monkeypatch):
    length = 12
    levels = np.rint(np.linspace(0, 255, length)).astype(np.uint8)
    film = levels[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    episode = dataclasses.replace(
        moving_square(0), views={"top": film}, progress=(levels / 255).astype(np.float32)
    )  # as bright as it is far along
    plain = lambda images, shift, generator: torch.from_numpy(images).permute(0, 1, 2, 5, 3, 4) / 255  # noqa: E731
    monkeypatch.setattr("grm.train._augment", plain)
    labels, kept = [], []
    monkeypatch.setattr("grm.train.hops_of_pairs", lambda b, a: labels.append((b, a)) or np.zeros(b.shape))
    monkeypatch.setattr("grm.train._balance", lambda hops, valid: kept.append(valid) or valid.astype(np.float32))
    torch.manual_seed(0)
    model = Brightness(TINY)
    trainer = Trainer(model, [episode], dataclasses.replace(SETTINGS, goal_dropout=0.5, episodes_per_step=8))
    batch = trainer._draw(np.random.default_rng(0))
    trainer._losses(batch)
    [(before, after)], [valid] = labels, kept
    init, goal, asked_before, asked_after = model.asked.detach().numpy()
    assert valid.shape == (8, 6, 4)  # befores: four frames, initial, goal; afters: four frames
    np.testing.assert_allclose(asked_before[valid], before[valid], atol=1e-3)
    np.testing.assert_allclose(asked_after, after, atol=1e-3)
    np.testing.assert_array_equal(init, 0)
    known = batch.has_goal
    assert 0 < known.sum() < 8
    np.testing.assert_array_equal(goal[known], 1)
    np.testing.assert_array_equal(goal[~known], model.no_goal[0].item())
    frames = np.arange(4)
    expected = np.ones((8, 6, 4), bool)
    expected[:, frames, frames] = False  # a frame and itself
    expected[~known, 5] = False  # no goal, no question from it
    np.testing.assert_array_equal(valid, expected)


def test_view_dropout_is_per_episode_and_leaves_one():
    settings = dataclasses.replace(SETTINGS, view_dropout=1.0, episodes_per_step=40)
    present = Trainer(network(), EPISODES, settings)._draw(np.random.default_rng(0)).present
    assert (present.sum(-1) == 1).all()
    assert (present == present[:, :1]).all(), "a view is gone in all moments of an episode alike"
    assert len(present[:, 0].float().argmax(-1).unique()) == 2


def test_augmentation_is_alike_in_all_moments_of_a_view():
    generator = np.random.default_rng(0)
    images = np.repeat(generator.integers(0, 255, (2, 1, 2, 8, 8, 3), dtype=np.uint8), 3, axis=1)
    result = _augment(images, 2, np.random.default_rng(1))
    assert result.shape == (2, 3, 2, 3, 8, 8)
    assert (result >= 0).all()
    assert (result <= 1).all()
    assert (result == result[:, :1]).all()
    plain = torch.from_numpy(images).permute(0, 1, 2, 5, 3, 4) / 255
    assert (result - plain).abs().mean() > 0.02


def test_two_hot_targets_mean_the_hop():
    hops = np.array([-1.0, -0.33, 0.0, 0.05, 0.0625, 1.0])
    targets = _two_hot(hops, 41)
    np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(targets @ np.linspace(-1, 1, 41), hops, atol=1e-6)
    assert ((targets > 1e-6).sum(-1) <= 2).all()
    assert targets[0, 0] == targets[-1, -1] == 1


def test_balance_weighs_rare_hops_more_and_what_is_invalid_not_at_all():
    hops = np.zeros((1, 4, 2))
    hops[0, 0, 0] = 0.9
    valid = np.ones_like(hops, dtype=bool)
    valid[0, 1, 1] = False
    weights = _balance(hops, valid)
    assert weights[0, 0, 0] == 1
    assert weights[0, 0, 1] == pytest.approx(1 / np.sqrt(6))
    assert weights[0, 1, 1] == 0
    np.testing.assert_allclose(weights[0, 2:], 2 / np.sqrt(6))


def test_schedule_warms_up_and_falls_to_zero():
    rates = [_schedule(step, 1000) for step in range(1000)]
    assert rates[0] == 0.01
    assert max(rates) == rates[99] == 1
    assert (np.diff(rates[100:]) <= 0).all()
    assert rates[-1] < 1e-3
    assert _schedule(0, 1) == 1


@pytest.fixture(scope="module")
def old() -> GRM:
    model = GRM(network())
    with torch.no_grad():
        model.network.hop[-1].weight *= 10
    return model


def test_adapting_makes_a_new_model_and_leaves_the_old_one(old):
    before, demonstration = weights(old.network), moving_square(7)
    task, frames = demonstration.as_goal(), moving_square(8).frames
    said = old.judge(task, frames).potential
    adapted = adapt(old, demonstration, EPISODES, steps=3, seed=1)
    assert_same(weights(old.network), before)
    np.testing.assert_array_equal(old.judge(task, frames).potential, said)
    assert (adapted.judge(task, frames).potential != said).any()
    assert adapted.fuser is old.fuser
    assert not adapted.network.training
    assert_same(weights(adapt(old, demonstration, EPISODES, steps=3, seed=1).network), weights(adapted.network))


def test_a_demonstration_needs_no_labels(old):
    labelled = moving_square(7)
    np.testing.assert_allclose(labelled.progress, from_time(len(labelled)), atol=1e-6)
    unlabelled = dataclasses.replace(labelled, progress=np.full(len(labelled), np.nan, np.float32))
    assert_same(weights(adapt(old, unlabelled, steps=2).network), weights(adapt(old, labelled, steps=2).network))


def test_replay_may_have_more_views_than_the_demonstration(old):
    trainers = []
    demonstration = moving_square(7, views=("top",))
    narrow = [moving_square(9, task="left", views=("side",))]
    adapt(old, demonstration, [*EPISODES, *narrow], steps=1, after_step=trainers.append)
    [trainer] = trainers
    assert [trace.task for trace in trainer.traces] == ["right-v0", "left-v0", "left-v0", "left-v0"], (
        "replay is of other tasks, and of those that were seen by the demonstration's cameras"
    )
    assert all(trace.names == ("top",) for trace in trainer.traces)


def test_a_failed_demonstration_is_refused(old):
    failed = dataclasses.replace(moving_square(7), success=np.zeros(12, bool))
    before = copy.deepcopy(weights(old.network))
    with pytest.raises(TraceError, match=r"right-v0.*does not end in success"):
        adapt(old, failed, EPISODES, steps=1)
    assert_same(weights(old.network), before)


def test_the_state_is_json_and_safetensors(uninterrupted, tmp_path):
    uninterrupted.save_state(tmp_path)
    state = json.loads((tmp_path / "training.json").read_text())
    assert state["step"] == 6
    assert state["settings"]["seed"] == 5


def test_a_loss_that_is_not_finite_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(network(), [moving_square(0), moving_square(1)], TrainSettings(steps=2, episodes_per_step=2))
    infinite = torch.tensor(float("inf"))
    monkeypatch.setattr(trainer, "_losses", lambda batch: (infinite, torch.tensor(0.0)))
    with pytest.raises(DivergedError, match="step 0"):
        trainer.run()
    assert trainer.step == 0


def test_pictures_of_any_size_train_together_at_the_size_the_network_sees():
    large = moving_square(1, size=3 * SIZE)
    trainer = Trainer(network(), [moving_square(0), large], dataclasses.replace(SETTINGS, steps=1))
    assert {trace.images.shape[2:4] for trace in trainer.traces} == {(SIZE, SIZE)}
    column = trainer.traces[1].images[-1, 0].astype(int).sum((0, 2)).argmax()
    assert column >= SIZE - 3  # at the end the square is at the right edge, in the small picture as in the large one
    trainer.run()
    assert trainer.step == 1
