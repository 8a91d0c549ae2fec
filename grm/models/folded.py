"""The heads of a `MultiViewNetwork` in the form that answers fastest, for judging one frame after another.

The first layers of the hop heads, and of those that look at a single frame, are linear in what a frame is to a
question: its initial frame, its goal, its before, its after. Folded by these roles, a frame is multiplied once, when it
is seen, and every question about it is a sum. The ensemble's members are one matrix per layer. What the cameras' names
say is the same frame after frame.
"""

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .backbone import HashedText

MOST_CAMERAS = 64
"""Sets of cameras whose names' shares are remembered at a time: who serves strangers must not remember them all."""


class FoldedHeads:
    """A copy of the weights; `fresh` says whether they still are the network's.

    Shapes: N frames, P a frame's feature, E the text's, B questions, M members; H and S the widths of the first layers
    of the hop heads and of those of a single frame.
    """

    def __init__(
        self,
        hop: nn.Sequential,
        members: nn.ModuleList,
        standing: nn.Sequential,
        absolute: nn.Sequential,
        done: nn.Linear,
        centres: Tensor,
        names: HashedText,
        name_shift: nn.Linear,
    ) -> None:
        parts = (hop, members, standing, absolute, done, names, name_shift)
        self._weights = [weight for part in parts for weight in part.parameters()]
        self._state = self._versions()
        with torch.no_grad():
            first, second = cast(nn.Linear, hop[0]), cast(nn.Linear, standing[0])
            width = (first.in_features - second.in_features) // 2  # six frames' features against four
            text = second.in_features - 4 * width
            i, g, b, a, change, rest, t = first.weight.split([width] * 6 + [text], 1)
            i_, g_, a_, rest_, t_ = second.weight.split([width] * 4 + [text], 1)
            self._moment = torch.cat([a + change - rest, a_ - rest_, b - change])
            self._anchor = torch.cat([torch.cat([t, i, g + rest], 1), torch.cat([t_, i_, g_ + rest_], 1)])
            self._bias = torch.cat([first.bias, second.bias])
            self.hidden = first.out_features
            """H."""
            self.both = self.hidden + second.out_features
            """H + S."""
            self._norms = [_copy(head[1]) for head in (hop, standing)]
            layers = [cast(nn.Sequential, member) for member in members]
            ones, twos = ([_copy(layer[place]) for layer in layers] for place in (0, 2))
            self._one = torch.cat([weight for weight, _ in ones]), torch.cat([bias for _, bias in ones])
            self._two = torch.stack([w.T for w, _ in twos]), torch.stack([bias[None] for _, bias in twos])
            self._along, self._done = (_copy(absolute[0]), _copy(absolute[2])), _copy(done)
            self._centres = centres
        self._names, self._name_shift = names, name_shift
        self._shifts = dict[tuple[str, ...], Tensor]()

    def _versions(self) -> list[tuple[int, int]]:
        return [(weight._version, weight.data_ptr()) for weight in self._weights]

    @property
    def fresh(self) -> bool:
        """Whether the weights are still those that were folded."""
        return self._versions() == self._state

    def shift(self, names: tuple[str, ...]) -> Float[Tensor, "v d"]:
        """What the names of V cameras add to the features of what they show, remembered."""
        shift = self._shifts.get(names)
        if shift is None:
            if len(self._shifts) >= MOST_CAMERAS:
                self._shifts.clear()
            shift = self._shifts[names] = self._name_shift(self._names(list(names)))
        return shift

    def moment(self, features: Float[Tensor, "n p"]) -> Float[Tensor, "n both+hidden"]:
        """What frames are to questions: H + S numbers as their after, then H as their before."""
        return F.linear(features, self._moment)

    def anchor(
        self, text: Float[Tensor, " e"], initial: Float[Tensor, " p"], goal: Float[Tensor, " p"]
    ) -> Float[Tensor, " both"]:
        """What instruction, initial frame and goal are to every question of an episode."""
        return F.linear(torch.cat([text, initial, goal]), self._anchor, self._bias)

    def hops(self, asked: Float[Tensor, "b hidden"]) -> Float[Tensor, "b m"]:
        """Expected hops in [-1, 1] from the summed shares of anchor, after and before."""
        weight, bias = self._norms[0]
        shared = F.silu(F.layer_norm(asked, asked.shape[-1:], weight, bias))
        (one, shift), (two, offset) = self._one, self._two
        hidden = F.silu(F.linear(shared, one, shift)).unflatten(-1, (len(two), -1)).transpose(0, 1)
        return (torch.baddbmm(offset, hidden, two).softmax(-1) @ self._centres).T.clamp(-1, 1)

    def standing(self, asked: Float[Tensor, "b standing"]) -> tuple[Float[Tensor, "b m"], Float[Tensor, " b"]]:
        """Absolute progress in [0, 1] of after, and the probability that it shows the task done.

        From the summed shares of anchor and after.
        """
        weight, bias = self._norms[1]
        shared = F.silu(F.layer_norm(asked, asked.shape[-1:], weight, bias))
        bins = F.linear(F.silu(F.linear(shared, *self._along[0])), *self._along[1]).unflatten(
            -1, (len(self._two[0]), -1)
        )
        absolute = ((bins.softmax(-1) @ self._centres + 1) / 2).clamp(0, 1)
        return absolute, F.linear(shared, *self._done).squeeze(-1).sigmoid()


def _copy(layer: nn.Module) -> tuple[Tensor, Tensor]:
    weight, bias = cast(nn.Linear | nn.LayerNorm, layer).weight, cast(nn.Linear | nn.LayerNorm, layer).bias
    return weight.detach().clone(), bias.detach().clone()
