"""What the actor minimizes, a number a token: the policy loss, corrected, the entropy bonus and the KL."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rlcore.algo.correction import correct
from rlcore.algo.kl import estimate, loss_term
from rlcore.config import Config, KLPlace
from rlcore.errors import ConfigError
from rlcore.protocols import PolicyLoss
from rlcore.records import Batch


def objective(
    logp: Tensor, entropy: Tensor, batch: Batch, fn: PolicyLoss, cfg: Config, kl_coef: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """`weight * loss - entropy_coef * entropy + kl_coef * KL`, (N,), and statistics (N,) by metric name, detached.

    `logp`, `entropy` (N,) with gradients, entropy in nats; `batch.old_logp` is filled. The KL is a term only where
    kl.place is loss; `actor/kl` is the estimate of kl.estimator wherever there is a reference. The correction's weight
    is on the policy loss alone, as the peers have it. ConfigError naming loss.name for what `fn` must not return.
    """
    assert batch.old_logp is not None
    per_token, extra = _checked(fn(logp, batch, cfg.loss), logp, cfg.loss.name)
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


def _checked(found: Any, logp: Tensor, name: str) -> tuple[Tensor, dict[str, Tensor]]:
    def per_token(x: Any) -> bool:
        return isinstance(x, Tensor) and x.shape == logp.shape

    want = f"(loss, statistics): a tensor of shape {tuple(logp.shape)}, one number a token, and a dict of such tensors"
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], dict):
        raise ConfigError(f"loss.name: {name} returned {type(found).__name__}; it must return {want}")
    loss, stats = found
    wrong = [] if per_token(loss) else ["the loss"]
    wrong += [f"statistic {key!r}" for key, values in stats.items() if not per_token(values)]
    if wrong:
        raise ConfigError(f"loss.name: {name} returned {wrong[0]} of another kind or shape; it must return {want}")
    return loss, stats
