"""The CUDA kernels under the emulator: the very sources that nvcc compiles, with the operators around them.

What this cannot show: that the hardware lays out matrix fragments as the twins do, and in which order it makes writes
visible. tests/test_cuda_gpu.py shows it where there is a GPU.
"""

from __future__ import annotations

import ctypes
import os
import subprocess

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnn_ext
from rnn_ext import ops, reference, route
from tests import cuda_emulator
from tests.subject import LAYERS, Case, named_outputs
from tests.tolerances import assert_close

KINDS = ["stepwise", "grid", "cluster", "library"]
HALVES = [torch.bfloat16, torch.float16]
TANH, RELU, PROJECTED, LSTM, GRU = LAYERS
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)


def each_layer_and_kind(kinds):
    """A projection runs step by step alone."""
    pairs = [(layer, kind) for layer in LAYERS for kind in kinds]
    pairs = [(layer, kind) for layer, kind in pairs if not layer.projected or kind in ("stepwise", "library")]
    return pytest.mark.parametrize("layer, kind", pairs, ids=str)


class Emulator:
    """The device that the operators see."""

    def __init__(self, library, monkeypatch) -> None:
        self.library, self.monkeypatch = library, monkeypatch
        self.device()
        self.order(0)

    def device(
        self,
        multiprocessors: int = 6,
        shared_bytes: int = 64 << 10,
        cluster_blocks: int = 4,
        workspace_bytes: int = 1 << 30,
        at_once: int = 1 << 20,
        refuses: bool = False,
    ) -> None:
        """workspace_bytes: for a chunk of steps; at_once: blocks that the device says can be alive; refuses: launches
        of blocks that wait for each other."""
        chip = (multiprocessors, shared_bytes, cluster_blocks)
        self.library.emulator_limits(*chip, ctypes.c_int64(workspace_bytes), at_once, refuses)

    def order(self, order: int) -> None:
        """In which order threads run between two barriers: 0 ascending, 1 descending, 2 shuffled."""
        self.library.emulator_order(order)

    def plan(self, kind: str, product: str = "") -> None:
        self.monkeypatch.setenv("RNN_EXT_CUDA_PLAN", kind)
        self.monkeypatch.setenv("RNN_EXT_CUDA_PRODUCT", product)

    @property
    def launches(self) -> int:
        return self.library.emulator_launches()


@pytest.fixture(scope="session")
def sources():
    if not (cuda_emulator.ROOT / "csrc").exists():
        pytest.skip("the sources of the kernels are not beside these tests")


@pytest.fixture(scope="session")
def emulator_library(sources):
    return cuda_emulator.library()


@pytest.fixture
def emulator(emulator_library, monkeypatch):
    """The layers of this test run on the emulated kernels."""
    emulated = torch.ops.rnn_ext_emulated
    monkeypatch.setattr(ops, "_forward_op", emulated.rnn_forward.default)
    monkeypatch.setattr(ops, "_backward_op", emulated.rnn_backward.default)
    monkeypatch.setattr(route, "_KERNEL_DTYPES", (*route._KERNEL_DTYPES, torch.float16))
    monkeypatch.delenv("RNN_EXT_CUDA_PLAN", raising=False)
    monkeypatch.delenv("RNN_EXT_CUDA_PRODUCT", raising=False)
    return Emulator(emulator_library, monkeypatch)


def reference_cell(layer):
    if layer.ours.__name__ == "RNN":
        name = layer.options["nonlinearity"]
        return reference.RNNCell(reference.tanh if name == "tanh" else reference.relu)
    return {"LSTM": reference.LSTMCell, "GRU": reference.GRUCell}[layer.ours.__name__]()


def lengths_of(ragged: bool, time: int, batch: int) -> list[int]:
    return [1 + (3 * b + 1) % time for b in range(batch)] if ragged else [time] * batch


