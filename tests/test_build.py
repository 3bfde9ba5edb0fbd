"""The binary and its packaging: what it links to, what it shows, and what a failed import says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import rnn_ext
from rnn_ext import _C
from tests.subject import run_python

PACKAGE = Path(rnn_ext.__file__).parent
LIBRARY = Path(_C.__file__)
OBJECTS = Path(__file__).parents[1] / "build" / f"cmake-{sys.implementation.cache_tag}" / "CMakeFiles"
ISAS = ["baseline", "avx2", "avx512", "amx"]


def binutil(name: str, *arguments: str | Path) -> str:
    """Output of nm, c++filt or readelf; they come with the compiler that the build needed."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} (binutils) is not installed")
    return subprocess.run([name, *arguments], check=True, capture_output=True, text=True).stdout


def import_error(code: str, folder: Path = PACKAGE.parent, **environment: str) -> str:
    """The text of the ImportError that the code ends with, in a new Python that finds rnn_ext in `folder`."""
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode != 0, "nothing was raised"
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: "), run.stderr
    return last


@pytest.fixture
def package_without_library(tmp_path: Path) -> Path:
    """A folder with a package rnn_ext that has the loader and nothing else."""
    package = tmp_path / "rnn_ext"
    package.mkdir()
    shutil.copy(PACKAGE / "_load.py", package)
    (package / "__init__.py").write_text("from rnn_ext._load import _C\n")
    return tmp_path


# The binary


def test_no_undefined_symbol_of_the_library_belongs_to_libtorchs_unstable_interface():
    undefined = binutil("nm", "-D", "-C", "--undefined-only", LIBRARY).splitlines()
    assert any("aoti_torch" in line for line in undefined), "not even the stable interface was seen"
    assert [line for line in undefined if re.search(r"\b(at|c10)::", line)] == []


def test_the_library_has_no_path_to_the_machine_it_was_built_on():
    dynamic = binutil("readelf", "-d", LIBRARY)
    assert "libtorch_cpu.so" in dynamic
    assert not re.search(r"\((RPATH|RUNPATH)\)", dynamic)


def test_the_library_exports_nothing_but_its_entry_point_and_weak_standard_symbols():
    exported = binutil("nm", "-D", "--defined-only", LIBRARY).splitlines()
    strong = {line.split()[2].split("@")[0] for line in exported if line.split()[1] in "TDB"}
    by_the_linker = {"_end", "_edata", "__bss_start"}
    assert strong - by_the_linker == {"PyInit__C"}


@pytest.mark.parametrize("isa", ISAS)
def test_the_kernels_of_an_instruction_set_define_symbols_in_their_own_namespace_only(isa: str):
    if not OBJECTS.is_dir():
        pytest.skip("an installed library: its object files are not here")
    objects = sorted(path for part in OBJECTS.glob(f"kernels_{isa}*.dir") for path in part.rglob("*.o"))
    if not objects and isa not in _C.build_info()["isa_flags"]:
        pytest.skip(f"{isa} is not built for this architecture")
    assert objects
    for path in objects:
        # Each line: address, type, name. A lower-case type is local to the file, but for u, v and w: those
        # and V and W are inline functions and data, of which the linker keeps one copy for all files.
        lines = binutil("nm", "-C", "--defined-only", path).splitlines()
        shared = [name for _, kind, name in (line.split(maxsplit=2) for line in lines) if kind in "TDBRVWuvw"]
        assert shared
        data = {"DW.ref.__gxx_personality_v0"}  # a pointer, no instruction of this set
        assert [name for name in shared if f"rnn_ext::isa_{isa}::" not in name and name not in data] == []


@pytest.mark.sanitize
def test_the_library_carries_the_sanitizers_that_were_asked_for():
    asked = os.environ.get("RNN_EXT_SANITIZE", "OFF") != "OFF"
    which = os.environ.get("RNN_EXT_SANITIZERS", "address,undefined")
    assert _C.build_info()["sanitizers"] == (which if asked else "")


