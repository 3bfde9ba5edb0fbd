"""Global switches."""

from __future__ import annotations

import functools
import inspect
import operator
import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar, TypeVar, cast

from torch.compiler import is_compiling

from rnn_ext._load import _C

_PRODUCTS = ("auto", "fma", "amx")
_VARIABLE = "RNN_EXT_FLOAT32_PRODUCT"

_batch_invariant = False
_checkpoint_steps: int | None = None


F = TypeVar("F", bound=Callable[..., Any])

_changing = threading.Lock()
os.register_at_fork(before=_changing.acquire, after_in_parent=_changing.release, after_in_child=_changing.release)
_RUNS_LATER = (inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction)


class _Switch:
    """A setting: from its construction on, inside a `with` block, or in calls of a function that it decorates.

    An object serves for one of these, once. A generator or coroutine would run when its call is over: TypeError. Blocks
    of several threads may end in any order: of those that have not ended, the last one to begin rules in all threads.
    """

    _default: ClassVar[Any]
    _held: ClassVar[list[_Switch]]  # of one setting, the last one rules

    def __init__(self, value: Any) -> None:
        self._value, self._is_block = value, False
        self._hold()

    @staticmethod
    def _rule(value: Any) -> None:
        """Sets it."""
        raise NotImplementedError

    def _hold(self) -> None:
        with nullcontext() if is_compiling() else _changing:
            if len(self._held) > 1 and not (self._held[-1]._is_block or self._held[-2]._is_block):
                del self._held[-2]  # one "from now on" has ended the other
            self._held.append(self)
            self._rule(self._value)

    def _drop(self) -> None:
        with nullcontext() if is_compiling() else _changing:
            if self in self._held:
                self._held.remove(self)
            self._rule(self._held[-1]._value if self._held else self._default)

    def __enter__(self) -> None:
        self._is_block = True
        if self not in self._held:  # another thread has come between
            self._hold()

    def __exit__(self, *exception: object) -> None:
        self._drop()

    def __call__(self, function: F) -> F:
        self._drop()
        if any(kind(function) for kind in _RUNS_LATER):
            raise TypeError(f"{type(self).__name__}: expected a plain function, got {function!r}")

        @functools.wraps(function)
        def switched(*args, **kwargs):
            with type(self)(self._value):
                return function(*args, **kwargs)

        return cast(F, switched)


def is_batch_invariant() -> bool:
    """Whether `batch_invariant` is on."""
    return _batch_invariant


class batch_invariant(_Switch):
    """Makes the output, states and input gradients of a sequence bitwise independent of the rest of the batch.

    `with batch_invariant():` switches it on inside the block, `@batch_invariant()` in calls of the function below it,
    `batch_invariant(True)` from now on; each for all threads. It is read at forward; backward does as its forward did.

    It is off by default, where on the CPU the same already holds but for two choices that go by the size of the batch.
    Calls with few rows use the weights as they lie and so sum in another order: no more than four rows (sequences times
    steps), or for a cell and any call of one step a twelfth of the input size and of the hidden size (in bfloat16 and
    float16 a quarter of that; in float32 on AVX2 ten at most, in bfloat16 with AMD's AVX512_BF16 four). And where the
    machine has AMX, large batches multiply on its tiles. On CUDA the order of every sum may follow the batch.

    Switched on, it also keeps on the kernels what else goes to torch's operators: a cell inside a transform, and
    gradients that have a graph (`create_graph=True`).

    Args:
        enabled: on (the default) or off.
    """

    _default = False
    _held: ClassVar[list[_Switch]] = []

    def __init__(self, enabled: bool = True) -> None:
        super().__init__(bool(enabled))

    @staticmethod
    def _rule(value: bool) -> None:
        global _batch_invariant
        _batch_invariant = value


def checkpoint_steps() -> int | None:
    """What `checkpoint_time` has set: steps, or None while it is off."""
    return _checkpoint_steps


