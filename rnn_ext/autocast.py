"""Autocast: what it does to a function on its list of lower precision, here the same for every layer and cell.

torch casts a weight once and keeps it until the outermost autocast block ends, for its own operators alone. Ours do the
same here: else a cell in a loop would cast, and keep for backward, every weight at every step. The end of the block is
seen by a mark that lives as long as something in torch's own cache.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling


class _Cast(NamedTuple):
    weight: weakref.ref[Tensor]
    version: int  # of the weight: torch would not see that it has been changed meanwhile
    result: Tensor


class _Mark:
    __slots__ = ("__weakref__",)


_casts: dict[tuple[Any, ...], _Cast] = {}  # of the block that lasts
_results: dict[int, Tensor] = {}  # what they are, by id
_mark: weakref.ref[_Mark] | None = None


def is_enabled() -> bool:
    """Whether a call just now may be under autocast."""
    return torch._C._is_any_autocast_enabled()


def keeps(weight: Tensor) -> bool:
    """Whether this is what a weight has been cast to for all of a block."""
    return _results.get(id(weight)) is weight


def cast_call(
    input: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...], list[Tensor]]:
    """Input, states and weights of a call as autocast would have them."""
    device = input.device.type
    if not torch.is_autocast_enabled(device):
        return input, tuple(states), list(weights)
    dtype = torch.get_autocast_dtype(device)
    return _cast(input, dtype), tuple(_cast(s, dtype) for s in states), [_cast_weight(w, dtype) for w in weights]


def cast_plain(
    x: Any, hx: Any, parameters: Mapping[str, Any], names: Sequence[str]
) -> tuple[Tensor, Any, dict[str, Any]] | None:
    """The same of a call that may be plain, hx as the module takes it; None if it is not."""
    states = () if hx is None else hx if type(hx) is tuple else (hx,)
    found = {name: parameters.get(name) for name in names}
    weights = [w for w in found.values() if w is not None]
    if any(type(t) not in (Tensor, torch.nn.Parameter) for t in (x, *states, *weights)):
        return None
    x, cast_states, weights = cast_call(x, states, weights)
    of_names = iter(weights)
    found = {name: None if w is None else next(of_names) for name, w in found.items()}
    return x, hx if hx is None else cast_states if type(hx) is tuple else cast_states[0], found


def _cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t


def _cast_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """As `_cast`, but of a weight that torch would keep: once in a block."""
    if not _is_kept(weight) or weight.dtype == dtype:
        return _cast(weight, dtype)
    key = id(weight), dtype, torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    found = _casts.get(key)
    if found is not None and found.weight() is weight and found.version == weight._version:
        return found.result
    if found is not None:
        _results.pop(id(found.result), None)
    result = weight.to(dtype)
    if _mark_block(weight.device):
        _casts[key] = _Cast(weakref.ref(weight), weight._version, result)
        _results[id(result)] = result
    return result


def _is_kept(weight: Tensor) -> bool:
    """Whether torch's operators would keep a weight that they have cast."""
    return (
        not is_compiling()
        and torch.is_autocast_cache_enabled()
        and type(weight) in (Tensor, torch.nn.Parameter)
        and weight.dtype == torch.float32
        and weight.requires_grad
        and weight.is_leaf
        and not weight.is_inference()  # which tells of no changes
        and not torch._C._is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
    )


def _mark_block(device: torch.device) -> bool:
    """Makes sure that the end of the block will be seen; False if it cannot be."""
    global _mark
    if _mark is None or _mark() is None:
        mark = _Mark()
        _mark = weakref.ref(mark, _forget)
        with torch.inference_mode(False), torch.enable_grad():
            left, right = (torch.zeros(1, n, device=device, requires_grad=True) for n in (1, 0))
            node: Any = torch.mm(left, right).grad_fn
        node.next_functions[0][0].metadata["rnn_ext"] = mark  # of what torch has made of `left`, and keeps
        del node, mark
    return _mark() is not None


def _forget(mark: weakref.ref[_Mark]) -> None:
    """What happens when torch empties its cache."""
    if mark is _mark:
        _casts.clear()
        _results.clear()