def assert_equals_reference(emulator, layer, hidden_size, batch, dtype, ragged, bidirectional=True, num_layers=1):
    """Output, final states and all gradients against backpropagation through time in float64."""
    time, input_size = 5, 3
    torch.manual_seed(hidden_size + batch)
    module = layer.make_ours(input_size, hidden_size, num_layers, bidirectional=bidirectional, dtype=dtype)
    rows = num_layers * (2 if bidirectional else 1)
    x = torch.randn(time, batch, input_size, dtype=dtype, requires_grad=True)
    shapes = layer.state_shapes(rows, batch, hidden_size)
    states = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    lengths = lengths_of(ragged, time, batch)
    before = emulator.launches
    if ragged:
        packed, final = module(pack_padded_sequence(x, lengths, enforce_sorted=False), layer.state(*states))
        y = pad_packed_sequence(packed, total_length=time)[0]
    else:
        y, final = module(x, layer.state(*states))
    outputs = list(named_outputs((y, final)).values())
    d_outputs = [torch.randn_like(out) for out in outputs]
    torch.autograd.backward(outputs, d_outputs)
    assert emulator.launches > before + 1, "torch's own operator ran instead of the kernels"

    def exact(t):
        return t.detach().double().numpy()

    params = {name: exact(weight) for name, weight in module.named_parameters()}
    start = tuple(exact(s) for s in states)
    y_ref, final_ref, tape = reference.forward(reference_cell(layer), exact(x), params, start, lengths)
    d_y, *d_final = (exact(d) for d in d_outputs)
    inside = np.arange(time)[:, None] < np.array(lengths)
    dx, d_start, d_params = reference.backward(tape, d_y * inside[..., None], tuple(d_final))

    for actual, expected in zip(outputs, [y_ref, *final_ref], strict=True):
        assert_close(actual, expected, dtype=dtype)
    gradients = [(x.grad, dx), *zip((s.grad for s in states), d_start, strict=True)]
    gradients += [(weight.grad, d_params[name]) for name, weight in module.named_parameters()]
    for actual, expected in gradients:
        assert_close(actual, expected, dtype=dtype, scale=max(1.0, np.abs(expected).max(initial=0.0)))


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("hidden_size", [1, 33, 130])
@each_layer_and_kind(["stepwise", "grid", "library"])
def test_odd_sizes_equal_the_reference(emulator, layer, hidden_size, batch, kind):
    emulator.device(shared_bytes=227 << 10)
    emulator.plan(kind)
    ragged = (hidden_size + batch) % 4 < 2
    assert_equals_reference(emulator, layer, hidden_size, batch, torch.float32, ragged, bidirectional=batch == 7)


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("hidden_size", [8, 40, 136])
@pytest.mark.parametrize("layer", [TANH, RELU, LSTM, GRU], ids=str)
def test_clusters_equal_the_reference(emulator, layer, hidden_size, batch):
    emulator.device(shared_bytes=227 << 10)
    emulator.plan("cluster")
    assert_equals_reference(emulator, layer, hidden_size, batch, torch.float32, batch == 7)


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", [torch.float64, *HALVES], ids=str)
@each_layer_and_kind(KINDS)
def test_every_dtype_equals_the_reference(emulator, layer, kind, dtype):
    if layer.options.get("nonlinearity") == "relu" and dtype in HALVES:
        layer = TANH  # rounding to 16 bits moves numbers across the kink
    emulator.plan(kind)
    hidden_size = 24 if kind == "cluster" else 17
    assert_equals_reference(emulator, layer, hidden_size, 3, dtype, kind != "grid")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("product", ["fma", "fragments", "held"])
@pytest.mark.parametrize("batch", [1, 9, 20])
def test_every_product_of_sixteen_bit_types(emulator, product, dtype, batch):
    emulator.device(multiprocessors=40)
    emulator.plan("grid", product)
    assert ("registers" in plan("LSTM", 5, batch, 33, 2)) == (product == "held")
    assert_equals_reference(emulator, LSTM, 33, batch, dtype, False, bidirectional=False)


