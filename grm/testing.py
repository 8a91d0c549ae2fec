"""The laws every `ProcessReward` obeys, shipped with the interface so that any implementer can call them."""

import copy
import pickle
from collections.abc import Sequence

import numpy as np

from .reward import Judgement, ProcessReward, Task


def check_judgement(judgement: Judgement, length: int) -> None:
    """One potential per step; judged values finite and in [0, 1]; abstentions are NaN, never numbers."""
    assert len(judgement) == length, f"{len(judgement)} potentials for {length} steps"
    judged = judgement.judged
    assert np.isfinite(judgement.potential[judged]).all(), "a judged potential is not finite"
    assert ((judgement.potential[judged] >= 0) & (judgement.potential[judged] <= 1)).all(), "a potential left [0, 1]"
    assert np.isfinite(judgement.spread[judged]).all(), "a judged spread is not finite"
    assert (judgement.spread[judged] >= 0).all(), "a spread is negative"
    assert np.isnan(judgement.potential[~judged]).all(), "an abstention carries a number"
    assert np.isnan(judgement.spread[~judged]).all(), "an abstention carries a spread"


def check_process_reward[S, C](
    model: ProcessReward[S, C], task: Task, steps: Sequence[S], *, atol: float = 1e-5
) -> None:
    """Raise `AssertionError` naming the broken law.

    The laws: one potential per step; judged values finite and in [0, 1]; `extend` leaves its carry untouched; same
    carry and steps, same answer; live equals offline; a batch answers as its members do alone; an empty extension
    changes nothing. `atol` is the numerical tolerance of the last three (batched matrix products differ in rounding).
    """
    assert len(steps) >= 2, "the laws need at least two steps to be checked on"
    start = model.start(task)
    before = pickle.dumps(copy.deepcopy(start))
    [end], [offline] = model.extend([start], [steps])
    check_judgement(offline, len(steps))
    assert pickle.dumps(copy.deepcopy(start)) == before, "extend changed the carry it was given"

    [_], [again] = model.extend([start], [steps])
    np.testing.assert_array_equal(again.potential, offline.potential, err_msg="same carry, same steps, another answer")
    np.testing.assert_array_equal(again.judged, offline.judged, err_msg="same carry, same steps, another answer")

    carry, live = start, []
    for step in steps:
        [carry], [judgement] = model.extend([carry], [[step]])
        check_judgement(judgement, 1)
        live.append(judgement)
    for name in ("potential", "spread", "judged"):
        np.testing.assert_allclose(
            np.concatenate([getattr(j, name) for j in live]).astype(float),
            getattr(offline, name).astype(float),
            atol=atol,
            err_msg=f"live differs from offline in {name}",
        )

    half = len(steps) // 2
    [middle], [head] = model.extend([start], [steps[:half]])
    carries, [tail, empty, whole] = model.extend([middle, middle, start], [steps[half:], [], steps])
    assert len(carries) == 3, "one carry per prefix"
    check_judgement(empty, 0)
    np.testing.assert_allclose(
        np.concatenate([head.potential, tail.potential]),
        offline.potential,
        atol=atol,
        err_msg="split differs from whole",
    )
    np.testing.assert_allclose(whole.potential, offline.potential, atol=atol, err_msg="batched differs from alone")
    _, [resumed] = model.extend([carries[1]], [steps[half:]])
    np.testing.assert_allclose(
        resumed.potential, tail.potential, atol=atol, err_msg="an empty extension changed the carry"
    )
    np.testing.assert_allclose(
        model.judge(task, steps).potential, offline.potential, atol=atol, err_msg="judge differs from start and extend"
    )
    assert end is not None, "extend returned no carry"
