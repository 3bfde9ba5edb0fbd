"""`explain` tells the way of a call; what has no kernel takes torch's own, with one warning."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import rnn_ext
from rnn_ext import route
from tests.contract import promise
from tests.subject import CELLS, DTYPES, LAYERS, each_layer, named_outputs, run_python

each_cell = pytest.mark.parametrize("cell", CELLS, ids=str)
each_class = pytest.mark.parametrize("layer", {layer.ours: layer for layer in LAYERS}.values(), ids=str)


def outcome(call):
    """The outputs by name, or the type and text of the error."""
    try:
        return named_outputs(call())
    except Exception as error:
        return type(error), str(error)


without_kernel = pytest.mark.parametrize(
    ("dtype", "device"), [(torch.complex64, "cpu"), (torch.float32, "meta")]
)


@each_layer
@without_kernel
def test_explain_tells_that_there_is_no_kernel(layer, dtype, device):
    told = rnn_ext.explain(
        layer.make_ours(4, 3, dtype=dtype, device=device), torch.randn(5, 2, 4, dtype=dtype, device=device)
    )
    assert (told.path, told.plan, told.isa) == ("torch", None, None)
    assert ("meta" if device == "meta" else str(dtype)) in told.reason


@promise("Forward", "complex numbers, the meta device: what torch gives")
@each_layer
@without_kernel
@pytest.mark.filterwarnings("ignore::rnn_ext.SlowPathWarning")
def test_what_has_no_kernel_goes_where_torchs_module_goes(layer, dtype, device):
    ours, theirs = layer.make_both(4, 3, 2, dtype=dtype, device=device)
    x = torch.randn(5, 2, 4, dtype=dtype, device=device)
    actual, expected = outcome(lambda: ours(x)), outcome(lambda: theirs(x))
    if not isinstance(expected, dict):
        assert actual == expected
        return
    for name, output in expected.items():
        for attribute in ("dtype", "shape", "device"):
            assert getattr(actual[name], attribute) == getattr(output, attribute)
        assert output.is_meta or torch.equal(actual[name], output)


@each_layer
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_explain_tells_the_kernel_the_plan_and_the_threads(layer, dtype, threads):
    torch.set_num_threads(threads)
    module = layer.make_ours(64, 256, dtype=dtype)
    padded, unbatched = torch.randn(20, 40, 64, dtype=dtype), torch.randn(2, 64, dtype=dtype)
    for x in (padded, unbatched, pack_sequence([padded[:, 0], padded[:3, 1]])):
        told = rnn_ext.explain(module, x)
        assert told.path == "kernel"
        assert told.isa == rnn_ext._C.isa()
        assert 1 <= told.threads <= threads
        assert told.plan and told.reason
        for part in (told.plan, told.isa, told.reason, str(told.threads)):
            assert part in str(told)


@each_layer
def test_a_projection_is_not_split_by_hidden_units(layer):
    torch.set_num_threads(2)
    plan = rnn_ext.explain(layer.make_ours(64, 512), torch.randn(20, 2, 64)).plan
    assert plan == ("pipeline" if layer.projected else "hidden split")


@each_layer
def test_one_sequence_is_split_by_hidden_units_sooner_than_two(layer):
    torch.set_num_threads(2)
    module = layer.make_ours(64, 192)
    plans = [rnn_ext.explain(module, torch.randn(100, batch, 64)).plan for batch in (1, 2)]
    two = "pipeline" if layer.ours is rnn_ext.RNN else "hidden split"
    assert plans == (["pipeline"] * 2 if layer.projected else ["hidden split", two])


@each_layer
def test_several_layers_of_few_sequences_run_as_a_wavefront(layer):
    torch.set_num_threads(2)
    x = torch.randn(100, 2, 64)
    assert rnn_ext.explain(layer.make_ours(64, 64, 2), x).plan == "layer wavefront"
    for one_at_a_time in (layer.make_ours(64, 64), layer.make_ours(64, 64, 2, bidirectional=True)):
        assert rnn_ext.explain(one_at_a_time, x).plan != "layer wavefront"
    assert rnn_ext.explain(layer.make_ours(64, 64, 2), torch.randn(100, 20, 64)).plan == "batch split"


@each_layer
def test_units_of_few_weights_are_not_split_where_layers_can_be(layer):
    torch.set_num_threads(2)
    x = torch.randn(100, 2, 64)
    plans = [rnn_ext.explain(layer.make_ours(64, units, 2), x).plan for units in (96, 320)]
    assert plans == ["layer wavefront", "layer wavefront" if layer.projected else "hidden split"]


@each_layer
def test_recurrent_weights_too_large_for_a_cores_cache_are_split_by_hidden_units(layer):
    torch.set_num_threads(2)
    x = torch.randn(20, 12, 64)
    plans = [rnn_ext.explain(layer.make_ours(64, hidden_size), x).plan for hidden_size in (256, 1024)]
    assert plans == ["batch split", "batch split" if layer.projected else "hidden split"]


@each_cell
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_explain_tells_the_kernel_of_a_cell_too(cell, dtype):
    torch.set_num_threads(2)
    module = cell.make_ours(64, 512, dtype=dtype)
    few, many = torch.randn(64, dtype=dtype), torch.randn(200, 64, dtype=dtype)
    hx = cell.state(*[torch.randn(200, 512, dtype=dtype) for _ in cell.states])
    for told, threads in ((rnn_ext.explain(module, few), None), (rnn_ext.explain(module, many, hx), 2)):
        assert (told.path, told.isa) == ("kernel", rnn_ext._C.isa())
        assert told.plan and told.reason
        assert threads in (None, told.threads)


@each_cell
def test_explain_tells_why_a_cell_goes_to_torchs_operator(cell):
    for options in ({"dtype": torch.complex64}, {"device": "meta"}):
        told = rnn_ext.explain(cell.make_ours(4, 3, **options), torch.empty(2, 4, **options))
        assert told.path == "torch"
        assert str(*options.values()) in told.reason
    module = cell.make_ours(4, 3)
    with pytest.raises(RuntimeError, match="inconsistent input_size"):
        rnn_ext.explain(module, torch.randn(2, 5))
    with pytest.raises(ValueError, match="Expected input to be 1D or 2D, got 3D instead"):
        rnn_ext.explain(module, torch.randn(1, 2, 4))


@pytest.mark.parametrize("layer", LAYERS + CELLS, ids=str)
def test_an_empty_input_goes_to_torchs_operator_without_a_warning(layer, recwarn):
    module, x = layer.make_ours(4, 3), torch.randn(0, 4) if layer.is_cell else torch.randn(5, 0, 4)
    told = rnn_ext.explain(module, x)
    assert (told.path, told.reason) == ("torch", "the input is empty")
    module(x)
    assert not [w for w in recwarn if issubclass(w.category, rnn_ext.SlowPathWarning)]


@each_layer
def test_one_thread_is_explained_by_torchs_threads_or_by_the_work(layer):
    module, reasons = layer.make_ours(64, 64), {}
    for threads, time in ((1, 5), (2, 5), (1, 500), (2, 500)):
        torch.set_num_threads(threads)
        told = rnn_ext.explain(module, torch.randn(time, 1, 64))
        reasons[threads, time] = told.reason if told.plan == "serial" else told.plan
    assert reasons[1, 5] == reasons[1, 500] == "torch runs on one thread"
    assert reasons[2, 5] == "too little work for a second thread"
    assert reasons[2, 500] not in (reasons[1, 5], reasons[2, 5])


@each_class
def test_explain_raises_what_the_call_raises(layer):
    module, x = layer.make_ours(4, 3), torch.randn(5, 2, 5)
    with pytest.raises(RuntimeError, match="input.size") as called:
        module(x)
    with pytest.raises(RuntimeError) as explained:
        rnn_ext.explain(module, x)
    assert str(called.value) == str(explained.value)
    with pytest.raises(TypeError):
        rnn_ext.explain(nn.Linear(4, 3), x)


def test_a_slow_path_warns_once_in_a_process_and_a_kernel_never():
    printed = run_python("""
