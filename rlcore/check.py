"""Every rule about a value, or about several together. Runs in a second, before Ray: no torch, no network.

Each rule is one line of English that names the keys, what they are, and what to do.
"""

from __future__ import annotations

import difflib
import math
from pathlib import Path

from rlcore.config import Config, Placement, SyncBackend, all_keys

_FILE_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".gguf")

_AT_LEAST: dict[str, float] = {
    "steps": 1, "prompts_per_step": 1, "rollouts_per_prompt": 1, "save_every_steps": 0, "keep_checkpoints": 1,
    "data.max_prompt_tokens": 1, "rollout.engines": 1, "rollout.tensor_parallel": 1, "rollout.top_k": 0,
    "rollout.min_response_tokens": 0, "rollout.max_response_tokens": 1, "rollout.max_sequences": 1, "reward.workers": 1,
    "reward.max_failed_fraction": 0, "advantage.epsilon": 0, "loss.clip_low": 0, "loss.clip_high": 0, "kl.coef": 0,
    "actor.ranks": 1, "actor.learning_rate": 0, "actor.warmup_steps": 0, "actor.weight_decay": 0, "actor.beta1": 0,
    "actor.beta2": 0, "actor.max_grad_norm": 0, "actor.epochs_per_step": 1, "actor.minibatches_per_step": 1,
    "actor.microbatch_tokens": 1, "actor.logits_chunk_tokens": 1, "reference.ranks": 1, "sync.bucket_mib": 1,
    "eval.every_steps": 0, "eval.prompts": 0, "eval.temperature": 0, "ray.object_store_mib": 80,
}  # fmt: skip
_ABOVE_ZERO = (
    "rollout.temperature", "rollout.top_p", "rollout.kv_cache_gib", "rollout.device_memory_fraction",
    "reward.timeout_seconds", "actor.adam_epsilon", "deadline.start_seconds", "deadline.rollout_seconds",
    "deadline.update_seconds", "deadline.publish_seconds",
)  # fmt: skip
_AT_MOST: dict[str, float] = {
    "rollout.top_p": 1, "rollout.device_memory_fraction": 1, "reward.max_failed_fraction": 1, "loss.clip_low": 1,
    "actor.beta1": 1, "actor.beta2": 1, "actor.zero_stage": 3,
}  # fmt: skip


def check(cfg: Config) -> list[str]:
    """Every error of a config, in words; empty when it can run."""
    return _ranges(cfg) + _combinations(cfg) + _names(cfg) + _files(cfg)


def value_of(cfg: Config, key: str) -> object:
    """The value at a dotted key."""
    node: object = cfg
    for part in key.split("."):
        node = getattr(node, part)
    return node


def _ranges(cfg: Config) -> list[str]:
    def number(key: str) -> float:
        value = value_of(cfg, key)
        assert isinstance(value, (int, float))
        return value

    keys = [k for k, v in ((k, value_of(cfg, k)) for k in all_keys()) if isinstance(v, float) and not math.isfinite(v)]
    if keys:
        return [f"{k} is {number(k)}; it must be a finite number" for k in keys]
    errors = [f"{k} is {number(k)}; it must be at least {m:g}" for k, m in _AT_LEAST.items() if number(k) < m]
    errors += [f"{k} is {number(k)}; it must be above 0" for k in _ABOVE_ZERO if number(k) <= 0]
    errors += [f"{k} is {number(k)}; it can be at most {m:g}" for k, m in _AT_MOST.items() if number(k) > m]
    if cfg.actor.zero_stage < 0:
        errors.append(f"actor.zero_stage is {cfg.actor.zero_stage}; it must be 0, 1, 2 or 3")
    return errors


