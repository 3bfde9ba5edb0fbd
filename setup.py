"""Builds `rnn_ext._C`, and the CUDA library where there is nvcc, by driving CMake and Ninja.

Everything else about the package stands in pyproject.toml. torch is looked up, never
imported, and only when the extension is really built: metadata needs none of it.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def program(name: str) -> str:
    """Path of a build tool: the one installed beside this Python, or else the system's."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise SystemExit(f"building rnn_ext needs {name}, and none was found: pip install {name}")
    return found


def folder(package: str) -> Path:
    """Folder of an installed package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(
            f"building rnn_ext needs {package}, and {sys.executable} does not have it: "
            "install it there, or leave out --no-build-isolation"
        )
    return Path(spec.origin).parent


def cuda_compiler() -> str | None:
    """nvcc, if the CUDA library is to be built: RNN_EXT_CUDA=auto (nvcc is there and torch has CUDA), on or off."""
    wish = os.environ.get("RNN_EXT_CUDA", "auto")
    if wish not in ("auto", "on", "off"):
        raise SystemExit(f"RNN_EXT_CUDA must be auto, on or off, and is {wish!r}")
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    if wish == "on" and nvcc is None:
        raise SystemExit("RNN_EXT_CUDA=on needs nvcc, and none is on the PATH or in CUDA_HOME/bin")
    if wish == "auto" and not (folder("torch") / "lib" / "libtorch_cuda.so").exists():
        return None
    return None if wish == "off" else nvcc


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        nvcc = cuda_compiler()
        # Not build_temp: that is a new folder at every editable install, which would compile all of it again.
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        options = {
            "CMAKE_MAKE_PROGRAM": program("ninja"),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": folder("pybind11") / "share" / "cmake" / "pybind11",
            "RNN_EXT_TORCH": folder("torch"),
            "RNN_EXT_TORCH_VERSION": importlib.metadata.version("torch"),
            "RNN_EXT_VERSION": self.distribution.get_version(),
            "RNN_EXT_SANITIZE": os.environ.get("RNN_EXT_SANITIZE", "OFF"),
            "RNN_EXT_SANITIZERS": os.environ.get("RNN_EXT_SANITIZERS", "address,undefined"),
            "RNN_EXT_EMULATE": os.environ.get("RNN_EXT_EMULATE", "OFF"),
            "RNN_EXT_CUDA": "ON" if nvcc else "OFF",
        }
        if nvcc:
            options["CMAKE_CUDA_COMPILER"] = nvcc
        if "RNN_EXT_CUDA_ARCHITECTURES" in os.environ:  # such as 90a, or 80;90a
            options["RNN_EXT_CUDA_ARCHITECTURES"] = os.environ["RNN_EXT_CUDA_ARCHITECTURES"]
        defines = [f"-D{name}={value}" for name, value in options.items()]
        subprocess.run([program("cmake"), "-S", ROOT, "-B", build, "-G", "Ninja", *defines], check=True)
        subprocess.run([program("cmake"), "--build", build], check=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build / target.name, target)
        cuda = target.parent / "_cuda.so"
        if nvcc:
            shutil.copy2(build / cuda.name, cuda)
        else:  # one of an earlier build would not fit
            cuda.unlink(missing_ok=True)

    def copy_extensions_to_source(self) -> None:
        """For builds in place; setuptools itself knows of `_C` alone."""
        super().copy_extensions_to_source()
        built = Path(self.build_lib) / "rnn_ext" / "_cuda.so"
        if built.exists():
            shutil.copy2(built, ROOT / "rnn_ext")
        else:
            (ROOT / "rnn_ext" / built.name).unlink(missing_ok=True)


setup(ext_modules=[Extension("rnn_ext._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
