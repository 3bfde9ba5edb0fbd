"""The weight gradients of a cell that is called in a loop: one product over many steps, not one for each.

The gradient of a weight is a sum over the steps. With a product for each of them, a step writes whole matrices and
autograd adds them to the sum, which for a few sequences takes longer than all the rest of the step. So the steps that
use the same weights share a node of autograd's graph, through a token: an empty tensor that the node has made of the
weights, and that every step takes. In backward a step gives no gradients of its weights and leaves what they are made
of with the node. Autograd comes to a node when everybody who took its output is done: the node finds all the steps of
this pass, and gives the gradients of all of them. To the kernels these are one step of more sequences.

    forward     weights -> node -> token -> step 1, step 2, .., step T
    backward    step T, .., step 1 -> rows that wait, at most 64, and their products' sum -> node -> weights
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from rnn_ext import autocast, ops
from rnn_ext.ops import _C

ROWS = 64  # that wait at most: enough for a fast product, and less memory than a gradient of a weight
LARGE = 1 << 16  # numbers in a weight from which on the first step of a cell, which is seldom the only one, waits too


class _First:
    """The token of a step that may be the only one: its gradients do not wait, for a node would cost more."""

    __slots__ = ("__weakref__",)


# By cell and weights (their ids), the token of a graph that is being built. It lives as long as the graph, and so do
# the weights.
_tokens: dict[tuple[Any, ...], weakref.ref[Any]] = {}
_most_tokens = 1000  # dead ones among them: then those are dropped


def token(x: Tensor, weights: list[Tensor], stack: tuple[str, int, bool]) -> Any:
    """What a step takes; None if the gradients of its weights cannot wait, or should not.

    Args:
        x: [B, I] or [1, B, I]. With many sequences, what waits is as large as the gradients.
        weights: of a cell, or a layer without a projection, whose gradient would need the weight once more. Those that
            have to be computed differ from step to step (but what autocast makes of them does not), and of those that
            need no gradient nothing waits: then the step is left to itself.
        stack: what a Stack begins with.
    """
    mode, num_layers, bidirectional = stack
    shape = x.shape
    if 8 * shape[-2] > weights[1].shape[1] or 2 * shape[-2] > ROWS or len(weights) % 2 == 1:
        return None
    if num_layers > 1 or bidirectional or len(shape) == 3 and shape[0] > 1:
        return None
    for weight in weights:
        if not (weight.requires_grad and (weight.is_leaf or autocast.keeps(weight))):
            return None
    key = (mode, *map(id, weights))
    reference = _tokens.get(key)
    found: Any = None if reference is None else reference()
    if is_node(found) and _serves(found, weights[0]):
        return found
    if type(found) is _First or len(shape) == 2 and weights[1].numel() >= LARGE:
        found = _node(*weights)
        found.first_weight = weights[0].detach()
    else:
        found = _First()
    _register(key, found)
    return found


def _serves(token: Any, first_weight: Tensor) -> bool:
    """Whether a token with a node is of the graph that is being built: no backward has come to it yet, and the weights
    have the memory that they had. With other memory they may have got another place where autograd adds gradients up.
    """
    node = token.grad_fn
    try:
        _ = node.saved_tensors  # there are none, but asking raises where autograd has released the node
    except RuntimeError:
        return False
    return not node.begun and token.first_weight.data_ptr() == first_weight.data_ptr()


def _register(key: tuple[Any, ...], token: Any) -> None:
    """Keeps a token for the next step, and forgets those of graphs that are gone once there are many."""
    global _most_tokens
    if len(_tokens) >= _most_tokens:
        for k, reference in list(_tokens.items()):
            if reference() is None:
                _tokens.pop(k, None)
        _most_tokens = max(1000, 2 * len(_tokens))
    _tokens[key] = weakref.ref(token)


def is_node(token: Any) -> bool:
    """Whether a token has a node."""
    return isinstance(token, Tensor)


class _Pass:
    """The steps of one pass of backward, which own it until the pass ends, however it ends."""

    def __init__(self) -> None:
        self.steps = _C.loop_steps(ROWS)

    def __call__(self) -> None:
        """What autograd calls at the end."""


def steps_of_pass(token: Any) -> Any:
    """Where a step leaves its part in this pass of backward; None if it has to give the gradients itself."""
    if not is_node(token) or torch.is_grad_enabled():  # they may be differentiated
        return None
    node, task = token.grad_fn, torch._C._current_graph_task_id()
    found = node.passes.get(task)
    if found is None:
        if task < 0 or not torch._C._will_engine_execute_node(node):
            return None
        found = node.passes[task] = _Pass()
        node.begun = True
        torch.autograd.Variable._execution_engine.queue_callback(found)
    return found.steps


class _WeightGradients(torch.autograd.Function):
    """(*weights) -> a token; its gradient is that of all steps that took it."""

    @staticmethod
    def forward(ctx, *weights):
        ctx.set_materialize_grads(False)
        ctx.shapes = [w.shape for w in weights]
        ctx.dtype = weights[0].dtype
        ctx.passes = weakref.WeakValueDictionary()  # by the number that autograd gives a pass
        ctx.begun = False
        return weights[0].new_empty(0)

    @staticmethod
    def backward(ctx, _):
        if torch.compiler.is_compiling() and not ctx.passes:  # as in autograd.py
            return tuple(torch.zeros(shape, dtype=ctx.dtype) for shape in ctx.shapes)
        found = ctx.passes.pop(torch._C._current_graph_task_id(), None)
        gradients = [] if found is None else ops.gradients_of_loop(found.steps, ctx.dtype)
        return tuple(gradients) or (None,) * len(ctx.shapes)


_node = super(torch.autograd.Function, _WeightGradients).apply  # as in autograd.py
