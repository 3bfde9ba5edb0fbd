"""Bitwise promises: what a sequence gives depends on nothing but the sequence, and nothing on the threads."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnn_ext
from tests.covering import each_meeting
from tests.subject import DTYPES, HALVES, LAYERS, Layer, each_layer, named_outputs, run_python
from tests.tolerances import assert_close

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

# (batch, time, input size, hidden size): from one vector to weights that fill a cache.
# Five steps at least, so that one sequence alone is more than the four rows that are excepted by default.
SHAPES = [
    (5, 7, 3, 5), (16, 9, 1, 16), (9, 12, 17, 33), (33, 6, 64, 64), (40, 5, 70, 100), (12, 6, 256, 256),
    (9, 5, 512, 512),
]  # fmt: skip
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)

STACKS = {
    "one layer": {},
    "no bias": {"bias": False},
    "two layers, both directions": {"num_layers": 2, "bidirectional": True},
}
MODES = {"batch_invariant": True, "default": False}
each_stack = pytest.mark.parametrize("options", STACKS.values(), ids=STACKS)


class Batch:
    """A module with a batch of sequences, states and gradients, of which any part can be run."""

    def __init__(self, layer: Layer, shape, dtype, lengths=None, **options) -> None:
        batch, time, input_size, hidden_size = shape
        self.layer, self.lengths = layer, lengths
        self.module = layer.make_ours(input_size, hidden_size, dtype=dtype, **options)
        directions = 2 if self.module.bidirectional else 1
        rows = self.module.num_layers * directions
        self.x = torch.randn(time, batch, input_size, dtype=dtype)
        shapes = layer.state_shapes(rows, batch, hidden_size)
        self.states = [torch.randn(shape, dtype=dtype) for shape in shapes]
        self.dy = torch.randn(time, batch, directions * layer.output_size(hidden_size), dtype=dtype)
        self.dstates = [torch.randn(shape, dtype=dtype) for shape in shapes]

    def explain(self, which=slice(None)) -> rnn_ext.Explanation:
        x = self.x[:, which]
        if self.lengths is not None:
            x = pack_padded_sequence(x, self.lengths[which], enforce_sorted=False)
        return rnn_ext.explain(self.module, x)

    def plan(self, which=slice(None)) -> str:
        return self.explain(which).plan

    def run(self, which=slice(None)) -> dict[str, torch.Tensor]:
        """Outputs, gradients of the chosen sequences, and gradients of the weights."""
        x = self.x[:, which].clone().requires_grad_()
        states = [state[:, which].clone().requires_grad_() for state in self.states]
        sequences, dy = x, self.dy[:, which]
        if self.lengths is not None:
            lengths = self.lengths[which]
            sequences = pack_padded_sequence(x, lengths, enforce_sorted=False)
            dy = dy[: lengths.max()]
        y, h_n = self.module(sequences, self.layer.state(*states))
        outputs = named_outputs((y if self.lengths is None else pad_packed_sequence(y)[0], h_n))
        sources = {"dx": x, **{f"d{name}_0": s for name, s in zip(self.layer.states, states)}}
        sources |= {f"d{name}": weight for name, weight in self.module.named_parameters()}
        grads = [dy, *(state[:, which] for state in self.dstates)]
        gradients = torch.autograd.grad(list(outputs.values()), list(sources.values()), grads)
        return {
            **{name: output.detach() for name, output in outputs.items()},
            **dict(zip(sources, gradients)),
        }


def assert_bitwise_equal(actual: dict, expected: dict) -> None:
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), f"{name}: {(actual[name] != tensor).sum()} elements differ"


def plans_of_the_same_bits(batch: Batch, *counts: int) -> list[str]:
    """The plans with so many threads, all of which must give the same bits."""
    plans, results = [], []
    for threads in counts:
        torch.set_num_threads(threads)
        plans.append(batch.plan())
        results.append(batch.run())
    for result in results[1:]:
        assert_bitwise_equal(result, results[0])
    return plans


def assert_each_part_alone_is_its_part_of_the_whole(batch: Batch, invariant: bool = True) -> None:
    size = batch.x.shape[1]
    every = list(range(size))
    whole, product = batch.run(), batch.explain().product
    for part in ([0], [size - 1], [size // 2], every[1:], every[size // 3 : size // 3 + 3], every[::-1]):
        if not invariant and batch.explain(part).product != product:
            assert "amx" in (product, batch.explain(part).product)  # what is excepted by default: tiles
            continue
        alone = batch.run(part)
        for name in [name for name in whole if name in ("y", "dx") or name.endswith(("_n", "_0"))]:
            expected = whole[name][: alone[name].shape[0], part]
            assert torch.equal(alone[name], expected), f"{name} of sequences {part}"


@each_meeting(3, layer=LAYERS, dtype=DTYPES, shape=SHAPES, options=STACKS, invariant=MODES)
def test_a_sequence_does_not_depend_on_the_rest_of_the_batch(layer, dtype, shape, options, invariant):
    with rnn_ext.batch_invariant(invariant):
        assert_each_part_alone_is_its_part_of_the_whole(Batch(layer, shape, dtype, **options), invariant)


@each_layer
@each_dtype
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_dx_of_two_directions_does_not_depend_on_the_chunks_of_the_whole_batch(layer, dtype, packed):
    """A sequence alone is one chunk; in the whole batch either direction comes first to some of its steps."""
    lengths = torch.arange(300) % 5 + 2 if packed else None
    batch = Batch(layer, (300, 6, 7, 16), dtype, lengths, bidirectional=True)
    with rnn_ext.batch_invariant():
        whole = batch.run()["dx"]
        for part in ([0], [299], [149, 3]):
            alone = batch.run(part)["dx"]
            assert torch.equal(alone, whole[: alone.shape[0], part])


@pytest.mark.sanitize
@each_layer
@each_dtype
@pytest.mark.parametrize("shape", [(6, 1, 7, 9), (4, 2, 64, 64), (9, 1, 256, 256)], ids=str)
def test_one_or_two_steps_do_not_depend_on_the_rest_of_the_batch(layer, dtype, shape):
    with rnn_ext.batch_invariant():
        assert_each_part_alone_is_its_part_of_the_whole(Batch(layer, shape, dtype))


@pytest.mark.sanitize
@each_layer
@each_dtype
@each_stack
def test_a_packed_sequence_does_not_depend_on_the_rest_of_the_batch(layer, dtype, options):
    lengths = torch.tensor([3, 9, 1, 9, 4, 4, 8, 2, 9, 5, 7])
    with rnn_ext.batch_invariant():
        assert_each_part_alone_is_its_part_of_the_whole(
            Batch(layer, (11, 9, 17, 33), dtype, lengths, **options)
        )


@each_layer
@each_dtype
def test_a_packed_sequence_is_bitwise_the_padded_one(layer, dtype):
    with rnn_ext.batch_invariant():
        batch = Batch(layer, (7, 9, 17, 33), dtype)
        padded = batch.run()
        batch.lengths = torch.full((7,), 9)
        assert_bitwise_equal(batch.run(), padded)


@each_meeting(3, layer=LAYERS, dtype=DTYPES, shape=SHAPES, options=STACKS, invariant=MODES)
def test_nothing_depends_on_the_number_of_threads(layer, dtype, shape, options, invariant):
    batch, results = Batch(layer, shape, dtype, **options), []
    with rnn_ext.batch_invariant(invariant):
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(batch.run())
    assert_bitwise_equal(results[1], results[0])
    assert_bitwise_equal(results[2], results[0])


@pytest.mark.sanitize
@each_layer
@pytest.mark.parametrize("sizes", [(260, 256), (256, 260), (132, 128)], ids=str)
def test_layers_whose_inputs_differ_by_the_padding_of_a_row_do_not_depend_on_the_threads(layer, sizes):
    """Rows of 256 numbers take more memory than rows of 260 where these need no padding."""
    results = []
    for dtype in (torch.float32, torch.float64):
        batch = Batch(layer, (32, 20, *sizes), dtype, num_layers=2, dropout=0.5)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            results.append(batch.run())
        assert_bitwise_equal(results[-1], results[-2])


@each_layer
@each_dtype
@pytest.mark.parametrize("sequences", [11, 64])
def test_nothing_packed_depends_on_the_number_of_threads(layer, dtype, sequences):
    lengths, results = torch.tensor([3, 9, 1, 9, 4, 4, 8, 2, 9, 5, 7] * 6)[:sequences], []
    few = sequences < 20  # of many, in one direction, each thread has the input gradients of its own
    sizes, options = (17, 33) if few else (64, 64), {"num_layers": 2, "bidirectional": few}
    batch = Batch(layer, (sequences, 9, *sizes), dtype, lengths, **options)
    with rnn_ext.batch_invariant():
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(batch.run())
    assert_bitwise_equal(results[1], results[0])
    assert_bitwise_equal(results[2], results[0])


# Small layers on many sequences, where a vector holds one unit of a block of them: blocks not full, more blocks
# than partial sums of the gradients of the weights, more steps than these are taken from at once.
BLOCKS = [(301, 5, 3, 5), (37, 40, 6, 9), (21, 33, 1, 5)]
each_way_to_block = each_meeting(
    3,
    layer=[layer for layer in LAYERS if not layer.projected],
    dtype=[torch.float32, torch.float64],
    shape=BLOCKS,
    options=STACKS,
    packed={"padded": False, "packed": True},
)


def blocks(layer: Layer, shape, dtype, packed: bool, **options) -> Batch:
    """Of a packed batch some sequences of each block end early, a few with the first step."""
    batch, time, *_ = shape
    lengths = torch.tensor([1 if b % 11 == 5 else time - b * 5 % 7 % time for b in range(batch)]) if packed else None
    return Batch(layer, shape, dtype, lengths, **options)


@pytest.mark.sanitize
@each_way_to_block
def test_blocks_of_sequences_give_the_same_bits_on_any_number_of_threads(layer, dtype, shape, options, packed):
    batch, results = blocks(layer, shape, dtype, packed, **options), []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        if rnn_ext._C.float32_product() != "amx":
            assert batch.plan() == "by sequence"
        results.append(batch.run())
    for result in results[1:]:
        assert_bitwise_equal(result, results[0])


@each_way_to_block
def test_blocks_of_sequences_give_the_bits_of_vectors_of_units(layer, dtype, shape, options, packed):
    """A sequence alone has vectors of units. Only gradients of weights are summed in another order."""
    batch = blocks(layer, shape, dtype, packed, **options)
    with rnn_ext.batch_invariant():
        assert "by sequence" not in {batch.plan([b]) for b in range(shape[0])}
        assert_each_part_alone_is_its_part_of_the_whole(batch)
        whole, alone = batch.run(), [batch.run([b]) for b in range(shape[0])]
    for name in [name for name in whole if name.startswith(("dweight", "dbias"))]:
        expected = sum(part[name] for part in alone)
        assert_close(whole[name], expected, scale=expected.abs().max().item())


# Few sequences, whose hidden units are split among the threads: evenly or not, and inside of a product's panel.
SPLITS = [(1, 40, 5, 200), (3, 11, 33, 333), (1, 260, 9, 168)]


@pytest.mark.sanitize
@each_layer
@each_dtype
@pytest.mark.parametrize("shape", SPLITS, ids=str)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one direction", "both directions"])
def test_shares_of_the_units_give_the_bits_of_all_units(layer, dtype, shape, bidirectional):
    plans = plans_of_the_same_bits(Batch(layer, shape, dtype, bidirectional=bidirectional), 1, 2, 3, 5)
    if rnn_ext._C.float32_product() != "amx":  # on tiles it takes more work than this
        assert any(plan.endswith("hidden split") for plan in plans) != layer.projected


# One time loop and many inputs, in several chunks: forward and backward the worker with the loop has products as well.
PIPELINES = [(2, 300, 150, 17), (1, 2100, 170, 20)]


@pytest.mark.sanitize
@each_layer
@each_dtype
@pytest.mark.parametrize("shape", PIPELINES, ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_products_beside_one_time_loop_give_the_bits_of_one_thread(layer, dtype, shape, packed):
    size, time, *_ = shape
    batch = Batch(layer, shape, dtype, torch.tensor([time, 90][:size]) if packed else None)
    assert plans_of_the_same_bits(batch, 1, 2, 3, 5) == ["serial"] + ["pipeline"] * 3


# Few sequences of many steps through several layers, which more than one thread runs as a wavefront: with more layers
# than threads and fewer, in one chunk of the gradients and in several, with steps to spare.
WAVEFRONTS = [(1, 600, 20, 48, 2), (2, 101, 65, 64, 3), (2, 301, 33, 33, 5)]
each_wavefront = pytest.mark.parametrize("wavefront", WAVEFRONTS, ids=str)


def wavefront_of(layer: Layer, wavefront, dtype, packed=False) -> Batch:
    *shape, num_layers = wavefront
    batch, time, *_ = shape
    lengths = torch.tensor([time - 30 * (b % 2) - 20 * b for b in range(batch)]) if packed else None
    return Batch(layer, shape, dtype, lengths, num_layers=num_layers)


@pytest.mark.sanitize
@each_layer
@each_dtype
@each_wavefront
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_layers_at_once_give_the_bits_of_layers_one_after_the_other(layer, dtype, wavefront, packed):
    batch = wavefront_of(layer, wavefront, dtype, packed)
    assert plans_of_the_same_bits(batch, 1, 2, 3, 7) == ["serial"] + ["layer wavefront"] * 3


@each_layer
@each_wavefront
def test_layers_at_once_give_the_same_outputs_with_and_without_gradients(layer, wavefront):
    torch.set_num_threads(2)
    batch = wavefront_of(layer, wavefront, torch.float32)
    hx = layer.state(*batch.states)
    training = named_outputs(batch.module(batch.x, hx))
    with torch.no_grad():
        inference = named_outputs(batch.module(batch.x, hx))
    assert_bitwise_equal(inference, training)


def test_every_plan_takes_the_threads_that_there_are():
    """OpenMP may give fewer threads than torch counts on."""
    code = """
