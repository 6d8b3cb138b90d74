"""Which tokens end what the assistant says. One set for a run: learned, stopped at, hidden from rewards, exported."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlcore.errors import ConfigError

_ASKED, _SAID = "xq", "zw"  # stands for what a user and an assistant say
MARKER = re.compile(r"\s*(<\S+?>|\[\S+?\])")  # as <|end|>, </s>, [EOS]


class Endings(NamedTuple):
    """The tokens that end a response.

    Example: `Endings(taught=151645, ids=(151645, 151643), texts=("<|im_end|>", "<|endoftext|>"))`.
    """

    taught: int  # what a response that is learned ends with
    ids: tuple[int, ...]  # all, `taught` first
    texts: tuple[str, ...]  # of `ids`

    def shown(self) -> str:
        """`<|im_end|> (151645), learned; <|endoftext|> (151643)`."""
        named = [f"{text} ({token})" for text, token in zip(self.texts, self.ids, strict=True)]
        return "; ".join([f"{named[0]}, learned", *named[1:]])


def text_of(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of these tokens and nothing else: special tokens, such as <think> may be, are text like any other."""
    return tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def endings(
    tokenizer: Any, chat_template: bool, args: Mapping[str, Any] | None = None, declared: Sequence[int] = ()
) -> Endings:
    """What the chat template, given `args`, puts after the assistant's words, the tokenizer's end, the `declared` ones.

    Learned is the first of them that there is; the template's only with `chat_template`. Raises ConfigError when there
    is none, or when the template ends a turn with something that is no token.
    """
    turn = _of_template(tokenizer, chat_template, args or {})
    own = [t for t in (turn, tokenizer.eos_token_id) if t is not None]
    ids = list(dict.fromkeys([*(own if chat_template else reversed(own)), *declared]))
    if not ids:
        raise ConfigError(
            "model.path: nothing says which token ends a response: the tokenizer has no end-of-sequence token, the "
            "chat template ends a turn with none, generation_config.json and config.json have no eos_token_id; add one"
        )
    return Endings(ids[0], tuple(ids), tuple(text_of(tokenizer, [t]) for t in ids))


def _of_template(tokenizer: Any, chat_template: bool, args: Mapping[str, Any]) -> int | None:
    """The special token that a conversation's last words, the assistant's, are followed by; None: there is none."""
    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _SAID}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False, **args)
    except Exception:  # a template is a program of the model's authors, and may want other conversations than this
        return None
    _, said, after = text.rpartition(_SAID)
    if not said:
        return None
    special = special_tokens(tokenizer)
    for token in tokenizer(after, add_special_tokens=False)["input_ids"]:
        if token in special:
            return token
    if chat_template and (marker := MARKER.match(after)):
        raise ConfigError(
            f"model.path: the chat template ends the assistant's turn with {marker[1]}, for which the tokenizer has no "
            "token: no engine could stop there; add the token to the tokenizer, or set data.chat_template=false"
        )
    return None


def special_tokens(tokenizer: Any) -> set[int]:
    """The tokens that stand for no text of their own: special ones, and what was added to the vocabulary."""
    return {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
