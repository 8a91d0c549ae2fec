import json

import numpy as np
import pytest
import torch

from grm.data.episodes import Episode
from grm.data.replay import read_replay
from grm.errors import CheckpointError, TraceError
from grm.fusion import ConsistentFusion, LeastFusion, MeanFusion
from grm.models.multiview import GRM, Architecture, MultiViewNetwork, _Question, packaged_checkpoint
from grm.reward import BLACK, Frame, Task
from grm.testing import check_process_reward

SEED = 1
"""Of a network whose hops are neither all forward nor all backward, with a goal and without."""
TINY = Architecture(image_size=16, features=16, text_features=8, text_buckets=64)


def tiny_network(seed: int = 0, scale: float = 20.0, **changes) -> MultiViewNetwork:
    """Random, with outspoken hop heads: freshly initialised ones say 0 to everything, and every law holds."""
    torch.manual_seed(seed)
    network = MultiViewNetwork(Architecture(**{f: getattr(TINY, f) for f in TINY.__slots__} | changes))
    with torch.no_grad():
        for member in network.members:
            member[-1].weight *= scale
        network.no_goal.normal_()
    return network


def convinced(network: MultiViewNetwork) -> MultiViewNetwork:
    """Sure that instruction and pictures belong together, whatever they are: the potential is not scaled."""
    with torch.no_grad():
        network.fits[-1].weight.zero_()
        network.fits[-1].bias.fill_(10)
    return network


def frame(seed: int, *names: str, size: tuple[int, int] = (16, 16)) -> Frame:
    generator = np.random.default_rng(seed)
    return Frame(views={n: generator.integers(0, 255, (*size, 3), dtype=np.uint8) for n in names}, time=float(seed))


FRAMES = [frame(t, "top", "side") for t in range(6)]
GOAL = frame(99, "top", "side")
BLANK = Frame(views={}, time=0.0)
WITH_GOAL = Task(instruction="open the door", goal=GOAL)
WITHOUT_GOAL = Task(instruction="open the door")
TRACES = {
    "all views": FRAMES,
    "one view": [frame(t, "top") for t in range(5)],
    "views come and go": [frame(0, "top", "side"), frame(1, "top"), frame(2, "side"), frame(3, "side", "top")],
    "nothing in common": [frame(0, "top"), frame(1, "side"), frame(2, "top")],
    "never seen cameras": [frame(t, "überwachung", "cam-7") for t in range(4)],
    "some frames blank": [FRAMES[0], BLANK, FRAMES[1], BLANK, FRAMES[2]],
    "blank at first": [BLANK, BLANK, FRAMES[0], FRAMES[1]],
    "all blank": [BLANK, BLANK],
    "sizes differ": [frame(0, "top", size=(8, 24)), frame(1, "top", size=(40, 20)), frame(2, "top", size=(1, 1))],
}


@pytest.fixture(scope="module")
def model() -> GRM:
    return GRM(tiny_network(SEED))


@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("task", [WITH_GOAL, WITHOUT_GOAL], ids=["goal", "no goal"])
def test_laws(model, task, trace):
    steps = TRACES[trace]
    check_process_reward(model, task, steps)
    judgement = model.judge(task, steps)
    np.testing.assert_array_equal(judgement.judged, [bool(step.views) for step in steps])
    if judgement.judged.any():
        assert judgement.potential[judgement.judged][0] == 0
    if judgement.judged.sum() > 2:
        assert np.ptp(judgement.potential[judgement.judged]) > 0.01, "a constant obeys every law"


@pytest.mark.parametrize("fuser", [MeanFusion(), ConsistentFusion(), LeastFusion()])
def test_laws_with_every_fuser(fuser):
    check_process_reward(GRM(tiny_network(SEED), fuser=fuser), WITH_GOAL, FRAMES)


def test_a_torchvision_backbone_by_name():
    network = tiny_network(backbone="mobilenet_v3_small", image_size=32)
    check_process_reward(GRM(network), WITH_GOAL, FRAMES[:3])


