"""Frozen layers and cells keep their weights packed: the same results, until told otherwise."""

import copy
import gc
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import rnn_ext
from rnn_ext.frozen import kept_weights
from tests.subject import CELLS, DTYPES, LAYERS, each_layer
from tests.tolerances import assert_all_close, assert_close

pytestmark = pytest.mark.sanitize
each_cell = pytest.mark.parametrize("layer", CELLS, ids=str)
each_layer_and_cell = pytest.mark.parametrize("layer", LAYERS + CELLS, ids=str)


def call(layer, module, *args) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return layer.named_outputs(module(*args))


def assert_same_bits(actual, expected):
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def assert_frozen_changes_nothing(layer, module, x):
    with rnn_ext.batch_invariant():
        expected = call(layer, module, x)
        with rnn_ext.frozen(module):
            for _ in range(2):
                assert_same_bits(call(layer, module, x), expected)


@each_layer
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"num_layers": 3, "bidirectional": True}, {"bias": False}], ids=str)
@pytest.mark.parametrize("time", [1, 9])
def test_a_frozen_layer_gives_the_same_bits(layer, dtype, options, time):
    module = layer.make_ours(7, 70, dtype=dtype, **options)
    x = torch.randn(time, 6, 7, dtype=dtype)
    assert_frozen_changes_nothing(layer, module, x)


@each_cell
def test_weights_inside_a_larger_tensor_are_told_apart(layer):
    """As where the weights of several models lie in one tensor each, or all weights of a model in one."""
    module, x = layer.make_ours(64, 64), torch.randn(12, 64)
    members = {name: torch.randn(4, *p.shape) / 8 for name, p in module.named_parameters()}

    def outputs_of_members():
        found = []
        for i in range(4):
            for name, all_of_them in members.items():
                setattr(module, name, nn.Parameter(all_of_them[i], requires_grad=False))
            found.append(call(layer, module, x))
        return found

    expected = outputs_of_members()
    with rnn_ext.frozen(module):
        for actual, alone in zip(outputs_of_members(), expected):
            assert_same_bits(actual, alone)


@each_layer
@pytest.mark.parametrize("bidirectional", [False, True])
def test_frozen_weights_serve_any_number_of_threads(layer, bidirectional):
    module, x = layer.make_ours(7, 200, bidirectional=bidirectional), torch.randn(30, 2, 7)
    torch.set_num_threads(1)
    expected = call(layer, module, x)
    with rnn_ext.frozen(module):
        for threads in (3, 1, 2, 5):  # which share the hidden units
            torch.set_num_threads(threads)
            assert_same_bits(call(layer, module, x), expected)


@each_layer
def test_a_frozen_layer_takes_packed_sequences(layer):
    module = layer.make_ours(4, 20, bidirectional=True)
    x = pack_sequence([torch.randn(time, 4) for time in (6, 3, 3, 1)])
    expected = call(layer, module, x)
    with rnn_ext.frozen(module):
        assert_same_bits(call(layer, module, x), expected)


@each_cell
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 5, 20, 70])
def test_a_frozen_cell_gives_the_same_bits(layer, dtype, batch):
    module, x = layer.make_ours(65, 65, dtype=dtype), torch.randn(batch, 65, dtype=dtype)
    assert_frozen_changes_nothing(layer, module, x)


@each_cell
def test_explain_tells_that_weights_are_frozen(layer):
    module, x = layer.make_ours(65, 65), torch.randn(20, 65)
    assert not rnn_ext.explain(module, x).frozen
    with rnn_ext.frozen(module):
        assert not rnn_ext.explain(module, x).frozen  # a gradient is wanted
        with torch.no_grad():
            assert rnn_ext.explain(module, x).frozen
            assert "frozen weights" in str(rnn_ext.explain(module, x))
            row_is_packed_for = rnn_ext._C.float32_product() == "amx"  # tiles; else one row packs nothing
            assert rnn_ext.explain(module, x[:1]).frozen == row_is_packed_for
    with torch.no_grad():
        assert not rnn_ext.explain(module, x).frozen