@pytest.mark.sanitize
def test_instructions_are_emulated_only_where_that_was_asked_for():
    asked = os.environ.get("RNN_EXT_EMULATE", "OFF")
    assert _C.build_info()["emulated"] == ("" if asked == "OFF" else asked)


# The package


def test_the_version_of_the_library_is_that_of_the_installed_package():
    assert _C.build_info()["version"] == metadata.version("rnn_ext")


def test_type_hints_are_shipped():
    assert (PACKAGE / "py.typed").is_file()


# Instruction sets


@pytest.mark.parametrize("isa", ISAS)
def test_RNN_EXT_ISA_caps_the_instruction_set(isa: str):
    best = [known for known in ISAS[: ISAS.index(isa) + 1] if known in _C.available_isas()][-1]
    assert run_python("import rnn_ext; print(rnn_ext._C.isa())", RNN_EXT_ISA=isa) == best


def test_without_a_cap_the_best_instruction_set_is_used():
    assert run_python("import rnn_ext; print(rnn_ext._C.isa())", RNN_EXT_ISA="") == _C.available_isas()[-1]


def test_an_unknown_RNN_EXT_ISA_is_an_import_error_that_names_the_known_ones():
    text = import_error("import rnn_ext", RNN_EXT_ISA="sse9")
    assert "RNN_EXT_ISA=sse9" in text
    assert "baseline, avx2, avx512" in text


def test_the_multiply_add_peak_is_a_positive_rate():
    assert _C.fma_peak(seconds=0.01, threads=2) > 0


@pytest.mark.parametrize("size", [0, 100, 1 << 20])
def test_the_rate_of_reading_is_positive_whatever_the_size(size):
    assert _C.read_rate(seconds=0.01, threads=2, bytes=size) > 0


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_barrier_takes_a_positive_time_whatever_the_number_of_threads(threads: int):
    assert 0 < _C.barrier_seconds(seconds=0.01, threads=threads) < 1


@pytest.mark.parametrize("seconds, threads", [(0.0, 1), (float("nan"), 1), (0.01, 0)])
def test_the_rates_refuse_arguments_that_measure_nothing(seconds: float, threads: int):
    with pytest.raises(ValueError, match="expected seconds > 0 and threads >= 1"):
        _C.fma_peak(seconds, threads)
    with pytest.raises(ValueError, match="expected seconds > 0 and threads >= 1"):
        _C.read_rate(seconds, threads, 1000)
    with pytest.raises(ValueError, match="expected seconds > 0 and threads >= 1"):
        _C.barrier_seconds(seconds, threads)


# What a failed import says


def test_without_torch_the_import_error_says_which_torch_to_install():
    text = import_error("import sys; sys.modules['torch'] = None; import rnn_ext")
    assert "needs torch >= 2.10" in text
    assert "pip install torch" in text


def test_an_old_torch_is_named_in_the_import_error():
    fake = "import sys, types; sys.modules['torch'] = types.SimpleNamespace(__version__='2.9.1+cpu')"
    text = import_error(f"{fake}; import rnn_ext")
    assert "needs torch >= 2.10, and found 2.9.1+cpu" in text


def test_a_package_without_its_library_says_how_to_build_it(package_without_library: Path):
    text = import_error("import rnn_ext", package_without_library)
    assert f"not in {package_without_library / 'rnn_ext'}" in text
    assert "pip install --no-build-isolation -e ." in text


def test_a_library_for_another_python_is_named(package_without_library: Path):
    (package_without_library / "rnn_ext" / "_C.cpython-27.so").touch()
    text = import_error("import rnn_ext", package_without_library)
    assert "_C.cpython-27.so" in text


def test_a_library_that_does_not_load_says_with_which_torch_and_why(package_without_library: Path):
    (package_without_library / "rnn_ext" / LIBRARY.name).write_bytes(b"no library")
    text = import_error("import rnn_ext", package_without_library)
    assert f"does not load with torch {metadata.version('torch')}" in text
    assert "build it from source" in text