def test_the_first_potential_is_zero_and_what_follows_is_the_fusion_of_its_parts():
    model = GRM(convinced(tiny_network(SEED)))
    judgement = model.judge(WITH_GOAL, FRAMES)
    assert judgement.potential[0] == 0
    assert judgement.incremental[0] == 0
    assert ((judgement.forward >= -1) & (judgement.forward <= 1)).all()
    assert ((judgement.backward >= 0) & (judgement.backward <= 2)).all()
    assert ((judgement.absolute >= 0) & (judgement.absolute <= 1)).all()
    assert np.ptp(judgement.absolute) > 0
    assert ((judgement.success > 0) & (judgement.success < 1)).all()
    cyclic = model.extend([model.start(WITH_GOAL)], [FRAMES])[0][0].cyclic
    parts = [judgement.incremental] if cyclic else [judgement.forward, judgement.backward, judgement.absolute]
    fused = np.clip(parts, 0, 1).min(0)
    np.testing.assert_allclose(judgement.potential[1:], fused[1:], atol=1e-12)


def parts_of(model, *, cyclic: bool):
    """A task whose goal the model tells from the start, or takes for it."""
    for seed in range(200):
        task = Task(instruction="open the door", goal=frame(seed, "top", "side"))
        [carry], [judgement] = model.extend([model.start(task)], [FRAMES])
        if carry.cyclic == cyclic:
            return judgement
    raise AssertionError("no such goal")


def saying(bin_: int) -> GRM:
    """Whatever it is asked, the hop is the centre of this bin."""
    network = convinced(tiny_network())
    with torch.no_grad():
        for member in network.members:
            member[-1].weight.zero_()
            member[-1].bias.zero_()
            member[-1].bias[bin_] = 100
    return GRM(network)


def test_a_goal_that_looks_like_the_start_leaves_the_increments_alone():
    sure = parts_of(saying(40), cyclic=False)  # every hop is +1: the goal is no start
    np.testing.assert_allclose(sure.potential[1:], sure.absolute[1:])
    cyclic = parts_of(saying(24), cyclic=True)  # every hop is +0.2: the goal is taken for the start
    np.testing.assert_allclose(cyclic.potential, 1 - 0.8 ** np.arange(6), atol=1e-6)
    np.testing.assert_allclose(cyclic.forward, 0.2, atol=1e-6)


class Brightness(MultiViewNetwork):
    """Answers every hop by the difference in brightness: what was asked can be read off the answer."""

    offsets = (0.0,) * TINY.members
    """What each member adds to the hop."""
    fit = 10.0
    """Logit of instruction and pictures belonging together."""

    def tokens(self, images, shift):
        return images.mean((2, 3, 4))[..., None].expand(*images.shape[:2], TINY.features)

    def pool(self, tokens, present):
        seen = present[..., None]
        mean = (tokens * seen).sum(-2) / seen.sum(-2).clamp(min=1)
        return torch.cat([mean] * TINY.pools, -1)

    def hop_logits(self, text, init, goal, before, after):
        return ((after - before)[..., :1] + torch.tensor(self.offsets))[..., None]

    def fits_logit(self, text, init, goal):
        self.asked = text, init, goal
        return torch.tensor(self.fit)

    def expected_hop(self, logits):
        return logits[..., 0].clamp(-1, 1)


class BrightHeads:
    """What `FoldedHeads` would be of `Brightness`; half-way, absolutely, whatever is shown."""

    hidden, both, fresh = 1, 2, True

    def __init__(self, network: Brightness) -> None:
        self.network = network

    def shift(self, names):
        return torch.zeros(len(names), TINY.features)

    def moment(self, features):
        level = features[:, :1]
        return torch.cat([level, torch.zeros_like(level), -level], 1)

    def anchor(self, text, initial, goal):
        return torch.zeros(2)

    def hops(self, asked):
        return (asked + torch.tensor(self.network.offsets)).clamp(-1, 1)

    def standing(self, asked):
        offsets = torch.tensor(self.network.offsets)
        return (0.5 + offsets).clamp(0, 1).expand(len(asked), -1), torch.full((len(asked),), 0.5)


def bright(network: Brightness) -> GRM:
    model = GRM(network, fuser=MeanFusion())  # in which every perspective shows
    model._folded = BrightHeads(network)
    return model


class Picky(Brightness):
    """Takes nearly black pictures for broken ones."""

    def usable_logit(self, tokens):
        return tokens[..., 0] - 0.01


def shade(**levels: float) -> Frame:
    return Frame(views={n: np.full((16, 16, 3), round(255 * level), np.uint8) for n, level in levels.items()})


