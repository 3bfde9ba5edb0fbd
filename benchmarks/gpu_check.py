"""On a machine with a GPU: build in place, run the GPU tests, time the layers against torch.nn (cuDNN).

    python -m benchmarks.gpu_check --out results [--part build|test|speed] [--from N] [--seconds S]

Needs torch with CUDA, nvcc, cmake, ninja and pybind11, and no network. All parts together end within nine minutes. The
speed part writes speed.jsonl, one line a point, and says with which --from to go on when its time is up.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# B, T, I = H
SHAPES = [(1, 1000, 256), (8, 500, 512), (16, 1024, 768), (32, 500, 1024), (64, 200, 2048), (64, 500, 512)]
SHAPES += [(128, 200, 1024)]
CELLS = {"LSTM": 4, "GRU": 3, "RNN": 1}  # gates
DTYPES = ["bfloat16", "float16", "float32"]

# For the floor of a step: rates of one H200 from its data sheet (bfloat16: measured on one), and one exchange between
# multiprocessors. Not a measurement of this run.
TENSOR_FLOPS, FLOAT_FLOPS, ON_CHIP_BYTES, EXCHANGE_SECONDS = 790e12, 67e12, 132 * 128 * 1.755e9, 0.15e-6


def floor_seconds(gates: int, batch: int, hidden_size: int, bytes_each: int) -> float:
    """Least time of one step: the larger of its arithmetic and of reading W_hh on the chip, and one exchange."""
    weights = gates * hidden_size * hidden_size
    flops = 2 * batch * weights / (TENSOR_FLOPS if bytes_each == 2 else FLOAT_FLOPS)
    return max(flops, weights * bytes_each / ON_CHIP_BYTES) + EXCHANGE_SECONDS


def build() -> None:
    environment = {**os.environ, "RNN_EXT_CUDA": "on"}
    environment.setdefault("RNN_EXT_CUDA_ARCHITECTURES", architecture())
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=ROOT, env=environment, check=True)


def architecture() -> str:
    import torch

    major, minor = torch.cuda.get_device_capability()
    return "90a" if (major, minor) == (9, 0) else f"{major}{minor}"


def test(out: Path) -> int:
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "tests/test_cuda_gpu.py", f"--junitxml={out / 'tests.xml'}"]
    return subprocess.run(command, cwd=ROOT).returncode


def median_ms(run, seconds: float) -> tuple[float, float, int]:
    """GPU time of run(): median, spread (interquartile range over median), and how many times it ran."""
    import torch

    run(), run()
    torch.cuda.synchronize()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 30):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    low, middle, high = statistics.quantiles(times, n=4)
    return middle, (high - low) / middle, len(times)


def point(cell: str, shape: tuple[int, int, int], dtype_name: str) -> dict:
    import torch

    import rnn_ext

    batch, steps, size = shape
    dtype = getattr(torch, dtype_name)
    torch.manual_seed(0)
    theirs = getattr(torch.nn, cell)(size, size, device="cuda", dtype=dtype)
    ours = getattr(rnn_ext, cell)(size, size, device="cuda", dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(steps, batch, size, device="cuda", dtype=dtype)
    dy = torch.randn_like(x)
    mode = "RNN_TANH" if cell == "RNN" else cell
    result = {"cell": cell, "B": batch, "T": steps, "H": size, "dtype": dtype_name}
    result["plan"] = torch.ops.rnn_ext.cuda_plan(mode, steps, batch, size, 0, 1, dtype.itemsize, x.device.index, False)

    def forward(module):
        with torch.no_grad():
            return module(x)[0]

    def training(module):
        x_leaf = x.detach().requires_grad_()
        module(x_leaf)[0].backward(dy)

    y, y_theirs = forward(ours).float(), forward(theirs).float()
    result["difference"] = ((y - y_theirs).norm() / y_theirs.norm()).item()
    floor = floor_seconds(CELLS[cell], batch, size, dtype.itemsize)
    for name, run in (("forward", forward), ("training", training)):
        mine, mine_spread, count = median_ms(lambda run=run: run(ours), 0.25)
        other, other_spread, _ = median_ms(lambda run=run: run(theirs), 0.25)
        result[name] = {
            "us_per_step": 1e3 * mine / steps, "torch_us_per_step": 1e3 * other / steps, "speedup": other / mine,
            "spread": mine_spread, "torch_spread": other_spread, "runs": count,
        }  # fmt: skip
    result["floor_us_per_step"] = 1e6 * floor
    result["share_of_floor"] = 1e6 * floor / result["forward"]["us_per_step"]
    return result


def speed(out: Path, first: int, seconds: float) -> None:
    import torch

    end = time.perf_counter() + seconds
    points = [(cell, shape, dtype) for shape in SHAPES for cell in CELLS for dtype in DTYPES]
    facts = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    facts["cudnn"] = torch.backends.cudnn.version()
    facts["cudnn_allow_tf32"] = torch.backends.cudnn.allow_tf32  # ours never rounds float32 to TF32 by itself
    (out / "machine.json").write_text(json.dumps(facts, indent=1))
    gains = []
    with open(out / "speed.jsonl", "a") as file:
        for i in range(first, len(points)):
            if time.perf_counter() > end:
                print(f"time is up: go on with --part speed --from {i}")
                break
            result = point(*points[i])
            print(json.dumps(result), file=file, flush=True)
            cell, (batch, steps, size), dtype = points[i]
            ways = [result[name] for name in ("forward", "training")]
            gains += [math.log(way["speedup"]) for way in ways]
            columns = [f"{i:3} {cell:4} {batch:4}x{steps:<5}{size:5} {dtype:9}"]
            for way in ways:
                columns.append(
                    f"{way['us_per_step']:8.2f} us {way['torch_us_per_step']:8.2f} us {way['speedup']:6.2f}x"
                )
            columns.append(f"difference {result['difference']:.1e}  {result['plan'].split(';')[0]}")
            print(*columns, flush=True)
    if gains:
        print(f"geometric mean of {len(gains)} speed-ups: {math.exp(statistics.fmean(gains)):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu_check")))
    parser.add_argument("--part", choices=["build", "test", "speed"], help="one part alone")
    parser.add_argument("--from", dest="first", type=int, default=0, help="point of the speed grid to begin with")
    parser.add_argument("--seconds", type=float, default=200, help="for the speed grid")
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("gpu_check: no CUDA device")
    arguments.out.mkdir(parents=True, exist_ok=True)
    status = 0
    if arguments.part in (None, "build"):
        build()
    if arguments.part in (None, "test"):
        status = test(arguments.out)
    if arguments.part in (None, "speed"):
        speed(arguments.out, arguments.first, arguments.seconds)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
