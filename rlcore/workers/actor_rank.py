"""One rank of the policy being trained."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from rlcore.algo.loss import aggregate, policy_loss
from rlcore.algo.objective import objective
from rlcore.algo.stats import Stats, Totals
from rlcore.models.load import load_path
from rlcore.models.logp import TokenLogp, batch_logp
from rlcore.records import Batch
from rlcore.weights import WeightInfo
from rlcore.workers.packing import Work
from rlcore.workers.rank import TrainedRank
from rlcore.workers.sender import Sender


class ActorRank(TrainedRank):
    """The policy: log-probabilities, updates, weights out, checkpoints."""

    def _load_model(self) -> dict[str, Any]:
        self.loss_fn = policy_loss(self.cfg.loss)
        return super()._load_model()

    def _read(self, path: str | None, dtype: torch.dtype, weights: bool) -> TokenLogp:
        return TokenLogp(load_path(path or self.cfg.model.path, dtype, weights))

    def logp(self, batch: Batch, microbatches: list[list[int]]) -> Tensor:
        """(n,) float32: log-probability of every masked token of this rank's `batch` under the current weights."""
        temperature, chunk = self.cfg.rollout.temperature, self.cfg.actor.logits_chunk_tokens
        return batch_logp(self.engine.ds, batch, microbatches, temperature, chunk, self.device)

    def update(self, minibatches: list[Work], learning_rate: float, kl_coef: float) -> Stats:
        """One optimizer step for each of `minibatches`; see TrainedRank for a rate of 0 and for bad gradients.

        Where `old_logp` is not filled, it is this update's own forward, so the ratio is 1: right for one update a step.
        """
        old = all(w.batch.old_logp is not None for w in minibatches)
        assert old or len(minibatches) == 1, "several updates a step need batch.old_logp"
        return self._learn(minibatches, learning_rate, functools.partial(self._loss, kl_coef))

    def _loss(self, kl_coef: float, micro: Batch, totals: Totals, stats: Stats) -> Tensor:
        cfg = self.cfg
        temperature, chunk = cfg.rollout.temperature, cfg.actor.logits_chunk_tokens
        logp, entropy = self.engine.ds(micro.tokens, micro.offsets, micro.mask, temperature, chunk, True, micro.allowed)
        if micro.old_logp is None:
            micro = micro.with_(old_logp=logp.detach())
        per_token, columns = objective(logp, entropy, micro, self.loss_fn, cfg, kl_coef)
        length = cfg.loss.length_constant or cfg.rollout.max_response_tokens
        share = aggregate(per_token, micro, totals, cfg.loss.aggregation, length)
        stats.note(share, micro, columns)
        return share

    # -- weights out

    def connect(self, engines: Sequence[Any], backend: str, seconds: float, join: Callable[..., Any] | None) -> None:
        """Open the way to the engines; see sender.py. `join` is needed for nccl only."""
        self.sender = Sender(backend, list(engines), self.place.rank, seconds, self.cfg.sync.bucket_mib << 20, join)

    def publish(self, version: int) -> dict[str, float]:
        """Send the weights to every engine as `version`."""
        dtype = str(self.dtype).removeprefix("torch.")
        infos = [WeightInfo(name, shape, dtype) for name, shape in self.engine.shapes()]
        return self.sender.publish(infos, self._gather, version, self._checkpoint_names)

    def _gather(self, indices: Sequence[int]) -> AbstractContextManager[list[Tensor]]:
        return self.engine.gathered(indices)