def test_each_perspective_asks_its_own_question():
    model = bright(Brightness(TINY))
    steps = [shade(top=0.05, side=0.15), shade(top=0.4, side=0.4), shade(top=0.2, side=0.6), BLANK, shade(top=1.0)]
    judgement = model.judge(Task(instruction="brighter", goal=shade(top=0.8, side=0.8)), steps)
    seen = [0, 1, 2, 4]
    np.testing.assert_allclose(judgement.forward[seen], [0.0, 0.3, 0.3, 0.9], atol=5e-3)  # from 0.1, the initial mean
    np.testing.assert_allclose(judgement.backward[seen], [0.3, 0.6, 0.6, 1.2], atol=5e-3)  # to 0.8
    potential = [0.0, ((0.3 + 0.3 + 0.6) / 3 + 0.5) / 2]
    potential.append(((potential[1] + 0.3 + 0.6) / 3 + 0.5) / 2)  # from 0.4 to 0.4 is no hop
    by_hop = potential[2] + (1 - potential[2]) * 0.6  # from 0.4, not from the blank
    potential.append(((by_hop + 0.9 + 1.0) / 3 + 0.5) / 2)  # what leaves [0, 1] is clamped before it is fused
    np.testing.assert_allclose(judgement.potential[seen], potential, atol=5e-3)
    assert judgement.incremental[4] == pytest.approx(by_hop, abs=5e-3)


def test_the_potential_is_the_members_mean_and_the_spread_their_disagreement():
    network = Brightness(TINY)
    model, steps = bright(network), [shade(top=0.1, side=0.1), shade(top=0.3, side=0.7)]
    agreed = model.judge(WITHOUT_GOAL, steps)
    assert agreed.potential[1] == pytest.approx((0.4 + 0.5) / 2, abs=5e-3)
    assert agreed.spread[1] == pytest.approx(np.std([0.4, 0.4, 0.5]), abs=5e-3)
    network.offsets = (-0.3, -0.2, 0.0, 0.1, 0.4)  # mean 0
    judgement = model.judge(WITHOUT_GOAL, steps)
    np.testing.assert_allclose(judgement.potential, agreed.potential, atol=1e-6)
    np.testing.assert_allclose(judgement.forward, agreed.forward, atol=1e-6)
    estimates = [0.4, 0.1, 0.2, 0.4, 0.5, 0.8] * 2  # their mean and each of them: by hops, and from the initial frame
    estimates += [0.5, 0.2, 0.3, 0.5, 0.6, 0.9]  # absolutely
    assert judgement.spread[1] == pytest.approx(np.std(estimates), abs=5e-3)


def test_a_real_ensembles_members_answer_differently(model):
    [carry], _ = model.extend([model.start(WITH_GOAL)], [FRAMES[:1]])
    hops, success = model._answer([_Question(carry, *model._see(FRAMES[1:3]))])
    assert success.shape == (1,)
    assert hops.shape == (4, 1 + TINY.members, 1)
    np.testing.assert_allclose(hops[:, 0], hops[:, 1:].mean(1), atol=1e-6)
    assert hops[:, 1:].std(1).min() > 1e-3


def test_calibration_changes_the_spread_and_nothing_else(tmp_path):
    network, plain = tiny_network(SEED), tiny_network(SEED)
    network.calibration.copy_(torch.tensor([0.05, 2.0]))
    network.gated.fill_(1)
    plain.gated.fill_(1)
    model = GRM(plain)
    fit = model.extend([model.start(WITH_GOAL)], [FRAMES])[0][0].fit
    assert 0.5 < fit < 1
    before, after = model.judge(WITH_GOAL, FRAMES), GRM(network).judge(WITH_GOAL, FRAMES)
    for name in ("potential", "incremental", "forward", "backward", "success", "judged"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name), err_msg=name)
    assert before.spread[1:].min() > 0.01
    np.testing.assert_allclose(after.spread, 0.05 * fit + 2 * before.spread, atol=1e-6)
    GRM(network).save_pretrained(tmp_path)
    loaded = GRM.from_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded.judge(WITH_GOAL, FRAMES).spread, after.spread, err_msg="it was not saved")


