"""The embedded default model: a fresh small Llama with a tokenizer of its own. Made, not downloaded.

The tokenizer knows the words of the generated arithmetic problems and every single digit; anything else falls back to
bytes, so it reads and writes any text exactly. The weights are random from a fixed seed: `rlcore sft demo_sft` teaches
them, and `rlcore train demo` goes on from there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from rlcore.problems import arithmetic

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

_SEED = 0
_HIDDEN, _LAYERS, _HEADS, _FEEDFORWARD, _CONTEXT = 192, 3, 6, 384, 512
_SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
# Pieces keep their spaces, so a problem is about 20 tokens; a digit is always a token of its own.
_PIECE = r" ?[A-Za-z]+ ?|[0-9]|[.,?=] ?|#### |[^A-Za-z0-9]"
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_base(directory: Path) -> Path:
    """Write the untrained model and its tokenizer as Hugging Face files; the same bytes of weights every time."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, then the pieces of 4,000 generated problems, then the special tokens. Nothing is learned or downloaded."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    rows = arithmetic(size=4000)
    pieces = {p for row in rows for p in re.findall(_PIECE, f"{row['question']}\n{row['response']}")}
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = sorted("".join(s for s, _ in byte_level.pre_tokenize_str(p)) for p in pieces)
    tokens = dict.fromkeys([*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *spelled])
    vocab = {token: i for i, token in enumerate(tokens)}
    # No merges: a piece that is in the vocabulary is one token, any other is its bytes.
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    split = pre_tokenizers.Split(Regex(_PIECE), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    pad, end, *roles = _SPECIAL
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=end,
        additional_special_tokens=roles,
        clean_up_tokenization_spaces=False,
        model_max_length=_CONTEXT,
    )
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of about 1.2 million parameters with tied embeddings, initialised from a fixed seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=(len(tokenizer) + 63) // 64 * 64,
        hidden_size=_HIDDEN,
        intermediate_size=_FEEDFORWARD,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS,
        head_dim=_HIDDEN // _HEADS,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=_SPECIAL.index("<|end|>"),
        pad_token_id=_SPECIAL.index("<|pad|>"),
    )
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        return LlamaForCausalLM(config)
