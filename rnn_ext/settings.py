"""Global switches."""

from __future__ import annotations

import os

from rnn_ext._load import _C

_PRODUCTS = ("auto", "fma", "amx")
_VARIABLE = "RNN_EXT_FLOAT32_PRODUCT"

_batch_invariant = False


def is_batch_invariant() -> bool:
    """Whether `batch_invariant` is on."""
    return _batch_invariant


class batch_invariant:
    """Makes the output, states and input gradients of a sequence bitwise independent of the rest of the batch.

    `with batch_invariant():` switches it on inside the block, `batch_invariant(True)` from now on, for all threads.
    It is off by default, where the same already holds except for calls with few rows, which use the weights as they lie
    and so sum in another order: no more than four rows (sequences times steps), or for a cell and any call of one step
    a twelfth of the input size and of the hidden size (in bfloat16 a quarter of that).

    Args:
        enabled: on (the default) or off.
    """

    def __init__(self, enabled: bool = True) -> None:
        global _batch_invariant
        self._before = _batch_invariant
        _batch_invariant = bool(enabled)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        global _batch_invariant
        _batch_invariant = self._before


def set_float32_product(product: str) -> None:
    """Chooses how the matrix products of float32 and bfloat16 calls are computed on the CPU, for the whole process.

    On AMX tiles a float32 number is taken apart into three bfloat16 numbers, whose six leading products are summed in
    float32: faster for batches, and closer to float64 than a chain of multiply-adds. Numbers below 2^-110 lose digits
    there and those below 2^-126 count as zero. Where the instruction set in use is avx512 and the processor has
    AVX512_BF16, bfloat16 is multiplied by its vdpbf16ps, at twice the rate of multiply-adds; numbers below 2^-126 count
    as zero there too. The environment variable RNN_EXT_FLOAT32_PRODUCT sets it at import.

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
    """What `set_float32_product` has set."""
    return _C.float32_product()


try:
    set_float32_product(os.environ.get(_VARIABLE) or "auto")
except (ValueError, RuntimeError) as error:
    raise ImportError(f"{_VARIABLE}: {error}") from error
