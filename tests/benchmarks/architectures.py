"""`make architectures`: which architectures train right, measured on tiny random ones, as docs/models.md.

Each architecture has a process of its own, so that one that crashes is a row of the table. In float32:
packed    log-probabilities of rollouts laid end to end against one at a time through the untouched model, relative
engine    the engine's of what it samples after two publishes of changed weights against the trainer's, in nats
stale     the same before the second publish: how far off an engine is that missed one
saved     the exported model, loaded by transformers, against the trainer's weights
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rlcore.errors import ConfigError, RlcoreError

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[2]
FOUND = ROOT / ".venv" / "architectures"  # one file each: a run that was cut goes on
PAGE = ROOT / "docs" / "models.md"
BOUNDS = {"packed": 1e-5, "engine": 1e-4, "saved": 0.0}
STALE = 1e-2  # at least
SECONDS = 240.0
CONTEXT, RESPONSE = 128, 24  # tokens

SMALL: dict[str, Any] = dict(
    vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, max_position_embeddings=512, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    tie_word_embeddings=False,
)  # fmt: skip
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}  # a width vLLM pads
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0,
    "short_factor": [1.0 + i / 16 for i in range(16)], "long_factor": [2.0 + i for i in range(16)],
}  # fmt: skip
DEEPSEEK = EXPERTS | {
    "head_dim": 64,
    "num_key_value_heads": 4, "kv_lora_rank": 512, "q_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 64,
    "v_head_dim": 32, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "topk_method": "noaux_tc",
}  # fmt: skip

# Its name in the table: transformers' model type, and what is not as in SMALL.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama, tied": ("llama", {"tie_word_embeddings": True}),
    "Llama": ("llama", {}),
    "Qwen2": ("qwen2", {"hidden_size": 128}),
    "Qwen3": ("qwen3", {}),
    "Qwen3-MoE": ("qwen3_moe", EXPERTS | {"num_experts": 4}),
    "Mistral": ("mistral", {"sliding_window": 16}),
    "Gemma 2": ("gemma2", {"query_pre_attn_scalar": 32, "sliding_window": 16, "tie_word_embeddings": True}),
    "Gemma 3": ("gemma3_text", {"query_pre_attn_scalar": 32, "sliding_window": 16, "tie_word_embeddings": True}),
    "Phi-1, Phi-2": ("phi", {"num_key_value_heads": 4, "hidden_size": 128, "partial_rotary_factor": 0.5}),
    "Phi-3": ("phi3", {"hidden_size": 128, "sliding_window": 16}),
    "Phi-3, longrope": (
        "phi3", {"hidden_size": 128, "rope_parameters": LONGROPE, "original_max_position_embeddings": 128}
    ),
    "SmolLM3": ("smollm3", {"no_rope_layers": [1, 0], "hidden_size": 128}),
    "OLMo 2": ("olmo2", {"hidden_size": 128}),
    "GLM-4": ("glm4", {"attention_bias": True}),
    "Granite": (
        "granite",
        {"hidden_size": 128, "logits_scaling": 3.0, "embedding_multiplier": 2.0, "attention_multiplier": 0.1,
         "residual_multiplier": 0.5},
    ),
    "Cohere": ("cohere", {"hidden_size": 128, "logit_scale": 0.5, "tie_word_embeddings": True}),
    "GPT-NeoX": ("gpt_neox", {"hidden_size": 128, "num_key_value_heads": 4}),
    "DeepSeek-V2": ("deepseek_v2", DEEPSEEK | {"topk_method": "greedy"}),
    "DeepSeek-V3": ("deepseek_v3", DEEPSEEK),
    "gpt-oss": ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}),
}  # fmt: skip


def make_model(name: str, directory: Path) -> Path:
    """A random model with a tokenizer. Every parameter is of a size at which a mistake shows."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from rlcore.models.load import load_tokenizer_path
    from tests.tiny import make_tiny_model

    family, options = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(SMALL | options)), dtype=torch.float32)
    change(model, 0)
    model.save_pretrained(directory)
    load_tokenizer_path(str(make_tiny_model(directory.parent / "words")), "").save_pretrained(directory)
    return directory


def change(model: Any, seed: int) -> None:
    """Add noise to every parameter, after its kind: the same in every process."""
    import torch

    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=noise) * 0.1)


