"""What an optimizer step counts: the totals its averages need, and the statistics it leaves behind."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlcore.records import Batch


class Totals(NamedTuple):
    """Of everything that enters one optimizer step, all micro-batches and all ranks."""

    tokens: int  # masked ones
    sequences: int  # rollouts with any masked token

    @classmethod
    def of(cls, batch: Batch) -> Totals:
        rollouts = batch.rollout_of_token[batch.mask]
        return cls(tokens=len(rollouts), sequences=len(rollouts.unique()))


def sums(per_token: Tensor, batch: Batch) -> Tensor:
    """(B,): (N,) added up over the masked tokens of each rollout."""
    zeros = torch.zeros(len(batch), dtype=per_token.dtype, device=per_token.device)
    return zeros.index_add(0, torch.repeat_interleave(batch.lengths), per_token.where(batch.mask, 0.0))


def spread(per_rollout: Tensor, batch: Batch) -> Tensor:
    """(N,): each rollout's entry of (B,) at all its tokens."""
    return torch.repeat_interleave(per_rollout, batch.lengths)


def larger(a: float, b: float) -> float:
    """The maximum, and NaN as soon as either is NaN: Python's own `max` loses it."""
    return a + b if math.isnan(a) or math.isnan(b) else max(a, b)


class Stats:
    """What one rank saw during the updates of a step. `merge` makes metrics of the ranks' statistics."""

    def __init__(self) -> None:
        self.updates = 0  # optimizer steps that had something to learn from
        self.skipped = 0  # of these, not taken for a gradient that is not finite
        self.empty = 0  # not taken: no token of any rank had a loss
        self.loss = 0.0  # this rank's share, added over updates
        self.grad_norm = 0.0  # before clipping, added over the updates that were taken; the same on every rank
        self.tokens = 0  # masked ones, added over updates
        self.rollouts = 0  # with a masked token, added over updates
        self.sums: dict[str, float] = {}  # by metric name, over masked tokens
        self.rollout_sums: dict[str, float] = {}  # by metric name, over rollouts with a masked token
        self.maxima: dict[str, float] = {}

    def note(self, share: Tensor, micro: Batch, columns: Mapping[str, Tensor]) -> None:
        """One micro-batch: its share of the loss, and statistics by metric name, (n,) of tokens or (B,) of rollouts."""
        self.loss += float(share.detach())
        self.tokens += int(micro.mask.sum())
        if not micro.mask.any():
            return
        learned = sums(micro.mask.float(), micro) > 0
        self.rollouts += int(learned.sum())
        for name, values in columns.items():
            if len(values) == len(micro.mask):
                self.add(name, values, micro.mask)
            else:
                chosen = values.detach()[learned].double()
                self.rollout_sums[name] = self.rollout_sums.get(name, 0.0) + float(chosen.sum())

    def add(self, name: str, per_token: Tensor, mask: Tensor) -> None:
        """One micro-batch of a per-token statistic (n,): a maximum if the name ends in `_max`, else a mean."""
        values = per_token[mask]
        if not name.endswith("_max"):
            self.sums[name] = self.sums.get(name, 0.0) + float(values.double().sum())
        elif len(values):
            self.maxima[name] = larger(self.maxima.get(name, float("-inf")), float(values.max()))


class Learned(NamedTuple):
    """What the updates of one step came to: what a run decides by, and all of it as `metrics`. NaN: there is none."""

    metrics: dict[str, float]
    loss: float
    grad_norm: float  # before clipping, the mean over the updates that were made
    skipped: int  # updates that were not made: the gradient was not finite
    rate: float  # the learning rate
    kl: float = float("nan")  # nats a token to the reference
    logp_diff_max: float = float("nan")  # the engine's log-probabilities against the trainer's, a token
    logp_diff_mean: float = float("nan")

    @property
    def nothing(self) -> bool:
        """Whether updates were asked for and none was made."""
        return self.skipped > 0 and math.isnan(self.grad_norm)


def learned(ranks: Sequence[Stats], role: str, rate: float) -> Learned:
    """What the ranks of `role` saw during a step at this learning rate."""
    metrics = merge(ranks, role) | {f"{role}/lr": rate}
    none = float("nan")
    return Learned(
        metrics=metrics,
        loss=metrics[f"{role}/loss"],
        grad_norm=metrics[f"{role}/grad_norm"],
        skipped=ranks[0].skipped,
        rate=rate,
        kl=metrics.get("actor/kl", none),
        logp_diff_max=metrics.get("sync/logp_diff_max", none),
        logp_diff_mean=metrics.get("sync/logp_diff_mean", none),
    )


def merge(ranks: Sequence[Stats], role: str = "actor") -> dict[str, float]:
    """The metrics of a step: means over all updates and masked tokens of all ranks, NaN where there are none; maxima.

    `role` names whose loss, gradient norm and skipped updates they are. From the mean weight and its mean square comes
    `correction/ess`, the effective sample size as a share of the tokens, `mean(w)^2 / mean(w^2)`: 1 where all weights
    are equal, 0 where all are 0.
    """
    first = ranks[0]
    taken = first.updates - first.skipped
    tokens = sum(s.tokens for s in ranks)
    metrics = {
        f"{role}/loss": sum(s.loss for s in ranks) / first.updates if first.updates else float("nan"),
        f"{role}/grad_norm": first.grad_norm / taken if taken else float("nan"),
        f"{role}/skipped_updates": float(first.skipped),
        f"{role}/empty_updates": float(first.empty),
    }
    rollouts = sum(s.rollouts for s in ranks)
    for name in sorted({n for s in ranks for n in s.rollout_sums}):
        metrics[name] = sum(s.rollout_sums.get(name, 0.0) for s in ranks) / rollouts if rollouts else float("nan")
    for name in sorted({n for s in ranks for n in s.sums}):
        metrics[name] = sum(s.sums.get(name, 0.0) for s in ranks) / tokens if tokens else float("nan")
    if (square := metrics.pop("correction/weight_square", None)) is not None:
        metrics["correction/ess"] = metrics["correction/weight"] ** 2 / square if square else 0.0
    for name in sorted({n for s in ranks for n in s.maxima}):
        metrics[name] = functools.reduce(larger, (s.maxima[name] for s in ranks if name in s.maxima))
    return metrics
