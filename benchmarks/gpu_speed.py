"""The speed grid, as far as it has not run yet: python -m benchmarks.gpu_speed JOURNAL SECONDS. See gpu_check."""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from pathlib import Path

from benchmarks.gpu_journal import Journal

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


def main(journal: Journal, seconds: float) -> None:
    end, known = time.monotonic() + seconds, journal.known()
    for shape, cell, dtype in itertools.product(SHAPES, CELLS, DTYPES):
        name = f"{cell:4} {shape[0]:4}x{shape[1]:<5}{shape[2]:5} {dtype}"
        if name in known:
            continue
        if time.monotonic() > end:
            break
        journal.write(name, "begins")
        try:
            journal.write(name, "measured", **point(cell, shape, dtype))
        except Exception as error:  # the next point may do
            journal.write(name, "failed", text=str(error)[-1500:])


if __name__ == "__main__":
    main(Journal(Path(sys.argv[1])), float(sys.argv[2]))
