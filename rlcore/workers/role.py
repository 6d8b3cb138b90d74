"""What the driver's handles of all model roles share: a batch shared out by tokens, a column or an update from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlcore.config import Config
from rlcore.records import Batch
from rlcore.workers.group import WorkerGroup
from rlcore.workers.packing import Work, plan, split


class Role:
    """The ranks of a model: a number for every token of a batch from them, and their state on disk."""

    def __init__(self, group: WorkerGroup, cfg: Config) -> None:
        self.group, self.cfg = group, cfg

    def save(self, directory: Path) -> list[str]:
        """Weights, and the optimizer's state, of a model that learns: `model/` loads with from_pretrained. Gives what
        could not be written beside the weights, in words."""
        answers = self._on_disk("save", directory)
        return [f"{self.group.role}: {each}" for failed in answers for each in failed or ()]

    def load(self, directory: Path) -> None:
        """What `save` wrote; of a model that does not learn, what `Actor.save_weights` wrote."""
        self._on_disk("load", directory)

    def _column(self, method: str, batch: Batch) -> Tensor:
        """(N,) float32: `method` of each rank on its share of `batch`, 0 where mask is False. Rollouts without a masked
        token are not sent."""
        useful = batch.rollout_of_token[batch.mask].unique()
        ranks, most = len(self.group.workers), self.cfg.actor.microbatch_tokens
        plans = plan(batch.lengths[useful].tolist(), ranks, most)
        mine = [[int(useful[i]) for microbatch in rank for i in microbatch] for rank in plans]
        each = []
        for indices, rank in zip(mine, plans, strict=True):
            local = iter(range(len(indices)))
            each.append((batch.select(indices), [[next(local) for _ in microbatch] for microbatch in rank]))
        parts = self.group.call(method, each=each, seconds=self.group.deadline.update_seconds)
        column = torch.zeros(len(batch.tokens))
        for indices, part in zip(mine, parts, strict=True):
            column[batch.tokens_of(indices)] = part
        return column

    def _split(self, batch: Batch, epochs: int, whole_groups: bool = False) -> list[list[Work]]:
        """rank -> its part of each optimizer step."""
        cfg, ranks = self.cfg.actor, len(self.group.workers)
        return split(batch, ranks, cfg.microbatch_tokens, cfg.minibatches_per_step, epochs, whole_groups)

    def _on_disk(self, method: str, directory: Path) -> list[Any]:
        return self.group.call(method, str(directory.resolve()), seconds=self.group.deadline.update_seconds)
