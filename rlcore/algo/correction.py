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

    w = trainer probability before the update / engine probability, `exp(old_logp - rollout_logp)`, log kept within 20.

    none               1
    truncate_token     min(w, high): truncated importance sampling ("TIS", fengyao.notion.site/off-policy-rl)
    truncate_sequence  min(product of w over the rollout's masked tokens, high), for each of them
    mask_token         w where low <= w <= high, else 0: masked importance sampling ("IcePop", arXiv 2510.18855)
    reject_sequence    1 for rollouts whose geometric mean of w is within [low, high], else 0 ("Geo-RS",
                       richardli.xyz/rl-collapse). A product leaves the same range in any long response, so this mean
                       wants a narrower one: 0.99 to 1.01 rather than the defaults

    The truncate_ forms have no lower limit. Tokens left out still count in the totals the loss is divided by: a step
    that leaves out more takes a smaller step, what is left does not weigh more. Weights are not scaled to mean 1.

    `sync/logp_diff_max`, `sync/logp_diff_mean` are of |log w| a token, always; with a correction `correction/weight`,
    `/weight_square` (of which stats.merge makes the effective sample size), `/clipped_fraction` (cut or left out).
    """
    log_weight = (old_logp - batch.rollout_logp).detach()
    stats = {"sync/logp_diff_max": log_weight.abs(), "sync/logp_diff_mean": log_weight.abs()}
    if cfg.name is Correction.none:
        return torch.ones_like(log_weight), stats
    if cfg.name is Correction.truncate_sequence:
        log_weight = spread(sums(log_weight, batch), batch)
    elif cfg.name is Correction.reject_sequence:
        count = sums(torch.ones_like(log_weight), batch).clamp(min=1.0)
        log_weight = spread(sums(log_weight, batch) / count, batch)
    ratio = log_weight.clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO).exp()
    inside = ratio <= cfg.high
    if cfg.name in (Correction.truncate_token, Correction.truncate_sequence):
        weight = ratio.clamp(max=cfg.high)
    else:
        inside &= ratio >= cfg.low
        weight = inside.to(ratio.dtype) if cfg.name is Correction.reject_sequence else ratio.where(inside, 0.0)
    stats["correction/weight"] = weight
    stats["correction/weight_square"] = weight.square()
    stats["correction/clipped_fraction"] = (~inside).float()
    return weight, stats