def rollouts(lengths: list[int]) -> tuple[Any, Any, Any]:
    import torch

    offsets = torch.tensor([0, *lengths]).cumsum(0)
    tokens = torch.randint(4, 100, (int(offsets[-1]),), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    return tokens, offsets, torch.ones(len(tokens), dtype=torch.bool)


def one_by_one(model: Any, tokens: Any, offsets: Any) -> Any:
    """(n,) log-probabilities of each rollout alone, from the logits of all its tokens."""
    import torch

    columns = []
    with torch.no_grad():
        for a, b in zip(offsets[:-1], offsets[1:], strict=True):
            log_p = model(tokens[None, a:b].long(), use_cache=False).logits[0].float().log_softmax(-1)
            columns += [torch.zeros(1), log_p[:-1].gather(-1, tokens[a + 1 : b, None].long())[:, 0]]
    return torch.cat(columns)


def packed_error(plain: Any, model: Any) -> float:
    """Largest difference, relative to the largest log-probability."""
    import torch

    from rlcore.models.logp import token_logp

    tokens, offsets, mask = rollouts([5, 30, 1, 100, 17, 60])
    want = one_by_one(plain, tokens, offsets)
    with torch.no_grad():
        found, _ = token_logp(model, tokens, offsets, mask, 1.0, 64)
    return float((found - want).abs().max() / want.abs().max())


def publish(engine: Any, model: Any, version: int) -> None:
    """As the sender does, without Ray."""
    import torch

    from rlcore.models.names import checkpoint_tensors
    from rlcore.weights import WeightInfo, manifest, plan_buckets

    named = list(checkpoint_tensors(model, {n: p.detach() for n, p in model.named_parameters()}).items())
    infos = [WeightInfo(n, tuple(p.shape), "float32") for n, p in named]
    engine.begin_weights(version, infos)
    for bucket in plan_buckets(infos, 64 << 10):
        engine.load_bucket(bucket, [named[i][1].contiguous().reshape(-1).view(torch.uint8).numpy() for i in bucket])
    assert engine.end_weights() == manifest(version, infos)


class Apart:
    """An Engine in a process of its own: vLLM changes classes of transformers that the trainer's model is made of."""

    def __init__(self, spec: Any, cfg: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, spec, cfg), daemon=True).start()
        theirs.close()

    def __getattr__(self, method: str) -> Any:
        def call(*args: Any) -> Any:
            self.pipe.send((method, args))
            answer = self.pipe.recv()
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call


def serve(pipe: Any, spec: Any, cfg: Any) -> None:
    from rollout.engine import Engine

    engine = Engine(spec, cfg)
    with contextlib.suppress(EOFError):  # the other end is gone
        while True:
            method, args = pipe.recv()
            try:
                pipe.send(getattr(engine, method)(*args))
            except RlcoreError as e:
                pipe.send(e)


def engine_error(engine: Any, model: Any) -> float:
    """Largest difference in nats over the tokens of 8 fresh samples."""
    import torch

    from rlcore.models.logp import token_logp
    from rollout.engine import SampleRequest

    prompts = {(i, 0): [2, *range(5, 12 + 10 * i)] for i in range(8)}
    engine.submit([SampleRequest(key, prompt, key[0], 1.0) for key, prompt in prompts.items()])
    worst, samples = 0.0, []
    while some := engine.advance(30.0):
        samples += some
    assert len(samples) == len(prompts)
    for sample in samples:
        tokens = torch.tensor(prompts[sample.key] + sample.tokens, dtype=torch.int32)
        mask = torch.arange(len(tokens)) >= len(prompts[sample.key])
        with torch.no_grad():
            want, _ = token_logp(model, tokens, torch.tensor([0, len(tokens)]), mask, 1.0, 64)
        worst = max(worst, float((want[mask] - torch.tensor(sample.logp)).abs().max()))
    return worst


def saved_error(model: Any, path: Path, run_dir: Path) -> float:
    """Largest difference of a parameter or buffer after a save, an export and `from_pretrained`."""
    import torch
    from transformers import AutoModelForCausalLM

    from rlcore.config import Config, ModelConfig
    from rlcore.runs.checkpoint import Checkpoints
    from rlcore.runs.export import export
    from rlcore.workers.rank import TrainedRank

    rank: Any = TrainedRank(SimpleNamespace(rank=0), Config(model=ModelConfig(path=str(path))))  # type: ignore[arg-type]
    named = list(model.named_parameters())
    rank.engine = SimpleNamespace(
        model=model, shapes=lambda: [(n, tuple(p.shape)) for n, p in named], read=lambda i: named[i][1]
    )
    Checkpoints(run_dir, keep=1).save(1, lambda at: rank.save_weights(str(at / "model")), {})
    again = AutoModelForCausalLM.from_pretrained(export(run_dir, run_dir / "export", "float32"), dtype=torch.float32)
    want, found = dict(model.named_parameters()), dict(again.named_parameters())
    assert want.keys() == found.keys(), want.keys() ^ found.keys()
    tensors = [*want.items(), *((n, b) for n, b in model.named_buffers() if b.is_floating_point())]
    found |= dict(again.named_buffers())
    return max(float((p - found[n]).detach().abs().max()) for n, p in tensors)


