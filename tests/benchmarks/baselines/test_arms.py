from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.baselines import rewind, vip
from benchmarks.baselines.absolute import AbsoluteHead
from benchmarks.baselines.classifier import ClassifierHead, balanced_cross_entropy, half_last
from benchmarks.baselines.clips import FRAMES, Clip, Look, Pool
from benchmarks.baselines.head import FeatureJudgement, Shown, fit_calibration
from benchmarks.baselines.hop import PERSPECTIVES, HopHead, perspective, ranking_loss
from grm.fusion import MeanFusion
from grm.hops import hop_between
from grm.models.multiview import Architecture, MultiViewNetwork

from ...tiny import square

SMALL = Architecture(image_size=32, features=3, text_features=2, text_buckets=16, pools=1, members=2)


def clip(seed: int = 0, *, task: str = "right-v3", behaviour: str = "expert", length: int = 12) -> Clip:
    """Every second frame of a square's way; the one number of a frame's feature is its place, plus a hundred times the
    view in the tokens."""
    episode = square(seed, task=task, behaviour=behaviour, views=("side", "top"), length=length)
    numbers = np.unique([*range(0, length, 2), length - 1])
    pooled = numbers[:, None].astype(np.float16)
    tokens = np.stack([pooled, pooled + 100], 1)
    return Clip(replace(episode, views={}), numbers, ("side", "top"), tokens, pooled)


def pool(**settings: float) -> Pool:
    clips = [clip(s, task=t, behaviour=b) for t in "ab" for s, b in ((0, "expert"), (1, "expert"), (2, "stall"))]
    texts = {f"move the square: {task}": torch.full((2,), float(n)) for n, task in enumerate("ab")}
    return Pool(clips, texts, **settings)


def test_a_window_goes_back_by_the_lag_and_stands_still_before_the_start():
    look = Look(window=3)
    assert look(clip()).tolist()[:3] == [[0, 0, 0], [2, 0, 0], [4, 2, 0]]
    # The last frame is 11 and frame 9 is not stored: the one before it stands in.
    assert look(clip(), np.array([-1])).tolist() == [[11, 8, 6]]
    assert Look(view="top")(clip(), np.array([1, 2])).tolist() == [[102], [104]]


def test_a_batch_has_references_of_its_own_task_unless_mismatched():
    rng = np.random.default_rng(0)
    honest = pool(mismatch=0.0).draw(20, 3, rng)
    assert all(d.goal.task == d.clip.task == d.initial.task and d.goal.episode.succeeded for d in honest)
    assert all(d.goal is not d.clip for d in honest)
    assert all(d.clip.episode.succeeded for d in honest[::3])
    fooled = pool(mismatch=1.0).draw(20, 3, rng)
    wrong_goal = np.array([d.goal.task != d.clip.task for d in fooled])
    wrong_text = np.array([d.text[0].item() != "ab".index(d.clip.task) for d in fooled])
    assert (wrong_goal | wrong_text).all()
    assert wrong_goal.any()
    assert not wrong_goal.all()
    assert all(d.potential(np.arange(6)).max() == 0 and not d.success(np.arange(6)).any() for d in fooled)


def test_members_share_an_episode_out_the_same_way_every_time():
    [one, other] = (pool(bootstrap=0.5).draw(1, 1, np.random.default_rng(3)) for _ in range(2))
    assert one[0].learners(50).tolist() == other[0].learners(50).tolist()
    assert 0.3 < one[0].learners(2000).mean() < 0.7
    assert pool(bootstrap=0.0).draw(1, 1, np.random.default_rng(3))[0].learners(5).all()


