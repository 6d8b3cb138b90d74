"""Tiny models with real Hugging Face files, made in a second: what the tests train and sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def make_tiny_model(directory: Path, tied: bool = True, seed: int = 0) -> Path:
    """A random 2-layer Llama (64 wide, GQA, 128 tokens of vocabulary), a character tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<user>", "<assistant>"]
    letters = [chr(c) for c in range(32, 127)] + ["\n"]
    vocab = {t: i for i, t in enumerate(special + letters)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<pad>",
        additional_special_tokens=["<user>", "<assistant>"],
    )
    fast.chat_template = (
        "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=vocab["<eos>"],
        pad_token_id=vocab["<pad>"],
    )
    directory.mkdir(parents=True, exist_ok=True)
    LlamaForCausalLM(config).save_pretrained(directory)
    fast.save_pretrained(directory)
    return directory


def give_head(directory: Path, out: Path, std: float = 1.0, labels: int = 1, **changes: Any) -> Path:
    """A reward model in `out`: the model of `directory` with a random scoring head; `changes` to its configuration."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(directory, num_labels=labels, **changes)
    model = AutoModelForSequenceClassification.from_pretrained(directory, config=config, dtype=torch.float32)
    head = model.get_submodule("score").get_parameter("weight")
    torch.nn.init.normal_(head, std=std, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(out)
    return out
