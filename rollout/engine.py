"""One vLLM engine, inside one Ray actor: token ids in, token ids and log-probabilities out, one sample a request.

The engine runs in the Ray actor's own process and steps only inside `advance`, so pausing is not calling it, a finished
sample leaves at once, and no process is left when the actor dies. vLLM is imported by `start`, not by this module.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psutil

from rlcore import config
from rlcore.config import RolloutConfig
from rlcore.errors import ConfigError, SyncError, WorkerError, nearest
from rlcore.records import Kept
from rlcore.weights import WeightInfo
from rollout.refusals import in_our_words

_LINGER_SECONDS = 0.02  # a call of `advance` goes on this long, so that answering it does not cost more than stepping
_NEVER = -1


class SampleRequest(NamedTuple):
    """One sample asked of an engine. `key` comes back with the result."""

    key: tuple[int, int]  # (prompt's position in this collection, sample index)
    tokens: list[int]  # the prompt
    seed: int  # of (run seed, prompt id, sample index) alone, so who computes it does not matter
    temperature: float  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_tokens: int = 0  # no end of sequence before


class Sample(NamedTuple):
    """One finished sample: the response's tokens and the engine's log-probability of each."""

    key: tuple[int, int]
    tokens: list[int]
    logp: list[float]
    finish: str  # "stop" | "length" | "abort"
    kept: Kept | None = None  # what each of its tokens was chosen from, of an engine that `says_kept`


class EngineSpec(NamedTuple):
    """What an engine is made with, the same for all engines of a run but `index`."""

    model_path: str  # hub id or Hugging Face directory
    dtype: str  # "float32" or "bfloat16"
    device: str  # "cpu" or "gpu"
    max_model_tokens: int  # of prompt and response together
    ends: tuple[int, ...]  # the tokens that end a response
    seed: int = 0
    tokenizer: str | None = None  # where it is, if not at model_path; only stop strings need one
    backend: str = "shm"  # how weights come: "shm", "ipc" or "nccl"
    sleeps: bool = False  # gives the GPU's memory back between `sleep` and `wake`; nothing to do on CPU
    says_kept: bool = False  # of each sampled token, the ones it was chosen from; not on CPU
    debug: bool = False  # vLLM's own messages are shown
    index: int = 0  # its rank, for messages


class Engine:
    """One vLLM engine, a Ray actor, and the receiving end of `rlcore.workers.sender.Sender`.

    It samples only with weights that came by a complete publish: from construction on, after `sleep`, and while a
    publish is under way, `submit` and `advance` raise SyncError.
    """

    def __init__(self, spec: EngineSpec, cfg: RolloutConfig) -> None:
        self.spec, self.cfg = spec, cfg
        self.sleeps = spec.sleeps and spec.device == "gpu"
        self.version = _NEVER
        self._keys: dict[str, tuple[int, int]] = {}
        self._requests = 0
        self._incoming: Any = None
        self._llm: Any = None

    def start(self) -> dict[str, Any]:
        """Load the model. Returns {"seconds", "memory_bytes"}.

        Raises ConfigError for what vLLM refuses: an unknown `rollout.vllm_args` name, an architecture, a cache too
        small for one sequence.
        """
        began = time.monotonic()
        _prepare(self.spec)
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        from rollout import receiver

        receiver.register()
        self.check_args()
        try:
            with files_beside_rays():
                self._llm = LLMEngine.from_engine_args(EngineArgs(**self._args()))
            self._try()
        except Exception as e:  # of any kind: what vLLM does not take, it refuses by whatever comes up
            known = self._llm and self._llm.model_config
            raise ConfigError(in_our_words(e, self.spec, self.cfg, known)) from e
        return {"seconds": time.monotonic() - began, "memory_bytes": psutil.Process().memory_info().rss}

    def _try(self) -> None:
        """One token: some of what vLLM's kernels do not take they refuse only then."""
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
        self._llm.add_request("try", tokens_input([0]), params)
        while self._llm.has_unfinished_requests():
            self._llm.step()
        self._llm.reset_prefix_cache()

    def check_args(self) -> None:
        """Raise ConfigError for a name in `rollout.vllm_args` that vLLM does not know. Imports vLLM."""
        from vllm import EngineArgs

        known = [f.name for f in dataclasses.fields(EngineArgs)]
        for name in self.cfg.vllm_args:
            if name not in known:
                hint = nearest(name, known)
                raise ConfigError(f"rollout.vllm_args.{name}: vLLM's EngineArgs has no such field{hint}")

    def _args(self) -> dict[str, Any]:
        """vLLM's EngineArgs: ours, then what only this device needs, then `rollout.vllm_args` over all."""
        cfg = self.cfg
        args: dict[str, Any] = {
            "model": self.spec.model_path,
            "dtype": self.spec.dtype,
            "seed": self.spec.seed,
            "max_model_len": self.spec.max_model_tokens,
            "max_num_seqs": cfg.max_sequences,
            "enable_prefix_caching": True,
            "logprobs_mode": "processed_logprobs",  # after temperature, top-p, top-k and the minimum length
            "skip_tokenizer_init": not cfg.stop,
            "generation_config": "auto",
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "weight_transfer_config": {"backend": f"rlcore_{self.spec.backend}"},
        }
        if cfg.stop and self.spec.tokenizer is not None:
            args["tokenizer"] = self.spec.tokenizer
        if self.spec.device == "cpu":
            args |= {
                "enforce_eager": True,  # compiling costs minutes and brings a few percent
                "kv_cache_memory_bytes": int(cfg.kv_cache_gib * 2**30),
                "block_size": 32,  # a prefix is shared in whole blocks, and vLLM's 128 is longer than many prompts
                # A seeded request whose prompt is cut over two steps fails on CPU: vLLM rewinds the random generator
                # of the first, and CPU's has no offset.
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(2048, self.spec.max_model_tokens),
            }
        else:
            args |= {
                "gpu_memory_utilization": cfg.device_memory_fraction,
                "enable_sleep_mode": self.sleeps,
                "tensor_parallel_size": cfg.tensor_parallel,
                "worker_extension_cls": "rollout.receiver.WorkerExtension",
                "return_sampling_mask": self.spec.says_kept,
            }
            if cfg.tensor_parallel > 1:
                args["distributed_executor_backend"] = "ray"
        return args | cfg.vllm_args

    def submit(self, requests: list[SampleRequest]) -> None:
        """Queue samples; nothing runs before `advance`. Samples of one prompt share its prefix."""
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        self._require_weights()
        cfg = self.cfg
        common: dict[str, Any] = {
            "max_tokens": cfg.max_response_tokens,
            # The run's ending tokens and no others: vLLM's own are those of one file of the model.
            "stop_token_ids": list(self.spec.ends),
            "ignore_eos": True,
            "stop": list(cfg.stop) or None,
            "detokenize": bool(cfg.stop),
            "logprobs": 0,  # of the sampled token only
            "flat_logprobs": True,
            "output_kind": RequestOutputKind.FINAL_ONLY,
        }
        for request in requests:
            name = str(self._requests)
            self._requests += 1
            self._keys[name] = request.key
            params = SamplingParams(seed=request.seed, **self._choice(request), **common)
            self._llm.add_request(name, tokens_input(request.tokens), params)

    def _choice(self, request: SampleRequest) -> dict[str, Any]:
        """What the next token is chosen from. An engine that says it does not take temperature 0: the likeliest token
        is then the only one to choose from."""
        temperature, top_k = request.temperature, request.top_k
        if self.spec.says_kept and temperature == 0:
            temperature, top_k = 1.0, 1
        return {"temperature": temperature, "top_p": request.top_p, "top_k": top_k, "min_tokens": request.min_tokens}

    def advance(self, seconds: float) -> list[Sample]:
        """Step for up to `seconds`; returns soon after samples have finished, or with [] at the end of time or work."""
        self._require_weights()
        began = time.monotonic()
        done: list[Sample] = []
        while self._keys:
            for output in self._llm.step():
                if output.finished:
                    done.append(self._sample(output))
            passed = time.monotonic() - began
            if passed >= seconds or (done and passed >= _LINGER_SECONDS):
                break
        return done

    def _sample(self, output: Any) -> Sample:
        response = output.outputs[0]
        tokens, logp = list(response.token_ids), list(response.logprobs.logprobs)
        assert len(tokens) == len(logp), f"{len(tokens)} tokens, {len(logp)} log-probabilities"
        kept = kept_of(response) if self.spec.says_kept else None
        return Sample(self._keys.pop(output.request_id), tokens, logp, response.finish_reason, kept)

    def abort(self) -> None:
        """Drop every sample not finished yet."""
        self._llm.abort_request(list(self._keys))
        self._keys.clear()
        while self._llm.has_unfinished_requests():
            self._llm.step()

    def sleep(self) -> None:
        """Give the device's memory back, weights included: the next publish brings them anyway."""
        if self.sleeps:
            assert not self._keys, f"asked to sleep with {len(self._keys)} samples unfinished"
            self.version = _NEVER
            self._llm.engine_core.sleep(level=2)

    def wake(self) -> None:
        """Take the device's memory again. Sampling waits for the next publish."""
        if self.sleeps:
            self._llm.engine_core.wake_up()

    def connect_weights(self, info: dict[str, Any]) -> None:
        """Once, before the first publish by ipc or nccl: vLLM's own `init_info` of that backend."""
        self._rpc("init_weight_transfer_engine", info)

    def begin_weights(self, version: int, infos: list[WeightInfo]) -> None:
        """From here to `end_weights` the engine holds no version. `infos`: every parameter that will come.

        After a publish that failed or was interrupted this starts over.
        """
        from rollout import receiver

        if self._keys:
            raise SyncError(f"version {version} begins while {len(self._keys)} samples are unfinished")
        self.version = _NEVER
        self._incoming = receiver.Incoming(version, infos)
        self._rpc(receiver.forget)
        self._rpc("start_weight_update")

    def load_bucket(self, indices: list[int], payload: Any) -> None:
        """Load the parameters `infos[i]`. `payload`: their bytes (shm), their handles (ipc), None (nccl)."""
        if self._incoming is None:
            raise SyncError("a bucket of weights came without begin_weights")
        self._rpc("update_weights", self._incoming.update(indices, payload))

    def end_weights(self) -> dict[str, Any]:
        """Check that every parameter of the model came, and take the version. Returns `weights.manifest(...)`."""
        if self._incoming is None:
            raise SyncError("end_weights came without begin_weights")
        manifest = self._incoming.manifest()
        self._rpc("finish_weight_update")
        self._llm.engine_core.set_weight_version(str(self._incoming.version))
        if not self._llm.reset_prefix_cache():
            raise SyncError(f"version {self._incoming.version}: the prefix cache of the old weights would not go")
        self.version, self._incoming = self._incoming.version, None
        return manifest

    def _rpc(self, method: str | Callable[[Any], None], *args: Any) -> None:
        self._llm.engine_core.collective_rpc(method, None, args)

    def _require_weights(self) -> None:
        if self.version == _NEVER:
            why = "a publish is half done" if self._incoming is not None else "no weights have been published to it yet"
            raise SyncError(f"rollout rank {self.spec.index} will not sample: {why}")

    def fields_read(self) -> set[str]:
        """The config fields this process has read."""
        return config.fields_read()


