"""Few rows in place of a full product of options; the rest of the product is there for the slow runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product

import pytest


def covering(sizes: Sequence[int], strength: int) -> list[tuple[int, ...]]:
    """Rows of indices in which every `strength` values of different options meet, each time the row with most news."""
    strength = min(strength, len(sizes))
    rows = {row: set(combinations(enumerate(row), strength)) for row in product(*map(range, sizes))}
    missing, chosen = set().union(*rows.values()), []
    while missing:
        chosen.append(max(rows, key=lambda row: len(missing & rows[row])))
        missing -= rows[chosen[-1]]
    return chosen


def each_meeting(strength: int = 2, **options: Sequence | Mapping) -> pytest.MarkDecorator:
    """Parametrizes over rows in which every `strength` values of different options meet; the other rows are slow.

    options: the values of each argument, as `parametrize` takes them, or by name.
    """
    columns = [as_params(values) for values in options.values()]
    chosen = set(covering([len(column) for column in columns], strength))
    rows = []
    for indices in product(*(range(len(column)) for column in columns)):
        row = [column[i] for column, i in zip(columns, indices)]
        marks = [mark for param in row for mark in param.marks] + ([] if indices in chosen else [pytest.mark.slow])
        rows.append(pytest.param(*(param.values[0] for param in row), id="-".join(p.id for p in row), marks=marks))
    return pytest.mark.parametrize(list(options), rows)


def as_params(values: Sequence | Mapping) -> list:
    if isinstance(values, Mapping):
        return [pytest.param(value, id=name) for name, value in values.items()]
    made = type(pytest.param(None))
    return [value if isinstance(value, made) else pytest.param(value, id=str(value)) for value in values]