@each_cell
def test_explain_tells_that_frozen_weights_are_not_used_under_a_mode(layer):
    cell, x = layer.make_ours(16, 64), torch.randn(20, 16)
    with torch.no_grad(), rnn_ext.frozen(cell):
        assert rnn_ext.explain(cell, x).frozen
        with torch.device("cpu"):
            assert not rnn_ext.explain(cell, x).frozen


@each_layer_and_cell
def test_what_is_written_into_a_frozen_weight_is_seen_after_freezing_again(layer):
    module, x = layer.make_ours(4, 20), layer.random_input(4, batch=6)
    rnn_ext.frozen(module)
    before = call(layer, module, x)
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(2)
    assert_same_bits(call(layer, module, x), before)
    rnn_ext.frozen(module)
    after = call(layer, module, x)
    rnn_ext.frozen(module, False)
    assert not torch.equal(after["h_n"], before["h_n"])
    assert_all_close(list(after.values()), list(call(layer, module, x).values()))


@each_layer_and_cell
def test_a_frozen_weight_that_is_replaced_is_seen(layer):
    module, x = layer.make_ours(4, 20), layer.random_input(4, batch=6)
    with rnn_ext.frozen(module):
        call(layer, module, x)
        for weight in ("weight_hh", "bias_ih") if layer.is_cell else ("weight_hh_l0", "bias_ih_l0"):
            setattr(module, weight, nn.Parameter(2 * getattr(module, weight)))
            found = call(layer, module, x)
            assert_all_close(list(found.values()), list(call(layer, copy.deepcopy(module), x).values()))
        module.double()
        assert_close(call(layer, module, x.double())["h_n"], call(layer, copy.deepcopy(module), x.double())["h_n"])


@each_layer_and_cell
def test_a_gradient_uses_the_weights_as_they_are(layer):
    module, x = layer.make_ours(4, 20), layer.random_input(4, batch=6)
    with rnn_ext.frozen(module):
        call(layer, module, x)
        with torch.no_grad():
            next(iter(module.parameters())).mul_(2)
        found = layer.total(module(x))
        found.backward()
    assert_close(found, layer.total(module(x)))


@each_layer_and_cell
def test_frozen_holds_inside_its_block_and_for_what_is_inside_a_model(layer):
    inner = layer.make_ours(4, 5)
    model = nn.ModuleList([nn.Linear(2, 2), nn.ModuleList([inner])])
    with rnn_ext.frozen(model):
        outer = kept_weights(inner)
        with rnn_ext.frozen(inner, False):
            assert kept_weights(inner) is None
        assert kept_weights(inner) is outer is not None
        assert kept_weights(copy.deepcopy(inner)) is None
    assert kept_weights(inner) is None


def test_frozen_keeps_no_module_alive():
    module = rnn_ext.GRU(4, 5)
    rnn_ext.frozen(module)
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None


@each_cell
def test_threads_share_frozen_weights(layer):
    module = layer.make_ours(64, 64)
    inputs = [torch.randn(20, 64) for _ in range(8)]
    expected = [call(layer, module, x) for x in inputs]
    found = [None] * 8

    def work(i):
        for _ in range(20):
            found[i] = call(layer, module, inputs[i])

    with rnn_ext.frozen(module):
        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for a, b in zip(found, expected, strict=True):
        assert_all_close(list(a.values()), list(b.values()))


@each_layer
def test_a_compiled_frozen_layer_uses_the_weights_as_they_are(layer):
    module, x = layer.make_ours(4, 5), torch.randn(3, 2, 4)
    torch.compiler.reset()
    with rnn_ext.frozen(module), torch.no_grad():
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert_close(compiled(x)[0], module(x)[0])


def test_frozen_refuses_what_has_nothing_to_freeze():
    with pytest.raises(TypeError, match="frozen: expected a module, got int"):
        rnn_ext.frozen(3)
    with pytest.raises(ValueError, match="no layer or cell of rnn_ext in Linear"):
        rnn_ext.frozen(nn.Linear(2, 2))
