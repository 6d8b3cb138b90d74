"""One rank of the policy being trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlcore import config
from rlcore.algo.kl import k3
from rlcore.algo.loss import aggregate, policy_loss
from rlcore.algo.stats import Stats
from rlcore.config import Config
from rlcore.errors import CheckpointError, ConfigError
from rlcore.records import Batch
from rlcore.weights import Sender, WeightInfo
from rlcore.workers import zero
from rlcore.workers.model import batch_logp, load_model, load_path, load_tokenizer, microbatch, model_dtype
from rlcore.workers.packing import Work
from rlcore.workers.shards import ShardWriter, read_shards


class ActorRank:
    """Made cheap; `start` loads. Everything after it is collective: all ranks call the same method at the same time."""

    def __init__(
        self, rank: int, world: int, master_addr: str, master_port: int, cfg: Config, device: str
    ) -> None:  # fmt: skip
        self.rank, self.world, self.address = rank, world, (master_addr, master_port)
        self.cfg, self.kind = cfg, device

    def start(self) -> dict[str, Any]:
        """Join the other ranks, load the model on rank 0, share it out. `{"parameters": n, "dtype": "float32"}`."""
        cfg = self.cfg
        zero.start_process(
            self.rank, self.world, *self.address, self.kind, cfg.actor.ranks, cfg.deadline.update_seconds
        )
        self.device = torch.device("cpu" if self.kind == "cpu" else "cuda")
        return self._load_model(cfg)

    def _load_model(self, cfg: Config) -> dict[str, Any]:
        self.dtype = model_dtype(cfg.model, self.kind)
        model = load_model(cfg.model, self.dtype, weights=self.rank == 0)
        if cfg.actor.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        parameters = sum(p.numel() for p in model.parameters())
        settings = zero.deepspeed_config(cfg.actor, self.dtype, self.kind, parameters)
        try:
            self.engine = zero.Engine(model, settings, zero.adamw(list(model.parameters()), cfg.actor, self.kind))
        except ValueError as e:
            if cfg.actor.deepspeed_args:
                raise ConfigError(f"actor.deepspeed_args: DeepSpeed refuses the resulting configuration: {e}") from e
            raise
        self.loss_fn = policy_loss(cfg.loss)
        return {"parameters": parameters, "dtype": str(self.dtype).removeprefix("torch."), "deepspeed": settings}

    def logp(self, batch: Batch, microbatches: list[list[int]]) -> Tensor:
        """(n,) float32: log-probability of every masked token of this rank's `batch` under the current weights."""
        temperature, chunk = self.cfg.rollout.temperature, self.cfg.actor.logits_chunk_tokens
        return batch_logp(self.engine.ds, batch, microbatches, temperature, chunk, self.device)

    def update(self, minibatches: list[Work], learning_rate: float) -> Stats:
        """One optimizer step for each of `minibatches`. Raises nothing for a bad gradient: it is skipped and counted.

        Where `old_logp` is not filled, it is this update's own forward, so the ratio is 1: right for one update a step.
        """
        old = all(w.batch.old_logp is not None for w in minibatches)
        assert old or len(minibatches) == 1, "several updates a step need batch.old_logp"
        self.engine.set_learning_rate(learning_rate)
        stats = Stats()
        for work in minibatches:
            for i, rollouts in enumerate(work.microbatches):
                micro = microbatch(work.batch, rollouts, self.device)
                self.engine.backward(self._loss(micro, work, stats), last=i == len(work.microbatches) - 1)
            norm = self.engine.step()
            stats.updates += 1
            stats.skipped += norm is None
            stats.grad_norm += norm or 0.0
        return stats

    def _loss(self, micro: Batch, work: Work, stats: Stats) -> Tensor:
        """This micro-batch's share of the loss, and its statistics into `stats`."""
        cfg = self.cfg
        logp, entropy = self.engine.ds(
            micro.tokens, micro.offsets, micro.mask, cfg.rollout.temperature, cfg.actor.logits_chunk_tokens, True
        )  # fmt: skip
        if micro.old_logp is None:
            micro = micro.with_(old_logp=logp.detach())
        assert micro.old_logp is not None
        per_token, extra = self.loss_fn(logp, micro, cfg.loss)
        if micro.ref_logp is not None:
            kl = k3(logp, micro.ref_logp)
            per_token = per_token + cfg.kl.coef * kl
            stats.add("actor/kl", kl.detach(), micro.mask)
        share = aggregate(per_token, micro, work.totals, cfg.loss.aggregation)
        stats.loss += float(share.detach())
        stats.tokens += int(micro.mask.sum())
        stats.add("actor/entropy", entropy, micro.mask)
        stats.add("sync/logp_diff_max", (micro.rollout_logp - micro.old_logp).abs(), micro.mask)
        for name, values in extra.items():
            stats.add(f"actor/{name}", values.detach(), micro.mask)
        return share

    # -- weights out

    def connect(self, engines: Sequence[Any], backend: str, seconds: float, join: Callable[..., Any] | None) -> None:
        """Open the way to the engines; see rlcore/weights.py. `join` is needed for nccl only."""
        self.sender = Sender(backend, list(engines), self.rank, seconds, self.cfg.sync.bucket_mib << 20, join)

    def publish(self, version: int) -> dict[str, float]:
        """Send the weights to every engine as `version`."""
        dtype = str(self.dtype).removeprefix("torch.")
        infos = [WeightInfo(name, shape, dtype) for name, shape in self.engine.shapes()]
        return self.sender.publish(infos, self._gather, version)

    def _gather(self, indices: Sequence[int]) -> AbstractContextManager[list[Tensor]]:
        return self.engine.gathered(indices)

    # -- to disk and back

    def save(self, directory: str) -> None:
        """`model/` in Hugging Face format with the float32 master weights, and Adam's state beside it, both as
        safetensors. Rank 0 writes, holding at most one file of 2 GiB at a time."""
        model, writes = self.engine.model, self.rank == 0
        step = self.engine.adam_step()
        path = Path(directory)
        weights = ShardWriter(path / "model", "model", self._checkpoint_names) if writes else None
        adam = ShardWriter(path, "optimizer") if writes else None
        for i, (name, _) in enumerate(self.engine.shapes()):
            self._add(weights, name, self.engine.read(i))
            for key in zero.ADAM:
                self._add(adam, f"{key}/{name}", self.engine.read(i, key))
        if weights is None or adam is None:
            return
        saved = model.state_dict()
        for name, buffer in model.named_buffers():
            if name in saved:  # the others are made from the config
                weights.add(name, buffer)
        weights.close()
        adam.close()
        (path / "optimizer.json").write_text(json.dumps({"step": step}))
        written = json.loads(model.config.to_json_string(use_diff=False))
        written |= {"dtype": "float32", "use_cache": True}
        written.pop("quantization_config", None)  # of a GGUF file; these weights are not quantized
        (path / "model" / "config.json").write_text(json.dumps(written, indent=1))
        if model.can_generate() and model.generation_config is not None:
            model.generation_config.save_pretrained(path / "model")
        load_tokenizer(self.cfg.model).save_pretrained(path / "model")

    @staticmethod
    def _add(writer: ShardWriter | None, name: str, full: Tensor) -> None:
        if writer is not None:
            writer.add(name, full)

    def _checkpoint_names(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """transformers' own names and shapes of a model's tensors -> those of its checkpoints on disk."""
        from transformers.core_model_loading import revert_weight_conversion

        return revert_weight_conversion(self.engine.model, tensors)

    def load(self, directory: str) -> None:
        """Restore what `save` wrote, to the bit, whatever the number of ranks and the ZeRO stage were then."""
        path, reads = Path(directory), self.rank == 0
        source = dict(load_path(str(path / "model"), torch.float32).named_parameters()) if reads else {}
        for i, (name, shape) in enumerate(self.engine.shapes()):
            self.engine.write(i, self._from_rank_0(source.get(name), shape, name))
        source.clear()
        self.engine.adam_step()
        tensors = read_shards(path, "optimizer") if reads else iter(())
        for i, (name, shape) in enumerate(self.engine.shapes()):
            for key in zero.ADAM:
                found, tensor = next(tensors, (None, None))
                if reads and found != f"{key}/{name}":
                    raise CheckpointError(f"{path}: optimizer state has {found} where {key}/{name} belongs")
                self.engine.write(i, self._from_rank_0(tensor, shape, name), key)
        try:
            self.engine.set_adam_step(int(json.loads((path / "optimizer.json").read_text())["step"]))
        except (OSError, ValueError, KeyError) as e:
            raise CheckpointError(f"{path / 'optimizer.json'}: missing or torn: {e}") from e

    def _from_rank_0(self, tensor: Tensor | None, shape: tuple[int, ...], name: str) -> Tensor:
        if self.rank != 0:
            full = torch.empty(shape, device=self.device)
        elif tensor is None or tuple(tensor.shape) != shape:
            found = None if tensor is None else tuple(tensor.shape)
            raise CheckpointError(f"{name} has shape {shape} in the model and {found} in the checkpoint")
        else:
            full = tensor.detach().to(self.device).contiguous()
        torch.distributed.broadcast(full, 0)
        return full

    # -- taking turns on a device

    def sleep(self) -> None:
        """Leave the GPU to others, if `actor.offload`."""
        if self.cfg.actor.offload:
            self.engine.offload()

    def wake(self) -> None:
        self.engine.reload()

    def fields_read(self) -> set[str]:
        """Config fields this process has read."""
        return config.fields_read()
