"""Loads the compiled library, which registers the operators; when that fails, says what to do about it.

torch comes first: the library links to torch's own without a path to them, so they must be loaded already.
"""

import ctypes
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

OLDEST_TORCH = (2, 10)


def _import_torch() -> str:
    """Imports torch and returns its version; raises ImportError if it is missing or too old."""
    wanted = "rnn_ext needs torch >= {}.{}".format(*OLDEST_TORCH)
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(f"{wanted}, and no torch is installed: pip install torch", name="torch") from error
    version = str(torch.__version__)
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_TORCH:
        raise ImportError(f"{wanted}, and found {version}: pip install --upgrade torch", name="torch")
    return version


def _load() -> ModuleType:
    """Imports `rnn_ext._C`; raises ImportError saying what is missing, what was found and what to do."""
    torch_version = _import_torch()
    folder = Path(__file__).parent
    # Only beside these sources: the import system may find the library of another copy, an editable one.
    if PathFinder.find_spec("rnn_ext._C", [str(folder)]) is None:
        found = ", ".join(sorted(path.name for path in folder.glob("_C.*"))) or "nothing"
        raise ImportError(
            f"the compiled library of rnn_ext for {sys.implementation.cache_tag} is not in {folder}; "
            f"found there: {found}. "
            "In a source folder, build it in place: pip install --no-build-isolation -e . "
            "If rnn_ext is installed elsewhere, start Python from another folder: the sources here hide it.",
            name="rnn_ext._C",
        )
    try:
        from rnn_ext import _C
    except ImportError as error:
        if "RNN_EXT_ISA" in str(error):
            raise
        raise ImportError(
            f"the compiled library of rnn_ext does not load with torch {torch_version}: {error}. "
            "Install rnn_ext again for this Python and torch, or build it from source.",
            name="rnn_ext._C",
            path=error.path,
        ) from error
    return _C


def _load_cuda() -> bool:
    """Loads the CUDA operators if this torch has CUDA and the library was built; raises ImportError if that fails."""
    import torch

    library = Path(__file__).parent / "_cuda.so"
    if torch.version.cuda is None or not library.exists():
        return False
    try:
        # The library finds torch's CUDA symbols only among those that are loaded for all.
        ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cuda.so"), mode=ctypes.RTLD_GLOBAL)
        torch.ops.load_library(str(library))
    except OSError as error:
        raise ImportError(
            f"the CUDA library of rnn_ext does not load with torch {torch.__version__}: {error}. "
            "Install rnn_ext again for this torch, or build it without CUDA: RNN_EXT_CUDA=off.",
            name="rnn_ext._cuda",
            path=str(library),
        ) from error
    return True


_C = _load()
has_cuda = _load_cuda()  # whether CUDA tensors have kernels of ours
