"""Hypothesis strategies: the space of calls over which the layers are compared."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from tests.subject import DTYPES, LAYERS, Case

# Small odd numbers for the tails of vectors and tiles, and both sides of the sizes at which they end.
FEATURES = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 129]))
TIMES = st.one_of(st.integers(1, 9), st.sampled_from([16, 33, 70]))
BATCHES = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 32, 33]))


def parameter_names(case: Case) -> list[str]:
    return [name for name, _ in case.make(case.layer.theirs).named_parameters()]


@st.composite
def cases(draw, dtypes=tuple(DTYPES), dropouts=(0.0, 0.0, 0.3, 1.0)) -> Case:
    """Any call of any layer that has a kernel."""
    form = draw(st.sampled_from(["batched", "unbatched", "sorted", "unsorted"]))
    time = draw(TIMES)
    batch = 1 if form == "unbatched" else draw(BATCHES)
    lengths = [time] * batch
    if form in ("sorted", "unsorted"):
        lengths = draw(st.lists(st.integers(1, time), min_size=batch, max_size=batch))
    if form == "sorted":
        lengths.sort(reverse=True)
    num_layers = draw(st.sampled_from([1, 1, 2, 3]))
    case = Case(
        layer=draw(st.sampled_from(LAYERS)),
        input_size=draw(FEATURES),
        hidden_size=draw(FEATURES),
        num_layers=num_layers,
        bias=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        dropout=draw(st.sampled_from(dropouts)) if num_layers > 1 else 0.0,
        bidirectional=draw(st.booleans()),
        training=draw(st.sampled_from([True, True, False])),
        dtype=draw(st.sampled_from(list(dtypes))),
        form=form,
        lengths=tuple(lengths),
        given_state=draw(st.booleans()),
        layout=draw(st.sampled_from(["contiguous", "gaps", "transposed", "offset"])),
        seed=draw(st.integers(0, 99)),
    )
    outputs = ["y", *(f"{name}_n" for name in case.layer.states)]
    inputs = ["x", *case.state(), *parameter_names(case)]
    subsets = st.frozensets(st.sampled_from(inputs)) if draw(st.booleans()) else st.none()
    used = st.sampled_from([tuple(outputs), ("y",), ("h_n",)])
    return replace(case, wanted=draw(subsets), used=draw(used))


# Odd sizes with every option: what can go wrong at the edge of a buffer does so here, in little time.
EDGE_CASES = [
    Case(
        layer=layer,
        input_size=3 + 2 * num_layers,
        hidden_size=hidden_size,
        num_layers=num_layers,
        bias=bias,
        bidirectional=bidirectional,
        dtype=dtype,
        form=form,
        lengths=(5,) if form == "unbatched" else (5, 1, 4) if form == "unsorted" else (5, 5, 5),
        given_state=bias,
        layout="offset" if bidirectional else "contiguous",
        dropout=0.3 if num_layers == 2 else 0.0,
    )
    for layer in LAYERS
    for dtype in DTYPES
    for form in ("batched", "unbatched", "unsorted")
    for num_layers, bias, bidirectional, hidden_size in [
        (1, True, False, 1), (1, False, True, 9), (2, True, True, 17), (3, False, False, 33)
    ]
]  # fmt: skip
