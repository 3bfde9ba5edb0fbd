"""The weight gradients of a cell that is called in a loop: one product over many steps, not one for each.

The gradient of a weight is a sum over the steps. With a product for each of them, a step writes whole matrices and
autograd adds them to the sum, which for a few sequences takes longer than all the rest of the step. So the steps that
use the same weights share a node of autograd's graph, through a token: an empty tensor that the node has made of the
weights, and that every step takes. In backward a step gives no gradients of its weights and leaves what they are made
of with the node. Autograd comes to a node when everybody who took its output is done: the node finds all the steps of
this pass, and gives the gradients of all of them. To the kernels these are one step of more sequences.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from rnn_ext import ops
from rnn_ext.ops import _C

ROWS = 64  # that wait at most: enough for a fast product, and less memory than a gradient of a weight


class _First:
    """The token of a step that may be the only one: its gradients do not wait, for a node would cost more."""

    __slots__ = ("__weakref__",)


# By the ids of the weights, which live as long as the graph that the token belongs to, and their dtype, with which
# autograd changes where their gradients go.
_tokens: dict[tuple[Any, ...], weakref.ref[Any]] = {}
_MANY = 1000  # tokens, of which most are dead


def token(x: Tensor, weights: list[Tensor], stack: tuple[str, int, bool]) -> Any:
    """What a step takes; None if the gradients of its weights cannot wait, or should not.

    Args:
        x: [B, I] or [1, B, I]. With many sequences, what waits is as large as the gradients.
        weights: of a cell, or a layer. Those that have to be computed differ from step to step, and of those that need
            no gradient nothing waits: then the step is left to itself.
        stack: what a Stack is made of.
    """
    _, num_layers, bidirectional = stack
    shape = x.shape
    if num_layers > 1 or bidirectional or len(shape) == 3 and shape[0] > 1:
        return None
    if 8 * shape[-2] > weights[1].shape[1] or 2 * shape[-2] > ROWS:
        return None
    for weight in weights:
        if not (weight.requires_grad and weight.is_leaf):
            return None
    key = (weights[0].dtype, *map(id, weights))
    reference = _tokens.get(key)
    found = None if reference is None else reference()
    if type(found) is Tensor:
        return found
    found = _First() if found is None else _node(*weights)
    if len(_tokens) > _MANY:
        for dead in [k for k, reference in list(_tokens.items()) if reference() is None]:
            _tokens.pop(dead, None)
    _tokens[key] = weakref.ref(found)
    return found


def is_node(token: Any) -> bool:
    """Whether a token has a node."""
    return isinstance(token, Tensor)


def steps_of_pass(token: Any) -> Any:
    """Where a step leaves its part in this pass of backward; None if it has to give the gradients itself."""
    if not is_node(token) or torch.is_grad_enabled():  # they may be differentiated
        return None
    node, task = token.grad_fn, torch._C._current_graph_task_id()
    found = node.passes.get(task)
    if found is None and task >= 0 and torch._C._will_engine_execute_node(node):
        found = node.passes[task] = _C.loop_steps(ROWS)
    return found


class _WeightGradients(torch.autograd.Function):
    """(*weights) -> a token; its gradient is that of all steps that took it."""

    @staticmethod
    def forward(ctx, *weights):
        ctx.set_materialize_grads(False)
        ctx.shapes = [w.shape for w in weights]
        ctx.dtype = weights[0].dtype
        ctx.passes = {}  # steps by the number that autograd gives a pass
        return weights[0].new_empty(0)

    @staticmethod
    def backward(ctx, _):
        if torch.compiler.is_compiling():  # which adds gradients up itself, and takes no None
            return tuple(torch.zeros(shape, dtype=ctx.dtype) for shape in ctx.shapes)
        steps = ctx.passes.pop(torch._C._current_graph_task_id(), None)
        found = [] if steps is None else ops.gradients_of_loop(steps, ctx.dtype)
        return tuple(found) or (None,) * len(ctx.shapes)


_node = super(torch.autograd.Function, _WeightGradients).apply  # as in autograd.py
