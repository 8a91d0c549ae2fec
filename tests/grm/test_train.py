import copy
import dataclasses
import json

import numpy as np
import pytest
import torch

from grm.data.augment import Augmentation
from grm.data.episodes import Episode
from grm.errors import CheckpointError, DivergedError, TraceError
from grm.labels import from_time
from grm.metrics import value_order_correlation
from grm.models.checkpoint import load_weights
from grm.models.multiview import GRM, Architecture, MultiViewNetwork
from grm.reward import Task
from grm.train import (
    Trainer,
    TrainSettings,
    _balance,
    _Batch,
    _drop_words,
    _fits_loss,
    _mismatches,
    _ranking_loss,
    _schedule,
    adapt,
    calibrate,
    refit,
    two_hot,
)

SIZE = 16
TINY = Architecture(image_size=SIZE, features=32, text_features=8, text_buckets=64)
SETTINGS = TrainSettings(steps=6, tasks_per_step=2, episodes_per_task=2, frames_per_episode=4, seed=5)
PLAIN = Augmentation.none()


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
        state=np.stack([at if task == "right" else at[::-1], np.full(length, row)], 1).astype(np.float32),
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
    assert_same(weights(again.privileged), weights(uninterrupted.privileged))


def test_every_step_is_told_and_recorded(uninterrupted):
    steps = []
    trainer = Trainer(network(), EPISODES, dataclasses.replace(SETTINGS, steps=2))
    trainer.run(after_step=lambda t: steps.append((t.step, t.network.training)))
    assert steps == [(1, True), (2, True)]
    assert not trainer.network.training
    assert [row["step"] for row in uninterrupted.history] == [1, 2, 3, 4, 5, 6]
    names = {"hop", "absolute", "success", "usable", "ranking", "state", "fits"}
    for row in uninterrupted.history:
        assert names - {"fits"} <= {k.removesuffix("_loss") for k in row}
        assert np.isfinite(list(row.values())).all()
    seen = {key.removesuffix("_loss") for row in uninterrupted.history for key in row} - {"step", "seconds"}
    assert seen == names


def test_training_changes_every_part_of_the_network():
    trainer = Trainer(network(), EPISODES, dataclasses.replace(SETTINGS, goal_dropout=0.5, bootstrap=0.0))
    privileged = weights(trainer.privileged)
    trainer.run()
    before, after = weights(network()), weights(trainer.network)
    assert [name for name in before if torch.equal(before[name], after[name])] == ["calibration", "gated"]
    assert not any(torch.equal(privileged[name], tensor) for name, tensor in weights(trainer.privileged).items())


def test_a_frozen_encoder_stays_as_it_was_whatever_it_keeps():
    frozen = network()
    frozen.encoder = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, TINY.features), torch.nn.BatchNorm1d(TINY.features)
    )
    before = weights(frozen)
    settings = dataclasses.replace(SETTINGS, steps=3, train_encoder=False)
    Trainer(frozen, EPISODES, settings).run()
    changed = {name for name, tensor in weights(frozen).items() if not torch.equal(tensor, before[name])}
    assert not any(name.startswith("encoder.") for name in changed)
    assert {"hop.0.weight", "gate.weight", "text.embedding.weight", "usable.weight"} <= changed
    Trainer(frozen, EPISODES, dataclasses.replace(SETTINGS, steps=1)).run()
    now = weights(frozen)
    assert not torch.equal(now["encoder.1.weight"], before["encoder.1.weight"]), "frozen for good"
    assert not torch.equal(now["encoder.2.running_mean"], before["encoder.2.running_mean"])


def test_resumed_is_as_uninterrupted(uninterrupted, tmp_path):
    first = Trainer(network(), EPISODES, SETTINGS)
    with pytest.raises(Interrupted):
        first.run(after_step=interrupt_at(3))
    assert not first.network.training, "interrupted is evaluated all the same"
    GRM(first.network).save_pretrained(tmp_path)
    first.save_state(tmp_path)
    second = Trainer(network(seed=8), EPISODES, SETTINGS)
    load_weights(tmp_path, second.network)
    assert (second.privileged[0].weight != first.privileged[0].weight).any()
    second.resume(tmp_path)
    assert second.step == 3
    second.run()
    assert_same(weights(second.network), weights(uninterrupted.network))
    assert_same(weights(second.privileged), weights(uninterrupted.privileged))
    losses = [[(row["hop_loss"], row["state_loss"]) for row in t.history] for t in (second, uninterrupted)]
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
    blind = [dataclasses.replace(episode, state=0 * episode.state) for episode in EPISODES]
    with pytest.raises(CheckpointError, match="episodes of other states"):
        Trainer(network(), blind, SETTINGS).resume(tmp_path)
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

    settings = TrainSettings(steps=80, tasks_per_step=2, episodes_per_task=4, frames_per_episode=6, learning_rate=3e-3)
    trainer = Trainer(network(4), episodes, settings, dataclasses.replace(PLAIN, shift=1))  # one that knows little
    before = order(GRM(trainer.network))
    trainer.run()
    for name, share in {
        "hop": 0.85,
        "absolute": 0.85,
        "success": 0.7,
        "usable": 0.7,
        "ranking": 0.7,
        "state": 0.8,
    }.items():
        losses = [row[f"{name}_loss"] for row in trainer.history]
        assert np.mean(losses[-10:]) < share * np.mean(losses[:10]), name
    after = order(GRM(trainer.network))
    assert after > 0.9
    assert after > before + 0.2


