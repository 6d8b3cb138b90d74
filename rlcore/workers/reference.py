"""One rank of the reference: the policy as it was at the start, for the KL. Its parameters are shared out by ZeRO-3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlcore import config
from rlcore.config import Config
from rlcore.records import Batch
from rlcore.workers import zero
from rlcore.workers.model import batch_logp, load_model, model_dtype


class ReferenceRank:
    """Made cheap; `start` loads. Everything after it is collective: all ranks call the same method at the same time."""

    def __init__(
        self, rank: int, world: int, master_addr: str, master_port: int, cfg: Config, device: str
    ) -> None:  # fmt: skip
        self.rank, self.world, self.address = rank, world, (master_addr, master_port)
        self.cfg, self.kind = cfg, device

    def start(self) -> dict[str, Any]:
        """Join the other ranks, load the model on rank 0, share it out. `{"parameters": n, "dtype": "float32"}`."""
        cfg = self.cfg
        ranks, seconds = cfg.reference.ranks, cfg.deadline.update_seconds
        zero.start_process(self.rank, self.world, *self.address, self.kind, ranks, seconds)
        self.device = torch.device("cpu" if self.kind == "cpu" else "cuda")
        dtype = model_dtype(cfg.model, self.kind)
        model = load_model(cfg.model, dtype, weights=self.rank == 0).eval().requires_grad_(False)
        parameters = sum(p.numel() for p in model.parameters())
        self.engine = zero.Engine(model, zero.inference_config(dtype, self.kind, parameters), None)
        return {"parameters": parameters, "dtype": str(dtype).removeprefix("torch.")}

    def logp(self, batch: Batch, microbatches: list[list[int]]) -> Tensor:
        """(n,) float32: log-probability of every masked token of this rank's `batch`."""
        temperature, chunk = self.cfg.rollout.temperature, self.cfg.actor.logits_chunk_tokens
        return batch_logp(self.engine.ds, batch, microbatches, temperature, chunk, self.device)

    def sleep(self) -> None:
        """Leave the GPU to others."""
        self.engine.offload()

    def wake(self) -> None:
        self.engine.reload()

    def fields_read(self) -> set[str]:
        """Config fields this process has read."""
        return config.fields_read()
