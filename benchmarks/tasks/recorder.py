"""Times recurrent layers alone, on what went through them in training."""

from __future__ import annotations

from functools import partial
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

RECORDED_CALLS = 32


class Recorder:
    """Keeps what went through a layer in its first training calls, to run it alone on the same again."""

    def __init__(self, layer: nn.Module):
        self.layer = layer
        self.calls: list[tuple[tuple, dict[int, Tensor]]] = []
        self.handle = layer.register_forward_hook(self._keep)

    def _keep(self, layer, args, outputs):
        if not torch.is_grad_enabled():
            return None
        grads: dict[int, Tensor] = {}

        def keep(grad, i):
            if grad is not None:  # an output that nothing was made of
                grads[i] = grad

        # Views, since one output may have been made of another, whose own gradient would count that way too.
        outputs = map_tensors(lambda output: output.view_as(output), outputs)
        for i, output in enumerate(tensors(outputs)):
            output.register_hook(partial(keep, i=i))
        self.calls.append((map_tensors(as_leaf, args), grads))
        if len(self.calls) == RECORDED_CALLS:
            self.handle.remove()
        return outputs

    def replay(self) -> float:
        """Mean seconds of a call, forward and backward."""
        self.handle.remove()
        seconds = 0.0
        for args, grads in self.calls:
            self.layer.zero_grad()
            start = perf_counter()
            outputs = tensors(self.layer(*args))
            torch.autograd.backward([outputs[i] for i in grads], list(grads.values()))
            seconds += perf_counter() - start
            for leaf in tensors(args):
                leaf.grad = None
        return seconds / len(self.calls)


def tensors(nested) -> list[Tensor]:
    """The floating point tensors in tuples and packed sequences, in order."""
    if isinstance(nested, PackedSequence):
        return [nested.data]
    if isinstance(nested, tuple):
        return [t for part in nested for t in tensors(part)]
    return [nested] if isinstance(nested, Tensor) else []


def map_tensors(f, nested):
    """The same tuples and packed sequences with f of each tensor; anything else stays."""
    if isinstance(nested, PackedSequence):
        return nested._replace(data=f(nested.data))
    if isinstance(nested, tuple):
        return tuple(map_tensors(f, part) for part in nested)
    return f(nested) if isinstance(nested, Tensor) else nested


def as_leaf(tensor: Tensor) -> Tensor:
    """The tensor cut from the graph that made it; it asks for a gradient as before."""
    return tensor.detach().requires_grad_(tensor.requires_grad)
