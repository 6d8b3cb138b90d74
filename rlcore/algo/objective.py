"""What the actor minimizes, a number a token: the policy loss, corrected, the entropy bonus and the KL."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rlcore.algo import LOSSES
from rlcore.algo.correction import correct
from rlcore.algo.kl import estimate, loss_term
from rlcore.algo.loss import PolicyLoss
from rlcore.config import Config, KLPlace
from rlcore.errors import ConfigError
from rlcore.plugins import call
from rlcore.records import Batch


def objective(
    logp: Tensor, entropy: Tensor, batch: Batch, fn: PolicyLoss, cfg: Config, kl_coef: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """`weight * loss - entropy_coef * entropy + kl_coef * KL`, (N,), and statistics by metric name, detached.

    `logp` and `entropy` (N,) have gradients; the entropy is in nats. `weight` is the correction's, on the policy loss
    alone, as peers have it. ConfigError names loss.name where a user's `fn` raises, or `fn` returns what it must not.
    """
    assert batch.old_logp is not None
    if cfg.loss.name in LOSSES:
        found = fn(logp, batch, cfg.loss)
    else:
        found = call(fn, "loss.name", cfg.loss.name, logp, batch, cfg.loss)
    per_token, extra = _checked(found, logp, batch, cfg.loss.name)
    weight, stats = correct(batch.old_logp, batch, cfg.correction)
    per_token = weight * per_token
    if cfg.loss.entropy_coef:
        per_token = per_token - cfg.loss.entropy_coef * entropy
    if batch.ref_logp is not None:
        stats["actor/kl"] = estimate(logp.detach(), batch.ref_logp, cfg.kl.estimator)
        if cfg.kl.place is KLPlace.loss:
            per_token = per_token + kl_coef * loss_term(logp, batch, cfg.kl)
    stats["actor/entropy"] = entropy.detach()
    return per_token, stats | {f"actor/{name}": values.detach() for name, values in extra.items()}


def _checked(found: Any, logp: Tensor, batch: Batch, name: str) -> tuple[Tensor, dict[str, Tensor]]:
    def per_token(x: Any) -> bool:
        return isinstance(x, Tensor) and x.shape == logp.shape

    def statistic(x: Any) -> bool:
        return per_token(x) or (isinstance(x, Tensor) and x.shape == batch.reward.shape)

    want = (
        f"(loss, statistics): a tensor of shape {tuple(logp.shape)}, one number a token, and a dict of such tensors, "
        f"or of tensors of shape {tuple(batch.reward.shape)}, one number a rollout"
    )
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], dict):
        raise ConfigError(f"loss.name: {name} returned {type(found).__name__}; it must return {want}")
    loss, stats = found
    wrong = [] if per_token(loss) else ["the loss"]
    wrong += [f"statistic {key!r}" for key, values in stats.items() if not statistic(values)]
    if wrong:
        raise ConfigError(f"loss.name: {name} returned {wrong[0]} of another kind or shape; it must return {want}")
    if logp.requires_grad and not loss.requires_grad:
        raise ConfigError(f"loss.name: {name} returned a loss without a gradient; compute it from `logp`, not detached")
    if name not in LOSSES and (bad := _not_finite(loss, logp, batch)):
        raise ConfigError(
            f"loss.name: {name} returned a loss that is not finite for {bad} of {int(batch.mask.sum())} masked tokens, "
            "whose log-probabilities are finite; clamp what it divides by or takes exp() or log() of"
        )
    return loss, stats


def _not_finite(loss: Tensor, logp: Tensor, batch: Batch) -> int:
    """Masked tokens for which `loss` is not finite though what it was made of is: else it is the weights' fault, and
    the update is skipped."""
    assert batch.old_logp is not None
    given = batch.mask & logp.isfinite() & batch.old_logp.isfinite()
    return int((given & ~loss.isfinite()).sum())
