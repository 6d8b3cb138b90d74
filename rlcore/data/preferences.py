"""Preference rows: two answers to one conversation, of which the first is preferred. What reward models and DPO learn.

A row has the columns chosen and rejected: text, or lists of messages. Text, and messages that begin with the
assistant's, answer the prompt column; other messages are the whole conversation, whose prompt is what both begin with.
Text without a prompt column is the whole text. See docs/data.md.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rlcore.config import DataConfig
from rlcore.data.answered import AnsweredRows, answer
from rlcore.data.conversation import (
    Message,
    Read,
    asked,
    conversation_of,
    conversation_text,
    read_rows,
    row_text,
    tokens_of_row,
)
from rlcore.data.endings import Endings, endings
from rlcore.data.layouts import PROMPTS, choose
from rlcore.data.prompts import as_prompts, with_tokens
from rlcore.data.responses import THOUGHTS, left_out, messages_of, response_tokens
from rlcore.data.sources import Row, Rows, load_sources
from rlcore.errors import DataError
from rlcore.records import Group, Prompt, Rollout

_COLUMNS = ("chosen", "rejected")
_REWARDS = (1.0, 0.0)
_PROMPT = "prompt"  # the column that the common beginning of two conversations is put into

Answers = tuple[list[Message], list[Message]]  # chosen and rejected


class Pairs(AnsweredRows):
    """Pairs of whole conversations, for a model that scores them: groups of two, the preferred one first.

    Each ends with one token more, the only one in the mask: its value is the conversation's score. `dropped` counts the
    pairs of equal conversations, or of one longer than `data.max_prompt_tokens + max_response_tokens`.
    """

    def __init__(
        self, sources: Sequence[str], cfg: DataConfig, tokenizer: Any, seed: int, max_response_tokens: int
    ) -> None:
        most = cfg.max_prompt_tokens + max_response_tokens
        loaded = list(load_sources(sources))
        self.notes = [choose(rows, cfg).told_pairs(rows) for rows in loaded]
        groups = [_to_score(pair, cfg, tokenizer, most) for rows in loaded for pair in pairs_of(rows, cfg)]
        why = (
            f"pairs are of equal texts, or longer than {most} tokens "
            "(data.max_prompt_tokens + rollout.max_response_tokens)"
        )
        super().__init__(sources, groups, why, cfg, seed)


class ResponsePairs(AnsweredRows):
    """Pairs of responses to one prompt, for a policy that learns from them: groups of two, the preferred one first.

    The prompt's tokens are those of `Prompts`, a response's those of `Examples`. `dropped` counts the pairs of equal
    responses, and those whose prompt or one of whose responses is too long.
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
        ends = ends or endings(tokenizer, cfg.chat_template, cfg.chat_template_args)
        loaded = list(load_sources(sources))
        self.notes = [choose(rows, cfg).told_pairs(rows) for rows in loaded]
        pairs = (pair for rows in loaded for pair in pairs_of(rows, cfg))
        groups = [_to_learn(pair, cfg, tokenizer, max_response_tokens, ends) for pair in pairs]
        why = (
            f"pairs are of equal texts, or over {cfg.max_prompt_tokens} tokens of prompt or {max_response_tokens} of "
            "response"
        )
        super().__init__(sources, groups, why, cfg, seed)


def to_score(tokens: Sequence[int], pad: int | None) -> list[int]:
    """A sequence and one token more, whose value is the sequence's score.

    What transformers takes for padding at the end, tokens equal to `pad`, is left out, as there; of nothing but padding
    the first token stays.
    """
    kept = list(tokens)
    while len(kept) > 1 and kept[-1] == pad:
        kept.pop()
    return [*kept, 0]


class _Pair(NamedTuple):
    """A row, which is at `where`: its prompt without tokens, of no messages where the answers are whole texts."""

    where: str
    prompt: Prompt
    answers: Answers


