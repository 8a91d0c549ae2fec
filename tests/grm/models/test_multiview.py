import json

import numpy as np
import pytest
import torch

from grm.errors import CheckpointError, TraceError
from grm.fusion import ConsistentFusion, MeanFusion
from grm.models.multiview import GRM, Architecture, MultiViewNetwork
from grm.reward import Frame, Task
from grm.testing import check_process_reward

TINY = Architecture(image_size=16, features=16, text_features=8, text_buckets=64)


def tiny_network(seed: int = 0, scale: float = 20.0, **changes) -> MultiViewNetwork:
    """Random, with an outspoken hop head: freshly initialised ones say 0 to everything, and every law holds."""
    torch.manual_seed(seed)
    network = MultiViewNetwork(Architecture(**{f: getattr(TINY, f) for f in TINY.__slots__} | changes))
    with torch.no_grad():
        network.hop[-1].weight *= scale
        network.no_goal.normal_()
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
    return GRM(tiny_network())


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


@pytest.mark.parametrize("fuser", [MeanFusion(), ConsistentFusion()])
def test_laws_with_every_fuser(fuser):
    check_process_reward(GRM(tiny_network(1), fuser=fuser), WITH_GOAL, FRAMES)


def test_a_torchvision_backbone_by_name():
    network = tiny_network(backbone="mobilenet_v3_small", image_size=32)
    check_process_reward(GRM(network), WITH_GOAL, FRAMES[:3])


def test_the_first_potential_is_zero_and_what_follows_is_the_fusion_of_its_parts(model):
    judgement = model.judge(WITH_GOAL, FRAMES)
    assert judgement.potential[0] == 0
    assert judgement.incremental[0] == 0
    assert ((judgement.forward >= -1) & (judgement.forward <= 1)).all()
    assert ((judgement.backward >= 0) & (judgement.backward <= 2)).all()
    assert ((judgement.success > 0) & (judgement.success < 1)).all()
    cyclic = model.extend([model.start(WITH_GOAL)], [FRAMES])[0][0].cyclic
    parts = [judgement.incremental] if cyclic else [judgement.incremental, judgement.forward, judgement.backward]
    np.testing.assert_allclose(judgement.potential[1:], np.clip(parts, 0, 1).mean(0)[1:], atol=1e-12)


def parts_of(model, *, cyclic: bool):
    """A task whose goal the model tells from the start, or takes for it."""
    for seed in range(200):
        task = Task(instruction="open the door", goal=frame(seed, "top", "side"))
        [carry], [judgement] = model.extend([model.start(task)], [FRAMES])
        if carry.cyclic == cyclic:
            return judgement
    raise AssertionError("no such goal")


def test_a_goal_that_looks_like_the_start_leaves_the_increments_alone():
    model = GRM(tiny_network())
    with torch.no_grad():
        model.network.hop[-1].bias[-1] += 100  # every hop is +1: the goal is no start
    sure = parts_of(model, cyclic=False)
    np.testing.assert_allclose(
        sure.potential[1:], np.clip([sure.incremental, sure.forward, sure.backward], 0, 1).mean(0)[1:]
    )
    model = GRM(tiny_network())
    with torch.no_grad():
        model.network.hop[-1].weight.zero_()
        model.network.hop[-1].bias.zero_()
        model.network.hop[-1].bias[24] = 100  # every hop is +0.2: the goal is taken for the start
    cyclic = parts_of(model, cyclic=True)
    np.testing.assert_allclose(cyclic.potential, 1 - 0.8 ** np.arange(6), atol=1e-6)
    np.testing.assert_allclose(cyclic.forward, 0.2, atol=1e-6)


class Brightness(MultiViewNetwork):
    """Answers every hop by the difference in brightness: what was asked can be read off the answer."""

    def encode(self, images, names):
        return images.mean((2, 3, 4))[..., None].expand(*images.shape[:2], TINY.features)

    def pool(self, tokens, present):
        seen = present[..., None]
        return (tokens * seen).sum(-2) / seen.sum(-2).clamp(min=1)

    def hop_logits(self, text, init, goal, before, after):
        return (after - before)[..., :1]

    def expected_hop(self, logits):
        return logits[..., 0]