def test_vip_loss_by_hand():
    # φ on a line: beginning 3, now 2, next 1, goal 0; V = -3, -2, -1; r = -1.
    place = [torch.tensor([[float(x)]]) for x in (3, 2, 1, 0)]
    error = -1 + 0.98 * -1 - -2
    assert vip.vip_loss(*place, torch.tensor([-1.0])).item() == pytest.approx(0.02 * 3 - error, abs=1e-5)
    # Two stretches: the mean is inside the logarithm. The other one stands on the goal, where r = 0 and V = 0.
    both = [torch.tensor([[float(x)], [0.0]]) for x in (3, 2, 1, 0)]
    expected = 0.02 * 1.5 + np.log((np.exp(-error) + 1) / 2)
    assert vip.vip_loss(*both, torch.tensor([-1.0, 0.0])).item() == pytest.approx(expected, abs=1e-5)


def test_vip_stretches_are_in_order():
    rng = np.random.default_rng(0)
    drawn = np.array([vip.stretch(5, rng) for _ in range(300)])
    beginning, now, after, goal = drawn.T
    assert ((beginning <= now) & (now <= goal) & (beginning < goal) & (goal < 5)).all()
    assert (after == np.minimum(now + 1, goal)).all()
    assert set(goal - now) == {0, 1, 2, 3, 4}


def test_vip_potential_is_the_share_of_the_distance_gone():
    head = vip.VipHead(2, Look())
    head.project = torch.nn.Identity()
    shown = Shown(torch.zeros(2), torch.tensor([3.0, 4.0]), torch.zeros(8, 2))
    frames = torch.tensor([[0.0, 0.0], [1.5, 2.0], [3.0, 4.0], [-3.0, -4.0]])
    assert head.judge_features(shown, frames).potential == pytest.approx([0, 0.5, 1, 0])


def test_rewinding_plays_the_end_backwards():
    assert rewind.rewind(np.arange(10, 15), 3).tolist() == [10, 11, 12, 13, 14, 13, 12, 11]
    assert rewind.rewind(np.arange(3), 0).tolist() == [0, 1, 2, 2, 2, 2, 2, 2]
    rng = np.random.default_rng(0)
    clips = np.array([rewind.rewound(12, rng) for _ in range(200)])
    steps = np.diff(clips)
    assert set(steps.ravel()) == {-1, 1}
    falling = (steps < 0).any(1)
    assert 0.35 < falling.mean() < 0.65
    assert (np.diff(steps)[falling] <= 0).all()  # once it has turned it does not turn again
    assert np.array([rewind.rewound(3, rng) for _ in range(50)]).max() == 2
    assert rewind.windows_of(3, 2).tolist() == [[0, 0], [1, 0], [2, 1]]