def _to_score(pair: _Pair, cfg: DataConfig, tokenizer: Any, most: int) -> Group | None:
    whole = [
        _scored(pair.where, column, [*pair.prompt.messages, *messages], cfg, tokenizer)
        for column, messages in zip(_COLUMNS, pair.answers, strict=True)
    ]
    if max(map(len, whole)) > most or whole[0] == whole[1]:
        return None
    tokens = [to_score(each, tokenizer.pad_token_id) for each in whole]
    texts = [messages[-1]["content"] or "" for messages in pair.answers]
    return Group([answer(pair.prompt, *each) for each in zip(tokens, (1, 1), texts, _REWARDS, strict=True)])


def _scored(where: str, column: str, conversation: list[Message], cfg: DataConfig, tokenizer: Any) -> list[int]:
    """The tokens of a whole conversation. DataError where its last message is not all there: it would be scored by the
    rest, as with R1's template by what follows the thought."""
    text = row_text(where, conversation, cfg, tokenizer)
    if lost := _unwritten(conversation, text, cfg, tokenizer):
        writes = "the chat template does not write" if cfg.chat_template else "without a chat template nothing writes"
        raise DataError(
            f"{where}: {column}: {writes} the whole {lost} of the last message, so the answer would be scored without "
            "it; take a chat template that writes it (of thoughts, not one that drops them), or leave it out of the row"
        )
    return tokens_of_row(where, text, cfg, tokenizer)


def _unwritten(conversation: Sequence[Message], text: str, cfg: DataConfig, tokenizer: Any) -> str | None:
    """What of the last message is not in the text, white space aside; a thought may be written as its content."""
    *before, last = conversation
    content = last["content"] or ""
    if lost := left_out({**last, "content": content}, text):
        return lost[0]
    thoughts = [name for name in THOUGHTS if name in left_out({**last, "content": ""}, content)]
    if not thoughts:
        return None
    silent = [*before, {name: value for name, value in last.items() if name not in THOUGHTS}]
    try:
        same = conversation_text(tokenizer, silent, cfg.chat_template, args=cfg.chat_template_args) == text
    except ValueError:
        same = False
    return thoughts[0] if same else None


def _to_learn(pair: _Pair, cfg: DataConfig, tokenizer: Any, max_response_tokens: int, ends: Endings) -> Group | None:
    _require_prompt(pair)
    found = asked(pair.where, pair.prompt.messages, cfg, tokenizer)
    prompt = with_tokens(pair.prompt, found, tokenizer)
    tokens, texts, responses = prompt.tokens, list[str](), list[list[int]]()
    for column, messages in zip(_COLUMNS, pair.answers, strict=True):
        where = f"{pair.where}: {column}"
        texts.append(_only_text(where, messages))
        responses.append(response_tokens(where, tokenizer, [*prompt.messages, *messages], cfg, ends, found))
    if len(tokens) > cfg.max_prompt_tokens or max(map(len, responses)) > max_response_tokens:
        return None
    if responses[0] == responses[1]:
        return None

    def rollout(response: list[int], text: str, reward: float) -> Rollout:
        return answer(prompt, tokens + response, len(response), text, reward)

    return Group([rollout(*each) for each in zip(responses, texts, _REWARDS, strict=True)])


def _require_prompt(pair: _Pair) -> None:
    if not pair.prompt.messages:
        raise DataError(f"{pair.where}: chosen and rejected are text without a prompt column; set data.prompt_column")


def _only_text(where: str, messages: Sequence[Message]) -> str:
    """The text of an answer of one message: of what comes after the first, the policy says only a part."""
    content = messages[0]["content"]
    if len(messages) > 1 or not isinstance(content, str):
        raise DataError(f"{where}: must be one message of text, for a policy to learn from it")
    return content


def pairs_of(loaded: Rows, cfg: DataConfig) -> Iterator[_Pair]:
    """The pairs of one source, a row each."""
    read, said = _read(loaded, cfg)
    for i, (prompt, answers) in enumerate(zip(as_prompts(loaded, read, cfg), said, strict=True)):
        yield _Pair(loaded.at(i), prompt, answers)