@pytest.mark.sanitize
@each_layer_and_kind(KINDS)
def test_layers_directions_dropout_and_lengths_give_what_the_cpu_kernels_give(emulator, layer, kind):
    emulator.plan(kind)
    size = 16 if kind == "cluster" else 13
    case = Case(layer, 5, size, 3, dropout=0.4, bidirectional=True, form="unsorted", lengths=(5, 1, 4), used=("y",))
    before = emulator.launches
    actual = case.run_ours()
    assert emulator.launches > before
    emulator.monkeypatch.undo()
    for ours, cpu in zip(actual, case.run_ours()):
        for name in cpu:
            assert_close(ours[name], cpu[name], scale=case.scale(name, cpu[name]))


@pytest.mark.parametrize("wanted", ["x", "h_0", "weight_hh_l0"])
@pytest.mark.parametrize("given", [False, True])
@each_layer
def test_any_one_gradient_alone(emulator, layer, wanted, given):
    emulator.plan("stepwise" if layer.projected else "grid")
    case = Case(layer, bias=False, given_state=given, wanted=frozenset({wanted}) if given or wanted != "h_0" else None)
    actual = case.run_ours()
    emulator.monkeypatch.undo()
    for ours, cpu in zip(actual, case.run_ours()):
        assert ours.keys() == cpu.keys()
        for name in cpu:
            assert_close(ours[name], cpu[name], scale=case.scale(name, cpu[name]))


@pytest.mark.sanitize
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_threads_changes_no_bit(emulator, kind, order):
    """A barrier that is missing shows as a difference here."""
    emulator.plan(kind)
    for layer in (LSTM, GRU, *([PROJECTED] if kind in ("stepwise", "library") else [])):
        case = Case(layer, hidden_size=24, num_layers=2, bidirectional=True, form="unsorted", lengths=(4, 1, 3))
        emulator.order(0)
        expected = case.run_ours()
        emulator.order(order)
        for ours, same in zip(case.run_ours(), expected):
            for name in same:
                assert torch.equal(ours[name], same[name]), name


@pytest.mark.parametrize("kind", ["stepwise", "grid"])
def test_the_order_of_threads_changes_no_bit_where_tiles_are_small(emulator, kind):
    emulator.device(multiprocessors=3, shared_bytes=6 << 10)
    emulator.plan(kind)
    for layer in (LSTM, GRU):
        case, found = Case(layer, hidden_size=13, lengths=(3,) * 23), []
        for order in range(3):
            emulator.order(order)
            found.append(case.run_ours())
        for ours in found[1:]:
            for actual, expected in zip(ours, found[0]):
                assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("shared_bytes", [4 << 10, 9 << 10])
@pytest.mark.parametrize("kind", ["stepwise", "grid"])
def test_little_shared_memory_means_smaller_tiles(emulator, kind, shared_bytes):
    emulator.device(multiprocessors=24 if kind == "grid" else 6, shared_bytes=shared_bytes)
    emulator.plan(kind)
    for layer in (LSTM, GRU):
        assert_equals_reference(emulator, layer, 33 if kind == "stepwise" else 9, 40, torch.float32, True, False)


def test_more_steps_than_one_launch_writes_into_the_tables(emulator):
    case = Case(TANH, 1, 2, form="sorted", lengths=(1900, 903, 3))
    emulator.plan("grid")
    actual = case.run_ours()
    emulator.monkeypatch.undo()
    for ours, cpu in zip(actual, case.run_ours()):
        for name in cpu:
            assert_close(ours[name], cpu[name], scale=case.scale(name, cpu[name]))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch, hidden_size", [(1, 256), (8, 512), (16, 768), (64, 512)])
@pytest.mark.parametrize("layer", [LSTM, GRU], ids=str)
def test_the_plans_of_a_large_gpu_give_what_the_cpu_kernels_give(emulator, layer, batch, hidden_size, dtype):
    emulator.device(multiprocessors=132, shared_bytes=232_448, cluster_blocks=16)
    case = Case(layer, 16, hidden_size, dtype=dtype, lengths=(3,) * batch)
    actual = case.run_ours()
    emulator.monkeypatch.undo()
    for ours, cpu in zip(actual, case.run_ours()):
        for name in cpu:
            assert_close(ours[name], cpu[name], scale=case.scale(name, cpu[name]))


