"""Which path a call takes: our kernels, or torch's own operator."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._C import _functorch

from rnn_ext._load import has_cuda

_KERNEL_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_warned = False


class SlowPathWarning(UserWarning):
    """A call went to torch's own, slower operator. Issued once per process; `rnn_ext.explain` tells for any call."""


def reason_for_torch(tensors: Sequence[Tensor]) -> str | None:
    """Why a call on these tensors (input first) goes to torch's own operator; None if it goes to our kernels."""
    first = tensors[0]
    dtype, on_cpu = first.dtype, first.is_cpu
    if not on_cpu:
        if not (first.is_cuda and has_cuda):
            return f"no kernel for device {first.device.type}"
        if any(t.device != first.device for t in tensors):
            return "tensors differ in dtype or device"
    if dtype not in _KERNEL_DTYPES:
        return f"no kernel for {dtype}"
    for t in tensors:
        if t.dtype is not dtype or t.is_cpu is not on_cpu:
            return "tensors differ in dtype or device"
    if torch.jit.is_tracing():
        return "traced by torch.jit"
    if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
        return "exported to ONNX"
    if not torch.compiler.is_compiling() and _is_functionalized():
        return "under torch.func.functionalize, which takes no custom Function"
    return None


def _is_functionalized() -> bool:
    if not torch._C._are_functorch_transforms_active():
        return False
    innermost = _functorch.peek_interpreter_stack()
    return innermost is not None and innermost.key() == _functorch.TransformType.Functionalize


def warn_slow(reason: str) -> None:
    """Issues SlowPathWarning, the first time in a process."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"rnn_ext: {reason}, so this call runs on torch's own operator (this is said once per process; "
            "rnn_ext.explain(module, input) tells for any call)",
            SlowPathWarning,
            stacklevel=7,  # the caller of the module
        )
