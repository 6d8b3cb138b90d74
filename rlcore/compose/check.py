"""Every rule about a value, or about several together. Runs in a second, before Ray: no torch, no network.

Each rule is one line of English that names the keys, what they are, and what to do.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from rewards import REWARD_MODEL, names
from rlcore.algo import ADVANTAGES
from rlcore.compose.function_names import built_in, wrong_name
from rlcore.compose.ranges import out_of_range
from rlcore.compose.stages import stage_of
from rlcore.config import (
    Aggregation,
    Config,
    Correction,
    Device,
    KLEstimator,
    KLPlace,
    Placement,
    SyncBackend,
    ruled_out,
)
from rlcore.data.sources import source_names
from rlcore.errors import nearest
from rlcore.models.embedded import EMBEDDED

_FILE_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".gguf")
_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dri", "/dev/dxg")  # one is there where a GPU can be used

# Built-in functions with a time limit of their own: the option and its default, in seconds.
_OWN_LIMITS = {
    "code": ("timeout_seconds", 6.0),
    "judge": ("request_timeout_seconds", 60.0),
    "remote": ("request_timeout_seconds", 60.0),
}
_ANOTHER = "samples would come from another distribution than the trainer's"
# Of vLLM's EngineArgs, what training depends on.
_NOT_VLLMS = {
    "logits_processors": _ANOTHER,
    "watermark_config": _ANOTHER,
    "diffusion_config": _ANOTHER,
    "logprobs_mode": "the trainer compares with the probabilities that were sampled from",
    "return_sampling_mask": "rollout.top_p, top_k and min_response_tokens decide it",
}
# Advantages that compare the rollouts of one prompt: they need several.
_OF_A_GROUP = ("grpo", "rloo", "opo", "gpg", "reinforce_plus_plus_baseline")


def check(cfg: Config) -> list[str]:
    """Every error of a config, in words; empty when it can run."""
    stage = stage_of(cfg.loss.name)
    rules = [out_of_range, stage.unmet, _texts, _sampling, _rewards, _sizes, _best, _placement, _names, _files]
    rules += [_choices, _advantage, _loss, _updates, _kl, _critic] if stage.loss is None else []
    return [error for rule in rules for error in rule(cfg)]


def _texts(cfg: Config) -> list[str]:
    r"""No text for the model has a control code that "\boxed" or "\frac" in YAML's double quotes stands for."""
    texts = [("data.prompt_template", cfg.data.prompt_template), ("data.system_prompt", cfg.data.system_prompt or "")]
    texts += [("rollout.stop", text) for text in cfg.rollout.stop]
    return [
        f"{key} has the control code {found[0]!r} before {text[found.end() :][:12]!r}: in YAML's double quotes a "
        "backslash is written twice (\\boxed), in single quotes and on the command line once"
        for key, text in texts
        if (found := re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x85]|\r(?!\n)", text)) is not None
    ]


def _sampling(cfg: Config) -> list[str]:
    r, errors = cfg.rollout, []
    if r.min_response_tokens > r.max_response_tokens:
        errors.append(
            f"rollout.min_response_tokens {r.min_response_tokens} is above max_response_tokens {r.max_response_tokens}"
        )
    if r.dynamic_draws > 0 and cfg.rollouts_per_prompt == 1:
        errors.append(
            f"rollout.dynamic_draws is {r.dynamic_draws:g} with rollouts_per_prompt 1: a group of one never has "
            "rewards that differ, so no draw would count; use 2 or more, or rollout.dynamic_draws=0"
        )
    if not r.train_truncated and cfg.kl.coef > 0 and cfg.kl.place == KLPlace.reward:
        errors.append(
            "rollout.train_truncated is false with kl.place reward: what leaves the loss has no log-probabilities, so "
            "its outcome would lack the KL that the others' have; set it to true, or kl.place=loss"
        )
    return errors


def unknown_choice(cfg: Config, device: str) -> list[str]:
    """Why the trainer could not know which tokens a training sample's were chosen from, on this device."""
    keys = ruled_out(cfg.rollout)
    if stage_of(cfg.loss.name).loss is not None or not keys:
        return []
    shown = ", ".join(f"{key} {value:g}" for key, value in keys.items())
    if device == "cpu":
        off = ", ".join(f"{key}={1 if key == 'rollout.top_p' else 0}" for key in keys)
        return [
            f"{shown} on CPU: the engine does not say there which tokens were left to choose from, so the trainer's "
            f"probabilities would be of another distribution than the samples; set {off} (eval.top_p and eval.top_k "
            "are for evaluation), or use GPUs"
        ]
    errors = []
    if cfg.rollout.top_k == 0:
        errors.append(
            f"{shown} with rollout.top_k 0: the engine says of each token which ones it was chosen from, and top_k is "
            "what bounds them; set rollout.top_k, e.g. to 512"
        )
    if cfg.data.eval and cfg.eval.temperature > 0 and cfg.eval.top_k == 0:
        errors.append(
            f"eval.top_k is 0 with {shown} and eval.temperature {cfg.eval.temperature:g}: an engine that says which "
            "tokens were left to choose from does so in an evaluation too; set eval.top_k, or eval.temperature=0"
        )
    return errors


