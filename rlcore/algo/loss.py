"""Losses: a number a token, and the one function that averages them.

Statistics a loss returns beside it are logged as `actor/NAME`: the mean over the masked tokens of a step, or, when the
name ends in `_max`, their maximum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlcore.algo.stats import Totals
from rlcore.config import Aggregation, LossConfig
from rlcore.protocols import PolicyLoss, plugin
from rlcore.records import Batch


def ppo_clip(logp: Tensor, batch: Batch, cfg: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped surrogate of PPO (arXiv 1707.06347, eq. 7), negated: `-min(ratio * A, clip(ratio) * A)`.

    `clip_fraction` is the share of tokens whose gradient the clip takes away.
    """
    assert batch.old_logp is not None and batch.advantage is not None
    ratio = (logp - batch.old_logp).exp()
    plain = ratio * batch.advantage
    clipped = ratio.clamp(1.0 - cfg.clip_low, 1.0 + cfg.clip_high) * batch.advantage
    stats = {"clip_fraction": (clipped < plain).detach().float(), "ratio_max": ratio.detach()}
    return -torch.minimum(plain, clipped), stats


def sft(logp: Tensor, batch: Batch, cfg: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the masked tokens: `-logp`."""
    return -logp, {}


BUILTIN: dict[str, PolicyLoss] = {"ppo_clip": ppo_clip, "sft": sft}


def policy_loss(cfg: LossConfig) -> PolicyLoss:
    """The function `loss.name` stands for; ConfigError when there is none."""
    return BUILTIN[cfg.name] if cfg.name in BUILTIN else plugin(cfg.name, "loss.name")


def aggregate(per_token: Tensor, batch: Batch, totals: Totals, how: Aggregation) -> Tensor:
    """This micro-batch's share of the loss of the whole optimizer step, a scalar.

    `per_token` (n,) of a micro-batch; `totals` counts the masked tokens and the rollouts that have any over all
    micro-batches of all ranks, so the shares of all of them add up to the loss, however they were split.
    token_mean: mean over all masked tokens (arXiv 2503.14476, eq. 8). sequence_mean: mean over rollouts of the mean
    over their masked tokens (arXiv 2402.03300, eq. 3).
    """
    masked = per_token.where(batch.mask, 0.0)
    if how is Aggregation.token_mean:
        return masked.sum() / max(1, totals.tokens)
    rollout = torch.repeat_interleave(batch.lengths)
    zeros = torch.zeros(len(batch), dtype=per_token.dtype, device=per_token.device)
    count = zeros.index_add(0, rollout, batch.mask.to(per_token.dtype))
    return (zeros.index_add(0, rollout, masked) / count.clamp(min=1.0)).sum() / max(1, totals.sequences)