def results_of(case: Case) -> dict[str, torch.Tensor]:
    outputs, gradients = case.run_ours()
    return {**outputs, **{f"d{name}": gradient for name, gradient in gradients.items()}}


@pytest.mark.sanitize
@each_layer_and_kind(KINDS)
def test_chunks_of_steps_give_what_all_steps_at_once_give(emulator, layer, kind):
    emulator.plan(kind)
    case = Case(layer, 5, 16, 2, dropout=0.4, bidirectional=True, form="unsorted", lengths=(7, 1, 4, 7))
    whole, launches = results_of(case), []
    for workspace_bytes in (1, 8 << 10):  # a step at a time, and two or three
        emulator.device(workspace_bytes=workspace_bytes)
        before = emulator.launches
        found = results_of(case)
        launches.append(emulator.launches - before)
        for name, expected in whole.items():
            assert_close(found[name], expected, scale=case.scale(name.removeprefix("d"), expected))
    assert launches[0] > launches[1]


# Independence of the batch


INVARIANT = [(layer, kind) for layer in LAYERS for kind in ("", "stepwise", "library")]
INVARIANT += [(layer, "cluster") for layer in (TANH, LSTM, GRU)]


def alone_and_together(layer, dtype, hidden_size):
    """y, states, dx, dh_0 and dc_0 of each of some sequences, by itself and in a batch of 19."""
    lengths = [7, 2, 5, *[6] * 13, 1, 3, 7]
    torch.manual_seed(0)
    module = layer.make_ours(5, hidden_size, 2, bidirectional=True, dtype=dtype)
    x = torch.randn(7, len(lengths), 5, dtype=dtype)
    shapes = layer.state_shapes(4, len(lengths), hidden_size)
    states = [torch.randn(shape, dtype=dtype) for shape in shapes]

    def run(which):
        leaves = [x[:, which].requires_grad_(), *(s[:, which].requires_grad_() for s in states)]
        packed = pack_padded_sequence(leaves[0], [lengths[b] for b in which], enforce_sorted=False)
        y, final = module(packed, layer.state(*leaves[1:]))
        outputs = [pad_packed_sequence(y, total_length=7)[0], *named_outputs((None, final)).values()]
        gradients = torch.autograd.grad(sum(out.double().square().sum() for out in outputs[:2]), leaves)
        return [*outputs, *gradients]

    together = run(list(range(len(lengths))))
    for b in (0, 1, 9, 18):
        yield [t[:, b] for t in together], [t[:, 0] for t in run([b])]


@pytest.mark.sanitize
@pytest.mark.parametrize("layer, kind", INVARIANT, ids=str)
def test_under_batch_invariant_a_sequence_does_not_see_the_batch(emulator, layer, kind):
    emulator.plan(kind)
    emulator.device(workspace_bytes=20 << 10)  # other chunks for another batch
    with rnn_ext.batch_invariant():
        for together, alone in alone_and_together(layer, torch.float32, 24):
            assert all(torch.equal(a, b) for a, b in zip(together, alone))


@pytest.mark.parametrize("dtype", [torch.float64, *HALVES], ids=str)
@pytest.mark.parametrize("layer, kind", [(PROJECTED, ""), (GRU, "stepwise"), (GRU, "cluster")], ids=str)
def test_batch_invariant_holds_for_every_dtype(emulator, layer, kind, dtype):
    emulator.plan(kind)
    with rnn_ext.batch_invariant():
        for together, alone in alone_and_together(layer, dtype, 40):
            assert all(torch.equal(a, b) for a, b in zip(together, alone))


