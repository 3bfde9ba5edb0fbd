"""Rows in place of a product still let all values of the options meet."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from tests.covering import covering, each_meeting

each_shape = pytest.mark.parametrize("sizes", [(2,), (3, 2), (2, 2, 2), (5, 3, 4), (5, 3, 7, 3, 2)], ids=str)


@each_shape
@pytest.mark.parametrize("strength", [1, 2, 3])
def test_all_values_of_any_few_options_meet(sizes, strength):
    rows = covering(sizes, strength)
    for options in combinations(range(len(sizes)), strength):
        assert {tuple(row[o] for o in options) for row in rows} == set(product(*(range(sizes[o]) for o in options)))


def test_there_are_far_fewer_rows_than_in_the_product():
    assert len(covering((5, 3, 7, 3, 2), 3)) <= 130  # of 630; 5 * 3 * 7 = 105 at least


def test_the_other_rows_are_slow():
    mark = each_meeting(2, a=[1, 2], b={"x": 3, "y": 4}, c=[5, 6])
    names, rows = mark.args
    assert names == ["a", "b", "c"]
    assert [row.values for row in rows] == list(product([1, 2], [3, 4], [5, 6]))
    assert rows[0].id == "1-x-5"
    assert sum(not row.marks for row in rows) == 4