def _read(loaded: Rows, cfg: DataConfig) -> tuple[Read, list[Answers]]:
    """Of each row: what is answered, and both answers."""
    said = [(messages_of(loaded, i, "chosen"), messages_of(loaded, i, "rejected")) for i in range(len(loaded.rows))]
    whole = [any(messages[0]["role"] != "assistant" for messages in both) for both in said]
    if any(whole) != all(whole):
        raise DataError(
            f"{loaded.at(whole.index(not whole[0]))}: chosen and rejected are {_kind(not whole[0])}, in the first row "
            f"{_kind(whole[0])}; write all rows alike"
        )
    if not whole[0] and _is_bare_text(loaded, cfg):
        return Read([[] for _ in said], ["" for _ in said], [None for _ in said]), said
    if whole[0]:
        cut = [_common(*both) for both in said]
        for i, n in enumerate(cut):
            _check_beginning(loaded.at(i), said[i][0][:n])
            _check_prompt(loaded, i, said[i][0][:n], cfg)
        rows: list[Row] = [{**row, _PROMPT: both[0][:n]} for row, both, n in zip(loaded.rows, said, cut, strict=True)]
        loaded, cfg = loaded._replace(rows=rows), copy.copy(cfg)
        cfg.prompt_column = _PROMPT
        said = [(chosen[n:], rejected[n:]) for (chosen, rejected), n in zip(said, cut, strict=True)]
    prompts = read_rows(loaded, cfg, answers_needed=False)
    for i, both in enumerate(said):
        begun = prompts.said[i] is not None or prompts.messages[i][-1]["role"] == "assistant"
        if begun or not all(messages[-1]["role"] == "assistant" for messages in both):
            raise DataError(
                f"{loaded.at(i)}: a prompt must end before the assistant speaks, chosen and rejected with what it says"
            )
    return prompts, said


def _check_beginning(where: str, prompt: Sequence[Message]) -> None:
    """Of two whole conversations: DataError when there is no prompt in what both begin with."""
    if not prompt:
        raise DataError(
            f"{where}: chosen and rejected have no prompt in common; both must begin with the same messages, before an "
            "answer of their own"
        )
    roles = [str(message["role"]) for message in prompt]
    if "user" not in roles:
        raise DataError(
            f"{where}: the prompt that chosen and rejected have in common has no user message, but of "
            f"{', '.join(roles)}"
        )


def _check_prompt(loaded: Rows, i: int, beginning: Sequence[Message], cfg: DataConfig) -> None:
    """Of two whole conversations: DataError when the row's prompt column says more than what both begin with."""
    given = loaded.rows[i].get(_PROMPT)
    if given in (None, "", []) or cfg.prompt_column != "auto":
        return
    known = {message["content"] for message in beginning}
    if any(message["content"] not in known for message in conversation_of(given, loaded.at(i), _PROMPT)):
        raise DataError(
            f"{loaded.at(i)}: column {_PROMPT} has a message that chosen and rejected, whole conversations, do not "
            "begin with; which of them is asked? Correct one, or leave the column out"
        )


def _kind(whole: bool) -> str:
    return "whole conversations" if whole else "answers"


def _is_bare_text(loaded: Rows, cfg: DataConfig) -> bool:
    """Whether there is no prompt to answer: then the texts are taken as they are."""
    if cfg.prompt_column != "auto" or loaded.rows[0].keys() & {*PROMPTS}:
        return False
    if cfg.chat_template:
        raise DataError(
            f"{loaded.source}: chosen and rejected are text without a prompt column, which a chat template cannot be "
            "filled with; set data.prompt_column, or data.chat_template=false to take the texts as they are"
        )
    return True


def _common(a: list[Message], b: list[Message]) -> int:
    """How many messages both begin with; the last of each is never among them."""
    most = min(len(a), len(b)) - 1
    return next((n for n in range(most) if a[n] != b[n]), most)