def kept_of(response: Any) -> Kept:
    """What each token of vLLM's CompletionOutput was chosen from. Raises WorkerError where vLLM does not say it."""
    each = response.sampling_mask.token_ids if response.sampling_mask is not None else []
    if len(each) != len(response.token_ids) or any(
        token not in ids for token, ids in zip(response.token_ids, each, strict=True)
    ):
        raise WorkerError(
            f"vLLM says of {len(each)} tokens what they were chosen from and sampled {len(response.token_ids)}, or one "
            "that it had ruled out; the trainer needs all: set rollout.top_p=1, top_k=0 and min_response_tokens=0"
        )
    return Kept.of(each)


@contextmanager
def files_beside_rays() -> Iterator[None]:
    """vLLM makes a file where its ranks meet, in the folder for temporary files, and leaves it there. In here that is
    the folder of the run's own Ray, where there is one, which goes with the run."""
    before = tempfile.tempdir
    tempfile.tempdir = os.environ.get("VLLM_RPC_BASE_PATH", before)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _prepare(spec: EngineSpec) -> None:
    """vLLM reads its settings from the environment while it is imported; a variable the user set stays."""
    # When vLLM fails it logs the whole batch, prompts and all, and raises; the exception is enough.
    quiet = "DEBUG" if spec.debug else "CRITICAL"
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": quiet, "VLLM_NO_USAGE_STATS": "1"}
    if os.path.isdir(spec.model_path):
        settings["HF_HUB_OFFLINE"] = "1"
    if spec.device == "cpu":
        settings |= {
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # vLLM compiles one line of its sampler even in eager mode: 20 s at the first token.
            "TORCH_COMPILE_DISABLE": "1",
        }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    if not spec.debug:
        warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