def test_what_does_not_fit_scales_potential_and_spread():
    network = Brightness(TINY)
    network.offsets = (-0.3, -0.2, 0.0, 0.1, 0.4)
    network.calibration.copy_(torch.tensor([0.05, 2.0]))
    task = Task(instruction="brighter", goal=shade(top=0.8))
    steps = [shade(top=0.1), shade(top=0.4), shade(top=0.3), shade(top=0.6)]
    model = bright(network)
    fitting = model.judge(task, steps)
    network.fit = -1.5
    [carry], [never_adapted] = model.extend([model.start(task)], [steps])
    assert carry.fit == 1.0, "what was not adapted to a task has no say in whether it is one"
    np.testing.assert_array_equal(never_adapted.potential, fitting.potential)
    network.gated.fill_(1)
    [carry], [strange] = model.extend([model.start(task)], [steps])
    fit = 1 / (1 + np.exp(1.5))  # 3 (logit + 1): doubt counts as fitting
    assert carry.fit == pytest.approx(fit, abs=1e-6)
    for name in ("potential", "spread", "incremental"):
        np.testing.assert_allclose(getattr(strange, name), fit * getattr(fitting, name), atol=1e-6, err_msg=name)
    for name in ("forward", "backward", "success"):
        np.testing.assert_array_equal(getattr(strange, name), getattr(fitting, name), err_msg=name)
    _, init, goal = network.asked
    np.testing.assert_allclose([init[0], goal[0]], [0.1, 0.8], atol=5e-3)
    network.fit = 0.0
    assert model.extend([model.start(task)], [steps])[0][0].fit > 0.95
    check_process_reward(model, task, steps)
    _, [later] = model.extend([carry], [steps])
    assert carry.fit == pytest.approx(fit, abs=1e-6), "asked once, at the first frame"
    assert later.potential.max() < fit


def test_an_unusable_picture_is_as_if_its_camera_were_absent():
    model = bright(Picky(TINY))
    task = Task(instruction="brighter", goal=shade(top=0.8, side=0.8))
    broken = [shade(top=0.1, side=0.2), shade(top=0.0, side=0.4), shade(top=0.0, side=0.0), shade(top=0.6, side=0.0)]
    absent = [broken[0], shade(side=0.4), BLANK, shade(top=0.6)]
    [carry], [one] = model.extend([model.start(task)], [broken])
    other = model.judge(task, absent)
    np.testing.assert_array_equal(one.judged, [True, True, False, True])
    for name in ("potential", "spread", "incremental", "forward", "backward"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-6, err_msg=name)
    assert np.isnan(one.potential[2])
    assert carry.previous.names == ("top",)
    assert carry.initial.names == ("side", "top")
    check_process_reward(model, task, broken)


def test_unusable_first_frames_and_goals_are_none():
    model = bright(Picky(TINY))
    black = shade(top=0.0, side=0.0)
    judgement = model.judge(Task(instruction="brighter", goal=black), [black, shade(top=0.2), shade(top=0.6)])
    np.testing.assert_array_equal(judgement.judged, [False, True, True])
    np.testing.assert_allclose(judgement.potential[1:], [0, (0.4 + 0.5) / 2], atol=5e-3)
    assert np.isnan(judgement.backward).all()
    assert not model.judge(WITHOUT_GOAL, [black, black]).judged.any()


def test_a_picture_is_black_up_to_its_brightest_byte_whatever_the_network_says():
    model = GRM(tiny_network())
    judgement = model.judge(WITHOUT_GOAL, [shade(top=level / 255) for level in (BLACK, BLACK + 1, 0, 255)])
    np.testing.assert_array_equal(judgement.judged, [False, True, False, True])


def test_a_new_network_takes_every_picture_for_usable():
    network = tiny_network()
    assert (network.usable_logit(network.encode(torch.rand(2, 2, 3, 16, 16), ["a", "b"])) > 0).all()


def test_bare_hops_abstain_where_one_of_the_frames_shows_nothing():
    model = bright(Picky(TINY))
    levels = [shade(top=0.2), shade(top=0.5), BLANK, shade(top=0.0), shade(side=0.7)]
    after = [shade(top=0.5), shade(top=0.3), levels[0], levels[0], levels[0]]
    hops = model.hops(WITHOUT_GOAL, levels[0], levels, after)
    np.testing.assert_allclose(hops, [0.3, -0.2, np.nan, np.nan, -0.5], atol=5e-3)
    assert np.isnan(model.hops(WITHOUT_GOAL, BLANK, levels, after)).all()
    with pytest.raises(TraceError, match="5 befores for 4 afters"):
        model.hops(WITHOUT_GOAL, levels[0], levels, after[:4])


