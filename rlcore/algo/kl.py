"""Estimates of a KL divergence from the log-probabilities of sampled tokens."""

from __future__ import annotations

from torch import Tensor


def k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """(N,): `exp(d) - d - 1`, d = ref_logp - logp: the unbiased, never negative estimate of KL(policy || reference)
    of arXiv 2402.03300 (eq. 4).

    d is kept within 20 and the result below 10, so one token the reference finds absurd cannot blow up a step; beyond
    those limits the gradient is 0.
    """
    d = (ref_logp - logp).clamp(-20.0, 20.0)
    return (d.exp() - d - 1.0).clamp(max=10.0)
