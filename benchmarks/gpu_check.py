"""On a machine with a GPU: build in place, run the GPU tests, time the layers against torch.nn (cuDNN).

    python -m benchmarks.gpu_check --out results [--part build|test|speed] [--seconds S]

Needs torch with CUDA, nvcc, cmake, ninja and pybind11, and no network. Ends within --seconds, but for a build. Results
are written as they come, to tests.jsonl and speed.jsonl; the same command again goes on where the last one ended. Tests
and measurements run in a process of their own: one that hangs is ended, written down, and the next one goes on.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu_journal import Journal

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 100.0  # seconds without a word after which a process hangs


def build() -> None:
    environment = {**os.environ, "RNN_EXT_CUDA": "on"}
    environment.setdefault("RNN_EXT_CUDA_ARCHITECTURES", architecture())
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=ROOT, env=environment, check=True)


def architecture() -> str:
    import torch

    major, minor = torch.cuda.get_device_capability()
    return "90a" if (major, minor) == (9, 0) else f"{major}{minor}"


def watch(command: list[str], journal: Journal, end: float) -> None:
    """Runs it until it has nothing left to do or the time is up, again after each point that hangs or crashes.

    The command is given the path of the journal and the seconds that are left.
    """
    while time.monotonic() < end:
        process = subprocess.Popen([*command, str(journal.path), str(end - time.monotonic())], cwd=ROOT)
        begin, state = time.time(), "crashed"
        while process.poll() is None:
            time.sleep(0.5)
            if time.time() - max(begin, journal.path.stat().st_mtime) > PATIENCE:
                state = "hangs"
            elif time.monotonic() > end + 10:
                state = "cut off"
            else:
                continue
            process.kill()
            process.wait()
        if not journal.end_unfinished(state):
            return  # it ended by itself, between two points


def machine() -> dict:
    import torch

    facts = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
    facts["cudnn"] = torch.backends.cudnn.version()
    facts["cudnn_allow_tf32"] = torch.backends.cudnn.allow_tf32  # ours never rounds float32 to TF32 by itself
    return facts


def report_tests(journal: Journal) -> int:
    states = collections.Counter(journal.states().values())
    print(", ".join(f"{count} {state}" for state, count in states.items()) or "no tests")
    bad = [point for point, state in journal.states().items() if state in ("failed", "hangs", "crashed")]
    print(*bad, sep="\n")
    return 1 if bad or not states["passed"] else 0


def report_speed(journal: Journal) -> None:
    gains = []
    for line in map(json.loads, journal.path.read_text().splitlines()):
        if line["state"] == "begins":
            continue
        columns = [line["point"]]
        for way in ("forward", "training") if line["state"] == "measured" else ():
            ours, theirs, gain = (line[way][key] for key in ("us_per_step", "torch_us_per_step", "speedup"))
            columns.append(f"{ours:8.2f} us {theirs:8.2f} us {gain:6.2f}x")
            gains.append(math.log(gain))
        if line["state"] == "measured":
            columns.append(f"difference {line['difference']:.1e}  {line['plan'].split(';')[0]}")
        else:
            columns.append(f"{line['state']}: {line.get('text', '')}")
        print(*columns, flush=True)
    if gains:
        print(f"geometric mean of {len(gains)} speed-ups: {math.exp(statistics.fmean(gains)):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu_check")))
    parser.add_argument("--part", choices=["build", "test", "speed"], help="one part alone")
    parser.add_argument("--seconds", type=float, default=500, help="for all that is run")
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("gpu_check: no CUDA device")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "machine.json").write_text(json.dumps(machine(), indent=1))
    status, end = 0, time.monotonic() + arguments.seconds
    if arguments.part in (None, "build"):
        build()
    if arguments.part in (None, "test"):
        tests = Journal(arguments.out / "tests.jsonl")
        watch([sys.executable, "-m", "benchmarks.gpu_tests"], tests, end)
        status = report_tests(tests)
    if arguments.part in (None, "speed"):
        points = Journal(arguments.out / "speed.jsonl")
        watch([sys.executable, "-m", "benchmarks.gpu_speed"], points, end)
        report_speed(points)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
