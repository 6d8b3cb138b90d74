"""Every knob, once: its unit in its name, its only default, one line of meaning. No torch, Ray or vLLM here.

rlcore/compose fills these plain dataclasses from a recipe and a command line; its check.py has the rules about values.
A section is passed to the code that needs it, and nothing is written to it. `Section` remembers which fields were read,
so that a key the user set and nothing read can be reported.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, Optional

from omegaconf import MISSING

_READ: set[str] = set()


class Section:
    """A config dataclass that remembers which of its fields were read in this process."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            cls = type(self)
            if name in cls.__dataclass_fields__:  # type: ignore[attr-defined]
                _READ.add(f"{cls.__name__}.{name}")
        return object.__getattribute__(self, name)


def fields_read() -> set[str]:
    """`{"RolloutConfig.engines", ...}`: every field this process has read. Workers send theirs to the driver."""
    return set(_READ)


def forget_reads() -> None:
    """Start counting anew, for another run in this process."""
    _READ.clear()


@contextmanager
def uncounted() -> Iterator[None]:
    """What is read in here does not count: checking a config reads every field, a run reads those it needs."""
    before = fields_read()
    try:
        yield
    finally:
        forget_reads()
        _READ.update(before)


class Dtype(str, Enum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Device(str, Enum):
    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class Placement(str, Enum):
    colocated = "colocated"
    split = "split"  # type: ignore[assignment]


class Schedule(str, Enum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class Aggregation(str, Enum):
    token_mean = "token_mean"
    sequence_mean = "sequence_mean"
    sequence_sum = "sequence_sum"
    constant_length = "constant_length"


class KLEstimator(str, Enum):
    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


class KLPlace(str, Enum):
    loss = "loss"
    reward = "reward"


class Correction(str, Enum):
    none = "none"
    truncate_token = "truncate_token"
    truncate_sequence = "truncate_sequence"
    mask_token = "mask_token"
    reject_sequence = "reject_sequence"


class SyncBackend(str, Enum):
    auto = "auto"
    shm = "shm"
    ipc = "ipc"
    nccl = "nccl"


@dataclass
class ModelConfig(Section):
    path: str = MISSING  # hub id, local directory, GGUF file, or "demo": one of models/embedded.py, made once
    tokenizer: Optional[str] = None  # hub id or directory; None: the model's own
    dtype: Dtype = Dtype.auto  # of the forward pass; auto: bfloat16 on GPU, float32 on CPU


def compute_dtype(cfg: ModelConfig, device: str) -> str:
    """ "float32" or "bfloat16": model.dtype, where auto is bfloat16 on a GPU ("gpu") and float32 on a CPU."""
    if cfg.dtype != Dtype.auto:
        return cfg.dtype.value
    return "bfloat16" if device == "gpu" else "float32"


@dataclass
class DataConfig(Section):
    # Each source: .jsonl .parquet .csv file, hub name[:config][@split], generate:arithmetic?size=1000&seed=1, or
    # reasoning_gym:TASK?size=1000&seed=1.
    train: list[str] = MISSING  # one or several; their rows are mixed
    eval: list[str] = field(default_factory=list)  # held-out ones; accuracy is eval/NAME/accuracy
    source_column: str = "data_source"  # which source a row is of; rows without it: the name of their file
    prompt_column: str = "auto"  # text or a list of messages; auto: by the order in docs/data.md
    answer_column: str = "auto"  # the gold answer, also RECORD.FIELD; auto: by the order in docs/data.md
    response_column: str = "response"  # what `rlcore sft` learns to say
    system_prompt: Optional[str] = None  # put before the user's message by the chat template
    prompt_template: str = "{prompt}"  # the user's message; {prompt} is the prompt column, other {columns} work too
    chat_template: bool = True  # False: the prompt text as it is, for base models
    chat_template_args: dict[str, Any] = field(default_factory=dict)  # to the template, as {enable_thinking: false}
    max_prompt_tokens: int = 512  # longer prompts are left out and counted
    shuffle: bool = True  # a new order every epoch, from the seed
    curriculum: Optional[str] = None  # easy rows first: by this numeric column, or "source": by the order of data.train


@dataclass
class RolloutConfig(Section):
    engines: int = 1  # vLLM engines, each one Ray actor
    tensor_parallel: int = 1  # GPUs an engine spans
    temperature: float = 1.0  # of training samples
    # What rules tokens out of training samples is for GPUs, with top_k: see docs/algorithms.md.
    top_p: float = 1.0  # of training samples: nucleus sampling
    top_k: int = 0  # of training samples; 0: all
    min_response_tokens: int = 0  # of training samples: no end of sequence before
    max_response_tokens: int = 256  # longer responses are cut: finish "length"
    stop: list[str] = field(default_factory=list)  # strings that end a response
    dynamic_draws: float = 0.0  # draw up to this times prompts_per_step for groups whose rewards differ; 0: no filter
    greedy_baseline: bool = False  # one more, greedy sample a prompt: scored as a baseline (ReMax), not trained on
    train_truncated: bool = True  # False: cut responses stay in the baseline and leave the loss
    max_sequences: int = 256  # sequences an engine decodes at once
    kv_cache_gib: float = 0.5  # CPU: cache of one engine
    device_memory_fraction: float = 0.6  # GPU: share of the device one engine may fill
    vllm_args: dict[str, Any] = field(default_factory=dict)  # merged last into vLLM's EngineArgs, and printed


def ruled_out(cfg: RolloutConfig) -> dict[str, float]:
    """What rules tokens out of training samples: `{"rollout.top_p": 0.9}`. {}: any token may come next."""
    found = {"rollout.top_p": cfg.top_p} if cfg.top_p < 1 else {}
    above_0 = {"rollout.top_k": cfg.top_k, "rollout.min_response_tokens": cfg.min_response_tokens}
    return found | {key: value for key, value in above_0.items() if value > 0}


@dataclass
class RewardConfig(Section):
    fns: list[str] = field(
        default_factory=list
    )  # built-in name, dotted path or file.py:function; eval accuracy: the first
    weights: list[float] = field(default_factory=list)  # one a function; empty: all 1
    args: dict[str, Any] = field(default_factory=dict)  # {function's name: {option: value}}
    gate: list[str] = field(default_factory=list)  # functions that must be above 0, else the others are not asked
    sources: dict[str, Any] = field(
        default_factory=dict
    )  # {source: [names]}: who scores its rows; fns in no list: all rows
    clip: list[float] = field(default_factory=list)  # [low, high]: limits of the sum; empty: none
    workers: int = 1  # processes that score side by side; built-in rules share them, others have as many of their own
    timeout_seconds: float = 10.0  # a function that takes longer for a sample has status "timeout"
    memory_mib: int = 4096  # that one such process and all it starts may hold
    overlong_fraction: float = 0.0  # last share of max_response_tokens in which a penalty grows from 0 (DAPO)
    overlong_penalty: float = 1.0  # to this at the limit, taken from the reward
    max_failed_fraction: float = 0.05  # more samples without a score in a step or an eval end the run with exit 3


@dataclass
class RewardModelConfig(Section):
    path: Optional[str] = None  # sequence-classification model; needed by reward.fns=[reward_model], which it scores
    ranks: int = 1  # processes, one device each


@dataclass
class AdvantageConfig(Section):
    name: str = "grpo"  # a name from algo/advantage.py, a dotted path, or file.py:function
    std_normalize: bool = True  # divide by the group's standard deviation
    epsilon: float = 1e-6  # added to that standard deviation
    whiten: bool = False  # then to mean 0 and variance 1 over all response tokens of the step
    gamma: float = 1.0  # discount of a reward one token later
    gae_lambda: float = 1.0  # of gae: 1 is the whole return, 0 trusts the critic


@dataclass
class LossConfig(Section):
    name: str = "ppo_clip"  # a name from algo/loss.py, a dotted path, or file.py:function
    clip_low: float = 0.2  # ratio is clipped at 1 - clip_low
    clip_high: float = 0.2  # and at 1 + clip_high
    dual_clip: float = 0.0  # ppo_clip: a negative advantage counts at most this often; 0: no limit, else above 1
    tau_positive: float = 1.0  # sapo: temperature of the gate where the advantage is positive
    tau_negative: float = 1.05  # and where it is negative
    aggregation: Aggregation = Aggregation.token_mean  # how token losses become one number, over the optimizer step
    length_constant: Optional[int] = None  # tokens constant_length divides by; None: rollout.max_response_tokens
    entropy_coef: float = 0.0  # weight of the entropy bonus
    beta: float = 0.1  # dpo: how strongly a preference pulls away from the model the run began with


@dataclass
class CorrectionConfig(Section):
    name: Correction = Correction.none  # of trainer / engine probability; not none: sync.max_logp_diff is of the mean
    low: float = 0.5  # mask_token and reject_sequence leave out what is below
    high: float = 2.0  # or above; the truncate_ forms cut at it


@dataclass
class KLConfig(Section):
    coef: float = 0.0  # weight of the estimate of KL(policy || reference); 0: no reference ranks
    place: KLPlace = KLPlace.loss  # loss: a term with a gradient; reward: taken from each token's reward
    estimator: KLEstimator = KLEstimator.k3
    unbiased_gradient: bool = False  # in the loss: times policy / old policy, so that the gradient is the KL's
    target: Optional[float] = None  # nats a token the coefficient adapts to; None: coef stays
    horizon: int = 10_000  # rollouts in which the coefficient can follow the target


@dataclass
class ActorConfig(Section):
    ranks: int = 1  # processes, one device each
    zero_stage: int = 3  # DeepSpeed ZeRO stage 0 to 3
    learning_rate: float = 1e-6
    schedule: Schedule = Schedule.constant  # after the warm-up; linear and cosine end at 0 at the last step
    warmup_steps: int = 0  # linear from 0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0  # clip the global norm; 0: never
    epochs_per_step: int = 1  # passes over a step's rollouts
    minibatches_per_step: int = 1  # optimizer updates a pass
    microbatch_tokens: int = 8192  # tokens of one forward and backward on one rank
    logits_chunk_tokens: int = 1024  # rows of the (tokens, V) logits that exist at once
    gradient_checkpointing: bool = False
    offload: bool = True  # colocated GPUs: states go to the host while the engines generate
    deepspeed_args: dict[str, Any] = field(default_factory=dict)  # merged last into DeepSpeed's config, and printed


@dataclass
class ReferenceConfig(Section):
    ranks: int = 1  # exist only when kl.coef > 0
    refresh_steps: int = 0  # every so many steps it takes the policy's weights; 0: never


@dataclass
class CriticConfig(Section):
    ranks: int = 0  # processes, one device each; 0: no critic. What is not here is as the actor's
    path: Optional[str] = None  # reward model or any model to start from; None: model.path with a new head
    learning_rate: float = 1e-5
    clip: float = 0.2  # a value moves at most this far from its old one; 0: no limit
    whiten_returns: bool = False  # learn returns scaled by their running mean and deviation
    warmup_steps: int = 0  # first steps in which only the critic learns


@dataclass
class SyncConfig(Section):
    backend: SyncBackend = SyncBackend.auto  # auto: shm on CPU, ipc on colocated GPUs, nccl on split ones
    bucket_mib: int = 64  # weights gathered and sent at once; two buckets exist at a time
    max_logp_diff: Optional[float] = None  # engine against trainer, a token; None: 0.001 in float32, 1.0 in bfloat16


@dataclass
class EvalConfig(Section):
    every_steps: int = 0  # 0: only before the first and after the last step
    prompts: int = 0  # of each source; 0: all
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # nucleus sampling
    top_k: int = 0  # 0: all


@dataclass
class PlacementConfig(Section):
    device: Device = Device.auto  # auto: gpu where Ray has GPUs
    mode: Placement = Placement.colocated  # colocated: roles share devices and take turns; split: each its own


@dataclass
class RayConfig(Section):
    address: Optional[str] = None  # None: a local Ray, ended with the run; "auto": the running cluster
    object_store_mib: int = 512  # of the local Ray


@dataclass
class DeadlineConfig(Section):
    start_seconds: float = 900.0  # Ray, placement groups, models loaded
    rollout_seconds: float = 3600.0
    update_seconds: float = 3600.0  # also log-probabilities, saving and exporting
    publish_seconds: float = 600.0


@dataclass
class TrackerConfig(Section):
    sinks: list[str] = field(default_factory=list)  # any of wandb, tensorboard; console and metrics.jsonl are always on
    project: str = "rlcore"
    name: Optional[str] = None  # None: the run directory's name


@dataclass
class Config(Section):
    run_dir: Optional[str] = None  # everything the run writes; None: runs/RECIPE-TIME
    algorithm: Optional[str] = None  # a file of recipes/algorithm, or FILE.yaml: the defaults of its paper, as if typed
    seed: int = 0
    steps: int = MISSING
    prompts_per_step: int = 32  # P
    rollouts_per_prompt: int = 8  # G
    save_every_steps: int = 0  # 0: only after the last step
    keep_checkpoints: int = 2  # older ones are deleted
    keep_best: Optional[str] = None  # eval/NAME/...: the best by this number is kept too; of a loss the smallest
    cache_dir: str = "~/.cache/rlcore"  # embedded models and converted GGUF files, made once
    debug: bool = False  # show what Ray, vLLM and the workers print
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    deadline: DeadlineConfig = field(default_factory=DeadlineConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)


def all_keys(cls: type = Config, prefix: str = "") -> dict[str, str]:
    """`{"rollout.engines": "RolloutConfig.engines", ...}` for every leaf knob."""
    keys: dict[str, str] = {}
    for f in fields(cls):  # type: ignore[arg-type]
        section = f.default_factory if isinstance(f.default_factory, type) else None
        if section is not None and issubclass(section, Section):
            keys |= all_keys(section, f"{prefix}{f.name}.")
        else:
            keys[prefix + f.name] = f"{cls.__name__}.{f.name}"
    return keys


def value_of(cfg: Config, key: str) -> Any:
    """The value at a dotted key."""
    return functools.reduce(getattr, key.split("."), cfg)
