"""Two computations of the same numbers: how far apart they may be, in units of rounding of the largest number."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

log = logging.getLogger(__name__)  # pytest --log-cli-level=DEBUG shows how far off each comparison is
LOOSEST = 1e-4  # relative; what is statistical, or in bfloat16, has a number of its own and says so
Numbers = Tensor | float | Sequence[float]


def assert_close(found: Numbers, want: Numbers, k: float, name: str, scale: float | None = None) -> None:
    """Everywhere `|found - want| <= k * eps * scale`, `scale` the largest |want| unless it is given.

    eps is the coarser dtype's, float64's for floats of Python. Beside each k stands the largest error measured.
    """
    a, b = _tensor(found), _tensor(want)
    eps = max(torch.finfo(a.dtype).eps, torch.finfo(b.dtype).eps)
    assert k * eps <= LOOSEST, f"{name}: k = {k:g} allows {k * eps:.1e} of the largest number"
    assert a.shape == b.shape, f"{name}: shape {tuple(a.shape)}, not {tuple(b.shape)}"
    if not a.numel():
        return
    largest = float(b.abs().max()) if scale is None else scale
    off, at = (a.double() - b.double()).abs().flatten().max(0)  # NaN is the largest of all
    unit = eps * largest
    units = 0.0 if off == 0 else float(off) / unit if unit else float("inf")
    log.debug("%s: off by %.3g of k = %g", name, units, k)
    there = f"{float(a.flatten()[at])!r}, not {float(b.flatten()[at])!r}, at {int(at)} of {a.numel()}"
    allowed = f"allowed is {k * unit:.3g}, k = {k:g} where {units:.3g} is needed, of {largest:.3g}"
    assert units <= k, f"{name}: off by {float(off):.3g} ({there}); {allowed}"


def assert_all_close(found: Mapping[str, Tensor], want: Mapping[str, Tensor], k: float) -> None:
    """Each tensor to its own largest entry."""
    assert found.keys() == want.keys()
    for name in want:
        assert_close(found[name], want[name], k, name)


def _tensor(x: Numbers) -> Tensor:
    return x.detach().cpu() if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64)
