"""Learning from pairs of responses of which one was preferred: a reward model's loss, and the policy's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlcore.algo.stats import spread, sums
from rlcore.config import LossConfig
from rlcore.records import Batch


def bradley_terry(chosen: Tensor, rejected: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """(p,): `-log sigmoid(chosen - rejected)`, the negative log-likelihood of the preference under the model of Bradley
    and Terry (1952), as in arXiv 1706.03741 (section 2.2.3) and arXiv 2203.02155 (eq. 1).

    `chosen` and `rejected` (p,) are the scores of each pair's responses, with gradient. Beside it, (p,) each:
    `accuracy`, 1 where the chosen one has the higher score, one half at a tie; `margin`, chosen - rejected.
    """
    margin = chosen - rejected
    right = (margin > 0).float() + 0.5 * (margin == 0).float()
    return -logsigmoid(margin), {"accuracy": right, "margin": margin.detach()}


def dpo(logp: Tensor, batch: Batch, cfg: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """(N,): each rollout's tokens add up to its pair's `-log sigmoid(beta * (chosen - rejected))`, where either is the
    sum over its masked tokens of logp - ref_logp (DPO, arXiv 2305.18290, eq. 7). Averaged by sequence_sum it is the
    paper's. Neighbouring rollouts with masked tokens are pairs, the chosen one first.

    (B,): `margin`, beta * (chosen - rejected); `accuracy`, 1 where it is above 0; `chosen_reward`, `rejected_reward`.
    """
    assert batch.ref_logp is not None
    count = sums(torch.ones_like(logp), batch)
    present = count > 0
    reward = cfg.beta * sums(logp - batch.ref_logp, batch)
    assert one_group_a_pair(batch.group[present]), "neighbouring rollouts are of two groups: they are no pairs"
    chosen, rejected = reward[present].view(-1, 2).unbind(1)
    per_pair, columns = bradley_terry(chosen, rejected)
    columns |= {"loss": per_pair, "chosen_reward": chosen.detach(), "rejected_reward": rejected.detach()}
    of_rollout = {name: _of_both(values, present) for name, values in columns.items()}
    per_token = spread(of_rollout.pop("loss") / count.clamp(min=1.0), batch)
    return per_token, of_rollout


def one_group_a_pair(groups: Tensor) -> bool:
    """Whether rollouts 2i and 2i + 1 are of one group, by the groups' numbers (2p,)."""
    return len(groups) % 2 == 0 and groups[0::2].equal(groups[1::2])


def _of_both(per_pair: Tensor, present: Tensor) -> Tensor:
    """(p,) -> (B,): each pair's number at both of its rollouts, 0 at rollouts that are in no pair."""
    zeros = torch.zeros(len(present), dtype=per_pair.dtype, device=per_pair.device)
    return zeros.masked_scatter(present, per_pair.repeat_interleave(2))