def _choices(cfg: Config) -> list[str]:
    """What a token is chosen from: known to the trainer, and not changed behind its back."""
    return unknown_choice(cfg, "cpu" if _on_cpu(cfg) else "gpu") + [
        f"rollout.vllm_args.{name}: {why}; leave it out"
        for name, why in _NOT_VLLMS.items()
        if name in cfg.rollout.vllm_args
    ]


def _on_cpu(cfg: Config) -> bool:
    """Whether that is known before there is a Ray to ask. A local one finds the GPUs of this machine."""
    if cfg.placement.device != Device.auto:
        return cfg.placement.device == Device.cpu
    return cfg.ray.address is None and not any(Path(file).exists() for file in _GPU_FILES)


def _rewards(cfg: Config) -> list[str]:
    r, errors = cfg.reward, []
    if stage_of(cfg.loss.name).loss is None and not r.fns:
        errors.append("reward.fns is empty: name at least one reward, e.g. reward.fns=[gsm8k] or FILE.py:function")
    if r.weights and len(r.weights) != len(r.fns):
        errors.append(f"reward.weights has {len(r.weights)} entries for {len(r.fns)} reward.fns")
    named = names(r.fns)
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        errors.append(f"reward.fns names {', '.join(twice)} twice; name it once and set its reward.weights")
    if r.clip and not (len(r.clip) == 2 and r.clip[0] < r.clip[1]):
        errors.append(f"reward.clip is {list(r.clip)}; write [low, high] with low below high, or [] for no limits")
    return errors + _named_functions(cfg, named) + _deadlines(cfg) + _reward_model(cfg)


def _named_functions(cfg: Config, named: list[str]) -> list[str]:
    """Where other keys name functions, they are those of reward.fns, by the names they have in the metrics."""
    r, errors = cfg.reward, []
    mentioned = {"reward.gate": list(r.gate), "reward.args": list(r.args)}
    for source, listed in r.sources.items():
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            errors.append(f"reward.sources.{source} is {listed!r}; it must be a list of functions of reward.fns")
            continue
        mentioned[f"reward.sources.{source}"] = listed
    for key, listed in mentioned.items():
        for name in listed:
            if name not in named:
                known = ", ".join(named) or "none"
                errors.append(f"{key}: no {name} in reward.fns{nearest(name, named)}; they are called {known}")
    for name, options in r.args.items():
        if not isinstance(options, dict):
            errors.append(f"reward.args.{name} is {options!r}; it must be a mapping of options: {{option: value}}")
    if r.gate and set(named) <= set(r.gate):
        errors.append("reward.gate has all of reward.fns: nothing is behind it; leave it empty, or add a function")
    return errors


def _deadlines(cfg: Config) -> list[str]:
    """A function with a time limit of its own must come to it before the sample is given up."""
    r, errors = cfg.reward, []
    for name, (option, default) in _OWN_LIMITS.items():
        options = r.args.get(name)
        limit = options.get(option, default) if isinstance(options, dict) else default
        if name in r.fns and isinstance(limit, (int, float)) and limit >= r.timeout_seconds:
            errors.append(
                f"reward.args.{name}.{option} is {limit:g} with reward.timeout_seconds {r.timeout_seconds:g}: the "
                f"sample would be given up before {name} is; set reward.timeout_seconds above it, or {option} lower"
            )
    return errors


def _reward_model(cfg: Config) -> list[str]:
    used, path = REWARD_MODEL in cfg.reward.fns, cfg.reward_model.path
    if used and path is None:
        return ["reward.fns has reward_model with reward_model.path null; set it to a sequence-classification model"]
    return _model("reward_model.path", path) if used and path is not None else []


def _sizes(cfg: Config) -> list[str]:
    sampled = stage_of(cfg.loss.name).loss is None
    rollouts = cfg.prompts_per_step * (cfg.rollouts_per_prompt if sampled else 1)
    of = "rollouts (prompts_per_step x rollouts_per_prompt)" if sampled else "rows (prompts_per_step)"
    parts = cfg.actor.minibatches_per_step
    return [
        f"a step has {rollouts} {of}, too few for actor.minibatches_per_step {parts} on {role}.ranks {ranks}"
        for role, ranks in (("actor", cfg.actor.ranks), ("critic", cfg.critic.ranks))
        if rollouts < parts * ranks
    ]


