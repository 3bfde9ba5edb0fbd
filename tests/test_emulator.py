"""The emulator itself, on kernels that are wrong on purpose."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests import cuda_emulator


@pytest.fixture(scope="session")
def wrong_kernels(sources):
    return cuda_emulator.compiled(cuda_emulator.HERE / "wrong_kernels.cpp", ["-fsanitize=address"])


def run_wrong(program, kernel: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    environment["ASAN_OPTIONS"] = "detect_leaks=0"
    return subprocess.run([program, kernel], capture_output=True, text=True, timeout=60, env=environment)


@pytest.mark.parametrize(
    "kernel, said",
    [
        ("divergent_barrier", "divergent barrier"),
        ("barriers_in_different_places", "divergent barrier"),
        ("divergent_shuffle", "divergent barrier"),
        ("deadlock", "deadlock"),
        ("waits_for_a_later_block", "deadlock"),
        ("peer_that_has_ended", "has ended"),
        ("too_much_shared_memory", "bytes of shared memory"),
        ("too_many_blocks", "more blocks than can be alive"),
    ],
)
def test_the_emulator_refuses(wrong_kernels, kernel, said):
    result = run_wrong(wrong_kernels, kernel)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("cuda_emulator: ") and said in result.stdout


@pytest.mark.parametrize("place", ["shared_read", "shared_write", "global_read"])
def test_the_address_sanitizer_sees_accesses_past_the_end(wrong_kernels, place):
    result = run_wrong(wrong_kernels, f"{place}_past_the_end")
    assert result.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in result.stderr


@pytest.mark.parametrize("kernel", ["reads_what_nobody_wrote", "missing_barrier"])
def test_reads_before_writes_give_nan(wrong_kernels, kernel):
    assert "nan" in run_wrong(wrong_kernels, kernel).stdout


@pytest.mark.parametrize("kernel, result", [("right", "64"), ("a_cooperative_launch_may_wait", "0")])
def test_the_emulator_lets_right_kernels_pass(wrong_kernels, kernel, result):
    assert run_wrong(wrong_kernels, kernel).stdout.strip() == result
