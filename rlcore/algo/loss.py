"""Losses: a number a token, and the one function that averages them.

Statistics a loss returns beside it are logged as `actor/NAME`: the mean over the masked tokens of a step, or, when the
name ends in `_max`, their maximum. Every ratio policy / old policy is the exponential of a log-ratio kept within 20, so
nothing overflows; beyond that its gradient is 0.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rlcore.algo import LOSSES
from rlcore.algo.kl import MOST_LOG_RATIO
from rlcore.algo.stats import Totals, spread, sums
from rlcore.config import Aggregation, LossConfig
from rlcore.plugins import plugin
from rlcore.records import Batch


class PolicyLoss(Protocol):
    def __call__(self, logp: Tensor, batch: Batch, cfg: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
        """`logp` (N,) with gradient -> per-token loss (N,) and per-token statistics (N,): not masked, not averaged.

        `batch.old_logp` is always filled; on the first update of a step it equals `logp` without its gradient.
        """
        ...


def ppo_clip(logp: Tensor, batch: Batch, cfg: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped surrogate of PPO (arXiv 1707.06347, eq. 7), negated: `-min(ratio * A, clip(ratio) * A)`, with limits
    of its own on each side (arXiv 2503.14476, eq. 8).

    `clip_fraction` is the share of tokens whose gradient the clip takes: a ratio outside that moves back keeps its own.
    """
    ratio = _ratio(logp, batch)
    surrogate, clipped = _clipped(ratio, batch, cfg)
    stats = {"clip_fraction": clipped, "ratio_max": ratio.detach()}
    if cfg.dual_clip > 0:  # a token of negative advantage loses at most dual_clip * |A| (arXiv 1912.09729, eq. 5)
        assert batch.advantage is not None
        floor = cfg.dual_clip * batch.advantage
        cut = (batch.advantage < 0) & (surrogate.detach() < floor)
        surrogate = floor.where(cut, surrogate)
        stats["dual_clip_fraction"] = cut.float()
    return -surrogate, stats


def gspo(logp: Tensor, batch: Batch, cfg: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped surrogate with one ratio a rollout, `exp(mean over its masked tokens of logp - old_logp)`
    (arXiv 2507.18071, eq. 5-7), in the form of GSPO-token (eq. 14): `sg(ratio) * policy / sg(policy)` at each token, of
    the same value and gradient where advantages are equal in a rollout, and right where they are not.

    Averaged by sequence_mean it is the paper's. Its clip range is of the order of 3e-4, not 0.2.
    """
    assert batch.old_logp is not None
    count = sums(torch.ones_like(logp), batch).clamp(min=1.0)
    mean = sums(logp.detach() - batch.old_logp, batch) / count
    sequence = spread(mean.clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO).exp(), batch)
    surrogate, clipped = _clipped(sequence * (logp - logp.detach()).exp(), batch, cfg)
    return -surrogate, {"clip_fraction": clipped, "ratio_max": sequence}


def cispo(logp: Tensor, batch: Batch, cfg: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """`-sg(clip(ratio, 1 - clip_low, 1 + clip_high)) * A * logp` (arXiv 2506.13585, eq. 4-5): the ratio only weighs a
    token, so none loses its gradient. The paper sets no lower limit: clip_low 1. `clip_fraction`: weights that were
    cut."""
    assert batch.advantage is not None
    ratio = _ratio(logp, batch).detach()
    weight = ratio.clamp(1.0 - cfg.clip_low, 1.0 + cfg.clip_high)
    return -weight * batch.advantage * logp, {"clip_fraction": (weight != ratio).float(), "ratio_max": ratio}


def policy_gradient(logp: Tensor, batch: Batch, cfg: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """REINFORCE, without ratio or clip: `-A * logp` (Williams 1992; arXiv 2402.14740)."""
    assert batch.advantage is not None
    return -batch.advantage * logp, {}


def sapo(logp: Tensor, batch: Batch, cfg: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """`-f(ratio) * A` with the soft gate `f(x) = sigmoid(tau (x - 1)) * 4 / tau` instead of a clip (SAPO,
    arXiv 2511.20347); tau is tau_positive where A > 0, else tau_negative. At ratio 1 its gradient is REINFORCE's."""
    assert batch.advantage is not None
    ratio = _ratio(logp, batch)
    tau = torch.full_like(ratio, cfg.tau_negative).masked_fill(batch.advantage > 0, cfg.tau_positive)
    gate = torch.sigmoid(tau * (ratio - 1.0)) * 4.0 / tau
    return -gate * batch.advantage, {"ratio_max": ratio.detach()}


def sft(logp: Tensor, batch: Batch, cfg: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the masked tokens: `-logp`."""
    return -logp, {}


def _ratio(logp: Tensor, batch: Batch) -> Tensor:
    assert batch.old_logp is not None
    return (logp - batch.old_logp).clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO).exp()


def _clipped(ratio: Tensor, batch: Batch, cfg: LossConfig) -> tuple[Tensor, Tensor]:
    """`min(ratio * A, clip(ratio) * A)`, and 1.0 where the clipped one was taken, so that no gradient is left."""
    assert batch.advantage is not None
    plain = ratio * batch.advantage
    clipped = ratio.clamp(1.0 - cfg.clip_low, 1.0 + cfg.clip_high) * batch.advantage
    return torch.minimum(plain, clipped), (clipped < plain).detach().float()


def policy_loss(cfg: LossConfig) -> PolicyLoss:
    """The function `loss.name` stands for; ConfigError when there is none."""
    return plugin(LOSSES.get(cfg.name, cfg.name), "loss.name")


def aggregate(per_token: Tensor, batch: Batch, totals: Totals, how: Aggregation, length_constant: int) -> Tensor:
    """This micro-batch's share of the loss of the whole optimizer step, a scalar. `per_token` is (n,).

    `totals` are those of all micro-batches of all ranks, so the shares add up to the loss, however they were split.
    """
    masked = per_token.where(batch.mask, 0.0)
    if how is Aggregation.token_mean:  # over all masked tokens (arXiv 2503.14476, eq. 8)
        return masked.sum() / max(1, totals.tokens)
    sequences = max(1, totals.sequences)
    if how is Aggregation.sequence_sum:  # mean over rollouts of the sum over their masked tokens (arXiv 2402.14740)
        return masked.sum() / sequences
    if how is Aggregation.constant_length:  # the same, divided by a constant (arXiv 2503.20783, section 3.2)
        return masked.sum() / (sequences * length_constant)
    # sequence_mean: mean over rollouts of the mean over their masked tokens (arXiv 2402.03300, eq. 3)
    count = sums(torch.ones_like(per_token), batch)
    return (sums(per_token, batch) / count.clamp(min=1.0)).sum() / sequences
