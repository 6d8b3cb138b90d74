"""Supervised fine-tuning: the policy learns the responses of the rows, by the policy loss `sft`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rlcore.config import Config
from rlcore.data.examples import Examples
from rlcore.records import Batch
from rlcore.train.build import as_directory, start_actor
from rlcore.train.fit import fit

if TYPE_CHECKING:
    from omegaconf import DictConfig


def sft(cfg: Config, resolved: DictConfig, say: Callable[[str], None]) -> tuple[Path, set[str]]:
    """Train the policy on columns of prompts and responses, loss on the response only; see `fit`."""
    from rlcore.models.load import load_tokenizer

    cfg = as_directory(cfg)
    examples = Examples(cfg.data.train, cfg.data, load_tokenizer(cfg.model), cfg.seed, cfg.rollout.max_response_tokens)
    say(f"data: {len(examples)} examples; {examples.dropped} left out as too long")
    return fit(cfg, resolved, "sft", "actor", start_actor, examples, Batch.from_groups)
