"""The checks of the compile gate see what they are there for."""

from __future__ import annotations

import pytest

from tests.cuda_gate import SPILL_BOUND, Kernel, foreign_symbols, kernels_of

PTXAS = """ptxas info    : Compiling entry function '_Z13forward_stepsv' for 'sm_90a'
ptxas info    : Function properties for _Z13forward_stepsv
    64 bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 64 bytes cumulative stack size
"""


def test_registers_stack_and_spills_are_read():
    log = PTXAS.format(stores=0, loads=0) + "noise\n" + PTXAS.format(stores=8, loads=12)
    tight, spilling = kernels_of(log)
    assert tight == Kernel("_Z13forward_stepsv", "sm_90a", registers=168, stack=64, spills=0)
    assert spilling.spills == 20 > SPILL_BOUND


@pytest.mark.parametrize(
    "name", ["_ZN2at6TensorD1Ev", "_ZN3c106detail9torchFailE", "cudaLaunchKernel", "cublasCreate_v2"]
)
def test_a_symbol_outside_the_stable_interface_is_foreign(name):
    assert foreign_symbols([name]) == [name]


@pytest.mark.parametrize(
    "name", ["aoti_torch_get_current_cuda_stream", "torch_call_dispatcher", "memcpy@GLIBC_2.14", "_ZdlPv@GLIBCXX_3.4"]
)
def test_stable_symbols_and_the_c_libraries_are_not(name):
    assert foreign_symbols([name]) == []
