"""Compiles the CUDA library without a GPU and looks at what came out: python -m tests.cuda_gate [--architectures 90a]

Fails if a kernel with a product needs more registers or spills more of them than the bounds below, or if the library
needs a symbol that is neither of torch's stable ABI nor of the C and C++ libraries (the CUDA runtime is linked in).
Torch may be CPU only.
Where there is no nvcc it says so and checks nothing; with --required that is an error.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "cuda-gate"
# Bytes a thread that a kernel with a product may spill to local memory: each would be a memory access per step.
SPILL_BOUND = 0
# Registers a thread: with more, a block of 256 threads would not start.
REGISTER_BOUND = 255
STABLE = re.compile(r"(aoti_torch|torch)_[a-z0-9_]+$")
C_LIBRARIES = re.compile(r".*@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+$|(_ITM_\w+|__gmon_start__|__cxa_finalize)$")


class Kernel(NamedTuple):
    """What ptxas says of one kernel for one architecture."""

    name: str
    architecture: str
    registers: int
    stack: int  # bytes, as are spills
    spills: int


def kernels_of(log: str) -> list[Kernel]:
    """The kernels in the output of ptxas -v."""
    found = re.findall(
        r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        log,
        re.DOTALL,
    )
    return [Kernel(name, arch, int(reg), int(stack), int(s) + int(l)) for name, arch, stack, s, l, reg in found]


def foreign_symbols(names: list[str]) -> list[str]:
    """Undefined symbols (as nm -D prints them) that are neither stable ABI nor of the C and C++ libraries."""
    return [name for name in names if not (STABLE.match(name) or C_LIBRARIES.match(name))]


def undefined_symbols(library: Path) -> list[str]:
    out = subprocess.run(["nm", "-D", "--undefined-only", library], check=True, capture_output=True, text=True).stdout
    return [line.split()[-1] for line in out.splitlines() if line.strip()]


def missing(library: Path, torch_cpu: Path) -> list[str]:
    """Symbols of torch that the library needs and a CPU torch does not have, but for the one that only CUDA brings."""
    out = subprocess.run(["nm", "-D", "--defined-only", torch_cpu], check=True, capture_output=True, text=True).stdout
    there = {line.split()[-1].split("@")[0] for line in out.splitlines()}
    needed = [name for name in undefined_symbols(library) if STABLE.match(name)]
    return [name for name in needed if name not in there and name != "aoti_torch_get_current_cuda_stream"]


def build(nvcc: str, architectures: str) -> str:
    """Compiles the library afresh; returns what the compilers printed."""
    shutil.rmtree(BUILD, ignore_errors=True)
    torch, pybind11 = (Path(importlib.util.find_spec(name).origin).parent for name in ("torch", "pybind11"))
    options = {
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11 / "share" / "cmake" / "pybind11",
        "RNN_EXT_TORCH": torch,
        "RNN_EXT_TORCH_VERSION": importlib.metadata.version("torch"),
        "RNN_EXT_VERSION": "gate",
        "RNN_EXT_CUDA": "ON",
        "RNN_EXT_CUDA_ARCHITECTURES": architectures,
        "CMAKE_CUDA_COMPILER": nvcc,
        "CMAKE_MAKE_PROGRAM": shutil.which("ninja", path=sysconfig.get_path("scripts")) or "ninja",
    }
    defines = [f"-D{name}={value}" for name, value in options.items()]
    output = ""
    cmake = shutil.which("cmake", path=sysconfig.get_path("scripts")) or "cmake"
    configure = ["-S", ROOT, "-B", BUILD, "-G", "Ninja", *defines]
    for arguments in (configure, ["--build", BUILD, "-t", "_cuda"]):
        run = subprocess.run([cmake, *arguments], capture_output=True, text=True)
        output += run.stdout + run.stderr
        if run.returncode != 0:
            raise SystemExit(f"cuda-check: the CUDA library does not compile\n{output[-8000:]}")
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architectures", default="90a", help="compute capabilities, such as 80;90a")
    parser.add_argument("--required", action="store_true", help="fail where there is no nvcc")
    arguments = parser.parse_args()
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        print("cuda-check: NOT CHECKED, there is no nvcc on the PATH or in /usr/local/cuda/bin")
        raise SystemExit(1 if arguments.required else 0)

    kernels = kernels_of(build(nvcc, arguments.architectures))
    products = [k for k in kernels if re.search("forward_steps|backward_steps|multiply_rows", k.name)]
    # 4 cells, forward and backward, 4 dtypes, and all but float64 with weights in registers too; a product by itself.
    wanted = (4 * 2 * (4 + 3) + 4) * len(arguments.architectures.split(";"))
    problems = [f"{k.name} ({k.architecture}) spills {k.spills} bytes" for k in products if k.spills > SPILL_BOUND]
    problems += [f"{k.name} takes {k.registers} registers" for k in products if k.registers > REGISTER_BOUND]
    if len(products) != wanted:
        problems.append(f"{len(products)} kernels with a product seen, {wanted} expected")
    torch_cpu = Path(importlib.util.find_spec("torch").origin).parent / "lib" / "libtorch_cpu.so"
    problems += [f"{name} is not in this torch" for name in missing(BUILD / "_cuda.so", torch_cpu)]
    problems += [f"undefined symbol {name}" for name in foreign_symbols(undefined_symbols(BUILD / "_cuda.so"))]
    if problems:
        raise SystemExit("cuda-check: " + "\n  ".join(problems))
    print(
        f"cuda-check: {len(products)} kernels with a product for {arguments.architectures}, at most "
        f"{max(k.registers for k in products)} registers (bound {REGISTER_BOUND}), "
        f"{max(k.stack for k in products)} bytes of stack, "
        f"{max(k.spills for k in products)} bytes spilled (bound {SPILL_BOUND}); all undefined symbols are stable"
    )


if __name__ == "__main__":
    main()
