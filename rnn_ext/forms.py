"""The forms in which input and states come, and the one that the kernels take: time first, and an axis of sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Form(NamedTuple):
    """How a call's tensors differ from what the kernels take. plain_call.cpp has the same, without gradients.

    dim: dimensions of the input.
    swapped: whether sequences come before time in input and output; states have the same form either way.
    axis: where the axis of sequences is missing, -1 for nowhere.
    """

    dim: int
    swapped: bool = False
    axis: int = -1

    def input(self, x: Tensor) -> Tensor:
        """The kernels' form of an input."""
        if self.swapped:
            return x.transpose(0, 1)
        return x if self.axis < 0 else x.unsqueeze(self.axis)

    def states(self, states: Sequence[Tensor]) -> Sequence[Tensor]:
        """The kernels' form of states."""
        return states if self.axis < 0 else [s.unsqueeze(self.axis) for s in states]

    def results(self, results: Sequence[Tensor]) -> Sequence[Tensor]:
        """Output, if there is one, and states, back from the kernels' form."""
        if self.axis >= 0:
            return [t.squeeze(self.axis) for t in results]
        return [results[0].transpose(0, 1), *results[1:]] if self.swapped else results


TIME_FIRST = Form(3)  # [T, B, I]
BATCH_FIRST = Form(3, swapped=True)  # [B, T, I]
ONE_SEQUENCE = Form(2, axis=1)  # [T, I], whatever batch_first says
PACKED = Form(2)  # [R, I]
STEP = Form(2)  # [B, I], of a cell
STEP_OF_ONE = Form(1, axis=0)  # [I]
