"""`checkpoint_time`: the same numbers, while what is kept for backward does not grow with the length."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnn_ext
from rnn_ext import checkpoint
from tests.contract import promise
from tests.strategies import EDGE_CASES, cases
from tests.subject import CELLS, DTYPES, HALVES, LAYERS, Case, each_layer, gradients_of, named_outputs
from tests.test_binding import saved_tensors
from tests.test_gradients import as_function
from tests.test_parity import assert_parity
from tests.tolerances import assert_all_close, assert_close

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

STACKS = {
    "one layer": {},
    "three layers": {"num_layers": 3},
    "both directions": {"bidirectional": True},
    "two layers, both directions": {"num_layers": 2, "bidirectional": True},
}
each_stack = pytest.mark.parametrize("options", STACKS.values(), ids=STACKS)
FORMS = {
    "padded": {"lengths": (47,) * 4},
    "packed": {"form": "unsorted", "lengths": (1, 47, 20, 33, 47, 2)},
}
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def is_cut(output: torch.Tensor) -> bool:
    """Whether the call that gave this output is one in segments."""
    return "Checkpointed" in type(output.grad_fn).__name__


def gains(layer, num_layers: int = 1, bidirectional: bool = False) -> bool:
    """An RNN keeps nothing but outputs, and only those of its lower layers can be spared."""
    return "nonlinearity" not in layer.options or (num_layers > 1 and not bidirectional)


# The numbers


@given(case=cases(), steps=st.integers(1, 12))
def test_any_call_gives_torchs_numbers(case, steps):
    with rnn_ext.checkpoint_time(steps):
        assert_parity(case)


@pytest.mark.parametrize("case", EDGE_CASES, ids=str)
@pytest.mark.parametrize("steps", [1, 3])
def test_every_option_at_odd_sizes_gives_torchs_numbers(case, steps):
    with rnn_ext.checkpoint_time(steps):
        assert_parity(case)


@each_layer
@each_dtype
@each_stack
@each_form
@pytest.mark.parametrize("given_state", [True, False])
def test_outputs_are_those_of_the_ordinary_call_bit_for_bit(layer, dtype, options, form, given_state):
    case = Case(layer, 17, 33, dtype=dtype, given_state=given_state, **options, **form)
    (ordinary, gradients), (outputs, again) = case.run_ours(), run_cut(case, 9)
    assert any(map(is_cut, outputs.values())) == gains(layer, case.num_layers, case.bidirectional)
    for name, output in outputs.items():
        if dtype in HALVES and len(layer.states) > 1:  # the cell state is rounded at the borders
            assert_close(output, ordinary[name])
        else:
            assert torch.equal(output, ordinary[name]), name
    if not (case.kinked and dtype in HALVES):
        for name, gradient in again.items():
            assert_close(gradient, gradients[name], scale=case.scale(name, gradients[name]))


def run_cut(case: Case, steps: int):
    with rnn_ext.checkpoint_time(steps):
        return case.run_ours()


@each_layer
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_batch_invariant_outputs_are_the_same_bits_for_any_steps(layer, steps):
    case = Case(layer, 3, 5, 2, lengths=(9, 1, 4), form="unsorted")
    with rnn_ext.batch_invariant():
        ordinary, _ = case.run_ours()
        outputs, _ = run_cut(case, steps)
    assert all(torch.equal(output, ordinary[name]) for name, output in outputs.items())


@each_layer
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_long_call_on_any_number_of_threads(layer, threads):
    torch.set_num_threads(threads)
    case = Case(layer, 64, 64, 2, lengths=(400,) * 3)
    (_, gradients), (_, again) = case.run_ours(), run_cut(case, 64)
    for name, gradient in again.items():
        assert_close(gradient, gradients[name], scale=case.scale(name, gradients[name]))


# Derivatives

OPTIONS = {
    "two layers": {"num_layers": 2},
    "both directions": {"bidirectional": True},
    "two layers, both directions, dropout": {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
    "two layers, dropout, no bias, no state given": {
        "num_layers": 2, "dropout": 0.5, "bias": False, "given_state": False
    },
    "packed": {"form": "unsorted", "lengths": (2, 5, 1), "num_layers": 2},
    "packed, both directions": {"form": "unsorted", "lengths": (2, 5, 4), "num_layers": 2, "bidirectional": True},
    "strided": {"layout": "gaps"},
}  # fmt: skip
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@each_layer
@each_option
def test_gradcheck(layer, options):
    call, values = as_function(replace(Case(layer, 1, 2, dtype=torch.float64, lengths=(5, 5)), **options))
    with rnn_ext.checkpoint_time(2):
        assert gradcheck(call, values, fast_mode=len(layer.states) > 1)  # an LSTM's whole Jacobian takes long


@each_layer
@each_option
def test_gradgradcheck(layer, options):
    call, values = as_function(replace(Case(layer, 2, 2, dtype=torch.float64, lengths=(3, 3)), **options))
    with rnn_ext.checkpoint_time(2):
        assert gradgradcheck(call, values, fast_mode=True)


@pytest.mark.parametrize(
    "layer, used", [(layer, (u,)) for layer in LAYERS for u in ("y", *(f"{s}_n" for s in layer.states))], ids=str
)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_any_one_input_may_ask_for_a_gradient_and_any_one_output_be_used(layer, used, bidirectional):
    weights = ["weight_ih_l0", "bias_hh_l0", "weight_hh_l1", *(["weight_hr_l0"] if layer.projected else [])]
    for wanted in ["x", *(f"{s}_0" for s in layer.states), *weights]:
        case = Case(layer, 3, 5, 2, bidirectional=bidirectional, wanted=frozenset([wanted]), used=used)
        with rnn_ext.checkpoint_time(2):
            assert_parity(case)


@each_layer
def test_gradients_of_a_batch_of_vectors(layer):
    module, x = layer.make_ours(4, 3, 2, dtype=torch.float64), torch.randn(5, 2, 4, dtype=torch.float64)
    vectors = torch.randn(3, 5, 2, layer.output_size(3), dtype=torch.float64)
    weights = list(module.parameters())
    with rnn_ext.checkpoint_time(2):
        y, _ = module(x)
    assert is_cut(y) == gains(layer, 2)
    batched = torch.autograd.grad(y, weights, vectors, retain_graph=True, is_grads_batched=True)
    single = [torch.autograd.grad(y, weights, v, retain_graph=True) for v in vectors]
    assert_all_close(batched, [torch.stack(each) for each in zip(*single)])


@each_layer
def test_transforms_ignore_it(layer):
    module, x = layer.make_ours(4, 3), torch.randn(5, 2, 4)

    def loss(x):
        return layer.total(module(x))

    expected = torch.func.grad(loss)(x), torch.func.jvp(loss, (x,), (x,))[1]
    with rnn_ext.checkpoint_time(2):
        assert_all_close([torch.func.grad(loss)(x), torch.func.jvp(loss, (x,), (x,))[1]], expected)


@each_layer
def test_a_compiled_module_ignores_it(layer):
    torch.compiler.reset()
    module, x = layer.make_ours(4, 3, 2), torch.randn(5, 2, 4)
    expected = gradients_of(module, layer.total(module(x)))
    with rnn_ext.checkpoint_time(2):
        y = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
    assert_all_close(gradients_of(module, layer.total(y)), expected)


# Memory


def kept_bytes(module, x) -> int:
    """What is kept for backward beyond input, output and weights, in bytes."""
    with saved_tensors() as saved:
        y, _ = module(x)
    x, y = (t.data if isinstance(t, PackedSequence) else t for t in (x, y))
    known = {t.untyped_storage().data_ptr() for t in (x, y, *module.parameters())}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    return sum(size for start, size in storages.items() if start not in known)


def as_input(x: torch.Tensor, form: str):
    """[T, B, I] as it is, or packed, with sequences of T, 3T/4 and so on."""
    time, batch = x.shape[:2]
    lengths = [time - time * b // (2 * batch) for b in range(batch)]
    return x if form == "padded" else pack_padded_sequence(x, lengths)


@promise("Around it", "very long sequences train in bounded memory")
@each_layer
@each_stack
@pytest.mark.parametrize("form", ["padded", "packed"])
def test_what_is_kept_does_not_grow_with_the_length_but_for_borders(layer, options, form):
    module, time, steps = layer.make_ours(16, 24, **options), 2000, 100
    x = as_input(torch.randn(time, 2, 16), form)
    pairs = module.num_layers * (2 if module.bidirectional else 1)
    borders = sum(torch.Size(shape).numel() for shape in layer.state_shapes(time // steps + 1, pairs, 2, 24))
    outputs_below = 2 * time * 2 * layer.output_size(24) * (module.num_layers - 1) if module.bidirectional else 0
    batch_sizes = 8 * time if form == "packed" else 0
    with rnn_ext.checkpoint_time(steps):
        assert kept_bytes(module, x) <= 4 * (borders + outputs_below) + batch_sizes


@each_layer
def test_without_it_more_is_kept(layer):
    module, x = layer.make_ours(16, 24, 2), torch.randn(2000, 2, 16)
    ordinary = kept_bytes(module, x)
    with rnn_ext.checkpoint_time(100):
        assert kept_bytes(module, x) < ordinary / 10


# A call, its graph and its saved tensors


@each_layer
def test_backward_does_as_its_forward_did(layer):
    module, x = layer.make_ours(4, 3, 2), torch.randn(50, 2, 4)
    expected = gradients_of(module, layer.total(module(x)))
    for forward, backward in ((12, None), (None, 12), (12, 20)):
        with rnn_ext.checkpoint_time(forward):
            outputs = module(x)
        assert is_cut(outputs[0]) == (forward is not None and gains(layer, 2))
        with rnn_ext.checkpoint_time(backward):
            assert_all_close(gradients_of(module, layer.total(outputs)), expected)


@each_layer
def test_nothing_is_saved_where_nothing_asks_for_a_gradient(layer):
    module, x = layer.make_ours(4, 3, 2), torch.randn(5, 2, 4)
    with saved_tensors() as saved, rnn_ext.checkpoint_time(2):
        with torch.no_grad():
            module(x)
        module.requires_grad_(False)(x)
    assert not saved


@each_layer
@pytest.mark.parametrize("changed", ["x", "h_0", "weight_ih_l0", "weight_hh_l1"])
def test_changing_a_saved_tensor_in_place_raises(layer, changed):
    module, x = layer.make_ours(4, 3, 2), torch.randn(5, 2, 4, requires_grad=True)
    states = [torch.randn(shape) for shape in layer.state_shapes(2, 2, 3)]
    with rnn_ext.checkpoint_time(2):
        y, _ = module(x, layer.state(*states))
    with torch.no_grad():
        {"x": x, "h_0": states[0], **dict(module.named_parameters())}[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@each_layer
def test_the_graph_can_be_kept_and_outputs_be_changed(layer):
    module, x = layer.make_ours(4, 3, 2), torch.randn(50, 2, 4)
    once = gradients_of(module, module(x)[0].sum())
    with rnn_ext.checkpoint_time(12):
        outputs = named_outputs(module(x))
    loss = outputs["y"].sum()
    if gains(layer, 2):  # they are not what is saved
        outputs["h_n"].mul_(2)
        loss = outputs["y"].mul_(3).sum() / 3
    for _ in range(2):
        again = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
        assert_all_close(again, once)
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@each_layer
@pytest.mark.parametrize("bad", ["fewer rows than announced", "more rows than announced", "an increase"])
@pytest.mark.filterwarnings("ignore::rnn_ext.SlowPathWarning")
def test_a_packing_that_cannot_be_gives_what_the_ordinary_call_gives(layer, bad):
    module = layer.make_ours(4, 3, 2)
    sizes, rows = {
        "fewer rows than announced": ([2, 2, 2, 2, 1, 1], 9),
        "more rows than announced": ([2, 2, 2, 2, 1, 1], 11),
        "an increase": ([2, 1, 2, 1, 2, 1], 9),
    }[bad]
    x, results = PackedSequence(torch.randn(rows, 4), torch.tensor(sizes)), []
    for steps in (None, 2):
        with rnn_ext.checkpoint_time(steps):
            try:
                results.append([output.tolist() for output in named_outputs(module(x)).values()])
            except RuntimeError as error:
                results.append(str(error))
    assert results[0] == results[1]


# The switch


def test_the_switch_works_as_context_manager_and_globally():
    assert rnn_ext.checkpoint_steps() is None
    with rnn_ext.checkpoint_time(256):
        assert rnn_ext.checkpoint_steps() == 256
        with rnn_ext.checkpoint_time(None):
            assert rnn_ext.checkpoint_steps() is None
        assert rnn_ext.checkpoint_steps() == 256
    assert rnn_ext.checkpoint_steps() is None
    rnn_ext.checkpoint_time(64)
    try:
        assert rnn_ext.checkpoint_steps() == 64
    finally:
        rnn_ext.checkpoint_time(None)
    with pytest.raises(KeyError), rnn_ext.checkpoint_time(8):
        raise KeyError
    assert rnn_ext.checkpoint_steps() is None


@pytest.mark.parametrize(("steps", "error", "text"), [
    (0, ValueError, "expected at least 1 step, got 0"),
    (-3, ValueError, "expected at least 1 step, got -3"),
    (2.0, TypeError, "expected a number of steps or None, got 2.0"),
    ("256", TypeError, "expected a number of steps or None, got '256'"),
    (True, TypeError, "expected a number of steps or None, got True"),
])  # fmt: skip
def test_bad_steps_are_refused_and_change_nothing(steps, error, text):
    with rnn_ext.checkpoint_time(7):
        with pytest.raises(error, match=f"^checkpoint_time: {text}$"):
            rnn_ext.checkpoint_time(steps)
        assert rnn_ext.checkpoint_steps() == 7


@each_layer
@each_stack
def test_explain_tells_whether_a_call_is_cut(layer, options):
    module, x = layer.make_ours(4, 3, **options), torch.randn(50, 2, 4)
    assert rnn_ext.explain(module, x).checkpoint_steps is None
    with rnn_ext.checkpoint_time(12):
        told = rnn_ext.explain(module, x)
        assert (told.checkpoint_steps == 12) == is_cut(module(x)[0]) == gains(layer, **options)
        assert ("segments of at most 12 steps" in str(told)) == gains(layer, **options)
        assert rnn_ext.explain(module, x[:12]).checkpoint_steps is None
        with torch.no_grad():
            assert rnn_ext.explain(module, x).checkpoint_steps is None
        assert rnn_ext.explain(module.requires_grad_(False), x).checkpoint_steps is None


@pytest.mark.parametrize("layer", CELLS, ids=str)
def test_a_cell_ignores_it(layer):
    module, x = layer.make_ours(4, 3), torch.randn(2, 4)
    with rnn_ext.checkpoint_time(1):
        assert rnn_ext.explain(module, x).checkpoint_steps is None
        assert not any(map(is_cut, layer.named_outputs(module(x)).values()))


# Segments


@given(time=st.integers(1, 300), steps=st.integers(1, 50))
def test_segments_cover_the_time_in_nearly_equal_parts(time, steps):
    parts = checkpoint.segments(torch.empty(time, 1, 1), None, steps)
    lengths = [part.steps for part in parts]
    assert [row for part in parts for row in range(time)[part.rows]] == list(range(time))
    assert max(lengths) <= steps and max(lengths) - min(lengths) <= 1
    assert len(parts) == -(-time // steps)


def test_a_turn_is_its_own_inverse_and_turns_each_sequence_about_its_own_end():
    packed = pack_padded_sequence(torch.arange(15).view(5, 3), [5, 4, 2])
    first, second = checkpoint.segments(packed.data[:, None], packed.batch_sizes, 3)
    turn = second.turn(True)
    rows = packed.data[second.rows]
    turned = PackedSequence(turn(rows), second.batch_sizes)
    assert first.batch == 3 and second.batch == 2
    assert [s.tolist() for s in torch.nn.utils.rnn.unpack_sequence(turned)] == [[12, 9, 6], [10, 7]]
    assert torch.equal(turn(turned.data), rows)