def measure(name: str) -> dict[str, Any]:
    """All numbers of one architecture, or {"refused": what a run says before it starts}."""
    import torch
    from transformers import AutoModelForCausalLM

    from rlcore.config import RolloutConfig
    from rlcore.models.load import load_path
    from rollout.engine import EngineSpec

    with tempfile.TemporaryDirectory() as temporary:
        path = make_model(name, Path(temporary) / "model")
        if why := refusal(str(path)):
            return {"refused": why}
        found: dict[str, Any] = {}
        plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
        model = load_path(str(path), torch.float32).eval()
        found["packed"] = packed_error(plain, model)
        cfg = RolloutConfig(max_response_tokens=RESPONSE, max_sequences=32, kv_cache_gib=0.0625)
        engine: Any = Apart(EngineSpec(str(path), "float32", "cpu", CONTEXT, (1,)), cfg)
        try:
            engine.start()
        except ConfigError as e:  # known to vLLM only
            return {"refused": str(e).replace(str(path), "MODEL")}
        publish(engine, model, 0)
        found["first"] = engine_error(engine, model)
        for version in (1, 2):
            change(model, version)
            found["stale"] = engine_error(engine, model)
            publish(engine, model, version)
        found["engine"] = engine_error(engine, model)
        found["saved"] = saved_error(model, path, Path(temporary) / "run")
        return found


def refusal(path: str) -> str | None:
    """What a run says of the model before Ray starts; None: nothing."""
    from rlcore.config import RolloutConfig
    from rlcore.models.architecture import require_sampled, require_trainable

    try:
        require_trainable(path, "model.path", CONTEXT)
        require_sampled(path, CONTEXT - RESPONSE, RolloutConfig(max_response_tokens=RESPONSE))
    except ConfigError as e:
        return str(e).replace(path, "MODEL")
    return None


def digest() -> str:
    """Of the code that the numbers are of."""
    files = [Path(__file__), ROOT / ".locks" / "cpu.txt", *sorted(ROOT.glob("rlcore/models/*.py"))]
    files += [ROOT / name for name in ("rlcore/weights.py", "rollout/engine.py", "rollout/receiver.py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def measured(name: str, code: str) -> dict[str, Any]:
    """The numbers of one architecture, from a process of its own or from an earlier time with the same code."""
    file = FOUND / f"{ARCHITECTURES[name][0]}-{list(ARCHITECTURES).index(name)}-{code}.json"
    if not file.is_file():
        command = [sys.executable, "-m", "tests.benchmarks.architectures", name, str(file)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
        if not file.is_file():
            return {"crashed": ended.stderr.strip().splitlines()[-1] if ended.stderr else f"exit {ended.returncode}"}
    return json.loads(file.read_text())


def is_right(found: dict[str, Any]) -> bool:
    """Refused, or all numbers within their bounds."""
    if "refused" in found:
        return True
    bounded = all(found.get(column, math.inf) <= bound for column, bound in BOUNDS.items())
    return bounded and found["stale"] >= STALE


def row(name: str, found: dict[str, Any]) -> str:
    family = ARCHITECTURES[name][0]
    if not is_right(found) or "refused" in found:
        why = found.get("refused") or found.get("crashed") or "out of bounds"
        return f"| {name} | `{family}` | no: {why.replace('|', '/')} | | | |"
    numbers = " | ".join(f"{found[column]:.1e}" if found[column] else "0" for column in ("packed", "engine", "saved"))
    return f"| {name} | `{family}` | yes | {numbers} |"


def main() -> int:
    """Measure what is not measured yet, then write the page; 1, and no page, when something neither works nor is
    refused."""
    FOUND.mkdir(parents=True, exist_ok=True)
    code, rows, wrong = digest(), [], 0
    for name in ARCHITECTURES:
        found = measured(name, code)
        rows.append(row(name, found))
        wrong += not is_right(found)
        print(rows[-1], flush=True)
    if wrong:
        return 1  # the page is of what works, or is refused
    text = PAGE.read_text()
    begin, end = (text.index(mark) for mark in ("| architecture |", "\n\nHow"))
    table = [
        "| architecture | `model_type` | trains | packed | engine | saved |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    PAGE.write_text(text[:begin] + "\n".join(table + rows) + text[end:])
    return 0


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(main())
    Path(sys.argv[2]).write_text(json.dumps(measure(sys.argv[1])))
