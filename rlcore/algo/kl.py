"""KL(policy || reference) from the log-probabilities of sampled tokens: estimates, a term of the loss, a penalty taken
from the reward, and the controller of its coefficient."""

from __future__ import annotations

import math

from torch import Tensor

from rlcore.config import KLConfig, KLEstimator
from rlcore.records import Batch

MOST_LOG_RATIO = 20.0  # exp of it is 5e8: far from overflow, and from anything a sane run meets
MOST_K3 = 10.0


def k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """(N,): `exp(d) - d - 1`, d = ref_logp - logp: the unbiased, never negative estimate of KL(policy || reference)
    of arXiv 2402.03300 (eq. 4)."""
    return estimate(logp, ref_logp, KLEstimator.k3)


def estimate(logp: Tensor, ref_logp: Tensor, how: KLEstimator) -> Tensor:
    """(N,) nats: with d = ref_logp - logp, k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1 (joschu.net/blog/kl-approx.html).

    k1 and k3 are unbiased where the token was sampled from the policy of `logp`; k2 is not, but its gradient is.
    d is kept within 20 and k3 below 10, so one token the reference finds absurd cannot blow up a step; beyond those
    limits the gradient is 0.
    """
    d = (ref_logp - logp).clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO)
    if how is KLEstimator.k1:
        return -d
    if how is KLEstimator.k2:
        return 0.5 * d.square()
    return (d.exp() - d - 1.0).clamp(max=MOST_K3)


def loss_term(logp: Tensor, batch: Batch, cfg: KLConfig) -> Tensor:
    """(N,): the estimate, with a gradient through `logp` (N,). Not yet times the coefficient.

    `unbiased_gradient` multiplies by `exp(logp - old_logp)`, gradient included (DeepSeek-V3.2, arXiv 2512.02556,
    section 3.1). What the gradient is with it and without: docs/algorithms.md.
    """
    assert batch.ref_logp is not None
    term = estimate(logp, batch.ref_logp, cfg.estimator)
    if not cfg.unbiased_gradient:
        return term
    assert batch.old_logp is not None
    return term * (logp - batch.old_logp).clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO).exp()


def penalty(batch: Batch, cfg: KLConfig, coef: float) -> Tensor:
    """(N,): what the KL takes from each token's reward, `coef * estimate(old_logp, ref_logp)`; 0 off the mask.

    The reward of arXiv 1909.08593 (eq. 2), a token at a time.
    """
    assert batch.old_logp is not None and batch.ref_logp is not None
    return (coef * estimate(batch.old_logp, batch.ref_logp, cfg.estimator)).where(batch.mask, 0.0)


class Controller:
    """The coefficient of the KL; with a target it follows it (arXiv 1909.08593, section 2.2), else it stays.

    `error = clip(kl / target - 1, -0.2, 0.2)`, `coef *= 1 + error * rollouts / horizon`. A step of more rollouts than
    the horizon counts as one horizon: no step changes the coefficient by more than a fifth, so it stays above 0.
    """

    def __init__(self, cfg: KLConfig) -> None:
        self.cfg = cfg
        self.coef = cfg.coef

    def observe(self, kl: float, rollouts: int) -> None:
        """`kl` is the mean of a step that learned, nats a token, over `rollouts` rollouts. A NaN changes nothing."""
        if self.cfg.target is None or math.isnan(kl):
            return
        error = min(0.2, max(-0.2, kl / self.cfg.target - 1.0))
        self.coef *= 1.0 + error * min(1.0, rollouts / self.cfg.horizon)

    def state(self) -> dict[str, float]:
        return {"coef": self.coef, "began_at": self.cfg.coef}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from where a target had led; not where there is none, or the run goes on with another kl.coef."""
        if self.cfg.target is not None and state.get("began_at") == self.cfg.coef:
            self.coef = state["coef"]
