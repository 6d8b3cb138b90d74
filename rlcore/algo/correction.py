"""The engine samples with probabilities that are not quite the trainer's: weights that make up for it."""

from __future__ import annotations

import torch
from torch import Tensor

from rlcore.algo.kl import MOST_LOG_RATIO
from rlcore.algo.stats import spread, sums
from rlcore.config import Correction, CorrectionConfig
from rlcore.records import Batch


def correct(old_logp: Tensor, batch: Batch, cfg: CorrectionConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """A weight (N,) of each token's policy loss, without a gradient, and statistics (N,) by metric name.

    It is made of w = trainer probability before the update / engine probability, `exp(old_logp - rollout_logp)`, log
    kept within 20. docs/algorithms.md has the forms and what they have in common.
    """
    log_weight = (old_logp - batch.rollout_logp).detach()
    stats = {"sync/logp_diff_max": log_weight.abs(), "sync/logp_diff_mean": log_weight.abs()}
    if cfg.name is Correction.none:
        return torch.ones_like(log_weight), stats
    if cfg.name is Correction.truncate_sequence:  # the product of w over the rollout's masked tokens, for each of them
        log_weight = spread(sums(log_weight, batch), batch)
    elif cfg.name is Correction.reject_sequence:  # their geometric mean
        count = sums(torch.ones_like(log_weight), batch).clamp(min=1.0)
        log_weight = spread(sums(log_weight, batch) / count, batch)
    ratio = log_weight.clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO).exp()
    inside = ratio <= cfg.high
    if cfg.name in (Correction.truncate_token, Correction.truncate_sequence):
        # truncated importance sampling ("TIS", fengyao.notion.site/off-policy-rl); no lower limit
        weight = ratio.clamp(max=cfg.high)
    else:
        # reject_sequence: 1 or 0 ("Geo-RS", richardli.xyz/rl-collapse); mask_token: w or 0 ("IcePop", arXiv 2510.18855)
        inside &= ratio >= cfg.low
        weight = inside.to(ratio.dtype) if cfg.name is Correction.reject_sequence else ratio.where(inside, 0.0)
    stats["correction/weight"] = weight
    stats["correction/weight_square"] = weight.square()  # stats.merge makes correction/ess of it
    stats["correction/clipped_fraction"] = (~inside).float()
    return weight, stats
