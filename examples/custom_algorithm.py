"""An advantage and a loss of your own, in one file. Run them:

    rlcore train demo advantage.name=examples/custom_algorithm.py:rank loss.name=examples/custom_algorithm.py:gmpo

Both are pure functions of the flat batch (rlcore/records.py): a number a token, neither masked nor averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlcore.algo.advantage import outcome
from rlcore.config import AdvantageConfig, LossConfig
from rlcore.records import Batch


# A KL in the reward (kl.place=reward) is in `outcome(batch)`: an advantage starts from that.
def rank(batch: Batch, cfg: AdvantageConfig) -> Tensor:
    """(N,): how many of its group a rollout beats, less how many beat it, as a share of the group. Scale-free."""
    advantage = torch.zeros(len(batch))
    total = outcome(batch)  # the reward less the KL penalties of the rollout's tokens; NaN: scoring failed
    for group in batch.group.unique():
        members = ((batch.group == group) & ~total.isnan()).nonzero()[:, 0]
        wins = (total[members, None] - total[None, members]).sign().sum(1).float()
        advantage[members] = wins / max(1, len(members) - 1)
    return advantage[batch.rollout_of_token] * batch.mask  # every token of a rollout the same, 0 off the mask


# `logp` are the new log-probabilities; what is returned beside the loss is logged. Done for you: the average over
# tokens, rollouts and ranks (loss.aggregation), KL in the loss (kl.*), entropy bonus, off-policy correction.
def gmpo(logp: Tensor, batch: Batch, cfg: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """GMPO (arXiv 2507.20673): the geometric mean of a rollout's token ratios, clipped a token in log space on the
    side its advantage pushes to. Use it with loss.aggregation=sequence_mean and a clip of about 0.4."""
    assert batch.old_logp is not None and batch.advantage is not None
    log_ratio = logp - batch.old_logp
    up = batch.advantage > 0
    clipped = torch.where(up, log_ratio.clamp(max=cfg.clip_high), log_ratio.clamp(min=-cfg.clip_low))
    rollout = torch.repeat_interleave(batch.lengths)
    zeros = torch.zeros(len(batch), device=logp.device)
    count = zeros.index_add(0, rollout, batch.mask.float()).clamp(min=1)
    ratio = (zeros.index_add(0, rollout, clipped.where(batch.mask, 0.0)) / count).exp()
    return -ratio[rollout] * batch.advantage, {"clip_fraction": (clipped != log_ratio).float()}
