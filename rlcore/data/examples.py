"""Dataset rows to prompts with the response to learn: what supervised fine-tuning trains on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from rlcore.config import DataConfig
from rlcore.data.answered import AnsweredRows, answer
from rlcore.data.conversation import Message, asked, read_rows
from rlcore.data.endings import Endings, endings
from rlcore.data.layouts import choose, response_column, value_of
from rlcore.data.prompts import as_prompts, with_tokens
from rlcore.data.responses import learned_before, response_tokens, spoken
from rlcore.data.sources import Rows, load_sources
from rlcore.errors import DataError, nearest
from rlcore.records import Group, Prompt


class Examples(AnsweredRows):
    """A row's prompt and what the assistant says, each time with the token that ends it; only that is in the mask.

    It says the response column, text or messages, or, with messages that end with its own, all of its messages there.
    `dropped` counts the rows whose prompt or response is too long. Raises DataError for a row that cannot be used.
    """

    def __init__(
        self,
        sources: Sequence[str],
        cfg: DataConfig,
        tokenizer: Any,
        seed: int,
        max_response_tokens: int,
        ends: Endings | None = None,  # None: those of the tokenizer alone
    ) -> None:
        self._cfg, self._tokenizer, self._longest = cfg, tokenizer, max_response_tokens
        self._ends = ends or endings(tokenizer, cfg.chat_template, cfg.chat_template_args)
        loaded = list(load_sources(sources))
        self.notes = [choose(r, cfg, learned=True).told_learned(r, response_column(r, cfg)) for r in loaded]
        groups = [group for rows in loaded for group in self._of(rows)]
        why = f"rows are over {cfg.max_prompt_tokens} tokens of prompt or {max_response_tokens} of response"
        super().__init__(sources, groups, why, cfg, seed)

    def _of(self, loaded: Rows) -> Iterator[Group | None]:
        """The example of each row, None where it is too long."""
        cfg, column = self._cfg, response_column(loaded, self._cfg)
        read = read_rows(loaded, cfg, answers_needed=False)
        for i, (row, said) in enumerate(zip(as_prompts(loaded, read, cfg), read.said, strict=True)):
            conversation: list[Message] = list(row.messages)
            if said is not None and column not in loaded.rows[i]:
                conversation.append(said)
                first = 0
            else:
                _require_response(loaded, i, column)
                first = len(conversation)
                conversation += spoken(loaded, i, column)
            turns = [n for n in range(first, len(conversation)) if _learned(conversation[n], loaded.at(i))]
            if len(conversation) - 1 not in turns:
                raise DataError(
                    f"{loaded.at(i)}: the assistant's last message has weight 0, so it is not to be learned; end the "
                    "row with one that is"
                )
            prompt = dataclasses.replace(row, messages=[dict(message) for message in conversation[:-1]])
            yield self._example(loaded.at(i), prompt, conversation, turns[:-1])

    def _example(self, where: str, prompt: Prompt, conversation: list[Message], earlier: list[int]) -> Group | None:
        """The last message as the response; messages number `earlier` are learned too, where they are what was said."""
        cfg, tokenizer, ends = self._cfg, self._tokenizer, self._ends
        found = asked(where, prompt.messages, cfg, tokenizer)
        prompt = with_tokens(prompt, found, tokenizer)
        response = response_tokens(where, tokenizer, conversation, cfg, ends, found)
        if len(prompt.tokens) > cfg.max_prompt_tokens or len(response) > self._longest:
            return None
        before = learned_before(where, tokenizer, conversation, earlier, prompt.tokens, cfg, ends)
        self.last_only += before is None
        text = conversation[-1]["content"] or ""
        whole = answer(prompt, prompt.tokens + response, len(response), text, 0.0)
        mask = whole.mask if before is None else [*before, *whole.mask[len(before) :]]
        return Group([dataclasses.replace(whole, mask=mask)])


def _require_response(loaded: Rows, i: int, column: str) -> None:
    """DataError for a row that has nothing to learn, which names the columns it has."""
    row = loaded.rows[i]
    if column not in row and value_of(loaded, i, column) is None:
        raise DataError(
            f"{loaded.at(i)}: column {column} is missing{nearest(column, row)}; set data.response_column to the column "
            f"that is to be learned, one of {', '.join(row)}, or end the row's messages with the assistant's"
        )


def _learned(message: Message, where: str) -> bool:
    """Whether it is the assistant's and to be learned: in OpenAI's rows one of weight 0 is not."""
    weight = message.get("weight", 1)
    if message["role"] == "assistant" and weight not in (0, 1):
        raise DataError(f"{where}: a message has weight {weight}; it must be 1, to be learned, or 0")
    return message["role"] == "assistant" and weight == 1
