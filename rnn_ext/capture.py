"""What older ways of capturing a program need: torch.fx and torch.jit.script know torch's own layers by their class."""

from __future__ import annotations

import copy
import warnings
from typing import Any

from torch import nn
from torch.fx import Proxy

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


def as_leaf(module: nn.Module, input: Proxy, hx: Any) -> Proxy:
    """A call of the module as one node of the graph that torch.fx records."""
    tracer: Any = input.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input, hx), {})
