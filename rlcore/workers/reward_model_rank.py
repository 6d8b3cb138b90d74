"""Reward models: a sequence classification model of one label, that scores whole conversations or learns to.

A sequence's score is the scoring layer on the hidden state of its last token. That is the value before the token that
would come next, so a sequence is laid down with one more token, the only masked one, and everything that makes values
of flat batches makes its score.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlcore.algo.preference import bradley_terry, one_group_a_pair
from rlcore.algo.stats import Stats, Totals
from rlcore.config import DataConfig, ModelConfig
from rlcore.data.answered import answer
from rlcore.data.chat_template import with_defaults
from rlcore.data.conversation import conversation_tokens as conversation_to_tokens
from rlcore.data.preferences import to_score
from rlcore.isolated.outcome import Outcome
from rlcore.models.load import load_tokenizer, load_tokenizer_path, load_value_path
from rlcore.models.logp import TokenValue, batch_value
from rlcore.models.rope import longest_rollout
from rlcore.records import Batch, Group, Prompt
from rlcore.workers.packing import Work, plan
from rlcore.workers.rank import Rank, TrainedRank


def conversation_tokens(tokenizer: Any, conversation: Sequence[Mapping[str, Any]]) -> list[int]:
    """The tokens of a whole conversation, the response included, as the reward model reads them: by its chat template,
    where it has one. Raises ValueError when that cannot be done."""
    return conversation_to_tokens(tokenizer, conversation, chat_template=bool(tokenizer.chat_template))


def ending(sequences: Sequence[Sequence[int]], pad: int | None) -> Batch:
    """A batch of these token sequences, each with one more token at its end, the only masked one: see `to_score`."""
    nobodys = Prompt("", [], "")
    return Batch.from_groups([Group([answer(nobodys, to_score(each, pad), 1, "", 0.0)]) for each in sequences])


class RewardModelRank(Rank):
    """One rank of `reward_model.path`, which never learns. Its parameters are shared out by ZeRO-3."""

    def _load_model(self) -> dict[str, Any]:
        self.tokenizer = load_tokenizer_path(str(self.cfg.reward_model.path), "reward_model.path")
        return super()._load_model()

    def _read(self, path: str | None, dtype: torch.dtype, weights: bool) -> TokenValue:
        path = path or str(self.cfg.reward_model.path)
        return TokenValue(load_value_path(path, "reward_model.path", dtype, weights, new_head=False))

    def score(self, conversations: list[list[dict[str, Any]]]) -> list[Outcome]:
        """What the model says of each conversation. Every rank calls with its own ones, or none, at the same time."""
        began = time.monotonic()
        text = self.engine.model.config.get_text_config()
        limits = (getattr(text, "max_position_embeddings", None), longest_rollout(text, "reward_model.path"))
        limit = min((n for n in limits if n), default=math.inf)
        read = [_tokens(self.tokenizer, conversation, limit) for conversation in conversations]
        whole = [tokens for tokens in read if not isinstance(tokens, str)]
        scores = iter(self._scores(ending(whole, text.pad_token_id)))
        seconds = (time.monotonic() - began) / max(1, len(read))
        return [
            _failed("error", tokens, seconds) if isinstance(tokens, str) else _outcome(next(scores), seconds)
            for tokens in read
        ]

    def _scores(self, batch: Batch) -> list[float]:
        """Of each sequence. Ranks have different ones, and run as many micro-batches as the one that needs most."""
        (microbatches,) = plan(batch.lengths.tolist(), 1, self.cfg.actor.microbatch_tokens)
        most = torch.tensor(len(microbatches), device=self.device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        microbatches += [[]] * (int(most) - len(microbatches))
        return batch_value(self.engine.ds, batch, microbatches, self.device)[batch.mask].tolist()


def _tokens(tokenizer: Any, conversation: list[dict[str, Any]], limit: float) -> list[int] | str:
    """The tokens, or what is wrong. A sequence leaves one position of the context free, for the token after it."""
    try:
        tokens = conversation_tokens(tokenizer, conversation)
    except ValueError as e:
        return str(e)
    if len(tokens) >= limit:
        return (
            f"the conversation has {len(tokens)} tokens, the reward model's context ends after {limit - 1:g}; lower "
            "data.max_prompt_tokens or rollout.max_response_tokens, or take another reward model"
        )
    return tokens


def _outcome(score: float, seconds: float) -> Outcome:
    if not math.isfinite(score):
        return _failed("bad_value", f"the reward model's score is {score}", seconds)
    return Outcome(score, seconds=seconds)


def _failed(status: str, message: str, seconds: float) -> Outcome:
    return Outcome(None, status=status, message=message, seconds=seconds)


class PreferenceRank(TrainedRank):
    """One rank of a reward model that learns from pairs. Trained by the settings of `actor`."""

    def _read(self, path: str | None, dtype: torch.dtype, weights: bool) -> TokenValue:
        model = load_value_path(path or self.cfg.model.path, "model.path", dtype, weights)
        # Where transformers looks for a sequence's last token: what is saved must find the one that was learned.
        model.config.get_text_config().pad_token_id = pad_token(self._tokenizer())
        return TokenValue(model)

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return preference_tokenizer(self.cfg.model, self.cfg.data)

    def update(self, minibatches: list[Work], learning_rate: float) -> Stats:
        """One optimizer step for each of `minibatches`, of whole pairs; see TrainedRank for a rate
        of 0 and for bad gradients."""
        return self._learn(minibatches, learning_rate, self._loss)

    def _loss(self, micro: Batch, totals: Totals, stats: Stats) -> Tensor:
        scores = self.engine.ds(micro.tokens, micro.offsets, micro.mask)[micro.mask]
        assert one_group_a_pair(micro.group[micro.rollout_of_token[micro.mask]]), "rollouts that are no pairs"
        per_pair, columns = bradley_terry(scores[0::2], scores[1::2])
        share = per_pair.sum() / max(1, totals.sequences // 2)
        spread = {k: torch.zeros(len(micro.mask), device=self.device) for k in columns}
        for name, column in columns.items():
            spread[name][micro.mask] = column.repeat_interleave(2)
        stats.note(share, micro, {f"train/{name}": column for name, column in spread.items()})
        return share


def preference_tokenizer(cfg: ModelConfig, data: DataConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer; without its chat template where pairs are learned without one, and with the arguments that
    they are learned with, so that whoever scores with the model reads as it has learned to."""
    tokenizer = load_tokenizer(cfg)
    if not data.chat_template:
        tokenizer.chat_template = None
    elif data.chat_template_args and isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = with_defaults(tokenizer.chat_template, data.chat_template_args)
    return tokenizer


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    pad = tokenizer.pad_token_id
    assert pad is None or isinstance(pad, int)
    return pad
