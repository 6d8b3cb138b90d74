"""DeepSpeed: its configuration, its process group, and the whole of a parameter that it keeps in parts.

DeepSpeed is imported inside functions: its accelerator is chosen by an environment variable at import, and the driver,
which imports the ranks' classes, does not need it.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from rlcore.config import ActorConfig
from rlcore.errors import ConfigError
from rlcore.models.logp import TokenLogp, TokenValue

ADAM = ("exp_avg", "exp_avg_sq")


def start_process(rank: int, world: int, address: str, port: int, device: str, seconds: float) -> None:
    """Join the process group of this role (gloo on cpu, nccl on cuda). A collective that waits longer than `seconds`
    for another rank raises. On a CPU the `world` processes of the role share the host's cores."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0")
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    os.environ["DS_ACCELERATOR"] = "cpu" if device == "cpu" else "cuda"
    import deepspeed
    import deepspeed.ops
    import transformers

    # Else it compiles a shared-memory all-reduce at start (minutes, a compiler, and a lock file that a killed process
    # leaves behind for the next one to wait on for ever). gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed's use of collectives that torch has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    if device == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world))
    backend = "gloo" if device == "cpu" else "nccl"
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, timeout=timedelta(seconds=seconds))


def deepspeed_config(cfg: ActorConfig, dtype: torch.dtype, device: str, parameters: int) -> dict[str, Any]:
    """What `deepspeed.initialize` gets; `actor.deepspeed_args` is merged last, nested sections key by key.

    One micro-batch is one `backward`, and the caller says which is the last, so accumulation steps are 1 here.
    """
    if cfg.zero_stage == 0 and dtype is torch.bfloat16:
        raise ConfigError("actor.zero_stage: 0 has no float32 master weights in bfloat16; use 1 or model.dtype=float32")
    # DeepSpeed's defaults allocate buckets of 5e8 numbers whatever the model's size.
    bucket = max(1, min(parameters, 200_000_000 if device != "cpu" else 20_000_000))
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": cfg.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": cfg.zero_stage,
            "overlap_comm": device != "cpu",
            "contiguous_gradients": True,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_prefetch_bucket_size": bucket,
        },
    }
    if dtype is torch.bfloat16:
        config["bf16"] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return _merged(config, cfg.deepspeed_args)


def inference_config(dtype: torch.dtype, device: str, parameters: int) -> dict[str, Any]:
    """ZeRO-3 without an optimizer: parameters in parts, gathered as a forward needs them."""
    cfg = ActorConfig(zero_stage=3)
    return deepspeed_config(cfg, dtype, device, parameters)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {k: v for k, v in over.items() if isinstance(v, dict) and isinstance(base.get(k), dict)}
    return base | over | {k: _merged(base[k], v) for k, v in both.items()}