import warnings, torch, rnn_ext
def call(name, dtype):
    x = torch.ones((2, 4) if name.endswith("Cell") else (5, 2, 4), dtype=dtype)
    return getattr(rnn_ext, name)(4, 3, dtype=dtype)(x)[0]
names = "RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for name in names:
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            call(name, dtype).sum().backward()
    print(len(caught))
    for name in names:
        for dtype in (torch.complex64, torch.complex128, torch.complex64):
            call(name, dtype)
    print(*[w.category.__name__ for w in caught if issubclass(w.category, rnn_ext.SlowPathWarning)])
    print("complex64" in str(caught[0].message), "rnn_ext.explain" in str(caught[0].message))
""")
    assert printed.splitlines() == ["0", "SlowPathWarning", "True True"]


@pytest.mark.parametrize("layer", LAYERS + CELLS, ids=str)
def test_the_warning_points_at_the_call_and_a_bad_call_does_not_use_it_up(layer, monkeypatch):
    monkeypatch.setattr(route, "_warned", False)  # as in a new process
    module, x = layer.make_ours(4, 3), torch.ones(2, 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for hx in (torch.zeros(9, 9), (torch.zeros(9, 9), torch.zeros(9, 9))):
            with pytest.raises((RuntimeError, TypeError, AttributeError)):
                module(x, hx)
        assert not caught
        layer.ours(4, 3, dtype=torch.complex64)(x.to(torch.complex64))
    assert [(w.category, w.filename) for w in caught] == [(rnn_ext.SlowPathWarning, __file__)]


def test_a_cuda_kernel_is_told_without_a_product():
    told = str(rnn_ext.Explanation("kernel", "why", "clusters", "cuda", 1, None))
    assert told == "kernel for cuda, plan 'clusters', 1 thread: why"
