"""What the ranks of every role share: a process in a group, a model under DeepSpeed, and its way to disk and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlcore import config
from rlcore.algo.stats import Stats, Totals
from rlcore.config import Config
from rlcore.errors import CheckpointError, ConfigError
from rlcore.models.endings import model_endings
from rlcore.models.load import load_tokenizer, model_dtype
from rlcore.models.logp import TokenLogp, TokenValue, microbatch
from rlcore.models.names import checkpoint_tensors
from rlcore.models.save import save_beside
from rlcore.records import Batch
from rlcore.workers import zero
from rlcore.workers.group import Place
from rlcore.workers.packing import Work
from rlcore.workers.shards import ShardWriter, read_shards

Loss = Callable[[Batch, Totals, Stats], Tensor]  # a micro-batch's share of the loss; statistics go into Stats


class Rank:
    """One process of a role. Made cheap; `start` loads. Everything after it is collective: all ranks of the role call
    the same method at the same time."""

    def __init__(self, place: Place, cfg: Config) -> None:
        self.place, self.cfg = place, cfg

    def start(self) -> dict[str, Any]:
        """Join the other ranks, load the model on rank 0, share it out. `{"parameters": n, "dtype": "float32"}`."""
        at = self.place
        zero.start_process(at.rank, at.world, *at.meeting, at.device, self.cfg.deadline.update_seconds)
        self.device = torch.device("cpu" if self.place.device == "cpu" else "cuda")
        return self._load_model()

    def _load_model(self) -> dict[str, Any]:
        self.dtype = model_dtype(self.cfg.model, self.place.device)
        module = self._read(None, self.dtype, weights=self.place.rank == 0)
        parameters = sum(p.numel() for p in module.parameters())
        settings = self._wrap(module, parameters)
        return {"parameters": parameters, "dtype": str(self.dtype).removeprefix("torch."), "deepspeed": settings}

    def _read(self, path: str | None, dtype: torch.dtype, weights: bool) -> TokenLogp | TokenValue:
        """The role's model from `path` on the CPU; None: the one the run begins with. `weights` as in load_model."""
        raise NotImplementedError

    def _wrap(self, module: TokenLogp | TokenValue, parameters: int) -> dict[str, Any]:
        """Make `self.engine` of the module, without an optimizer; gives DeepSpeed's configuration."""
        module.eval().requires_grad_(False)
        settings = zero.inference_config(self.dtype, self.place.device, parameters)
        self.engine = zero.ZeroModel(module, settings, None)
        return settings

    def _load_weights(self, directory: Path) -> None:
        """The weights of a Hugging Face directory, which rank 0 reads and sends, into every rank's parts."""
        source: Mapping[str, Tensor] = {}
        if self.place.rank == 0:
            try:
                source = dict(self._read(str(directory), torch.float32, weights=True).model.named_parameters())
            except ConfigError as e:
                raise CheckpointError(f"{directory}: {e}") from e
        for i, (name, shape) in enumerate(self.engine.shapes()):
            self.engine.write(i, self._from_rank_0(source.get(name), shape, name))

    def _from_rank_0(self, tensor: Tensor | None, shape: tuple[int, ...], name: str) -> Tensor:
        if self.place.rank != 0:
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
        """Leave the GPU to others."""
        self.engine.offload()

    def wake(self) -> None:
        self.engine.reload()

    def fields_read(self) -> set[str]:
        """Config fields this process has read."""
        return config.fields_read()