def test_without_a_goal_the_backward_perspective_abstains(model):
    for task in (WITHOUT_GOAL, Task(instruction="open the door", goal=BLANK)):
        assert np.isnan(model.judge(task, FRAMES).backward).all()
        assert model.judge(task, FRAMES).judged.all()
    elsewhere = Task(instruction="open the door", goal=frame(99, "ceiling"))
    assert np.isfinite(model.judge(elsewhere, FRAMES).backward).all(), "a goal may be seen by other cameras"


def test_a_blank_frame_changes_nothing_but_its_own_step(model):
    whole, gaps = model.judge(WITH_GOAL, FRAMES[:3]), model.judge(WITH_GOAL, TRACES["some frames blank"])
    np.testing.assert_allclose(gaps.potential[[0, 2, 4]], whole.potential, atol=1e-6)
    assert np.isnan(gaps.potential[[1, 3]]).all()
    assert np.isnan(gaps.success[[1, 3]]).all()


def test_view_order_does_not_matter(model):
    swapped = [Frame(views=dict(reversed(list(f.views.items()))), time=f.time) for f in FRAMES]
    np.testing.assert_allclose(
        model.judge(WITH_GOAL, swapped).potential, model.judge(WITH_GOAL, FRAMES).potential, atol=1e-6
    )


def test_prefixes_of_different_tasks_in_one_batch_answer_as_alone(model):
    other = Task(instruction="close the drawer", goal=frame(98, "top"))
    jobs = [(WITH_GOAL, FRAMES), (other, TRACES["views come and go"]), (WITHOUT_GOAL, TRACES["one view"]), (other, [])]
    carries, judgements = model.extend([model.start(task) for task, _ in jobs], [steps for _, steps in jobs])
    assert len(carries) == 4
    for (task, steps), together in zip(jobs, judgements, strict=True):
        alone = model.judge(task, steps)
        for name in ("potential", "spread", "incremental", "forward", "backward", "success"):
            np.testing.assert_allclose(getattr(together, name), getattr(alone, name), atol=1e-5, err_msg=name)
    assert model.extend([], []) == ([], [])
    with pytest.raises(TraceError, match="1 carries for 2 sequences"):
        model.extend(carries[:1], [[], []])


def test_carries_are_small_and_cannot_be_written_to(model):
    [carry], _ = model.extend([model.start(WITH_GOAL)], [FRAMES])
    for seen in (carry.goal, carry.initial, carry.previous):
        assert seen.feature.shape == (TINY.pools * TINY.features,)
        for kept in (seen.feature, seen.moment, carry.anchor):
            with pytest.raises(ValueError, match="read-only"):
                kept[0] = 0


def test_more_frames_than_fit_one_pass(model, monkeypatch):
    whole = model.judge(WITH_GOAL, FRAMES).potential
    monkeypatch.setattr("grm.models.multiview._CHUNK", 2)
    np.testing.assert_allclose(model.judge(WITH_GOAL, FRAMES).potential, whole, atol=1e-5)


def test_the_same_seed_makes_the_same_network():
    one, two, other = tiny_network(3), tiny_network(3), tiny_network(4)
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)
    assert (one.hop[0].weight != other.hop[0].weight).any()
    assert not GRM(one).network.training


def test_every_pool_is_a_mean_over_the_views_that_are_there():
    network = tiny_network()
    tokens = torch.randn(3, 2, 16)
    present = torch.tensor([[True, True], [True, False], [False, False]])
    pooled = network.pool(tokens, present)
    torch.testing.assert_close(pooled[1], tokens[1, 0].repeat(TINY.pools))
    torch.testing.assert_close(pooled[2], torch.zeros(network.frame_features))
    weights = network.gate(tokens[0]).softmax(0)  # (V, pools)
    expected = [weights[0, p] * tokens[0, 0] + weights[1, p] * tokens[0, 1] for p in range(TINY.pools)]
    torch.testing.assert_close(pooled[0], torch.cat(expected))
    assert (expected[0] - expected[1]).abs().max() > 1e-3, "the pools are one and the same"


