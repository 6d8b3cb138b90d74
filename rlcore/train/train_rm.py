"""Reward models: a scoring layer learns from preference pairs, by the loss of Bradley and Terry."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlcore.config import Config
from rlcore.data.preferences import Pair, Pairs
from rlcore.data.sources import source_names
from rlcore.errors import DataError
from rlcore.train.build import as_directory
from rlcore.train.fit import fit

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from rlcore.cluster.deadlines import Watch
    from rlcore.cluster.placement import Cluster
    from rlcore.records import Batch
    from rlcore.workers.group import PreferenceModel

_ROLE = "reward_model"


def train_rm(cfg: Config, resolved: DictConfig, say: Callable[[str], None]) -> tuple[Path, set[str]]:
    """Train a sequence classification model of one label on columns of chosen and rejected responses; see `fit`."""
    cfg = as_directory(cfg)
    pairs, evals, lay_down = _data(cfg, say)

    def evaluate(model: PreferenceModel) -> dict[str, float]:
        """`eval/NAME/loss`, `accuracy` and `margin` of every held-out source."""
        return {f"eval/{name}/{k}": v for name, batch in evals.items() for k, v in model.evaluate(batch).items()}

    return fit(cfg, resolved, "train-rm", _ROLE, _model, pairs, lay_down, evaluate)


def _model(cfg: Config, cluster: Cluster, watch: Watch) -> PreferenceModel:
    from rlcore.workers.group import PreferenceModel, rank_group
    from rlcore.workers.reward_model import PreferenceRank

    return PreferenceModel(rank_group(_ROLE, PreferenceRank, cfg.actor.ranks, cfg, cluster, watch), cfg)


def _data(
    cfg: Config, say: Callable[[str], None]
) -> tuple[Pairs, dict[str, Batch], Callable[[Sequence[Pair]], Batch]]:  # fmt: skip
    """What to train on, what to evaluate on by name, and pairs -> Batch."""
    from rlcore.workers.reward_model import conversation_tokens, ending, pad_token, preference_tokenizer

    tokenizer = preference_tokenizer(cfg.model, cfg.data.chat_template)
    if cfg.data.chat_template and not tokenizer.chat_template:
        raise DataError("the tokenizer has no chat template; with a base model set data.chat_template=False")
    tokenize = functools.partial(conversation_tokens, tokenizer)

    def lay_down(some: Sequence[Pair]) -> Batch:
        batch = ending([tokens for pair in some for tokens in pair], pad_token(tokenizer))
        return dataclasses.replace(batch, group=batch.group // 2)

    most = cfg.data.max_prompt_tokens + cfg.rollout.max_response_tokens
    pairs = Pairs(cfg.data.train, cfg.data, tokenize, cfg.seed, most)
    say(f"data: {len(pairs)} pairs; {pairs.dropped} left out, too long or of equal texts")
    evals: dict[str, Batch] = {}
    for name, source in zip(source_names(cfg.data.eval), cfg.data.eval, strict=True):
        held_out = Pairs([source], cfg.data, tokenize, cfg.seed, most)
        evals[name] = lay_down(held_out.all(limit=cfg.eval.prompts))
    return pairs, evals, lay_down