@each_layer
def test_batch_invariant_results_equal_the_reference(emulator, layer):
    emulator.device(shared_bytes=227 << 10)
    with rnn_ext.batch_invariant():
        for hidden_size in (1, 33, 130):
            assert_equals_reference(emulator, layer, hidden_size, 7, torch.float32, True, num_layers=2)


def test_without_batch_invariant_the_plan_may_follow_the_batch(emulator):
    """Which is what makes the tests above able to fail."""
    emulator.plan("stepwise")
    pairs = list(alone_and_together(LSTM, torch.float32, 48))
    assert not all(torch.equal(a, b) for together, alone in pairs for a, b in zip(together, alone))


# float32 on the tensor cores


def float32_errors(emulator, layer, hidden_size, batch) -> dict[str, float]:
    """By product: the RMS error of y, states and input gradients against float64, over their size."""
    case, errors = Case(layer, 40, hidden_size, lengths=(3,) * batch), {}
    exact = [*(found := case.run_theirs(torch.float64))[0].values(), found[1]["x"]]
    for product in ("fma", "fragments"):
        emulator.plan("stepwise", product)
        outputs, gradients = case.run_ours()
        pairs = list(zip([*outputs.values(), gradients["x"]], exact))
        squares = sum((a.double() - e).square().sum() for a, e in pairs) / sum(e.square().sum() for _, e in pairs)
        errors[product] = squares.sqrt().item()
    return errors


@pytest.mark.parametrize("batch, hidden_size", [(8, 16), (9, 130), (24, 256)])
@pytest.mark.parametrize("layer", [LSTM, GRU], ids=str)
def test_three_products_of_tf32_are_as_close_to_float64_as_multiply_adds(emulator, layer, batch, hidden_size):
    emulator.device(multiprocessors=24, shared_bytes=227 << 10)
    errors = float32_errors(emulator, layer, hidden_size, batch)
    assert 0 < errors["fragments"] < 2 * errors["fma"]


@pytest.mark.sanitize
@pytest.mark.parametrize("kind", ["stepwise", "grid", "cluster"])
@pytest.mark.parametrize("batch, hidden_size", [(1, 8), (9, 24)])
def test_float32_by_fragments_equals_the_reference(emulator, kind, batch, hidden_size):
    emulator.plan(kind, "fragments")
    assert "tensor cores" in plan("GRU", 5, batch, hidden_size, 4)
    assert_equals_reference(emulator, GRU, hidden_size, batch, torch.float32, True)


def test_float32_goes_to_the_tensor_cores_with_the_batch_and_never_under_fma(emulator, monkeypatch):
    emulator.device(multiprocessors=132, shared_bytes=232_448, cluster_blocks=16)
    assert plan("LSTM", 100, 64, 256, 4).count("tensor cores") == 2
    assert "tensor cores" not in plan("LSTM", 100, 7, 256, 4)
    monkeypatch.setenv("RNN_EXT_FLOAT32_PRODUCT", "fma")
    assert "tensor cores" not in plan("LSTM", 100, 64, 256, 4)
    assert "tensor cores" in plan("LSTM", 100, 64, 256, 2)


# Plans


@pytest.mark.parametrize("refusal", [{"at_once": 1}, {"refuses": True}], ids=["foreseen", "at the launch"])
@pytest.mark.parametrize("invariant", [False, True])
def test_blocks_that_cannot_all_be_there_run_step_by_step(emulator, refusal, invariant):
    emulator.device(multiprocessors=132, shared_bytes=232_448, cluster_blocks=16)
    assert "step by step" not in plan("LSTM", 6, 3, 64, 4, invariant=invariant)
    case = Case(LSTM, hidden_size=64, num_layers=2, bidirectional=True, form="sorted", lengths=(5, 2, 2))
    with rnn_ext.batch_invariant(invariant):
        expected = results_of(case)
        emulator.device(132, 232_448, 16, **refusal)
        before = emulator.launches
        found = results_of(case)
    assert emulator.launches - before > 4 * 5  # a launch for every step of every layer, forward and backward
    for name, value in expected.items():
        assert_close(found[name], value, scale=case.scale(name.removeprefix("d"), value))


