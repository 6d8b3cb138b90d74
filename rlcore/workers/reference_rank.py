"""One rank of the reference: what the policy was at the start or at the last refresh, for the KL. Its parameters are
shared out by ZeRO-3."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rlcore.models.load import load_path
from rlcore.models.logp import TokenLogp, batch_logp
from rlcore.records import Batch
from rlcore.workers.rank import Rank


class ReferenceRank(Rank):
    """A policy that never learns: log-probabilities only."""

    def _read(self, path: str | None, dtype: torch.dtype, weights: bool) -> TokenLogp:
        return TokenLogp(load_path(path or self.cfg.model.path, dtype, weights))

    def logp(self, batch: Batch, microbatches: list[list[int]]) -> Tensor:
        """(n,) float32: log-probability of every masked token of this rank's `batch`."""
        temperature, chunk = self.cfg.rollout.temperature, self.cfg.actor.logits_chunk_tokens
        return batch_logp(self.engine.ds, batch, microbatches, temperature, chunk, self.device)

    def load(self, directory: str) -> None:
        """Take the weights that the actor's `save_weights` wrote. CheckpointError when they are not those of its
        model."""
        self._load_weights(Path(directory))