def _combinations(cfg: Config) -> list[str]:
    r, errors = cfg.rollout, []
    if (r.top_p < 1 or r.top_k > 0 or r.min_response_tokens > 0) and r.temperature != 1:
        errors.append(
            f"rollout.temperature is {r.temperature} with top_p {r.top_p}, top_k {r.top_k}, min_response_tokens "
            f"{r.min_response_tokens}: when tokens are ruled out, the engine's log-probabilities can be compared with "
            "the trainer's only at temperature 1"
        )
    if cfg.ray.address is None and 3 * cfg.sync.bucket_mib > cfg.ray.object_store_mib:
        errors.append(
            f"sync.bucket_mib {cfg.sync.bucket_mib} is over a third of ray.object_store_mib "
            f"{cfg.ray.object_store_mib}: two buckets and a step's batch are in it at a time"
        )
    if r.min_response_tokens > r.max_response_tokens:
        errors.append(
            f"rollout.min_response_tokens {r.min_response_tokens} is above max_response_tokens {r.max_response_tokens}"
        )
    sft = cfg.loss.name == "sft"
    if sft and (cfg.actor.minibatches_per_step, cfg.actor.epochs_per_step, cfg.kl.coef, r.temperature) != (1, 1, 0, 1):
        errors.append(
            "loss.name is sft: one update of prompts_per_step rows a step, no reference, temperature 1; leave "
            "actor.minibatches_per_step, actor.epochs_per_step, kl.coef and rollout.temperature alone"
        )
    if not sft and not cfg.reward.fns:
        errors.append("reward.fns is empty: name at least one reward, e.g. reward.fns=[gsm8k] or FILE.py:function")
    if cfg.reward.weights and len(cfg.reward.weights) != len(cfg.reward.fns):
        errors.append(f"reward.weights has {len(cfg.reward.weights)} entries for {len(cfg.reward.fns)} reward.fns")
    if not sft and cfg.advantage.name == "grpo" and cfg.rollouts_per_prompt == 1:
        errors.append(
            "rollouts_per_prompt is 1 with advantage.name grpo: a group of one has advantage 0, so nothing would be "
            "learned; use 2 or more"
        )
    rollouts = cfg.prompts_per_step * cfg.rollouts_per_prompt
    if rollouts < cfg.actor.minibatches_per_step * cfg.actor.ranks:
        errors.append(
            f"a step has {rollouts} rollouts (prompts_per_step x rollouts_per_prompt), too few for "
            f"actor.minibatches_per_step {cfg.actor.minibatches_per_step} on actor.ranks {cfg.actor.ranks}"
        )
    split = cfg.placement.mode == Placement.split
    if cfg.sync.backend == SyncBackend.ipc and split:
        errors.append("sync.backend is ipc with placement.mode split: ipc needs shared devices; use nccl or auto")
    if cfg.sync.backend == SyncBackend.nccl and not split:
        errors.append(
            "sync.backend is nccl with placement.mode colocated: nccl needs a device a process; use ipc or auto"
        )
    return errors


def _names(cfg: Config) -> list[str]:
    """Names of built-in functions, against their modules' source: importing them would cost torch."""
    errors = []
    for key, module, name in [
        ("advantage.name", "algo/advantage.py", cfg.advantage.name),
        ("loss.name", "algo/loss.py", cfg.loss.name),
        *(("reward.fns", "../rewards/__init__.py", fn) for fn in cfg.reward.fns),
    ]:
        known = _builtin_names(Path(__file__).parent / module)
        if ":" in name:
            file, _, function = name.rpartition(":")
            errors += _function_in(key, file, function)
        elif "." not in name and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            errors.append(f"{key}: no built-in {name!r}{hint} Built in: {', '.join(known)}; or FILE.py:function")
    sinks = ("wandb", "tensorboard")
    errors += [
        f"tracker.sinks: no sink {s!r}; there are: {', '.join(sinks)}" for s in cfg.tracker.sinks if s not in sinks
    ]
    return errors


def _builtin_names(module: Path) -> list[str]:
    """The keys of the dict literal BUILTIN in a source file."""
    import ast

    for node in ast.parse(module.read_text()).body:
        target = (
            node.target
            if isinstance(node, ast.AnnAssign)
            else node.targets[0]
            if isinstance(node, ast.Assign)
            else None
        )
        if (
            isinstance(target, ast.Name)
            and target.id == "BUILTIN"
            and isinstance(getattr(node, "value", None), ast.Dict)
        ):
            return [k.value for k in node.value.keys if isinstance(k, ast.Constant)]  # type: ignore[union-attr]
    raise AssertionError(f"{module} has no dict literal BUILTIN")


def _function_in(key: str, file: str, function: str) -> list[str]:
    import ast

    path = Path(file)
    if not path.is_file():
        return [f"{key}: no file {file} (looked for {path.resolve()})"]
    try:
        tree = ast.parse(path.read_text())
    except SyntaxError as e:
        return [f"{key}: {file} line {e.lineno}: {e.msg}"]
    names = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
    names += [t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)]
    names += [a.asname or a.name for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names]
    if function in names:
        return []
    close = difflib.get_close_matches(function, names, n=1)
    return [f"{key}: {file} has no function {function!r}{'; did you mean ' + close[0] + '?' if close else ''}"]


def _files(cfg: Config) -> list[str]:
    errors = []
    for key, source in [("data.train", cfg.data.train), *(("data.eval", s) for s in cfg.data.eval)]:
        if source.endswith(_FILE_SUFFIXES) and not Path(source).is_file():
            errors.append(f"{key}: no file {source} (looked for {Path(source).resolve()})")
    path = cfg.model.path
    local = path.endswith(".gguf") or path.startswith(("/", "./", "../", "~"))
    if local and not Path(path).expanduser().exists():
        errors.append(f"model.path: nothing at {path}; give a directory, a GGUF file or a hub id (owner/name)")
    elif not local and path not in ("", "demo") and "/" not in path and not Path(path).exists():
        errors.append(f"model.path: no directory {path}, and a hub id has an owner: owner/name")
    if cfg.run_dir and (Path(cfg.run_dir) / "metrics.jsonl").exists():
        errors.append(
            f"run_dir: {cfg.run_dir} already holds a run; `rlcore resume {cfg.run_dir}` continues it, or choose another"
        )
    return errors
