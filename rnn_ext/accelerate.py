"""Turns the recurrent modules of torch inside a model into ours, and back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from rnn_ext.cells import GRUCell, LSTMCell, RNNCell
from rnn_ext.modules import GRU, LSTM, RNN

_OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.RNN: RNN,
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNNCell: RNNCell,
    nn.LSTMCell: LSTMCell,
    nn.GRUCell: GRUCell,
}
THEIRS = {ours: theirs for theirs, ours in _OURS.items()}


class Replaced(NamedTuple):
    """A module that changed: its name as in `model.named_modules()`, and its class before and after."""

    name: str
    old: type[nn.Module]
    new: type[nn.Module]


class Skipped(NamedTuple):
    """A module that could have changed and was left as it is: its name, its class, and why."""

    name: str
    cls: type[nn.Module]
    reason: str


@dataclass(frozen=True)
class Replacements:
    """What `accelerate` or `restore` did to a model, a module under every name that it has there.

    Attributes:
        replaced: the modules that changed their class.
        skipped: those that were left alone, with the reasons.
    """

    replaced: tuple[Replaced, ...]
    skipped: tuple[Skipped, ...]

    def __str__(self) -> str:
        lines = [f"{_shown(name)}: {_path(old)} -> {_path(new)}" for name, old, new in self.replaced]
        lines += [f"{_shown(name)}: {_path(cls)} left as it is, {reason}" for name, cls, reason in self.skipped]
        return "\n".join(lines) or "nothing to replace"


def accelerate(model: nn.Module) -> Replacements:
    """Makes every torch.nn.RNN, LSTM, GRU, RNNCell, LSTMCell and GRUCell inside a model one of rnn_ext, in place.

    Each module stays the object it is and changes its class, as torch's own parametrizations do. So nothing that holds
    it notices: parameters (an optimizer's too), buffers, training mode, hooks, parametrizations, modules in several
    places, and a model that is itself such a layer. `isinstance(module, torch.nn.LSTM)` turns False.

    Left alone, and told by a UserWarning: subclasses, since their behaviour may be their own (derive them from
    rnn_ext's class instead), and modules with an attribute that hides a method, such as a forward of their own.

    Args:
        model: any module; what its `named_modules` finds is replaced. Compile or shard it afterwards.

    Returns:
        What was replaced and what was left alone; printed, a line each.

    Raises:
        TypeError: if model is not a torch.nn.Module.
    """
    return _replace(model, _OURS, "accelerate")


def restore(model: nn.Module) -> Replacements:
    """Undoes `accelerate`: every layer and cell of rnn_ext inside a model becomes torch's again, in place.

    Those that were made as rnn_ext's own become torch's too. Everything else is as for `accelerate`.

    Args:
        model: any module.

    Returns:
        What was replaced and what was left alone; printed, a line each.

    Raises:
        TypeError: if model is not a torch.nn.Module.
    """
    return _replace(model, THEIRS, "restore")


def _replace(model: nn.Module, classes: Mapping[type[nn.Module], type[nn.Module]], what: str) -> Replacements:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{what}: expected a torch.nn.Module, got {type(model).__name__}")
    replaced, skipped = [], []
    # All names of a module, and a look at all modules before the first changes.
    for name, module in list(model.named_modules(remove_duplicate=False)):
        old = next((cls for cls in classes if isinstance(module, cls)), None)
        if old is None:
            continue
        reason = _reason_to_skip(module, old, classes[old])
        if reason is None:
            replaced.append((Replaced(name, old, classes[old]), module))
        else:
            skipped.append(Skipped(name, type(module), reason))
    for (_, old, new), module in replaced:
        _change_class(module, old, new)
    report = Replacements(tuple(change for change, _ in replaced), tuple(skipped))
    if skipped:
        left = "; ".join(f"{_shown(name)} ({_path(cls)}): {reason}" for name, cls, reason in skipped)
        warnings.warn(f"rnn_ext.{what} left alone {left}", stacklevel=3)
    return report


def _reason_to_skip(module: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> str | None:
    if type_before_parametrizations(module) is not old:
        return f"a subclass of {_path(old)}: derive it from {_path(new)}"
    brought = {name for cls in new.__mro__ if cls not in old.__mro__ for name in vars(cls)}
    hidden = sorted(brought & vars(module).keys())
    return f"it has {', '.join(hidden)} of its own" if hidden else None


def _change_class(module: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    if type(module) is old:
        module.__class__ = new
    elif is_parametrized(module) and type_before_parametrizations(module) is old:
        # The parametrized tensors are properties of a class that torch made for this module alone.
        own = {name: value for name, value in vars(type(module)).items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(f"Parametrized{new.__name__}", (new,), own)


def _path(cls: type) -> str:
    """The class as users write it."""
    return f"{'torch.nn' if cls in _OURS else 'rnn_ext' if cls in THEIRS else cls.__module__}.{cls.__qualname__}"


def _shown(name: str) -> str:
    return name or "(the model itself)"