def test_classifier_looks_at_ends_and_weighs_both_classes_alike():
    picks = [half_last(clip(length=60), np.random.default_rng(seed)) for seed in range(20)]
    assert all(len(pick) == FRAMES and pick[-1] == 30 and pick[FRAMES // 2 :].min() >= 28 for pick in picks)
    logits = torch.tensor([0.0, 0.0, 0.0, 2.0])
    done = torch.tensor([0.0, 0.0, 0.0, 1.0])
    assert balanced_cross_entropy(logits, done).item() == pytest.approx((np.log(2) + np.log1p(np.exp(-2))) / 2)
    assert balanced_cross_entropy(logits[:3], done[:3]).item() == pytest.approx(np.log(2))


def test_hop_logits_are_the_network_s():
    torch.manual_seed(0)
    network = MultiViewNetwork(SMALL)
    head = HopHead(SMALL, 3, Look())
    head.hop, head.members = network.hop, network.members
    head.standing, head.absolute, head.done = network.standing, network.absolute, network.done
    text, init, goal, before, after = (torch.randn(5, n) for n in (2, 3, 3, 3, 3))
    torch.testing.assert_close(
        head.hop_logits(text, init, goal, before, after), network.hop_logits(text, init, goal, before, after)
    )
    several = head.absolute_logits(text[:, None], init[:, None], goal[:, None], after[:, None])
    for own, its in zip(several, network.absolute_logits(text, init, goal, after), strict=True):
        torch.testing.assert_close(own[:, 0], its)


def test_perspectives_of_a_model_that_is_right():
    truth = np.array([0.0, 0.2, 0.6, 0.5, 1.0])
    steps = np.concatenate([[0.0], hop_between(truth[:-1], truth[1:])])
    hops = np.stack([steps, truth, truth - 1, truth])[:, None].repeat(3, 1)
    for name in PERSPECTIVES:
        potential, spread = perspective(hops, name)
        assert potential == pytest.approx(truth), name
        assert spread == pytest.approx(0, abs=1e-9), name


def test_perspectives_that_disagree_are_fused_as_the_package_does():
    hops = np.array([[0.0, 0.5], [0.0, 0.2], [-1.0, -0.4], [0.3, 0.9]])[:, None].repeat(2, 1)
    now, spread = MeanFusion()(np.asarray(0.0), *hops[:, :, 1])
    potential, deviation = perspective(hops, "fused")
    assert potential == pytest.approx([0, float(now)])
    assert deviation[1] == pytest.approx(float(spread))
    assert perspective(hops, "fused", cyclic=True)[0] == pytest.approx([0, 0.5])  # incremental alone
    assert [perspective(hops, n)[0][1] for n in PERSPECTIVES[1:]] == pytest.approx([1.3 / 3, 0.5, 0.2, 0.6, 0.9])


def test_ranking_compares_frames_of_one_task_only():
    batch = pool(mismatch=0.0).draw(1, 2, np.random.default_rng(0))
    potential = np.array([[0.0, 1.0], [0.5, 0.52]])
    forward = torch.tensor([[0.0, 0.1], [0.2, 0.3]])
    # Ahead by more than the margin: 1 of 0, .5 of 0, .52 of 0, 1 of .5, 1 of .52.
    gaps = np.array([0.1, 0.2, 0.3, -0.1, -0.2])
    assert ranking_loss(forward, potential, batch).item() == pytest.approx(np.log1p(np.exp(-gaps / 0.1)).mean(), 1e-5)
    strangers = [replace(drawn, matched=False) for drawn in batch]
    assert ranking_loss(forward, potential, strangers).item() == 0


def test_a_spread_is_put_on_the_scale_of_the_errors():
    rng = np.random.default_rng(0)
    truth, spread = np.full(1000, 0.5), rng.uniform(0.02, 0.1, 1000)
    judged = FeatureJudgement(truth + 2 * spread * rng.normal(size=1000), spread, spread)
    head = AbsoluteHead(1, 2, Look())
    fit_calibration(head, [judged], [truth])
    floor, scale = head.calibration.tolist()
    assert floor == pytest.approx(0.005, abs=0.006)
    assert scale == pytest.approx(2, abs=0.2)


HEADS = {
    "ours": (lambda: HopHead(SMALL, 1, Look()), True, True),
    "demonstration": (lambda: HopHead(SMALL, 1, Look(), demonstration=True), True, True),
    "absolute": (lambda: AbsoluteHead(1, 2, Look()), True, False),
    "vip": (lambda: vip.VipHead(1, Look()), False, False),
    "rewind": (lambda: rewind.RewindHead(4, 2, Look(window=4)), False, False),
    "classifier": (lambda: ClassifierHead(1, 2, Look()), False, True),
}


@pytest.mark.parametrize("name", HEADS)
def test_every_head_learns_and_judges(name):
    from benchmarks.baselines.compare import fit, judge

    make, has_spread, has_success = HEADS[name]
    torch.manual_seed(0)
    head = make()
    losses = fit(head, pool(), steps=60, tasks=2, episodes=2, learning_rate=1e-3, seed=0)
    assert np.mean(losses[-15:]) < np.mean(losses[:15])
    shown, judged = clip(1, task="a"), clip(5, task="a")
    answer = judge(head, judged, shown, torch.zeros(2))
    assert answer.potential.shape == answer.spread.shape == answer.success.shape == (len(judged),)
    assert ((answer.potential >= 0) & (answer.potential <= 1)).all()
    assert np.isfinite(answer.spread).all() == has_spread
    assert np.isfinite(answer.success).all() == has_success
    if name != "classifier":
        assert answer.potential[-1] > answer.potential[0]
