"""What older ways of capturing a program need: torch.fx and torch.jit.script know torch's own layers by their class."""

from __future__ import annotations

import copy
import warnings
from typing import Any

from torch import nn
from torch.fx import Proxy
from torch.fx.proxy import TraceError

from rnn_ext.route import SlowPathWarning


class Captured(nn.Module):
    """A layer or cell that both capture as they do torch's."""

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script puts in the place of this module: torch's own of the same parameters.

        A subclass stays itself, since its behaviour may be its own.
        """
        from rnn_ext.accelerate import THEIRS

        theirs = THEIRS.get(type(self))
        if theirs is None:
            return self
        twin = copy.copy(self)
        twin.__class__ = theirs  # type: ignore[assignment]
        warnings.warn(
            f"rnn_ext: torch.jit.script takes torch.nn.{theirs.__name__}, in the model that is scripted too; "
            "rnn_ext.accelerate brings this one's back",
            SlowPathWarning,
            stacklevel=2,
        )
        return twin


def proxy_in(input: Any, hx: Any) -> Proxy | None:
    """What torch.fx records a call of a layer or cell by, or None if it records none."""
    for argument in (input, *(hx if isinstance(hx, (tuple, list)) else (hx,))):
        if isinstance(argument, Proxy):
            return argument
    return None


def as_leaf(module: nn.Module, proxy: Proxy, input: Any, hx: Any) -> Proxy:
    """A call of the module as one node of the graph that torch.fx records.

    proxy: any of the arguments that is one.

    torch.fx has gone into the module: it has recorded the module's hooks, and what a subclass does around our forward.
    Then the node is of our forward alone.

    Raises:
        TraceError: if the module is not inside of the model that is traced, but that model itself.
    """
    from rnn_ext.accelerate import THEIRS

    tracer: Any = proxy.tracer
    path = tracer.path_of_module(module)
    if not path:
        raise TraceError(f"rnn_ext: a {type(module).__name__} by itself has no graph; trace a model that contains it")
    if type(module) in THEIRS and not module._forward_hooks and not module._forward_pre_hooks:
        return tracer.create_proxy("call_module", path, (input, hx), {})
    itself = tracer.create_proxy("get_attr", path, (), {})
    return tracer.create_proxy("call_method", "_ext_forward", (itself, input, hx), {})
