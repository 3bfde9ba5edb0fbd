"""`python -m benchmarks COMMAND`: each command has its own --help."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {
    "tasks": "train the tasks on every backend",
    "speed": "time the layers over a grid of shapes",
    "report": "turn results into Markdown tables and charts",
    "demo": "a short tour: known numbers, toy tasks, a quick speed grid",
}


def main(argv: list[str]) -> int:
    """Hand the arguments after the command's name to benchmarks.<command>.main."""
    if not argv or argv[0] not in COMMANDS:
        print("usage: python -m benchmarks COMMAND [OPTIONS]\n")
        for name, purpose in COMMANDS.items():
            print(f"  {name:8}{purpose}")
        print("\npython -m benchmarks.long_sequences   memory and time of training with and without checkpoint_time")
        print("python -m benchmarks.gpu_check        build, test and time the CUDA kernels on a machine with a GPU")
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    # Imported late, so that a command starts without the dependencies of the others.
    return import_module(f"benchmarks.{argv[0]}").main(argv[1:]) or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
