"""Dataset rows to prompts with the response to learn: what supervised fine-tuning trains on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from rlcore.config import DataConfig
from rlcore.data.answered import AnsweredRows, answer
from rlcore.data.conversation import (
    Message,
    as_text,
    cell,
    prompt_tokens,
    read_rows,
    require_plain_response,
    response_tokens,
)
from rlcore.data.layouts import choose, response_column
from rlcore.data.prompts import as_prompts
from rlcore.data.sources import Rows, load_sources
from rlcore.errors import DataError
from rlcore.records import Group


class Examples(AnsweredRows):
    """A row's prompt and its response, which ends with the end-of-sequence token; only the response is in the mask.

    The response is the response column or, with messages, their last one when the assistant said it. `dropped` counts
    the rows whose prompt or response is too long. Raises DataError for a row that cannot be used.
    """

    def __init__(
        self, sources: Sequence[str], cfg: DataConfig, tokenizer: Any, seed: int, max_response_tokens: int
    ) -> None:
        loaded = list(load_sources(sources))
        self.notes = [choose(r, cfg, learned=True).told_learned(r, response_column(r, cfg)) for r in loaded]
        groups = [g for rows in loaded for g in _groups(rows, cfg, tokenizer, max_response_tokens)]
        why = f"rows are over {cfg.max_prompt_tokens} tokens of prompt or {max_response_tokens} of response"
        super().__init__(sources, groups, why, cfg, seed)


def _groups(loaded: Rows, cfg: DataConfig, tokenizer: Any, max_response_tokens: int) -> Iterator[Group | None]:
    """The example of each row, None where it is too long."""
    read, column = read_rows(loaded, cfg, answers_needed=False), response_column(loaded, cfg)
    for i, (row, said) in enumerate(zip(as_prompts(loaded, read, cfg), read.said, strict=True)):
        prompt = dataclasses.replace(row, tokens=prompt_tokens(loaded.at(i), row.messages, cfg, tokenizer))
        text = _response(loaded, i, column, said)
        require_plain_response(loaded.at(i), text, cfg, tokenizer)
        response = response_tokens(text, tokenizer)
        fits = len(prompt.tokens) <= cfg.max_prompt_tokens and len(response) <= max_response_tokens
        yield Group([answer(prompt, prompt.tokens + response, len(response), text, 0.0)]) if fits else None


def _response(loaded: Rows, i: int, column: str, said: Message | None) -> str:
    """What is to be learned from row i: the response column, else the assistant's last message."""
    if said is not None and column not in loaded.rows[i]:
        if "tool_calls" in said:
            raise DataError(f"{loaded.at(i)}: the assistant's last message must be text, for a policy to learn from it")
        return said["content"]
    text = as_text(cell(loaded, i, column))
    if not text:
        raise DataError(f"{loaded.at(i)}: column {column} is empty")
    return text
