"""What the critic learns: its loss, how well it guesses, and the scale of what it guesses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlcore.records import Batch

DECAY = 0.99  # a step: returns of a hundred steps ago count a third
LEAST_VARIANCE = 1e-2  # so that a step of equal returns does not make the next one's enormous


def value_loss(value: Tensor, batch: Batch, clip: float) -> tuple[Tensor, dict[str, Tensor]]:
    """(N,): `0.5 * max((v - R)^2, (old + clamp(v - old, -clip, clip) - R)^2)`, the clipped value loss of PPO's
    implementation (arXiv 2005.12729, section 3); with clip 0 the plain squared error.

    `value` (N,) with gradient; `batch.value` is the guess before the update, `batch.returns` what came. The 0.5 is the
    peers'. `critic/value` is the mean guess, `critic/clip_fraction` the share of tokens whose gradient the clip takes.
    """
    assert batch.value is not None and batch.returns is not None
    error = (value - batch.returns).square()
    stats = {"critic/value": value.detach()}
    if clip > 0:
        moved = batch.value + (value - batch.value).clamp(-clip, clip)
        clipped = (moved - batch.returns).square()
        stats["critic/clip_fraction"] = (clipped > error).detach().float()
        error = torch.maximum(error, clipped)
    return 0.5 * error, stats


def explained_variance(batch: Batch) -> float:
    """`1 - Var(returns - value) / Var(returns)` over masked tokens: 1 is a perfect critic, 0 one that knows only the
    mean, below 0 one that is worse. NaN where all returns are equal or no token is masked."""
    assert batch.value is not None and batch.returns is not None
    returns, value = batch.returns[batch.mask].double(), batch.value[batch.mask].double()
    if not len(returns) or returns.min() == returns.max():
        return float("nan")
    return float(1.0 - (returns - value).var(correction=0) / returns.var(correction=0))


class ReturnScale:
    """Running mean and deviation of the returns, so that a critic's targets are of order 1 whatever the reward's scale.

    Exponential averages over steps of the mean and the mean square, divided by the sum of their weights (arXiv
    2103.01955, "value normalization", after PopArt, arXiv 1602.07714; the head is not rewritten). None yet: no change.
    """

    def __init__(self) -> None:
        self.weight = self.sum = self.square = 0.0

    @property
    def mean(self) -> float:
        return self.sum / self.weight if self.weight else 0.0

    @property
    def deviation(self) -> float:
        if not self.weight:
            return 1.0
        return math.sqrt(max(LEAST_VARIANCE, self.square / self.weight - self.mean**2))

    def observe(self, returns: Tensor, mask: Tensor) -> None:
        """One step's returns (N,), all ranks' together; masked tokens count."""
        chosen = returns[mask].double()
        if len(chosen):
            self.weight = DECAY * self.weight + (1.0 - DECAY)
            self.sum = DECAY * self.sum + (1.0 - DECAY) * float(chosen.mean())
            self.square = DECAY * self.square + (1.0 - DECAY) * float(chosen.square().mean())

    def normalize(self, x: Tensor) -> Tensor:
        """(N,) in the reward's unit -> in deviations from the mean. Off the mask it is not 0."""
        return (x - self.mean) / self.deviation

    def denormalize(self, x: Tensor) -> Tensor:
        return x * self.deviation + self.mean

    def state(self) -> dict[str, float]:
        return {"weight": self.weight, "sum": self.sum, "square": self.square}

    def restore(self, state: dict[str, float]) -> None:
        self.weight, self.sum, self.square = state["weight"], state["sum"], state["square"]
