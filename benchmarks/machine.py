"""Where and with what a result was measured: without these facts a time means nothing."""

from __future__ import annotations

import ctypes
import os
import platform
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import psutil
import torch

import rnn_ext

# Variables that change how many threads run, where, and with which instructions.
SETTINGS = ("OMP_", "GOMP_", "KMP_", "MKL_", "ONEDNN_", "DNNL_", "ATEN_", "RNN_EXT_")


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_details() -> dict[str, str]:
    """Family, model number, stepping and cache: they tell processors apart where a name is hidden."""
    wanted = {"cpu family": "family", "model": "model", "stepping": "stepping", "cache size": "cache"}
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return {}
    first = cpuinfo.read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {wanted[key.strip()]: value.strip() for key, _, value in pairs if key.strip() in wanted}


def affinity() -> list[int]:
    """The logical CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def sibling_groups() -> list[str]:
    """Which of those CPUs share a core, as Linux lists them ("0-1" or "0,4"); empty where unknown."""
    files = (Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in affinity())
    return sorted({file.read_text().strip() for file in files if file.exists()})


def version_of(package: str) -> str | None:
    """A package's installed version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def all_threads() -> int:
    """Threads that torch takes when nobody says otherwise; call before changing them."""
    return torch.get_num_threads()


def facts() -> dict[str, object]:
    """Machine, versions, date and settings, ready for JSON."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cpu_details": cpu_details(),
        "architecture": platform.machine(),
        "system": platform.platform(),
        "affinity": affinity(),
        "core_siblings": sibling_groups(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(SETTINGS)},
        "isa": rnn_ext._C.isa(),
        "available_isas": rnn_ext._C.available_isas(),
        "build": {key: str(value) for key, value in rnn_ext._C.build_info().items()},
        "versions": {
            "python": platform.python_version(),
            "rnn_ext": rnn_ext.__version__,
            "torch": str(torch.__version__),  # with the build, which the package's own facts may leave out
            **{name: version_of(name) for name in ("numpy", "onnxruntime")},
        },
    }


def cpu_seconds() -> tuple[float, float]:
    """CPU time spent so far by this process, and by the whole machine, what its host stole included."""
    machine, own = psutil.cpu_times(), os.times()
    return own.user + own.system, sum(machine) - machine.idle - getattr(machine, "iowait", 0.0)


class Neighbours:
    """Context manager that measures what other processes take of the machine meanwhile.

    Attributes:
        share: their part of all CPU time, 0..1.
    """

    share: float

    def __init__(self, cpu_seconds=cpu_seconds, clock=time.perf_counter, cpus=None) -> None:
        self._cpu_seconds, self._clock, self._cpus = cpu_seconds, clock, cpus or os.cpu_count() or 1

    def __enter__(self) -> Neighbours:
        self._start, self._before = self._clock(), self._cpu_seconds()
        return self

    def __exit__(self, *exception: object) -> None:
        own, everyone = (
            after - before for after, before in zip(self._cpu_seconds(), self._before, strict=True)
        )
        available = (self._clock() - self._start) * self._cpus
        self.share = min(1.0, max(0.0, (everyone - own) / available))


def fma_peak(threads: int, seconds: float = 0.1) -> float:
    """The machine's float32 multiply-add peak on `threads` threads, GFLOP/s, by rnn_ext's own loop."""
    return rnn_ext._C.fma_peak(seconds, threads)


def barrier_ns(threads: int, seconds: float = 0.003) -> float:
    """Nanoseconds that the kernels' barrier takes among `threads` threads just now.

    Where a virtual machine's cores are moved about, they share a cache at times and at others do not: a barrier, and
    every line of memory that one core writes and another reads, then takes several times as long.
    """
    return rnn_ext._C.barrier_seconds(seconds, threads) * 1e9


class Steady:
    """Tells whether as many threads have the multiply-add rate that they can have.

    On shared machines what two cores do together may fall to that of one, for seconds on end; whoever forks
    and joins most often then loses most.
    """

    LEAST = 0.95  # of the best rate seen so far

    def __init__(self, threads: int, rate=fma_peak, sleep=time.sleep) -> None:
        self._threads, self._rate, self._sleep = threads, rate, sleep
        self._best = max(rate(threads, 0.005) for _ in range(8))

    def __call__(self) -> bool:
        """Reads the rate for some milliseconds, and waits a little where it is too low."""
        rate = self._rate(self._threads, 0.003)
        self._best = max(self._best, rate)
        steady = rate >= self.LEAST * self._best
        if not steady:
            self._sleep(0.05)
        return steady


def amx_probe(threads: int, seconds: float = 0.002) -> Callable[[], float] | None:
    """What reads the present rate of float32 products on AMX tiles, GFLOP/s on `threads` threads; None without AMX.

    On shared machines the rate jumps between two levels while the multiply-add rate beside it stands still.
    """
    if rnn_ext._C.amx_rate(seconds, threads) == 0:
        return None
    return lambda: rnn_ext._C.amx_rate(seconds, threads)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt in glibc's malloc.h


def keep_memory(gibibytes: float = 1.0) -> bool:
    """Have malloc keep all memory of this process from now on, and touch that much of it; whether it obeys.

    glibc gives large blocks back to the system when they are freed, and before version 2.38 its aligned
    allocation, which PyTorch uses, often cannot take a freed block of the same size again (its bug 14581). So
    a call with tensors of many megabytes faults them in again, page by page, or does not, as the heap happens
    to lie. On a virtual machine whose host takes free pages back, 2 to 20 microseconds a fault were measured.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    kept = libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1) and libc.mallopt(M_MMAP_MAX, 0)
    torch.ones(int(gibibytes * 2**28))  # written to once and freed: from now on it is there without a fault
    return bool(kept)
