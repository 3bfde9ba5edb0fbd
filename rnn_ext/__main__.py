"""`python -m rnn_ext`: versions, instruction sets, threads, CUDA, and a self-check; exit status 1 if that fails."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from typing import Any

import torch

import rnn_ext
from rnn_ext import _C
from rnn_ext.self_check import Check, checks


def facts() -> dict[str, Any]:
    """What runs here, ready for JSON."""
    build = _C.build_info()
    return {
        "versions": {
            "rnn_ext": rnn_ext.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        "built_with": {
            "torch": build["torch"],
            "compiler": build["compiler"],
            "oldest_torch": build["torch_abi_target"],
        },
        "instruction_sets": {
            "in_use": _C.isa(),
            "available": _C.available_isas(),
            "cap": os.environ.get("RNN_EXT_ISA") or None,
        },
        "threads": torch.get_num_threads(),
        "cuda": {
            "torch": torch.version.cuda,
            "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "kernels": torch._C._dispatch_has_kernel_for_dispatch_key("rnn_ext::rnn_forward", "CUDA"),
        },
    }


def as_text(found: dict[str, Any]) -> str:
    """The facts for people, a line each."""
    versions, built, isas, cuda = (found[key] for key in ("versions", "built_with", "instruction_sets", "cuda"))
    cap = f"RNN_EXT_ISA={isas['cap']}" if isas["cap"] else "none (RNN_EXT_ISA is not set)"
    torch_cuda = f"torch built with {cuda['torch']}" if cuda["torch"] else "torch built without it"
    kernels = "has kernels" if cuda["kernels"] else "has no kernels, CUDA tensors run on torch's own operators"
    return f"""\
rnn_ext {versions["rnn_ext"]}, torch {versions["torch"]}, Python {versions["python"]}
built with torch {built["torch"]} and {built["compiler"]}, for torch {built["oldest_torch"]} and later
instruction set: {isas["in_use"]}; available: {", ".join(isas["available"])}; cap: {cap}
threads: {found["threads"]}
CUDA: {torch_cuda}; devices: {", ".join(cuda["devices"]) or "none"}; rnn_ext {kernels}"""


def line(check: Check) -> str:
    """A check for people."""
    verdict = "PASS" if check.passed else "FAIL"
    said = check.error or f"forward {check.forward:.1e}, backward {check.backward:.1e} (at most {check.bound:.1e})"
    return f"{verdict}  {check.name:<13} {check.dtype:<8} {said}"


def main(arguments: list[str] | None = None) -> int:
    """Prints everything and returns the exit status: 0, or 1 if a check failed."""
    parser = argparse.ArgumentParser(prog="python -m rnn_ext", description=__doc__)
    parser.add_argument("--no-check", action="store_true", help="print the facts alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    options = parser.parse_args(arguments)
    found = facts()
    if not options.json:
        print(as_text(found))
    if options.no_check:
        if options.json:
            print(json.dumps(found, indent=2))
        return 0

    start, done = time.perf_counter(), []
    if not options.json:
        print("\nself-check against the NumPy reference, largest relative errors:")
    for check in checks():
        done.append(check)
        if not options.json:
            print(line(check), flush=True)
    passed, seconds = sum(check.passed for check in done), time.perf_counter() - start
    if options.json:
        found["checks"] = [{**check._asdict(), "passed": check.passed} for check in done]
        found["passed"] = passed == len(done)
        print(json.dumps(found, indent=2))
    else:
        print(f"{passed} of {len(done)} passed in {seconds:.1f} s")
    return 0 if passed == len(done) else 1


if __name__ == "__main__":
    sys.exit(main())
