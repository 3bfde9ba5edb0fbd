"""Gradients of a call that can be differentiated in their turn, in eager mode: those of torch's own operators.

The call is computed once more on these, and that is differentiated. Under a transform, or where `batch_invariant`
promises bits, transforms.py has the way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.backends import cudnn, mkldnn

from rnn_ext import torch_path
from rnn_ext.ops import Stack


def gradients(d_outputs, x, h_0, c_0, weights, batch_sizes, masks, stack: Stack, needs) -> list[Tensor]:
    """What `transforms.gradients` gives; arguments as there."""
    with torch.enable_grad():
        # Views, for what one of them is made of another does not count here.
        primals: list[Any] = [None if t is None else t.view_as(t) for t in (x, h_0, c_0, *weights)]
        # The fused operators of neither have a second derivative.
        with mkldnn.flags(enabled=False, allow_tf32=None, fp32_precision=None), cudnn.flags(enabled=False):
            outputs = _on_torch(primals[0], primals[1:3], primals[3:], batch_sizes, masks, stack)
    wanted = [t for t, need in zip(primals, (*needs[:3], *[needs[3]] * len(weights)), strict=True) if need]
    given = [(o, d) for o, d in zip(outputs, d_outputs, strict=False) if d is not None]
    roots, d_roots = zip(*given, strict=True)
    return list(torch.autograd.grad(roots, wanted, d_roots, create_graph=True, materialize_grads=True))


def _on_torch(x, states, weights, batch_sizes, masks, stack: Stack):
    """y, h_n and an LSTM's c_n; of one step no y."""
    alone = batch_sizes is None and x.dim() == 2
    batch = x.shape[-2] if batch_sizes is None else int(batch_sizes[0])
    rows = () if alone else (stack.num_layers * stack.directions,)
    states = [
        x.new_zeros(*rows, batch, size) if s is None else s
        for s, size in zip(states, stack.state_sizes(weights), strict=False)
    ]
    if alone:
        return None, *torch_path.step(stack.mode, x, states, weights)
    per_layer, finals = stack.directions * stack.of_each(weights), []
    for i in range(stack.num_layers):
        here = slice(i * stack.directions, (i + 1) * stack.directions)
        hx = [s[here] for s in states]
        own = weights[i * per_layer : (i + 1) * per_layer]
        options = own, stack.of_each(weights) > 3, 1, 0.0, False, stack.directions == 2
        x, *final = torch_path.layer(stack.mode, x, hx if len(hx) > 1 else hx[0], batch_sizes, *options)
        finals.append(final)
        x = x * masks[i] if i < len(masks) else x
    return x, *(torch.cat(parts) for parts in zip(*finals, strict=True))