def test_expected_hops_stay_in_range_and_hit_the_bins():
    network = tiny_network()
    logits = torch.full((3, 41), -1e4)
    for row, column in enumerate((0, 20, 40)):
        logits[row, column] = 1e4
    torch.testing.assert_close(network.expected_hop(logits), torch.tensor([-1.0, 0.0, 1.0]), atol=1e-6, rtol=0)
    assert (network.expected_hop(1e3 * torch.randn(500, 41)).abs() <= 1).all()


def test_saved_and_loaded(model, tmp_path):
    model.save_pretrained(tmp_path, {"trained on": "noise"})
    loaded = GRM.from_pretrained(tmp_path, fuser=LeastFusion())
    np.testing.assert_array_equal(loaded.judge(WITH_GOAL, FRAMES).potential, model.judge(WITH_GOAL, FRAMES).potential)
    assert json.loads((tmp_path / "config.json").read_text())["card"] == {"trained on": "noise"}


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda c: c.pop("architecture"), "KeyError: 'architecture'.*image_size"),
        (lambda c: c["architecture"].update(heads=3), "unexpected keyword argument 'heads'"),
        (lambda c: c.update(architecture=None), "does not describe a network"),
        (lambda c: c["architecture"].update(backbone="nonsense"), "unknown backbone 'nonsense'"),
        (lambda c: c["architecture"].update(features=32), "of another shape"),
        (lambda c: c["architecture"].update(members=4), "model.safetensors"),
        (lambda c: c.update(kind="text-prm"), "kind 'text-prm'"),
    ],
)
def test_checkpoints_that_are_not_what_they_say(model, tmp_path, edit, found):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    edit(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=found):
        GRM.from_pretrained(tmp_path)


def test_features_are_what_the_encoder_saw_last(model):
    frames = [frame(k, "front", "wrist") for k in range(3)]
    task = Task(instruction="open it", goal=frames[2])
    start = model.start(task)
    np.testing.assert_array_equal(model.features(start), np.zeros(model.network.frame_features))
    [carry], _ = model.extend([start], [frames[:2]])
    [alone], _ = model.extend([model.start(task)], [[frames[1]]])
    np.testing.assert_allclose(model.features(carry), model.features(alone), atol=1e-6)
    assert np.abs(model.features(carry)).max() > 0
    [after], _ = model.extend([carry], [[Frame(views={})]])
    np.testing.assert_array_equal(model.features(after), model.features(carry))
    with pytest.raises(ValueError, match="read-only"):
        model.features(carry)[0] = 1


@pytest.fixture(scope="module")
def shipped():
    return GRM.from_pretrained(), [e for e in read_replay(packaged_checkpoint()) if e.succeeded][:3]


def _pictures(episode: Episode, length: int, **instead: np.ndarray) -> list[Frame]:
    """Its first frames, with other pictures from some cameras."""
    return [Frame(views={**frame.views, **instead}, time=frame.time) for frame in episode.frames[:length]]


@pytest.mark.parametrize("what", ["black", "one", "four", "grey", "white", "noise"])
def test_the_shipped_weights_abstain_where_no_camera_shows_anything(shipped, what):
    """Exact pictures without the noise of a lit sensor, which the network has never seen: also those show nothing."""
    model, episodes = shipped
    level = {"black": 0, "one": 1, "four": BLACK, "grey": 128, "white": 255}.get(what)
    for episode in episodes:
        rng = np.random.default_rng(0)
        shape = next(iter(episode.views.values())).shape[1:]
        nothing = rng.integers(0, 256, shape, np.uint8) if level is None else np.full(shape, level, np.uint8)
        task = Task(instruction=episode.instruction, goal=episode.frames[-1])
        every = model.judge(task, _pictures(episode, 3, **dict.fromkeys(episode.views, nothing)))
        assert not every.judged.any()
        assert np.isnan(every.potential).all()
        name = min(episode.views)
        one = model.judge(task, _pictures(episode, 6, **{name: nothing}))
        absent = [Frame(views={k: v for k, v in f.views.items() if k != name}, time=f.time) for f in episode.frames[:6]]
        assert one.judged.all()
        np.testing.assert_allclose(one.potential, model.judge(task, absent).potential, atol=1e-5)
