"""Builds the CUDA kernels for the emulator: ordinary C++, for the compiler that built the package."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
SANITIZED = os.environ.get("RNN_EXT_SANITIZE", "OFF") != "OFF"


def compiled(source: Path, flags: list[str]) -> Path:
    """The shared library or program made from `source`; compiled again only when a source or flag has changed."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or "g++"
    sources = sorted([*(ROOT / "csrc").rglob("*.*"), *HERE.glob("*.h"), *HERE.glob("*.cpp")])
    digest = hashlib.sha256(" ".join([compiler, *flags]).encode())
    for path in sources:
        digest.update(path.read_bytes())
    target = ROOT / "build" / "cuda_emulator" / f"{source.stem}-{digest.hexdigest()[:16]}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(f".{os.getpid()}")
        command = [compiler, "-std=c++20", "-O1", "-g1", "-ffp-contract=off", f"-I{ROOT / 'csrc'}", f"-I{HERE}"]
        result = subprocess.run([*command, str(source), "-o", str(unfinished), *flags], capture_output=True, text=True)
        assert result.returncode == 0, f"{source.name} does not compile:\n{result.stderr}"
        unfinished.rename(target)
    return target


def library() -> ctypes.CDLL:
    """Loads the operators `torch.ops.rnn_ext_emulated`; returns the library, for the emulator's settings."""
    import torch

    spec = importlib.util.find_spec("torch")
    assert spec and spec.origin
    folder = Path(spec.origin).parent
    flags = ["-shared", "-fPIC", "-fvisibility=hidden", "-DRNN_EXT_CUDA_EMULATOR"]
    flags += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(folder / "include")]
    flags += [f"-L{folder / 'lib'}", "-ltorch_cpu"]
    if SANITIZED:
        flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    path = str(compiled(HERE / "library.cpp", flags))
    torch.ops.load_library(path)
    return ctypes.CDLL(path)
