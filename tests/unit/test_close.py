"""What the other tests' comparisons of numbers let pass, and what they say of the rest."""

from __future__ import annotations

import pytest
import torch

from tests.close import Numbers, assert_close

EPS = 2.0**-23  # of float32
NAN, INF = float("nan"), float("inf")
ONES = torch.ones(3)


def test_the_tolerance_is_of_the_largest_number_in_the_coarser_dtype() -> None:
    want = torch.tensor([0.0, 1.0, -64.0])
    assert_close(want + torch.tensor([64 * 8 * EPS, 0, 0]), want, 8, "x")
    assert_close(want + torch.tensor([64 * 8 * EPS, 0, 0]), want.tolist(), 8, "x")
    with pytest.raises(
        AssertionError, match=r"x: off by 6\.1e-05 \(.*, not 0\.0, at 0 of 3\); allowed is 5\.34e-05, k = 7 "
    ):
        assert_close(want + torch.tensor([64 * 8 * EPS, 0, 0]), want, 7, "x")
    assert_close(1.0, 1.0 + 4 * 2.0**-52, 4, "x")
    with pytest.raises(AssertionError, match="k = 3 where 4 is needed"):
        assert_close(1.0, 1.0 + 4 * 2.0**-52, 3, "x")
    assert_close([1e-7], torch.zeros(1), 1, "x", scale=1.0)


@pytest.mark.parametrize(
    ("found", "want", "message"),
    [
        (torch.zeros(3), torch.zeros(2), r"shape \(3,\), not \(2,\)"),
        (torch.tensor([0.0, 1e-30]), torch.zeros(2), "off by 1e-30"),
        (torch.tensor([1.0, NAN, 1.0]), ONES, "nan, not 1.0, at 1 of 3"),
        (ONES, torch.tensor([1.0, NAN, 1.0]), "1.0, not nan, at 1 of 3"),
        (torch.tensor([NAN, 0.0]), torch.zeros(2), "nan, not 0.0"),
        (torch.tensor([1.0, INF, 1.0]), ONES, "off by inf"),
        (torch.tensor([INF, 0.0]), torch.tensor([INF, 1.0]), "off by nan"),
    ],
)
def test_another_shape_and_what_is_not_finite_fail(found: Numbers, want: Numbers, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_close(found, want, 100, "x")


def test_nothing_may_differ_by_more_than_a_ten_thousandth() -> None:
    with pytest.raises(AssertionError, match="x: k = 900 allows 1.1e-04 of the largest number"):
        assert_close(ONES, ONES, 900, "x")