def _best(cfg: Config) -> list[str]:
    """Whether keep_best can name a number of an evaluation; which ones there are is known after the first."""
    best = cfg.keep_best
    if best is None:
        return []
    if not cfg.data.eval:
        return [f"keep_best is {best} with data.eval []: there is no evaluation; set data.eval, or keep_best=null"]
    if best.endswith(("/failed_fraction", "/tokens_mean")):
        return [f"keep_best is {best}, which does not say how good a model is; name a loss, an accuracy or a margin"]
    named = source_names(cfg.data.eval)
    if any(best.startswith(f"eval/{name}/") for name in named):
        return []
    return [f"keep_best is {best}; it must be eval/NAME/... of one of the sources {', '.join(named)}"]


def _advantage(cfg: Config) -> list[str]:
    """What the advantage function needs, and what is made for nothing when it is a built-in one that reads it not."""
    name, errors = cfg.advantage.name, []
    builtin = name in built_in("advantage.name")
    if name in _OF_A_GROUP and cfg.rollouts_per_prompt == 1:
        errors.append(
            f"rollouts_per_prompt is 1 with advantage.name {name}: a group of one has advantage 0, so nothing would be "
            "learned; use 2 or more"
        )
    if builtin and name not in _OF_A_GROUP and cfg.rollout.dynamic_draws > 0:
        errors.append(
            f"rollout.dynamic_draws is {cfg.rollout.dynamic_draws:g} with advantage.name {name}, which does not "
            "compare the rollouts of a group: one of equal rewards teaches too, and would be left out; use "
            f"rollout.dynamic_draws=0, or an advantage of a group ({', '.join(_OF_A_GROUP)})"
        )
    if name == "gae" and cfg.critic.ranks == 0:
        errors.append(
            "advantage.name is gae with critic.ranks 0: it needs a critic's values; set critic.ranks, as algorithm=ppo "
            "does"
        )
    if builtin and name != "gae" and cfg.critic.ranks > 0:
        errors.append(
            f"critic.ranks is {cfg.critic.ranks} with advantage.name {name}, which uses no values; set critic.ranks=0, "
            "or advantage.name=gae"
        )
    greedy = cfg.rollout.greedy_baseline
    if name == "remax" and not greedy:
        errors.append(
            "advantage.name is remax with rollout.greedy_baseline false: the greedy answer's reward is its baseline; "
            "set rollout.greedy_baseline=true, as algorithm=remax does"
        )
    if builtin and name != "remax" and greedy:
        errors.append(
            f"rollout.greedy_baseline is true with advantage.name {name}, which does not use it: the greedy answers "
            "would be drawn for nothing; set it to false, or advantage.name=remax"
        )
    return errors


def _loss(cfg: Config) -> list[str]:
    loss, how, errors = cfg.loss, cfg.loss.aggregation, []
    builtin = loss.name in built_in("loss.name")
    if loss.length_constant is not None and how != Aggregation.constant_length:
        errors.append(
            f"loss.length_constant is {loss.length_constant} with loss.aggregation {how.value}, which does not divide "
            "by it; leave it out, or set loss.aggregation=constant_length"
        )
    if builtin and loss.name != "ppo_clip" and loss.dual_clip > 0:
        errors.append(
            f"loss.dual_clip is {loss.dual_clip:g} with loss.name {loss.name}: it is a limit of ppo_clip's; set it to 0"
        )
    if loss.name == "gspo" and how != Aggregation.sequence_mean:
        errors.append(
            f"loss.name is gspo with loss.aggregation {how.value}: its objective is the mean over sequences; set "
            "loss.aggregation=sequence_mean, as algorithm=gspo does"
        )
    if loss.name == "gspo" and cfg.correction.name in (Correction.truncate_token, Correction.mask_token):
        errors.append(
            f"loss.name is gspo with correction.name {cfg.correction.name.value}: its ratio is a whole sequence's, and "
            "a weight a token would undo that; use truncate_sequence, reject_sequence or none"
        )
    return errors


def _updates(cfg: Config) -> list[str]:
    minibatches, epochs = cfg.actor.minibatches_per_step, cfg.actor.epochs_per_step
    if cfg.loss.name != "policy_gradient" or minibatches * epochs == 1:
        return []
    return [
        f"loss.name is policy_gradient with actor.minibatches_per_step {minibatches} and actor.epochs_per_step "
        f"{epochs}: it has no ratio, so only the first update of a step is right; make it one, or loss.name=ppo_clip"
    ]