class checkpoint_time(_Switch):
    """Makes calls that ask for gradients keep only checkpoints along time, and compute the rest again in backward.

    `with checkpoint_time(256):` switches it on inside the block, `@checkpoint_time(256)` in calls of the function below
    it, `checkpoint_time(256)` from now on, each for all threads, `checkpoint_time(None)` off, as it is by default. It
    is read at forward; backward does as its forward did.

    Time is cut into segments of at most so many steps. Beyond its input, weights, states, dropout masks and output, a
    call then keeps the states at the borders of the segments and, of several layers in both directions, the outputs of
    the layers below the last; backward has what it needs for one segment at a time. A training step computes forward
    twice. 256 to 1024 steps are a good choice: with fewer the states at the borders and the cost of a call count, with
    more there is nothing to gain. A call that would gain nothing is an ordinary one: a sequence of one segment, a cell,
    an RNN of one layer or in both directions, which keeps nothing but outputs anyway.

    Output and states are bit for bit those of the ordinary call, with two exceptions. An LSTM in bfloat16 or
    float16 rounds its cell state to that at every border, which else is float32. And the kernels choose by the number
    of rows (see `batch_invariant`, under which they do not): that may change results with steps below 9, and on AMX
    tiles those of packed sequences. Gradients of weights are summed in another order; in bfloat16 and float16 the
    gradients of states are rounded at every border.

    The two directions of a layer run one after the other, not at the same time. The setting is ignored under
    torch.compile, which recomputes by its own choice, in `torch.func` transforms and in forward-mode differentiation;
    for a gradient of gradients (`create_graph=True`) backward takes the whole call at once. Results are right there,
    memory is not bounded.

    Args:
        steps: the most steps in a segment, at least 1; None for off.

    Raises:
        TypeError: if steps is not an integer or None.
        ValueError: if steps is below 1.
    """

    _default = None
    _held: ClassVar[list[_Switch]] = []

    def __init__(self, steps: int | None) -> None:
        if steps is not None:
            if isinstance(steps, bool) or not hasattr(steps, "__index__"):
                raise TypeError(f"checkpoint_time: expected a number of steps or None, got {steps!r}")
            steps = operator.index(steps)
            if steps < 1:
                raise ValueError(f"checkpoint_time: expected at least 1 step, got {steps}")
        super().__init__(steps)

    @staticmethod
    def _rule(value: int | None) -> None:
        global _checkpoint_steps
        _checkpoint_steps = value


def set_float32_product(product: str) -> None:
    """Chooses how matrix products are computed on the CPU, of float32, bfloat16 and float16, for the whole process.

    On AMX tiles a float32 number is taken apart into three bfloat16 numbers, whose six leading products are summed in
    float32: faster for batches, and closer to float64 than a chain of multiply-adds. Numbers below 2^-110 lose digits
    there and those below 2^-126 count as zero. A float16 number is exactly two of them, and three products are summed.
    Where the instruction set in use is avx512 and the processor is AMD's with AVX512_BF16, bfloat16 is multiplied by
    its vdpbf16ps, at twice the rate of multiply-adds; numbers below 2^-126 count as zero there too. The environment
    variable RNN_EXT_FLOAT32_PRODUCT sets it at import.

    Args:
        product: "auto" (the default) for vdpbf16ps in bfloat16, except in the few rows that `batch_invariant` tells of,
            and for tiles where they are faster, judged by shape alone and never under `batch_invariant`; "fma" for
            multiply-adds; "amx" for tiles at every shape.

    Raises:
        ValueError: if product is none of these.
        RuntimeError: for "amx" where there are no tiles, or RNN_EXT_ISA keeps them unused.
    """
    if product not in _PRODUCTS:
        raise ValueError(f"set_float32_product: expected one of {', '.join(_PRODUCTS)}, got {product!r}")
    if product == "amx" and _C.isa() != "amx":
        raise RuntimeError(f"set_float32_product: no AMX tiles, the instruction set in use is {_C.isa()}")
    _C.set_float32_product(product)


def float32_product() -> str:
    """What `set_float32_product` has set: "auto", "fma" or "amx"."""
    return _C.float32_product()


try:
    set_float32_product(os.environ.get(_VARIABLE) or "auto")
except (ValueError, RuntimeError) as error:
    raise ImportError(f"{_VARIABLE}: {error}") from error