def test_a_projection_runs_step_by_step_and_says_so(emulator):
    assert plan("LSTM", 6, 3, 64, 4, proj_size=8).count("step by step: torch's products") == 2
    assert plan("LSTM", 6, 3, 64, 4, proj_size=8, invariant=True).count("step by step: our products") == 2
    emulator.plan("grid")
    with pytest.raises(RuntimeError, match="does not fit this call"):
        Case(PROJECTED).run_ours()


def plan(mode, T, B, H, storage_bytes, proj_size=0, invariant=False):
    return torch.ops.rnn_ext_emulated.cuda_plan(mode, T, B, H, proj_size, 1, storage_bytes, 0, invariant)


@pytest.mark.parametrize("storage_bytes", [2, 4, 8])
@pytest.mark.parametrize("mode", ["RNN_TANH", "LSTM", "GRU"])
def test_small_weights_stay_on_the_chip(emulator, mode, storage_bytes):
    emulator.device(multiprocessors=132, shared_bytes=232_448, cluster_blocks=16)
    for batch, hidden_size in [(1, 256), (8, 512), (64, 512)]:
        text = plan(mode, 500, batch, hidden_size, storage_bytes)
        assert "step by step" not in text, text


def test_what_fits_nowhere_runs_step_by_step(emulator):
    emulator.device(multiprocessors=132, shared_bytes=232_448, cluster_blocks=16)
    assert plan("LSTM", 10, 8, 20_000, 4).count("step by step") == 2


def test_a_plan_that_does_not_fit_is_an_error(emulator):
    emulator.plan("cluster")
    with pytest.raises(RuntimeError, match="does not fit this call"):
        Case(TANH, hidden_size=7).run_ours()
    emulator.plan("nothing")
    with pytest.raises(RuntimeError, match="RNN_EXT_CUDA_PLAN must be"):
        Case(TANH, hidden_size=7).run_ours()


# The emulator itself, on kernels that are wrong on purpose


@pytest.fixture(scope="session")
def wrong_kernels(sources):
    return cuda_emulator.compiled(cuda_emulator.HERE / "wrong_kernels.cpp", ["-fsanitize=address"])


def run_wrong(program, kernel: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    environment["ASAN_OPTIONS"] = "detect_leaks=0"
    return subprocess.run([program, kernel], capture_output=True, text=True, timeout=60, env=environment)


@pytest.mark.parametrize(
    "kernel, said",
    [
        ("divergent_barrier", "divergent barrier"),
        ("barriers_in_different_places", "divergent barrier"),
        ("divergent_shuffle", "divergent barrier"),
        ("deadlock", "deadlock"),
        ("waits_for_a_later_block", "deadlock"),
        ("peer_that_has_ended", "has ended"),
        ("too_much_shared_memory", "bytes of shared memory"),
        ("too_many_blocks", "more blocks than can be alive"),
    ],
)
def test_the_emulator_refuses(wrong_kernels, kernel, said):
    result = run_wrong(wrong_kernels, kernel)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("cuda_emulator: ") and said in result.stdout


@pytest.mark.parametrize("place", ["shared_read", "shared_write", "global_read"])
def test_the_address_sanitizer_sees_accesses_past_the_end(wrong_kernels, place):
    result = run_wrong(wrong_kernels, f"{place}_past_the_end")
    assert result.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in result.stderr


@pytest.mark.parametrize("kernel", ["reads_what_nobody_wrote", "missing_barrier"])
def test_reads_before_writes_give_nan(wrong_kernels, kernel):
    assert "nan" in run_wrong(wrong_kernels, kernel).stdout


@pytest.mark.parametrize("kernel, result", [("right", "64"), ("a_cooperative_launch_may_wait", "0")])
def test_the_emulator_lets_right_kernels_pass(wrong_kernels, kernel, result):
    assert run_wrong(wrong_kernels, kernel).stdout.strip() == result
