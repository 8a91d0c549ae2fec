"""The success head, taught by verdicts: of some rollouts somebody said which of their frames show the task done.

Of everything a model says, whether the task is done is the easiest to be told, by a person or a sensor, and the dearest
to get wrong where it is paid for. A gradient step shared with progress, other tasks and forgetting hardly learns from a
dozen verdicts (`docs/log.md`); what the head is linear in does not change with them. So its last layer alone is fitted,
to convergence: logistic regression on the frozen network, held near the old weights by a Gaussian prior (the Laplace
view of transfer: MacKay 1992, "A Practical Bayesian Framework for Backpropagation Networks"), whose strength is what
predicts rollouts that were left out best.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .errors import TraceError
from .models.multiview import GRM

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""Precisions of the prior that are tried, where all frames together weigh 1."""
FOLDS = 5
"""Groups of rollouts of which one is left out at a time."""


def teach_success(
    model: GRM, standing: Sequence[Float[np.ndarray, "t h"]], done: Sequence[Bool[np.ndarray, " t"]]
) -> GRM:
    """A new GRM whose success head agrees with verdicts, as far as one layer can; the old one stays as it was.

    Of each rollout the frames that are done weigh 1 together, in one that never is those that the old head takes for
    done, too, and the rest again: a refuted claim is a few frames among hundreds. Nothing but P(done) changes, and that
    for every task: use it for the one it was taught.

    Args:
        model: the GRM.
        standing: of each rollout, what `model.standing` gave for its frames; those that show nothing are left out.
        done: of each rollout, whether its frames show the task done.

    Raises:
        TraceError: there is no usable frame of one of the two kinds.
    """
    rows = [torch.as_tensor(np.asarray(x, np.float64)) for x in standing]
    usable = [row.isfinite().all(1) for row in rows]
    x = torch.cat([row[kept] for row, kept in zip(rows, usable, strict=True)])
    y = torch.cat([torch.tensor(np.asarray(d), dtype=x.dtype)[k] for d, k in zip(done, usable, strict=True)])
    rollout = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([int(kept.sum()) for kept in usable]))
    if not 0 < float(y.sum()) < len(y):
        raise TraceError(
            f"{int(y.sum())} of {len(y)} usable frames show the task done; expected some that do and some that do not"
        )
    old = model.network.done
    begin = torch.cat([old.weight.detach().double().flatten().cpu(), old.bias.detach().double().cpu()])
    weight = _balance(y, x @ begin[:-1] + begin[-1] > 0, rollout)
    errors = [_left_out(begin, x, y, weight, rollout % FOLDS, strength) for strength in STRENGTHS]
    fitted = _fit(begin, x, y, weight, STRENGTHS[int(np.argmin(errors))])
    network = copy.deepcopy(model.network)
    with torch.no_grad():
        network.done.weight.copy_(fitted[:-1].view_as(old.weight))
        network.done.bias.copy_(fitted[-1:])
    return GRM(network, fuser=model.fuser)


def _balance(y: Tensor, taken: Tensor, rollout: Tensor) -> Tensor:
    """Weights that sum to 1, equal for each rollout's frames of a kind: done; never done but `taken` for it; others."""
    never = torch.bincount(rollout, y)[rollout] == 0
    kind = 3 * rollout + torch.where(y > 0, 0, torch.where(taken & never, 1, 2))
    weight = 1 / torch.bincount(kind)[kind].double()
    return weight / weight.sum()


def _left_out(begin: Tensor, x: Tensor, y: Tensor, weight: Tensor, fold: Tensor, strength: float) -> float:
    """Cross-entropy of the rollouts that each fold leaves out."""
    logits = torch.empty_like(y)
    for number in fold.unique().tolist():
        out = fold == number
        fitted = _fit(begin, x[~out], y[~out], weight[~out], strength)
        logits[out] = x[out] @ fitted[:-1] + fitted[-1]
    return float(F.binary_cross_entropy_with_logits(logits, y, weight, reduction="sum"))


def _fit(begin: Tensor, x: Tensor, y: Tensor, weight: Tensor, strength: float) -> Tensor:
    """Weights and bias: cross-entropy plus strength / 2 times the squared distance from `begin`."""
    fitted = nn.Parameter(begin.clone())
    optimizer = torch.optim.LBFGS([fitted], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(x @ fitted[:-1] + fitted[-1], y, weight, reduction="sum")
        loss = loss + 0.5 * strength * (fitted - begin).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return fitted.detach()