import hashlib, torch
from rnn_ext import GRU, explain

torch.set_num_threads(4)
for plan, make, shape in (
    ("pipeline", lambda: GRU(20, 48), (300, 2, 20)),
    ("batch split", lambda: GRU(20, 48), (20, 40, 20)),
    ("hidden split", lambda: GRU(20, 200), (40, 2, 20)),
    ("layer wavefront", lambda: GRU(20, 48, 3), (300, 2, 20)),
    ("direction split", lambda: GRU(20, 48, 2, bidirectional=True), (300, 2, 20)),
    ("direction and batch split", lambda: GRU(20, 48, 2, bidirectional=True), (20, 40, 20)),
    ("direction and hidden split", lambda: GRU(20, 200, 2, bidirectional=True), (40, 2, 20)),
):
    torch.manual_seed(0)
    module, x = make(), torch.randn(shape, requires_grad=True)
    assert explain(module, x).plan == plan
    y, h_n = module(x)
    y.backward(torch.ones_like(y))
    results = (y.detach(), h_n.detach(), x.grad, *(w.grad for w in module.parameters()))
    print(plan, *[hashlib.sha256(t.numpy().tobytes()).hexdigest() for t in results])
"""
    one, two, four = (run_python(code, OMP_THREAD_LIMIT=limit).splitlines() for limit in "124")
    assert one == two == four


@pytest.mark.sanitize
@each_meeting(3, layer=LAYERS, dtype=DTYPES, packed={"padded": False, "packed": True}, directions=[1, 2])
def test_shares_that_change_from_chunk_to_chunk_change_no_bit(layer, dtype, packed, directions):
    """More threads than cores get on differently, and many chunks let their shares follow; packed sequences end."""
    lengths = torch.tensor([24 - b * 7 % 23 for b in range(80)]) if packed else None
    batch = Batch(layer, (80, 24, 20, 48), dtype, lengths, bidirectional=directions == 2)
    torch.set_num_threads(1)
    expected = batch.run()
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        both = "direction split" if threads == 2 else "direction and batch split"
        assert batch.plan() == ("batch split" if directions == 1 else both)
        for _ in range(3):
            assert_bitwise_equal(batch.run(), expected)


def test_who_is_slower_gets_a_smaller_share_until_all_take_as_long():
    speeds = [4.0, 2.0, 1.0]
    shares = [1 / 3, 1 / 3, 1 / 3]
    for _ in range(20):
        shares = rnn_ext._C.next_shares(shares, [round(1e6 * share / speed) for share, speed in zip(shares, speeds)])
        assert sum(shares) == pytest.approx(1)
    times = [share / speed for share, speed in zip(shares, speeds)]
    assert max(times) < 1.06 * min(times)


def test_shares_stay_where_threads_are_about_as_fast_or_no_clock_runs():
    for busy in ([100, 105], [100, 0], [0, 0]):
        assert rnn_ext._C.next_shares([0.4, 0.6], busy) == [0.4, 0.6]


def test_shares_stay_for_two_rounds_after_a_change():
    """What a thread has just got from another one takes longer at first: judged by that, shares would go to and fro."""
    stay, follow = [rnn_ext._C.next_shares([0.4, 0.6], [100, 200], rounds) for rounds in (1, 2)]
    assert stay == [0.4, 0.6]
    assert follow[0] > 0.4


def test_a_thread_that_is_held_up_keeps_a_share_by_which_it_can_recover():
    shares = [0.5, 0.5]
    for _ in range(20):
        shares = rnn_ext._C.next_shares(shares, [1, 10**9])
    assert shares[1] == pytest.approx(0.1, rel=0.1)
    for _ in range(20):
        shares = rnn_ext._C.next_shares(shares, [round(1e6 * share) for share in shares])
    assert shares == pytest.approx([0.5, 0.5], rel=0.06)


@each_meeting(3, layer=LAYERS, dtype=DTYPES, shape=SHAPES, threads=[1, 2, 3])
def test_the_same_call_twice_gives_the_same_bits(layer, dtype, shape, threads):
    torch.set_num_threads(threads)
    batch = Batch(layer, shape, dtype)
    first = batch.run()
    for _ in range(3):
        assert_bitwise_equal(batch.run(), first)


@each_meeting(3, layer=LAYERS, dtype=DTYPES, shape=SHAPES, num_layers=[1, 2])
def test_chunks_that_carry_the_state_give_the_whole(layer, dtype, shape, num_layers):
    if dtype in HALVES and len(layer.states) > 1:
        pytest.skip("the cell state is float32 within a call and half as wide between calls")
    batch, time, input_size, hidden_size = shape
    module = layer.make_ours(input_size, hidden_size, num_layers, dtype=dtype)
    x = torch.randn(time, batch, input_size, dtype=dtype)
    with rnn_ext.batch_invariant(), torch.no_grad():
        whole = named_outputs(module(x))
        outputs, state = [], None
        for chunk in x.split([1, 2, time - 3]):
            y, state = module(chunk, state)
            outputs.append(y)
    chunked = named_outputs((torch.cat(outputs), state))
    assert_bitwise_equal(chunked, whole)


@each_layer
@each_dtype
@each_shape
def test_outputs_are_the_same_with_and_without_gradients(layer, dtype, shape):
    batch = Batch(layer, shape, dtype, num_layers=2)
    hx = layer.state(*batch.states)
    with rnn_ext.batch_invariant():
        training = named_outputs(batch.module(batch.x, hx))
        with torch.no_grad():
            inference = named_outputs(batch.module(batch.x, hx))
    assert_bitwise_equal(inference, training)


WAYS_BACK = {
    "eager": lambda module: module,
    "in segments": lambda module: rnn_ext.checkpoint_time(1)(module),
    "transformed": lambda module: lambda x: torch.func.functional_call(module, {}, (x,)),
}


@each_layer
@pytest.mark.parametrize("dtype", DTYPES + [torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", WAYS_BACK)
def test_a_forward_under_the_promise_keeps_it_in_its_backward(layer, dtype, way):
    """The backward pass often runs elsewhere, out of reach of the context manager."""
    module, gradients = layer.make_ours(96, 96, dtype=dtype), []
    call, x = WAYS_BACK[way](module), torch.randn(2, 40, 96, dtype=dtype)
    for part in ([4], list(range(40))):
        leaf = x[:, part].clone().requires_grad_()
        with rnn_ext.batch_invariant():
            if way == "transformed":  # what is pulled back later, out of the block
                _, pull = torch.func.vjp(lambda x: call(x)[0], leaf)
            else:
                y, _ = call(leaf)
        leaf.grad = None
        dy = torch.ones(2, len(part), layer.output_size(96), dtype=dtype)
        if way == "transformed":
            (gradient,) = pull(dy)
        else:
            (gradient,) = torch.autograd.grad(y, leaf, dy)
        gradients.append(gradient[:, part.index(4)])
    assert torch.equal(*gradients)


def test_the_switch_works_as_context_manager_and_globally():
    assert not rnn_ext.is_batch_invariant()
    with rnn_ext.batch_invariant():
        assert rnn_ext.is_batch_invariant()
        with rnn_ext.batch_invariant(False):
            assert not rnn_ext.is_batch_invariant()
        assert rnn_ext.is_batch_invariant()
    assert not rnn_ext.is_batch_invariant()
    rnn_ext.batch_invariant(True)
    try:
        assert rnn_ext.is_batch_invariant()
    finally:
        rnn_ext.batch_invariant(False)
    assert not rnn_ext.is_batch_invariant()


def test_blocks_of_two_threads_may_end_in_the_order_in_which_they_began():
    first, second = rnn_ext.batch_invariant(), rnn_ext.batch_invariant()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert rnn_ext.is_batch_invariant()
    second.__exit__(None, None, None)
    assert not rnn_ext.is_batch_invariant()


def test_a_block_ends_in_what_was_set_before_it():
    for _ in range(3):
        rnn_ext.batch_invariant(True)
    try:
        with rnn_ext.batch_invariant(False):
            assert not rnn_ext.is_batch_invariant()
        assert rnn_ext.is_batch_invariant()
    finally:
        rnn_ext.batch_invariant(False)
    assert not rnn_ext.is_batch_invariant()


def test_the_switch_is_put_back_after_an_error():
    with pytest.raises(KeyError), rnn_ext.batch_invariant():
        raise KeyError
    assert not rnn_ext.is_batch_invariant()


@each_layer
def test_threads_that_call_at_once_get_the_bits_of_a_quiet_machine(layer):
    batches = [Batch(layer, shape, torch.float32) for shape in SHAPES]
    batches.append(wavefront_of(layer, WAVEFRONTS[1], torch.float32))
    expected, results = [batch.run() for batch in batches], [None] * len(batches)

    def work(index: int) -> None:
        results[index] = [batches[index].run() for _ in range(5)]

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
        assert not worker.is_alive()
    for index, result in enumerate(expected):
        for again in results[index]:
            assert_bitwise_equal(again, result)
