"""Frames one by one, in pieces or of many prefixes at once: the answers are those of one whole trace."""

import numpy as np
import pytest
import torch

from grm.fusion import ConsistentFusion, LeastFusion, MeanFusion
from grm.models.multiview import GRM, Architecture, MultiViewNetwork
from grm.reward import Frame, PerspectiveJudgement, Task
from grm.testing import check_process_reward

COLUMNS = ("potential", "spread", "incremental", "forward", "backward", "success")
BLANK = Frame(views={})


def outspoken(seed: int, fuser) -> GRM:
    torch.manual_seed(seed)
    network = MultiViewNetwork(Architecture(image_size=16, features=16, text_features=8, text_buckets=64))
    with torch.no_grad():
        for member in network.members:
            member[-1].weight *= 20
        network.no_goal.normal_()
        network.calibration.copy_(torch.tensor([0.02, 1.5]))
    return GRM(network, fuser=fuser)


def frame(generator: np.random.Generator, *names: str, size: int = 16) -> Frame:
    return Frame(views={name: generator.integers(0, 255, (size, size, 3), dtype=np.uint8) for name in names})


@pytest.mark.parametrize("seed", range(6))
def test_streams_of_many_prefixes_answer_as_whole_traces_alone(seed):
    model = outspoken(seed, (MeanFusion(), ConsistentFusion(), LeastFusion())[seed % 3])
    generator = np.random.default_rng(seed)
    three = ("corner", "top", "wrist")
    goal, other = frame(generator, *three), frame(generator, "top")
    jobs = [
        (Task(instruction="open the door", goal=goal), [frame(generator, *three) for _ in range(6)]),
        (Task(instruction="open the door", goal=goal), [BLANK, *(frame(generator, *three) for _ in range(4)), BLANK]),
        (Task(instruction="close it"), [frame(generator, *three[: 1 + t % 3]) for t in range(6)]),
        (Task(instruction="push", goal=other), [frame(generator, "top", size=16 + 4 * t) for t in range(6)]),
        (Task(instruction="stay", goal=goal), [goal, frame(generator, *three), goal, BLANK, BLANK, goal]),
    ]
    whole = [model.judge(task, steps) for task, steps in jobs]
    assert max(np.nanmax(judgement.forward) - np.nanmin(judgement.forward) for judgement in whole) > 0.1, "no answers"
    carries = [model.start(task) for task, _ in jobs]
    streamed: list[list[PerspectiveJudgement]] = [[] for _ in jobs]
    for t in range(6):
        carries, judgements = model.extend(carries, [[steps[t]] for _, steps in jobs])
        for stream, judgement in zip(streamed, judgements, strict=True):
            stream.append(judgement)
    _, together = model.extend([model.start(task) for task, _ in jobs], [steps for _, steps in jobs])
    for alone, batched, stream in zip(whole, together, streamed, strict=True):
        for name in COLUMNS:
            expected = getattr(alone, name)
            np.testing.assert_allclose(getattr(batched, name), expected, atol=1e-5, err_msg=name)
            one_by_one = np.concatenate([getattr(judgement, name) for judgement in stream])
            np.testing.assert_allclose(one_by_one, expected, atol=1e-5, err_msg=name)
    check_process_reward(model, *jobs[seed % len(jobs)])