def _kl(cfg: Config) -> list[str]:
    kl, errors = cfg.kl, []
    if kl.coef == 0:  # kl.place alone asks for nothing: an algorithm's KL is left out by kl.coef=0
        place = "kl.place is reward and " if kl.place == KLPlace.reward else ""
        none = "with kl.coef 0: there is no reference model; set kl.coef above 0, or"
        if kl.target is not None:
            errors.append(f"{place}kl.target is {kl.target:g} {none} kl.target=null")
        if cfg.reference.refresh_steps > 0:
            errors.append(f"reference.refresh_steps is {cfg.reference.refresh_steps} {none} reference.refresh_steps=0")
        return errors
    in_loss = kl.place == KLPlace.loss
    if not in_loss and cfg.advantage.name in ("grpo", ADVANTAGES["grpo"]) and cfg.advantage.std_normalize:
        errors.append(
            "kl.place is reward with advantage.name grpo and advantage.std_normalize true: where the rewards of a "
            "group are equal, what is left is the KL, and its division by the group's deviation makes it of order 1 "
            "whatever kl.coef is; set kl.place=loss, or advantage.std_normalize=false"
        )
    if in_loss and kl.estimator == KLEstimator.k1 and not kl.unbiased_gradient:
        errors.append(
            "kl.estimator is k1 with kl.place loss: the expectation of its gradient is 0, so it holds nothing; use k2 "
            "or k3, kl.unbiased_gradient=true, or kl.place=reward (with grpo: and advantage.std_normalize=false)"
        )
    if kl.unbiased_gradient and not in_loss:
        errors.append(
            "kl.unbiased_gradient is true with kl.place reward: what is taken from a reward has no gradient; set it to "
            "false, or kl.place=loss"
        )
    if kl.unbiased_gradient and in_loss and kl.estimator == KLEstimator.k2:
        errors.append(
            "kl.unbiased_gradient is true with kl.estimator k2: the expectation of k2 is not the KL, so its gradient "
            "would not be the KL's; use k1 or k3"
        )
    return errors


def _critic(cfg: Config) -> list[str]:
    c = cfg.critic
    if c.ranks == 0:
        return []  # what is set of a critic there is none of may be another algorithm's; the user's own: unused_keys.py
    errors = _model("critic.path", c.path) if c.path is not None else []
    if c.warmup_steps >= cfg.steps:
        errors.append(f"critic.warmup_steps is {c.warmup_steps} with steps {cfg.steps}: the policy would never learn")
    return errors


def _placement(cfg: Config) -> list[str]:
    """Whether the weights can go to the engines."""
    if stage_of(cfg.loss.name).samples == "never":
        return []
    errors = []
    if cfg.ray.address is None and 3 * cfg.sync.bucket_mib > cfg.ray.object_store_mib:
        errors.append(
            f"sync.bucket_mib {cfg.sync.bucket_mib} is over a third of ray.object_store_mib "
            f"{cfg.ray.object_store_mib}: two buckets and a step's batch are in it at a time"
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
    sinks = ("wandb", "tensorboard")
    return [
        *wrong_name("advantage.name", cfg.advantage.name),
        *wrong_name("loss.name", cfg.loss.name),
        *(error for fn in cfg.reward.fns for error in wrong_name("reward.fns", fn)),
        *(f"tracker.sinks: no sink {s!r}; there are: {', '.join(sinks)}" for s in cfg.tracker.sinks if s not in sinks),
    ]


def _files(cfg: Config) -> list[str]:
    errors = []
    sources = [
        (key, s) for key, listed in (("data.train", cfg.data.train), ("data.eval", cfg.data.eval)) for s in listed
    ]
    for key, source in sources:
        if source.endswith(_FILE_SUFFIXES) and not Path(source).is_file():
            errors.append(f"{key}: no file {source} (looked for {Path(source).resolve()})")
    if cfg.model.path not in ("", *EMBEDDED):
        errors += _model("model.path", cfg.model.path, gguf=True)
    if cfg.run_dir and (Path(cfg.run_dir) / "metrics.jsonl").exists():
        errors.append(
            f"run_dir: {cfg.run_dir} already holds a run; `rlcore resume {shlex.quote(cfg.run_dir)}` continues it, "
            "or choose another"
        )
    return errors


def _model(key: str, path: str, gguf: bool = False) -> list[str]:
    """What is wrong with the path of a model; whether a hub id exists is not asked."""
    kinds = "a directory, a GGUF file or a hub id (owner/name)" if gguf else "a directory or a hub id (owner/name)"
    if path.endswith(".gguf") and not gguf:
        return [f"{key}: {path} is a GGUF file, which only model.path takes; give {kinds}"]
    if path.endswith(".gguf") or path.startswith(("/", "./", "../", "~")):
        return [] if Path(path).expanduser().exists() else [f"{key}: nothing at {path}; give {kinds}"]
    if "/" not in path and not Path(path).exists():
        return [f"{key}: no directory {path}, and a hub id has an owner: owner/name"]
    return []