def shade(**levels: float) -> Frame:
    return Frame(views={n: np.full((16, 16, 3), round(255 * level), np.uint8) for n, level in levels.items()})


def test_each_perspective_asks_its_own_question():
    model = GRM(Brightness(TINY))
    steps = [shade(top=0.0, side=0.2), shade(top=0.4, side=0.4), shade(top=0.2, side=0.6), BLANK, shade(top=1.0)]
    judgement = model.judge(Task(instruction="brighter", goal=shade(top=0.8, side=0.8)), steps)
    seen = [0, 1, 2, 4]
    np.testing.assert_allclose(judgement.forward[seen], [0.0, 0.3, 0.3, 0.9], atol=5e-3)  # from 0.1, the initial mean
    np.testing.assert_allclose(judgement.backward[seen], [0.3, 0.6, 0.6, 1.2], atol=5e-3)  # to 0.8
    potential = [0.0, (0.3 + 0.3 + 0.6) / 3]
    potential.append((potential[1] + 0.3 + 0.6) / 3)  # from 0.4 to 0.4 is no hop
    by_hop = potential[2] + (1 - potential[2]) * 0.6  # from 0.4, not from the blank
    potential.append((by_hop + 0.9 + 1.0) / 3)  # what leaves [0, 1] is clamped before it is fused
    np.testing.assert_allclose(judgement.potential[seen], potential, atol=5e-3)
    assert judgement.incremental[4] == pytest.approx(by_hop, abs=5e-3)


def test_the_spread_is_over_all_views_and_perspectives():
    model = GRM(Brightness(TINY))
    steps = [shade(top=0.0, side=0.0), shade(top=0.2, side=0.6)]
    judgement = model.judge(WITHOUT_GOAL, steps)
    estimates = [0.4, 0.2, 0.6] * 2  # all views, top, side: by hops, and from the initial frame
    np.testing.assert_allclose(judgement.spread[1], np.std(estimates), atol=5e-3)
    agreed = model.judge(WITHOUT_GOAL, [steps[0], shade(top=0.4, side=0.4)])
    assert agreed.spread[1] == pytest.approx(0, abs=1e-6)


def test_without_a_goal_the_backward_perspective_abstains(model):
    for task in (WITHOUT_GOAL, Task(instruction="open the door", goal=BLANK)):
        assert np.isnan(model.judge(task, FRAMES).backward).all()
        assert model.judge(task, FRAMES).judged.all()
    elsewhere = Task(instruction="open the door", goal=frame(99, "ceiling"))
    assert np.isnan(model.judge(elsewhere, FRAMES).backward).all(), "a goal seen by other cameras says nothing"
    partly = Task(instruction="open the door", goal=frame(99, "top", "ceiling"))
    assert np.isfinite(model.judge(partly, FRAMES).backward).all()


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
        assert seen.tokens.shape == (2, TINY.features)
        with pytest.raises(ValueError, match="read-only"):
            seen.tokens[0] = 0


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


def test_pooling_is_a_mean_over_the_views_that_are_there():
    network = tiny_network()
    tokens = torch.randn(3, 2, 16)
    present = torch.tensor([[True, True], [True, False], [False, False]])
    pooled = network.pool(tokens, present)
    torch.testing.assert_close(pooled[1], tokens[1, 0])
    torch.testing.assert_close(pooled[2], torch.zeros(16))
    weights = network.gate(tokens[0]).squeeze(-1).softmax(0)
    torch.testing.assert_close(pooled[0], weights[0] * tokens[0, 0] + weights[1] * tokens[0, 1])


def test_expected_hops_stay_in_range_and_hit_the_bins():
    network = tiny_network()
    logits = torch.full((3, 41), -1e4)
    for row, column in enumerate((0, 20, 40)):
        logits[row, column] = 1e4
    torch.testing.assert_close(network.expected_hop(logits), torch.tensor([-1.0, 0.0, 1.0]), atol=1e-6, rtol=0)
    assert (network.expected_hop(1e3 * torch.randn(500, 41)).abs() <= 1).all()


def test_saved_and_loaded(model, tmp_path):
    model.save_pretrained(tmp_path, {"trained on": "noise"})
    loaded = GRM.from_pretrained(tmp_path, fuser=MeanFusion())
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