class TrainedRank(Rank):
    """A rank whose model learns: AdamW under ZeRO by the settings of `actor`, and checkpoints that hold its state."""

    def _wrap(self, module: TokenLogp | TokenValue, parameters: int) -> dict[str, Any]:
        cfg = self.cfg.actor
        if cfg.gradient_checkpointing:
            module.model.gradient_checkpointing_enable({"use_reentrant": False})
        module.train()
        settings = zero.deepspeed_config(cfg, self.dtype, self.place.device, parameters)
        adam = zero.adamw(list(module.parameters()), cfg, self.place.device)
        try:
            self.engine = zero.ZeroModel(module, settings, adam)
        except ValueError as e:
            if cfg.deepspeed_args:
                raise ConfigError(f"actor.deepspeed_args: DeepSpeed refuses the resulting configuration: {e}") from e
            raise
        return settings

    def _learn(self, minibatches: list[Work], learning_rate: float, loss: Loss) -> Stats:
        """One optimizer step for each of `minibatches`. Raises nothing for a bad gradient: it is skipped and counted.
        So is a minibatch in which no token of any rank carries loss.

        At a learning rate of 0 nothing is learned: there are statistics, but no backward, and neither a weight nor
        Adam's state is touched.
        """
        if learning_rate == 0.0:
            return self._look(minibatches, loss)
        self.engine.set_learning_rate(learning_rate)
        stats = Stats()
        for work in minibatches:
            if not work.totals.tokens:
                stats.empty += 1
                continue
            for i, rollouts in enumerate(work.microbatches):
                share = loss(microbatch(work.batch, rollouts, self.device), work.totals, stats)
                self.engine.backward(share, last=i == len(work.microbatches) - 1)
            norm = self.engine.step()
            stats.updates += 1
            stats.skipped += norm is None
            stats.grad_norm += norm or 0.0
        return stats

    @torch.no_grad()
    def _look(self, minibatches: list[Work], loss: Loss) -> Stats:
        stats = Stats()
        for work in [work for work in minibatches if work.totals.tokens]:
            for rollouts in work.microbatches:
                loss(microbatch(work.batch, rollouts, self.device), work.totals, stats)
            stats.updates += 1
        return stats

    # -- to disk and back

    def save(self, directory: str) -> list[str]:
        """`model/` as `save_weights` writes it, and Adam's state beside it, as safetensors. Rank 0 writes, holding at
        most one file of 2 GiB at a time. Gives what `save_weights` does."""
        path = Path(directory)
        failed = self.save_weights(str(path / "model"))
        step = self.engine.adam_step()
        adam = ShardWriter(path, "optimizer") if self.place.rank == 0 else None
        for i, (name, _) in enumerate(self.engine.shapes()):
            for key in zero.ADAM:
                self._add(adam, f"{key}/{name}", self.engine.read(i, key))
        if adam is not None:
            adam.close()
            (path / "optimizer.json").write_text(json.dumps({"step": step}), encoding="utf-8")
        return failed

    def save_weights(self, directory: str) -> list[str]:
        """The float32 master weights in Hugging Face format, then config and tokenizer: `from_pretrained` loads it.
        What could not be written beside the weights, in words."""
        model, path = self.engine.model, Path(directory)
        weights = ShardWriter(path, "model", self._checkpoint_names) if self.place.rank == 0 else None
        for i, (name, _) in enumerate(self.engine.shapes()):
            self._add(weights, name, self.engine.read(i))
        if weights is None:
            return []
        saved = model.state_dict()
        for name, buffer in model.named_buffers():
            if name in saved:  # the others are made from the config
                weights.add(name, buffer)
        weights.close()
        if model.can_generate() and model.generation_config is not None:
            ids = model_endings(self.cfg, self._tokenizer()).ids
            model.generation_config.eos_token_id = ids[0] if len(ids) == 1 else list(ids)
        return save_beside(path, model, self._tokenizer())

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        """What is saved beside the weights."""
        return load_tokenizer(self.cfg.model)

    @staticmethod
    def _add(writer: ShardWriter | None, name: str, full: Tensor) -> None:
        if writer is not None:
            writer.add(name, full)

    def _checkpoint_names(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """transformers' own names and shapes of a model's tensors -> those of its checkpoints on disk."""
        return checkpoint_tensors(self.engine.model, tensors)

    def load(self, directory: str) -> None:
        """Restore what `save` wrote, to the bit, whatever the number of ranks and the ZeRO stage were then."""
        path, reads = Path(directory), self.place.rank == 0
        self._load_weights(path / "model")
        self.engine.adam_step()
        tensors = read_shards(path, "optimizer") if reads else iter(())
        for i, (name, shape) in enumerate(self.engine.shapes()):
            for key in zero.ADAM:
                found, tensor = next(tensors, (None, None))
                if reads and found != f"{key}/{name}":
                    raise CheckpointError(f"{path}: optimizer state has {found} where {key}/{name} belongs")
                self.engine.write(i, self._from_rank_0(tensor, shape, name), key)
        try:
            self.engine.set_adam_step(int(json.loads((path / "optimizer.json").read_text(encoding="utf-8"))["step"]))
        except (OSError, ValueError, KeyError) as e:
            raise CheckpointError(f"{path / 'optimizer.json'}: missing or torn: {e}") from e

    # -- taking turns on a device

    def sleep(self) -> None:
        """Leave the GPU to others, if `actor.offload`."""
        if self.cfg.actor.offload:
            self.engine.offload()