@pytest.mark.parametrize(
    ("episodes", "found"),
    [
        ([], "no episodes to train on"),
        ([moving_square(0), moving_square(1, views=())], r"an episode of 'right-v0' has no view"),
        ([dataclasses.replace(moving_square(0), progress=np.full(12, np.nan, np.float32))], "12 unknown"),
    ],
)
def test_episodes_that_cannot_be_trained_on(episodes, found):
    with pytest.raises(TraceError, match=found):
        Trainer(network(), episodes, SETTINGS)


def numbered(count: int = 6, failed=()) -> list[Episode]:
    """One pixel value per episode and frame: 20 times the episode's number plus the frame's; tasks in turn."""
    episodes = []
    for index in range(count):
        film = (20 * index + np.arange(12, dtype=np.uint8))[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
        episode = moving_square(index, task=("right", "left")[index % 2])
        if index in failed:
            done, half = np.zeros(12, bool), episode.progress / 2
            episode = dataclasses.replace(episode, success=done, progress=half, behaviour="undo")
        episodes.append(dataclasses.replace(episode, views={"top": film}))
    return episodes


def test_a_batch_draws_references_within_the_task_and_goals_from_other_successes():
    episodes = numbered(failed=(4, 5))
    settings = dataclasses.replace(SETTINGS, tasks_per_step=40, episodes_per_task=3, word_dropout=0.0)
    batch = Trainer(network(), episodes, settings, PLAIN)._draw(np.random.default_rng(0))
    assert batch.images.shape == (120, 4, 1, SIZE, SIZE, 3)
    which, when = np.divmod(batch.images[:, :, 0, 0, 0, 0].astype(int), 20)
    own = which[:, 0]
    np.testing.assert_array_equal(which, own[:, None].repeat(4, 1), err_msg="an episode's frames are its own")
    np.testing.assert_array_equal(when[:, 0], 0)
    np.testing.assert_array_equal(when[:, -1], 11, err_msg="how it ended is in every draw")
    labels = np.stack([episode.progress for episode in episodes])
    np.testing.assert_array_equal(batch.potential, labels[which, when].astype(np.float64))
    np.testing.assert_array_equal(batch.success, (when == 11) & (own < 4)[:, None])
    np.testing.assert_array_equal(batch.task, own % 2)
    assert batch.instructions == [episodes[index].instruction for index in own]
    group = np.arange(120) // 3
    for g in range(40):
        assert len(set(own[group == g] % 2)) == 1, "side by side are episodes of one task"
    assert (own[::3] < 4).all(), "the first of a task is a success"

    np.testing.assert_array_equal(batch.initial % 4, 0, err_msg="an initial frame is a first one")
    np.testing.assert_array_equal(batch.initial // 4 // 3, group)
    assert 0.2 < (batch.initial // 4 != np.arange(120)).mean() < 0.5

    known = batch.goal >= 0
    assert 0.8 < known.mean() < 1
    donor = batch.goal[known] // 4
    np.testing.assert_array_equal(batch.goal[known] % 4, 3, err_msg="a goal is a last frame")
    np.testing.assert_array_equal(donor // 3, group[known])
    assert (own[donor] < 4).all(), "a failure shows nobody what done looks like"
    alone = 0
    for e, d in zip(np.flatnonzero(known), donor, strict=True):
        others = {own[m] for m in np.flatnonzero(group == group[e]) if own[m] < 4} - {own[e]}
        assert (own[d] in others) if others else (own[d] == own[e])
        alone += not others
    assert 0 < alone < len(donor) / 2, "an own end is the goal only where there is no other"


def test_without_goals_or_swaps_none_are_drawn():
    settings = dataclasses.replace(SETTINGS, goal_dropout=1.0, swap_initial=0.0)
    batch = Trainer(network(), numbered(), settings)._draw(np.random.default_rng(0))
    np.testing.assert_array_equal(batch.goal, -1)
    np.testing.assert_array_equal(batch.initial, 4 * np.arange(4))
    hopeless = Trainer(network(), numbered(2, failed=(0, 1)), SETTINGS)._draw(np.random.default_rng(0))
    np.testing.assert_array_equal(hopeless.goal, -1, err_msg="nobody of the task ever succeeded")


def test_focus_is_the_first_episodes_task():
    settings = dataclasses.replace(SETTINGS, tasks_per_step=200)
    batches = [
        Trainer(network(), numbered(), dataclasses.replace(settings, focus=focus))._draw(np.random.default_rng(0))
        for focus in (0.0, 0.5, 1.0)
    ]
    shares = [np.mean(batch.task == 0) for batch in batches]
    np.testing.assert_allclose(shares, [0.5, 0.75, 1.0], atol=0.08)
    assert shares[2] == 1


def test_words_are_left_out_but_never_all_of_them():
    sentence = "put the red block into the bin"
    assert _drop_words(sentence, 0.0, np.random.default_rng(0)) == sentence
    assert _drop_words(sentence, 1.0, np.random.default_rng(0)) == sentence
    generator = np.random.default_rng(0)
    drawn = [_drop_words(sentence, 0.3, generator) for _ in range(200)]
    lengths = [len(words.split()) for words in drawn]
    assert 0.6 < np.mean(lengths) / 7 < 0.8
    for words in drawn:
        rest = iter(sentence.split())
        assert all(word in rest for word in words.split()), "another order"


class Brightness(MultiViewNetwork):
    """Features are brightness, and what was asked of the heads is kept."""

    def encode(self, images, names):
        return images.mean((2, 3, 4))[..., None].expand(*images.shape[:2], TINY.features)

    def pool(self, tokens, present):
        return torch.cat([tokens.mean(-2)] * TINY.pools, -1)

    def hop_logits(self, text, init, goal, before, after):
        self.asked = torch.stack(torch.broadcast_tensors(init, goal, before, after))[..., 0]
        return super().hop_logits(text, init, goal, before, after)


def losses_of(trainer: Trainer, batch: _Batch | None = None) -> dict[str, torch.Tensor]:
    batch = batch or trainer._draw(np.random.default_rng(0))
    return trainer._losses(batch, np.random.default_rng(1))


def test_every_ordered_pair_and_both_anchors_are_asked_with_their_own_labels(monkeypatch):
    length = 12
    levels = np.rint(np.linspace(0, 255, length)).astype(np.uint8)
    film = levels[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    episode = dataclasses.replace(
        moving_square(0), views={"top": film}, progress=(levels / 255).astype(np.float32)
    )  # as bright as it is far along
    labels, kept = [], []
    monkeypatch.setattr("grm.train.hops_of_pairs", lambda b, a: labels.append((b, a)) or np.zeros(b.shape))
    monkeypatch.setattr("grm.train._balance", lambda hops, valid: kept.append(valid) or valid.astype(np.float32))
    torch.manual_seed(0)
    model = Brightness(TINY)
    settings = dataclasses.replace(SETTINGS, tasks_per_step=4, goal_dropout=0.5)
    trainer = Trainer(model, [episode], settings, PLAIN)
    batch = trainer._draw(np.random.default_rng(0))
    losses_of(trainer, batch)
    [(before, after)], [valid] = labels, kept
    init, goal, asked_before, asked_after = model.asked.detach().numpy()
    assert valid.shape == (8, 6, 4)  # befores: four frames, initial, goal; afters: four frames
    np.testing.assert_allclose(asked_before[valid], before[valid], atol=1e-3)
    np.testing.assert_allclose(asked_after, after, atol=1e-3)
    np.testing.assert_array_equal(init, 0)
    known = batch.goal >= 0
    assert 0 < known.sum() < 8
    np.testing.assert_array_equal(goal[known], 1)
    np.testing.assert_array_equal(goal[~known], model.no_goal[0].item())
    frames = np.arange(4)
    expected = np.ones((8, 6, 4), bool)
    expected[:, frames, frames] = False  # a frame and itself
    expected[~known, 5] = False  # no goal, no question from it
    np.testing.assert_array_equal(valid, expected)


def test_moments_that_show_nothing_teach_nothing():
    losses = losses_of(Trainer(network(), EPISODES, SETTINGS, dataclasses.replace(PLAIN, blind=1.0)))
    assert {name: losses[name].item() for name in ("hop", "absolute", "success", "ranking", "state")} == dict.fromkeys(
        ("hop", "absolute", "success", "ranking", "state"), 0.0
    )


def test_only_what_a_camera_shows_is_called_clear(monkeypatch):
    """Absent views are black in the batch: called usable, they taught a network to take black for a good picture."""
    told = []
    original = torch.nn.functional.binary_cross_entropy_with_logits

    def spy(logit, shows, *rest):
        told.append((logit, shows))
        return original(logit, shows, *rest)

    monkeypatch.setattr("grm.train.F.binary_cross_entropy_with_logits", spy)

    class Telling(MultiViewNetwork):
        def usable_logit(self, tokens):
            return 100 * tokens.amax(-1)

        def tokens(self, images, shift):
            return images.amax((-3, -2, -1))[..., None].expand(*images.shape[:2], 32)

    torch.manual_seed(0)
    bright = [dataclasses.replace(e, views={n: v | 128 for n, v in e.views.items()}) for e in EPISODES]
    for augmentation in (dataclasses.replace(PLAIN, lost=0.5, dropped=0.3), dataclasses.replace(PLAIN, blind=0.5)):
        told.clear()
        trainer = Trainer(Telling(TINY), bright, SETTINGS, augmentation)
        trainer._losses(trainer._draw(np.random.default_rng(0)), np.random.default_rng(0))
        [(logit, shows)] = [(logit, shows) for logit, shows in told if len(logit) == 8 and logit.ndim == 1]
        assert shows.tolist() == [1] * 4 + [0] * 4
        assert logit[:4].min() > 50


def test_episodes_of_different_cameras_train_together_and_are_judged_by_sets_never_seen_together():
    """Half are recorded with one pair of cameras, half with another; the pair to be judged was in no episode."""
    pairs = (("top", "side"), ("front", "side"))
    mixed = [moving_square(s, task=task, views=pairs[s % 2]) for s in range(6) for task in ("right", "left")]
    settings = dataclasses.replace(SETTINGS, steps=150, learning_rate=3e-3)
    trainer = Trainer(network(), mixed, settings, PLAIN)
    assert trainer.views == ("front", "side", "top")
    batch = trainer._draw(np.random.default_rng(0))
    assert {tuple(there) for there in batch.there.tolist()} == {(False, True, True), (True, True, False)}
    assert not batch.images.swapaxes(1, 2)[~batch.there].any()
    trainer.run()
    unseen = moving_square(50, views=("top", "front"))
    judgement = GRM(trainer.network).judge(Task(instruction=unseen.instruction, goal=unseen.frames[-1]), unseen.frames)
    assert judgement.judged.all()
    assert value_order_correlation(judgement.potential) > 0.8


def test_the_absolute_loss_is_the_cross_entropy_of_the_learning_members():
    trainer = Trainer(network(), EPISODES, SETTINGS, PLAIN)
    batch = trainer._draw(np.random.default_rng(0))
    nobody = dataclasses.replace(batch, members=np.zeros_like(batch.members))
    assert losses_of(trainer, nobody)["absolute"].item() == 0
    one = np.zeros_like(batch.members)
    one[:, 1] = True
    with torch.no_grad():
        last = trainer.network.absolute[-1]
        last.weight.zero_()
        last.bias.zero_()
        last.bias.view(-1, trainer.network.architecture.bins)[1, 20] = 100  # progress 0.5, for sure
    half = dataclasses.replace(batch, members=one, potential=np.full_like(batch.potential, 0.5))
    assert losses_of(trainer, half)["absolute"].item() == pytest.approx(0, abs=1e-4)
    other = dataclasses.replace(half, potential=np.full_like(batch.potential, 0.6))
    assert losses_of(trainer, other)["absolute"].item() == pytest.approx(100, rel=1e-3)
    spread = dataclasses.replace(other, members=~one)
    assert losses_of(trainer, spread)["absolute"].item() == pytest.approx(np.log(trainer.network.architecture.bins))


def test_mismatches_are_with_other_tasks_that_have_a_goal():
    batch = Trainer(network(), numbered(failed=(4, 5)), SETTINGS, PLAIN)._draw(np.random.default_rng(0))
    task = np.arange(60) % 3
    batch = dataclasses.replace(batch, task=task, goal=np.where(np.arange(60) % 5 == 0, -1, 1))
    own = np.arange(60)
    told, shown = _mismatches(batch, 1.0, np.random.default_rng(0))
    for whose in (told, shown):
        assert (task[whose] != task)[whose != own].all()
        assert (batch.goal[whose] >= 0)[whose != own].all()
    wrong_told, wrong_shown = told != own, shown != own
    assert (wrong_told | wrong_shown).all()
    assert (told == shown)[wrong_told & wrong_shown].all(), "both of one other episode"
    for kind in (wrong_told & ~wrong_shown, ~wrong_told & wrong_shown, wrong_told & wrong_shown):
        assert 10 <= kind.sum() <= 30, "each of the three kinds about equally often"
    told, shown = _mismatches(dataclasses.replace(batch, task=np.zeros(60, int)), 1.0, np.random.default_rng(0))
    np.testing.assert_array_equal(told, own, err_msg="where there is no other task there is no mismatch")
    np.testing.assert_array_equal(shown, own)


def test_a_mismatched_episode_makes_no_progress():
    always = dataclasses.replace(SETTINGS, mismatch=1.0, goal_dropout=0.0)
    trainer = Trainer(network(), EPISODES, always, PLAIN)
    batch = trainer._draw(np.random.default_rng(0))
    assert len(set(batch.task)) > 1
    with torch.no_grad():
        last = trainer.network.absolute[-1]
        last.weight.zero_()
        last.bias.zero_()
        last.bias.view(-1, trainer.network.architecture.bins)[:, 0] = 100  # no progress, for sure
    assert losses_of(trainer, batch)["absolute"].item() == pytest.approx(0, abs=1e-4)
    trainer.settings = dataclasses.replace(always, mismatch=0.0)
    assert losses_of(trainer, batch)["absolute"].item() > 10


def test_frames_just_before_success_are_asked_to_be_neither(monkeypatch):
    asked = []
    original = torch.nn.functional.binary_cross_entropy_with_logits

    def spy(logit, target, weight=None):
        asked.append((target, weight))
        return original(logit, target, weight)

    monkeypatch.setattr("grm.train.F.binary_cross_entropy_with_logits", spy)
    trainer = Trainer(network(), EPISODES, SETTINGS, PLAIN)
    batch = trainer._draw(np.random.default_rng(0))
    potential = np.tile([0.0, 0.9, 0.95, 1.0], (4, 1))
    success = np.tile([False, False, False, True], (4, 1))
    losses_of(trainer, dataclasses.replace(batch, potential=potential, success=success))
    (target, weight), _ = asked
    np.testing.assert_array_equal(target, success)
    np.testing.assert_array_equal(weight, np.tile([1, 1, 0, 1], (4, 1)))


def test_a_member_learns_nothing_from_an_episode_that_is_not_its_own():
    trainer = Trainer(network(), EPISODES, SETTINGS, PLAIN)
    batch = trainer._draw(np.random.default_rng(0))
    members = np.ones((4, TINY.members), bool)
    members[:, 0] = False
    total = torch.stack(list(losses_of(trainer, dataclasses.replace(batch, members=members)).values())).sum()
    total.backward()
    largest = [max(p.grad.abs().max().item() for p in m.parameters()) for m in trainer.network.members]
    assert largest[0] == 0
    assert min(largest[1:]) > 1e-6


def test_who_learns_from_what_is_drawn_once():
    def drawn(**changes):
        trainer = Trainer(network(), EPISODES * 30, dataclasses.replace(SETTINGS, **changes))
        return np.stack([trace.members for trace in trainer.traces])

    members = drawn()
    assert members.shape == (180, TINY.members)
    np.testing.assert_allclose(members.mean(0), 0.7, atol=0.12)
    assert members.any(1).all(), "an episode nobody learns from"
    assert len({row.tobytes() for row in members.T}) == TINY.members, "members that are one and the same"
    np.testing.assert_array_equal(drawn(), members)
    assert (drawn(seed=6) != members).any()
    assert drawn(bootstrap=0.0).all()
    trainer = Trainer(network(), numbered(), SETTINGS)
    batch = trainer._draw(np.random.default_rng(0))
    own = batch.images[:, 0, 0, 0, 0, 0] // 20
    np.testing.assert_array_equal(batch.members, [trainer.traces[index].members for index in own])


def ranked(potential, forward, *, task=(0,), valid=True) -> float:
    potential, forward = np.atleast_2d(potential), torch.tensor(np.atleast_2d(forward), dtype=torch.float32)
    fields = dict.fromkeys((field.name for field in dataclasses.fields(_Batch)), None)
    batch = _Batch(**fields | {"potential": potential, "task": np.array(task)})
    return _ranking_loss(forward, batch, np.full(potential.shape, valid)).item()


def test_ranking_by_hand():
    right, wrong = np.log1p(np.exp(-2)), np.log1p(np.exp(2))  # 0.2 apart, in units of 0.1
    assert ranked([0.2, 0.8], [0.3, 0.5]) == pytest.approx(right, abs=1e-5)
    assert ranked([0.8, 0.2], [0.3, 0.5]) == pytest.approx(wrong, abs=1e-5)
    assert ranked([[0.2], [0.8]], [[0.3], [0.5]], task=(1, 1)) == pytest.approx(right, abs=1e-5), "across episodes"
    assert ranked([[0.2], [0.8]], [[0.3], [0.5]], task=(0, 1)) == 0, "tasks are not compared"
    assert ranked([0.2, 0.8], [0.3, 0.5], valid=[True, False]) == 0
    assert ranked([0.2, 0.24], [0.3, 0.5]) == 0, "as good as equal"
    three = [right, np.log1p(np.exp(-4)), right]  # mean over the pairs there are
    assert ranked([0.0, 0.5, 1.0], [0.1, 0.3, 0.5]) == pytest.approx(np.mean(three), abs=1e-5)


class Fitting(MultiViewNetwork):
    """Instruction, initial frame and goal are numbers of tasks: they fit where all three are the same."""

    def fits_logit(self, text, init, goal):
        self.asked = [*getattr(self, "asked", []), torch.stack([text, init, goal], -1)]
        return 100.0 * ((text == init) & (init == goal)) - 50.0


def test_fits_is_asked_of_the_own_and_of_another_tasks_instruction_and_goal():
    task = np.array([0, 0, 1, 1, 2])
    numbers, known = torch.from_numpy(task).float(), torch.ones(5, dtype=torch.bool)
    model = Fitting(TINY)
    assert _fits_loss(model, task, numbers, numbers, numbers, known, np.random.default_rng(0)).item() < 1e-6
    wrong = model.asked[1:]
    assert len(wrong) == 3
    for questions, foreign in zip(wrong, (0, 0, 2), strict=True):
        for place in range(3):
            assert ((questions[:, place] != numbers) == (place == foreign)).all()
    assert (
        _fits_loss(
            model, np.zeros(3, int), *[torch.zeros(3)] * 3, torch.ones(3, dtype=torch.bool), np.random.default_rng(0)
        )
        is None
    )
    blind = Fitting(TINY)
    blind.fits_logit = lambda text, init, goal: 0.0 * text
    undecided = _fits_loss(blind, task, numbers, numbers, numbers, known, np.random.default_rng(0)).item()
    assert undecided == pytest.approx(2 * np.log(2), abs=1e-5)


def test_a_goal_that_is_missing_contradicts_nothing():
    task = np.array([0, 1])
    numbers, missing = torch.from_numpy(task).float(), torch.tensor([True, False])
    suspicious = Fitting(TINY)  # of other goals only: all that could cost anything is asking with a stranger's goal
    suspicious.fits_logit = lambda text, init, goal: torch.where((text == init) & (init != goal), 50.0, 0.0)
    losses = [
        _fits_loss(suspicious, task, numbers, numbers, numbers, known, np.random.default_rng(0)).item()
        for known in (torch.tensor([True, True]), missing, ~missing, torch.zeros(2, dtype=torch.bool))
    ]
    third = (4 * np.log(2) + 50) / 5  # one of five questions is a stranger's goal, at 50
    assert losses == pytest.approx([np.log(2) + (4 * np.log(2) + 100) / 6, *[np.log(2) + third] * 2, 2 * np.log(2)])


def test_a_privileged_state_is_named_where_there_is_one():
    episodes = list(EPISODES)
    unknown = [1, 4]
    for index in unknown:
        episodes[index] = dataclasses.replace(episodes[index], state=np.zeros((12, 3), np.float32))
    trainer = Trainer(network(), episodes, dataclasses.replace(SETTINGS, tasks_per_step=6), PLAIN)
    known = np.concatenate([episode.state for index, episode in enumerate(episodes) if index not in unknown])
    generator = np.random.default_rng(0)
    for index, trace in enumerate(trainer.traces):
        state = trainer._state(trace, np.array([0, 5]))
        assert state.shape == (2, 2)
        if index in unknown:
            assert np.isnan(state).all()
        else:
            expected = (trace.state[[0, 5]] - known.mean(0)) / (known.std(0) + 1e-3)
            np.testing.assert_allclose(state, expected, rtol=1e-5)
    batch = trainer._draw(generator)
    there = ~np.isnan(batch.state)
    assert 0 < there.mean() < 1
    with torch.no_grad():
        trainer.privileged[-1].weight.zero_()
        trainer.privileged[-1].bias.zero_()
    x = np.abs(batch.state[there])
    expected = np.where(x < 1, x**2 / 2, x - 0.5).mean()  # of a head that names the mean
    assert losses_of(trainer, batch)["state"].item() == pytest.approx(SETTINGS.privileged * expected, rel=1e-4)


def test_no_privileged_head_without_one_kind_of_state():
    blind = [dataclasses.replace(episode, state=0 * episode.state) for episode in EPISODES]
    mixed = [EPISODES[0], dataclasses.replace(EPISODES[1], state=np.ones((12, 5), np.float32))]
    off = dataclasses.replace(SETTINGS, privileged=0.0)
    for episodes, settings in ((blind, SETTINGS), (mixed, SETTINGS), (EPISODES, off)):
        trainer = Trainer(network(), episodes, settings, PLAIN)
        batch = trainer._draw(np.random.default_rng(0))
        assert batch.state.shape == (4, 4, 0)
        assert "state" not in losses_of(trainer, batch)


@pytest.mark.parametrize(("floor", "scale"), [(0.05, 1.5), (0.1, 0.5)])
def test_calibration_recovers_the_deviation_of_the_error(floor, scale):
    generator, count = np.random.default_rng(0), 3000
    spread, truth = generator.uniform(0.02, 0.3, count), generator.uniform(0, 1, count)
    potential = truth + generator.normal(0, floor + scale * spread)
    unknown = np.full(50, np.nan)
    model = network()
    calibrate(
        model,
        np.concatenate([potential, unknown, np.ones(50), np.ones(50)]),
        np.concatenate([truth, np.ones(50), unknown, np.zeros(50)]),
        np.concatenate([spread, unknown, np.ones(50), unknown]),
    )
    np.testing.assert_allclose(model.calibration, [floor, scale], atol=0.15)
    found = model.calibration[0].item() + model.calibration[1].item() * spread
    assert np.abs(found / (floor + scale * spread) - 1).mean() < 0.05
    model.calibration.copy_(torch.tensor([0.02, 0.5]))
    second = network()
    calibrate(second, potential, truth, spread)
    calibrate(model, potential, truth, spread)  # of a network whose spread is 0.02 + 0.5 raw
    f, c = second.calibration.tolist()
    np.testing.assert_allclose(model.calibration, [f + c * 0.02, c * 0.5], rtol=1e-5)


def test_nothing_to_calibrate_on():
    with pytest.raises(TraceError, match="no judged and labelled frame"):
        calibrate(network(), np.array([0.5, np.nan]), np.array([np.nan, 0.5]), np.array([0.1, 0.1]))


def test_two_hot_targets_mean_the_hop():
    hops = np.array([-1.0, -0.33, 0.0, 0.05, 0.0625, 1.0])
    targets = two_hot(hops, 41)
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
    np.testing.assert_allclose(weights[0, 2:], 4 / np.sqrt(6))


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
        for member in model.network.members:
            member[-1].weight *= 10
    return model


def test_adapting_makes_a_new_model_and_leaves_the_old_one(old):
    before, demonstration = weights(old.network), moving_square(7)
    task, frames = demonstration.as_goal(), moving_square(8).frames
    said = old.judge(task, frames).potential
    adapted = adapt(old, demonstration, EPISODES, steps=3, seed=1)
    assert (adapted.network.encoder[-1].weight != old.network.encoder[-1].weight).any()
    lighter = adapt(old, demonstration, EPISODES, steps=3, seed=1, train_encoder=False)
    assert_same(weights(lighter.network.encoder), weights(old.network.encoder))
    assert (lighter.network.hop[0].weight != old.network.hop[0].weight).any()
    assert_same(weights(old.network), before)
    np.testing.assert_array_equal(old.judge(task, frames).potential, said)
    assert (adapted.judge(task, frames).potential != said).any()
    assert adapted.fuser is old.fuser
    alone = adapt(old, demonstration, steps=1)
    assert [float(one.network.gated) for one in (old, adapted, alone)] == [0, 1, 0], (
        "whether words and pictures fit is known from other tasks, and only of the one adapted to"
    )
    assert not adapted.network.training
    assert_same(weights(adapt(old, demonstration, EPISODES, steps=3, seed=1).network), weights(adapted.network))


def test_the_new_weights_lie_on_the_way_from_the_old_to_the_trained_ones(old):
    none, half, whole = (
        weights(adapt(old, moving_square(7), EPISODES, steps=3, share=share).network) for share in (0.0, 0.5, 1.0)
    )
    before = weights(old.network)
    assert_same({k: v for k, v in none.items() if k != "gated"}, {k: v for k, v in before.items() if k != "gated"})
    for name in before.keys() - {"gated"}:
        torch.testing.assert_close(half[name], (before[name] + whole[name]) / 2, atol=1e-6, rtol=1e-5)
    assert none["gated"] == half["gated"] == whole["gated"] == 1


def test_a_demonstration_needs_no_labels(old):
    labelled = moving_square(7)
    np.testing.assert_allclose(labelled.progress, from_time(len(labelled)), atol=1e-6)
    unlabelled = dataclasses.replace(labelled, progress=np.full(len(labelled), np.nan, np.float32))
    assert_same(weights(adapt(old, unlabelled, steps=2).network), weights(adapt(old, labelled, steps=2).network))


def test_a_demonstration_may_go_on_once_it_is_done(old):
    trainers = []
    film = moving_square(7)
    done = np.arange(12) >= 8
    longer = dataclasses.replace(film, success=done, progress=np.full(12, np.nan, np.float32))
    adapt(old, longer, steps=1, after_step=trainers.append)
    np.testing.assert_allclose(trainers[0].traces[0].potential, [*from_time(9), 1, 1, 1], atol=1e-6)
    assert trainers[0].traces[0].success.tolist() == done.tolist()
    lost = dataclasses.replace(longer, success=done & (np.arange(12) != 10))
    adapt(old, lost, steps=1, after_step=trainers.append)
    np.testing.assert_allclose(
        trainers[1].traces[0].potential, from_time(12), atol=1e-6, err_msg="done is where it stays done"
    )


def test_of_a_rollout_that_stayed_done_the_time_to_go_is_up_to_where_it_was(old):
    trainers, rollout = [], rolled_out(20, success=True, length=16)
    stayed = dataclasses.replace(rollout, success=np.arange(16) >= 11)
    adapt(old, moving_square(7), rollouts=[stayed], steps=1, after_step=trainers.append)
    np.testing.assert_allclose(trainers[0].traces[1].potential, [*np.arange(12) / 11, 1, 1, 1, 1], atol=1e-6)


def test_failures_whose_progress_is_known_teach_that_too(old):
    trainers = []
    nowhere = dataclasses.replace(rolled_out(21, success=False), progress=np.zeros(12, np.float32))
    adapt(old, moving_square(7), rollouts=[nowhere, rolled_out(22, success=False)], steps=1, after_step=trainers.append)
    _, known, unknown = trainers[0].traces
    assert (known.members.all(), known.potential.any(), known.success.any()) == (True, False, False)
    assert not unknown.members.any()


def test_replay_may_have_more_and_fewer_views_than_the_demonstration(old):
    trainers = []
    demonstration = moving_square(7, views=("top", "wrist"))
    others = [moving_square(9, task="left", views=views) for views in (("side",), ("wrist",))]
    adapt(old, demonstration, [*EPISODES, *others], steps=1, after_step=trainers.append)
    [trainer] = trainers
    assert [trace.task for trace in trainer.traces] == ["right-v0", *["left-v0"] * 4], "replay is of other tasks"
    assert [tuple(trace.views) for trace in trainer.traces] == [("top", "wrist"), *[("top",)] * 3, ("wrist",)], (
        "and of what one of the demonstration's cameras saw of them"
    )
    assert (trainer.settings.focus, trainer.settings.bootstrap) == (0.5, 0.0)


def rolled_out(seed: int, *, success: bool, length: int = 12) -> Episode:
    """A rollout, of which nobody knows how far along it is; a failure goes the other way."""
    film = moving_square(seed, length=length, task="right" if success else "left")
    done = np.arange(length) == (length - 1 if success else -1)
    unknown = np.full(length, np.nan, np.float32)
    return dataclasses.replace(
        film, task="right-v0", instruction="move the square to the right", success=done, progress=unknown
    )


def test_refitting_labels_successes_by_their_time_to_go_and_failures_as_not_done(old):
    trainers = []
    demonstration = moving_square(7)
    rollouts = [rolled_out(20, success=True, length=16), rolled_out(21, success=False)]
    before = weights(old.network)
    new = refit(old, demonstration, rollouts, EPISODES, steps=2, after_step=trainers.append)
    trainer = trainers[0]
    shown, slow, *others, failed = trainer.traces
    np.testing.assert_allclose(shown.potential, demonstration.progress)
    np.testing.assert_allclose(slow.potential, np.r_[np.zeros(4), np.arange(12) / 11], atol=1e-6)
    assert (slow.members.all(), failed.members.any(), failed.success.any()) == (True, False, False)
    assert {trace.task for trace in others} == {"left-v0"}
    assert_same(weights(new.network.encoder), weights(old.network.encoder))
    assert_same(weights(old.network), before)
    assert (new.network.hop[0].weight != old.network.hop[0].weight).any()


def test_failures_teach_the_success_head_and_nothing_about_progress(old):
    failures = [rolled_out(seed, success=False) for seed in range(30, 34)]
    settings = {"steps": 40, "share": 1.0}
    told, untold = (refit(old, moving_square(7), given, EPISODES, **settings) for given in (failures, ()))
    task, frames = moving_square(7).as_goal(), rolled_out(40, success=False).frames
    ours, theirs = told.judge(task, frames), untold.judge(task, frames)
    assert ours.success.max() < 0.8 * theirs.success.max()
    trainers = []
    refit(old, moving_square(7), failures, steps=1, seed=3, after_step=trainers.append)
    [trainer] = trainers
    batch = trainer._draw(np.random.default_rng([3, 0]))
    alone = dataclasses.replace(batch, members=np.zeros_like(batch.members))
    losses = trainer._losses(alone, np.random.default_rng(0))
    assert losses["hop"] == losses["absolute"] == losses["ranking"] == 0
    assert losses["success"] > 0


def test_adapting_with_failures_that_look_like_the_demonstration_makes_it_harder_to_believe(old):
    failures = [rolled_out(seed, success=False) for seed in range(30, 34)]
    shown, settings = moving_square(7), {"steps": 40, "share": 1.0}
    told, untold = (adapt(old, shown, EPISODES, rollouts=given, **settings) for given in (failures, ()))
    task, frames = shown.as_goal(), rolled_out(40, success=False).frames
    ours, theirs = told.judge(task, frames), untold.judge(task, frames)
    assert ours.success.max() < 0.8 * theirs.success.max()
    with pytest.raises(TraceError, match="a rollout of 'left-v0'; expected rollouts of the demonstration's"):
        adapt(old, shown, rollouts=[moving_square(8, task="left")], steps=1)


def test_only_rollouts_of_the_demonstrated_task_refit(old):
    with pytest.raises(TraceError, match="a rollout of 'left-v0'; expected rollouts of the demonstration's"):
        refit(old, moving_square(7), [moving_square(8, task="left")], steps=1)
    with pytest.raises(TraceError, match="no episodes to train on"):
        Trainer(network(), [], TrainSettings(), outcomes=[rolled_out(1, success=False)])


def test_a_failed_demonstration_is_refused(old):
    failed = dataclasses.replace(moving_square(7), success=np.zeros(12, bool))
    before = copy.deepcopy(weights(old.network))
    with pytest.raises(TraceError, match=r"right-v0.*does not end in success"):
        adapt(old, failed, EPISODES, steps=1)
    assert_same(weights(old.network), before)


def test_a_demonstration_that_is_done_from_the_beginning_is_refused(old):
    done = dataclasses.replace(moving_square(7), success=np.ones(12, bool))
    with pytest.raises(TraceError, match="done in every one of its 12 frames; expected one that begins before"):
        adapt(old, done, EPISODES, steps=1)


def test_the_state_is_json_and_safetensors(uninterrupted, tmp_path):
    uninterrupted.save_state(tmp_path)
    state = json.loads((tmp_path / "training.json").read_text())
    assert state["step"] == 6
    assert state["settings"]["seed"] == 5


def test_a_loss_that_is_not_finite_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(network(), [moving_square(0), moving_square(1)], dataclasses.replace(SETTINGS, steps=2))
    infinite = torch.tensor(float("inf"))
    monkeypatch.setattr(trainer, "_losses", lambda batch, generator: {"hop": infinite})
    with pytest.raises(DivergedError, match="step 0"):
        trainer.run()
    assert trainer.step == 0


def test_pictures_of_any_size_train_together_at_the_size_the_network_sees():
    large = moving_square(1, size=3 * SIZE)
    trainer = Trainer(network(), [moving_square(0), large], dataclasses.replace(SETTINGS, steps=1))
    assert {trace.views["top"].shape[1:3] for trace in trainer.traces} == {(SIZE, SIZE)}
    column = trainer.traces[1].views["top"][-1].astype(int).sum((0, 2)).argmax()
    assert column >= SIZE - 3  # at the end the square is at the right edge, in the small picture as in the large one
    trainer.run()
    assert trainer.step == 1