def adamw(parameters: Sequence[torch.nn.Parameter], cfg: ActorConfig, device: str) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101); weight decay falls on every parameter. The learning rate is set at each update."""
    return torch.optim.AdamW(
        parameters,
        lr=cfg.learning_rate,
        betas=(cfg.beta1, cfg.beta2),
        eps=cfg.adam_epsilon,
        weight_decay=cfg.weight_decay,
        fused=device != "cpu",
    )


class ZeroModel:
    """A module and its model under DeepSpeed, any ZeRO stage: forward, backward, step, full tensors by parameter.

    Every method that gathers is collective: all ranks call it, in the same order.
    """

    def __init__(
        self, module: TokenLogp | TokenValue, config: dict[str, Any], optimizer: torch.optim.AdamW | None
    ) -> None:
        import deepspeed

        made = deepspeed.initialize(model=module, optimizer=optimizer, config=config, dist_init_required=False)
        self.ds: Any = made[0]
        self.model = model = module.model
        self.stage: int = int(config["zero_optimization"]["stage"])
        self.adam = optimizer
        self.parameters = list(model.named_parameters())
        self._asleep: list[tuple[Tensor, torch.device]] = []
        # DeepSpeed gives every rank rank 0's parameters; buffers are left to us.
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)

    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """(name, full shape) of every parameter; a tied one appears once."""
        return [(n, tuple(getattr(p, "ds_shape", p.shape))) for n, p in self.parameters]

    @contextmanager
    def gathered(self, indices: Sequence[int]) -> Iterator[list[Tensor]]:
        """The full tensors of these parameters, in the forward's dtype, on every rank; valid inside the context."""
        chosen = [self.parameters[i][1] for i in indices]
        if self.stage < 3:
            yield [p.data for p in chosen]
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(chosen):
            yield [p.data for p in chosen]

    # -- updates

    def set_learning_rate(self, rate: float) -> None:
        assert self.adam is not None
        for group in self.ds.optimizer.param_groups:
            group["lr"] = rate

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of `loss`, summed over ranks; `last` says that `step` comes next."""
        self.ds.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks; our losses are shares of one sum.
        self.ds.backward(loss * torch.distributed.get_world_size(), scale_wrt_gas=False)

    def step(self) -> float | None:
        """One AdamW update. The gradient norm before clipping, or None if it is not finite: then nothing changed."""
        plain = self.stage == 0
        if plain:
            # The bare optimizer: DeepSpeed checks nothing and keeps no norm.
            grads = [p.grad for _, p in self.parameters if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(grads))
            if not math.isfinite(norm):
                self.ds.zero_grad()
                return None
        self.ds.step()
        if not self.ds.was_step_applied():
            return None
        return norm if plain else float(self.ds.get_global_grad_norm())

    # -- float32 master weights and optimizer state, one parameter at a time

    def read(self, index: int, key: str | None = None) -> Tensor:
        """The full float32 master weight of a parameter, or its Adam state `key`, on every rank."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        parameter = self.parameters[index][1]
        if self.stage == 0:
            assert self.adam is not None
            return parameter.data if key is None else self.adam.state[parameter][key]
        full = safe_get_full_fp32_param(parameter) if key is None else safe_get_full_optimizer_state(parameter, key)
        assert full is not None
        return full

    def write(self, index: int, value: Tensor, key: str | None = None) -> None:
        """Set what `read` gives; of a weight, the forward's copy too, which is all there is without an optimizer.
        `value` is full and the same on every rank."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        parameter = self.parameters[index][1]
        if key is not None:
            if self.stage == 0:
                assert self.adam is not None
                self.adam.state[parameter][key].copy_(value)
            else:
                safe_set_full_optimizer_state(parameter, value, key)
            return
        if self.stage > 0 and self.adam is not None:
            safe_set_full_fp32_param(parameter, value)
        with torch.no_grad(), self._writable(parameter):
            parameter.data.copy_(value)

    @contextmanager
    def _writable(self, parameter: torch.nn.Parameter) -> Iterator[None]:
        if self.stage < 3:
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            yield

    def _master(self) -> list[Tensor]:
        """The tensors AdamW really updates: this rank's flat float32 parts, or in stage 0 the parameters."""
        optimizer = self.ds.optimizer
        for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
            if hasattr(optimizer, name):
                return list(getattr(optimizer, name))
        return [p for _, p in self.parameters]

    def adam_step(self) -> int:
        """Updates AdamW has counted. Makes its state where there is none yet, so that it can be read or written."""
        assert self.adam is not None
        steps = 0
        for tensor in self._master():
            state = self.adam.state[tensor]
            if not state:
                state["step"] = torch.zeros((), device=tensor.device if tensor.is_cuda else "cpu")
                state.update({k: torch.zeros_like(tensor, requires_grad=False) for k in ADAM})
            steps = int(state["step"])
        if hasattr(self.ds.optimizer, "_lazy_init_hp_params_optimizer_state"):
            self.ds.optimizer._lazy_init_hp_params_optimizer_state()
        return steps

    def set_adam_step(self, step: int) -> None:
        assert self.adam is not None
        for tensor in self._master():
            self.adam.state[tensor]["step"].fill_(step)

    # -- sharing a GPU

    def offload(self) -> None:
        """What this rank keeps on a GPU goes to the host; nothing but `reload` may follow. No-op on CPU."""
        if self._asleep or not torch.cuda.is_available() or self.parameters[0][1].device.type == "cpu":
            return
        if hasattr(self.ds.optimizer, "offload_states"):
            from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as State

            # In ZeRO-3 DeepSpeed moves master weights and Adam state only of its own FusedAdam; `_ours` are moved here.
            parts = [State.lp_params, State.lp_grads, State.contiguous_grad_buffer]
            self.ds.offload_states(include=parts if self.stage == 3 else None)
        for tensor in self._ours():
            self._asleep.append((tensor, tensor.device))
            tensor.data = tensor.data.to("cpu")
        torch.cuda.empty_cache()

    def reload(self) -> None:
        """Undo `offload`."""
        if not self._asleep:
            return
        for tensor, device in self._asleep:
            tensor.data = tensor.data.to(device)
        self._asleep.clear()
        if hasattr(self.ds.optimizer, "reload_states"):
            self.ds.reload_states()

    def _ours(self) -> list[Tensor]:
        """The GPU tensors that DeepSpeed's own offload does not move."""
        if self.adam is None or self.stage == 0:
            held = [t for _, p in self.parameters for t in (p, getattr(p, "ds_tensor", None)) if t is not None]
        else:
            held = self._master() if self.stage == 3 else []
        if self.adam is not None:
            held += [v for t in self._master() for v in self.adam.state[t].values()]
        return [t for t in held if t.device.type != "cpu" and t.numel()]
