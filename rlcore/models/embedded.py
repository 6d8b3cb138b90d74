"""The embedded models: fresh small Llamas with tokenizers of their own. Made, not downloaded.

A tokenizer knows the words of its model's generated problems and every single digit; anything else falls back to bytes,
so it reads and writes any text exactly. The weights are random from a fixed seed: the model's warm-up recipe teaches
them, and `rlcore train demo` goes on from there. `model.path=NAME` is the warmed-up model, made once and cached.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rlcore.data.generate.arithmetic import arithmetic
from rlcore.data.generate.countdown import countdown
from rlcore.data.generate.knights_knaves import knights_knaves

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

_SEED = 0
_SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
# Pieces keep their spaces, so a problem is about 20 tokens; a digit is always a token of its own.
_WORDS_AND_DIGITS = r" ?[A-Za-z]+ ?|[0-9]|[.,?=] ?|#### |[^A-Za-z0-9]"
# Here a tag is one token, and so is a number, whole.
_WORDS_TAGS_AND_NUMBERS = r" ?[A-Za-z]+ ?|</?[a-z]+>|[0-9]+|[.,?=] ?|[^A-Za-z0-9]"
# Here a name and its role are one token, "Owen is a knave" or "Owen knave; ": a case of three people is three tokens.
_PEOPLE_AND_ROLES = (
    r"[A-Z][a-z]+ is(?: not)? a kn(?:ight|ave)|[A-Z][a-z]+ kn(?:ight|ave); |[A-Z][a-z]+(?: says )?|</?[a-z]+>|"
    r"\n?\(\d\) | \([a-z]+\)|,?[^A-Z<\n(,]+\n?|.|\n"
)
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Embedded(NamedTuple):
    """One embedded model. Dimensions are those of Hugging Face's LlamaConfig; a head's must suit vLLM's CPU attention.

    warm_up  the recipe of `rlcore sft` that teaches it
    rows     generated rows with question and response, whose pieces its tokenizer knows
    piece    a regular expression that cuts any text into pieces
    """

    warm_up: str
    rows: Callable[[], list[dict[str, Any]]]
    piece: str = _WORDS_AND_DIGITS
    hidden: int = 192
    layers: int = 3
    heads: int = 6
    feedforward: int = 384
    context: int = 512  # positions


EMBEDDED: dict[str, Embedded] = {
    "demo": Embedded("demo_sft", lambda: arithmetic(size=4000)),
    "demo_countdown": Embedded(
        "tinyzero_countdown_cpu_sft",
        lambda: countdown(size=4000, numbers="3", largest=12, largest_value=30),
        piece=_WORDS_TAGS_AND_NUMBERS,
        hidden=128,
        heads=4,
        feedforward=256,
    ),
    "demo_knights": Embedded(
        "logic_rl_cpu_sft",
        lambda: knights_knaves(size=4000, people="2-3", wording="short", worked=0.5),
        piece=_PEOPLE_AND_ROLES,
        hidden=128,
        layers=4,
        heads=4,
    ),
}


def make_base(directory: Path, name: str = "demo") -> Path:
    """Write the untrained model and its tokenizer as Hugging Face files; the same bytes of weights every time."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(name)
    make_model(tokenizer, name).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_tokenizer(name: str = "demo") -> PreTrainedTokenizerFast:
    """Bytes, then the pieces of generated problems, then the special tokens. Nothing is learned or downloaded."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    embedded = EMBEDDED[name]
    texts = [f"{row['question']}\n{row['response']}" for row in embedded.rows()]
    pieces = {p for text in texts for p in re.findall(embedded.piece, text)}
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = sorted("".join(s for s, _ in byte_level.pre_tokenize_str(p)) for p in pieces)
    tokens = dict.fromkeys([*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *spelled])
    vocab = {token: i for i, token in enumerate(tokens)}
    # No merges: a piece that is in the vocabulary is one token, any other is its bytes.
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    split = pre_tokenizers.Split(Regex(embedded.piece), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    pad, end, *roles = _SPECIAL
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=end,
        additional_special_tokens=roles,
        clean_up_tokenization_spaces=False,
        model_max_length=embedded.context,
    )
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def make_model(tokenizer: PreTrainedTokenizerFast, name: str = "demo") -> LlamaForCausalLM:
    """A Llama (of about 1.2 million parameters for "demo") with tied embeddings, initialised from a fixed seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    embedded = EMBEDDED[name]
    config = LlamaConfig(
        vocab_size=(len(tokenizer) + 63) // 64 * 64,
        hidden_size=embedded.hidden,
        intermediate_size=embedded.feedforward,
        num_hidden_layers=embedded.layers,
        num_attention_heads=embedded.heads,
        num_key_value_heads=embedded.heads,
        head_dim=embedded.hidden // embedded.heads,
        max_position_embeddings=embedded.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=_SPECIAL.index("<|end|>"),
        pad_token_id=_SPECIAL.index("<|pad|>"),
    )
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        return LlamaForCausalLM(config)
