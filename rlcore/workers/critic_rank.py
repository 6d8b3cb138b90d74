"""One rank of the critic: a value head on a language model's backbone."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from rlcore.algo.loss import aggregate
from rlcore.algo.stats import Stats, Totals
from rlcore.algo.value import value_loss
from rlcore.config import Aggregation
from rlcore.models.load import load_value_path
from rlcore.models.logp import TokenValue, batch_value
from rlcore.records import Batch
from rlcore.workers.packing import Work
from rlcore.workers.rank import TrainedRank


class CriticRank(TrainedRank):
    """Guesses of what each token is still to earn, and their updates. Trained by the settings of `actor`, but for
    those in `critic`."""

    def _read(self, path: str | None, dtype: torch.dtype, weights: bool) -> TokenValue:
        own = self.cfg.critic.path
        key = "model.path" if path is None and own is None else "critic.path"
        return TokenValue(load_value_path(path or own or self.cfg.model.path, key, dtype, weights))

    def value(self, batch: Batch, microbatches: list[list[int]]) -> Tensor:
        """(n,) float32: the value before every masked token of this rank's `batch` under the current weights."""
        return batch_value(self.engine.ds, self._with_rows(batch), microbatches, self.device)

    def _with_rows(self, batch: Batch) -> Batch:
        """The policy's embedding may have been padded to more rows than the critic's. What is there is no token, but
        can be sampled: the critic reads its last row."""
        embedding: Any = self.engine.model.get_input_embeddings()
        return dataclasses.replace(batch, tokens=batch.tokens.clamp(max=embedding.num_embeddings - 1))

    def update(self, minibatches: list[Work], learning_rate: float) -> Stats:
        """One optimizer step for each of `minibatches`, whose `value` and `returns` are filled."""
        return self._learn(minibatches, learning_rate, self._loss)

    def _loss(self, micro: Batch, totals: Totals, stats: Stats) -> Tensor:
        value = self.engine.ds(self._with_rows(micro).tokens, micro.offsets, micro.mask)
        per_token, columns = value_loss(value, micro, self.cfg.critic.clip)
        share = aggregate(per_token, micro, totals, Aggregation.token_mean, 1)
        stats.note(share, micro, columns)
        return share
