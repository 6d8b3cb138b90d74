"""What vLLM raises at start, in words a user can act on; with a real engine: tests/stack/test_engine.py."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from rlcore.config import RolloutConfig
from rollout.engine import EngineSpec, files_beside_rays
from rollout.refusals import in_our_words

CACHE = (
    "To serve at least one request with the model's max seq len (4096), (0.66 GiB KV cache is needed, which is larger "
    "than the available KV cache memory (0.50 GiB). Try increasing `gpu_memory_utilization` or decreasing "
    "`max_model_len` when initializing the engine."
)


class ValidationError(ValueError):
    """As pydantic raises it."""

    def errors(self) -> list[dict[str, Any]]:
        return [{"msg": "Value error, Model architectures ['MadeUp'] are not supported\n for now."}]


def told(error: Exception, device: str = "cpu", **vllm_args: Any) -> str:
    spec = EngineSpec("some/model", "float32", device, 4096, (1,))
    return in_our_words(error, spec, RolloutConfig(vllm_args=vllm_args), None)


def test_a_cache_that_is_too_small_comes_with_the_size_that_would_do() -> None:
    assert told(ValueError(CACHE)) == (
        "one sequence of 4096 tokens needs 0.66 GiB of key-value cache, and rollout.kv_cache_gib is 0.5: set it to at "
        "least 0.74, or lower rollout.max_response_tokens or data.max_prompt_tokens"
    )
    assert "rollout.device_memory_fraction 0.6" in told(ValueError(CACHE), "gpu")


def test_anything_else_is_one_line_without_its_frame() -> None:
    assert told(ValidationError("1 validation error for ModelConfig\n  https://errors.pydantic.dev")) == (
        "vLLM cannot run some/model as it was asked to: Model architectures ['MadeUp'] are not supported for now."
    )
    assert told(RuntimeError("a\n  b"), max_num_seqs=3).endswith(": a b; rollout.vllm_args sets max_num_seqs")
    assert len(told(ValueError("x" * 5000))) < 700


def test_a_bare_assertion_says_what_was_asserted() -> None:
    with pytest.raises(AssertionError) as error:
        heads = 3
        assert heads % 2 == 0
    error.value.args = ()
    assert told(error.value).endswith("AssertionError at assert heads % 2 == 0")


def test_what_vllm_leaves_goes_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.utils.network_utils import get_file_store_init_method

    before = tempfile.gettempdir()
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", str(tmp_path))
    with files_beside_rays():
        assert get_file_store_init_method().startswith(f"file://{tmp_path}/")
    monkeypatch.delenv("VLLM_RPC_BASE_PATH")
    with files_beside_rays():
        assert tempfile.gettempdir() == before
    assert tempfile.gettempdir() == before
