"""Which tokens end a response, and what is open where a prompt ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlcore.config import Config, DataConfig, ModelConfig
from rlcore.data.endings import endings, text_of
from rlcore.data.opened import of_text
from rlcore.data.prompts import Prompts
from rlcore.errors import ConfigError
from rlcore.models.endings import model_endings
from rollout.collector import response_text
from rollout.engine import Sample
from tests import templates
from tests.templates import make_tokenizer

ALL = ["<|im_end|>", "<|endoftext|>", "<|end|>"]


@pytest.mark.parametrize(
    ("template", "eos", "chat", "found"),
    [
        # Qwen2.5's base models: the template ends a turn otherwise than the tokenizer a text.
        (templates.CHATML, "<|endoftext|>", True, ["<|im_end|>", "<|endoftext|>"]),
        (templates.CHATML, "<|endoftext|>", False, ["<|endoftext|>", "<|im_end|>"]),
        (templates.CHATML, "<|im_end|>", True, ["<|im_end|>"]),
        (templates.CHATML, None, True, ["<|im_end|>"]),
        (templates.OPENS_THINK, "<|endoftext|>", True, ["<|endoftext|>"]),
        (templates.LLAMA_2, "<|endoftext|>", True, ["<|endoftext|>"]),
        (templates.PHI_3, "<|endoftext|>", True, ["<|end|>", "<|endoftext|>"]),
        (templates.GLM_4, "<|endoftext|>", True, ["<|endoftext|>"]),
        ("{{ raise_exception('tools only') }}", "<|endoftext|>", True, ["<|endoftext|>"]),
        (None, "<|endoftext|>", False, ["<|endoftext|>"]),
    ],
)
def test_the_template_says_how_a_turn_ends(template: str | None, eos: str | None, chat: bool, found: list[str]) -> None:
    tokenizer = make_tokenizer(template, eos)
    ends = endings(tokenizer, chat)
    assert list(ends.texts) == found and list(ends.ids) == tokenizer.convert_tokens_to_ids(found)
    assert ends.taught == ends.ids[0] and ends.shown().startswith(f"{found[0]} ({ends.taught}), learned")


def test_a_turn_that_ends_with_no_token_is_refused() -> None:
    plain = make_tokenizer(templates.CHATML, markers=("<|endoftext|>",))  # <|im_end|> is ten letters to it
    with pytest.raises(ConfigError, match=r"ends the assistant's turn with <\|im_end\|>, for which .* no token"):
        endings(plain, chat_template=True)
    assert endings(plain, chat_template=False).texts == ("<|endoftext|>",)
    with pytest.raises(ConfigError, match="nothing says which token ends a response"):
        endings(make_tokenizer(templates.GLM_4, None), chat_template=True)


@pytest.mark.parametrize(
    ("files", "want"),
    [
        ({}, ["<|im_end|>", "<|endoftext|>"]),
        ({"generation_config.json": {"eos_token_id": 4}}, ["<|im_end|>", "<|endoftext|>"]),
        ({"generation_config.json": {"eos_token_id": [3, 9]}}, ALL),
        ({"generation_config.json": {}, "config.json": {"eos_token_id": 9}}, ALL),
        ({"config.json": {"text_config": {"eos_token_id": 9}}}, ALL),
        # In transformers and in vLLM the generation config comes first.
        ({"generation_config.json": {"eos_token_id": 9}, "config.json": {"eos_token_id": 2}}, ALL),
    ],
)
def test_what_the_models_files_declare_ends_responses_too(tmp_path: Path, files: dict, want: list[str]) -> None:
    ends = model_endings(model(tmp_path, files), make_tokenizer(templates.CHATML))
    assert list(ends.texts) == want


def model(path: Path, files: dict) -> Config:
    for name, content in files.items():
        (path / name).write_text(json.dumps(content))
    return Config(model=ModelConfig(path=str(path)))


@pytest.mark.parametrize(
    ("declared", "why"),
    [
        (20, r"eos_token_id 20, which is '\$' in the tokenizer, a piece of text"),
        ([3, 500], "eos_token_id 500, which is no token of the tokenizer"),
        ("</s>", "eos_token_id is '</s>', must be a token's number"),
        (True, "eos_token_id is True, must be a token's number"),
        ([3, True], r"eos_token_id is \[3, True\], must be a token's number"),
    ],
)
def test_files_of_two_models_are_refused(tmp_path: Path, declared: object, why: str) -> None:
    cfg = model(tmp_path, {"generation_config.json": {"eos_token_id": declared}})
    with pytest.raises(ConfigError, match=f"model.path: generation_config.json of .*{why}"):
        model_endings(cfg, make_tokenizer(templates.CHATML))


def test_a_response_is_all_its_tokens_but_the_ending_one() -> None:
    """Special tokens are text: <think> and <answer> are special in some tokenizers."""
    tokenizer = make_tokenizer(templates.CHATML)
    ends = endings(tokenizer, True)
    text = response_text(lambda tokens: text_of(tokenizer, tokens), ends.ids, tokenizer.pad_token_id)
    said = "<think>2 , 3 .</think><answer>4</answer>"
    for end in ends.ids:
        tokens = [*tokenizer(said)["input_ids"], end]
        assert text(Sample((0, 0), tokens, [], "stop")) == said
    # What did not end it is part of it, whatever it is; padding is nothing.
    tokens = tokenizer(f"{said}<|user|>")["input_ids"]
    assert text(Sample((0, 0), [0, *tokens, 0], [], "length")) == f"{said}<|user|>"


@pytest.mark.parametrize(
    ("text", "said", "opened"),
    [
        ("<|im_start|>assistant\n", "", ""),
        ("<|Assistant|><think>\n", "", "<think>\n"),
        ("Assistant: step by step.\n<think>", "", "<think>"),
        ("<|assistant|><think>", "", "<think>"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "", "<think>\n\n</think>\n\n"),
        ("<|Assistant|></think>", "", "</think>"),
        ("assistant\n<answer>", "", "<answer>"),
        ("assistant\n<think>\n</think>\n<answer>", "", "<think>\n</think>\n<answer>"),
        ("It is \\boxed{", "", "\\boxed{"),
        ("Here:\n```python\n", "", "```python\n"),
        # An instruction is no beginning; a block that a question closes is closed.
        ("Think in <think> </think>", "", ""),
        ("Think in <think></think>", "", ""),
        ("Use <think> and <answer> tags.<|im_end|>\n<|im_start|>assistant\n", "", ""),
        ("```python\nx = 1\n```\n", "", ""),
        # What the assistant has begun in the data.
        ("assistant\n<think>\nLet me see", "<think>\nLet me see", "<think>\nLet me see"),
        ("assistant\nSure. <answer>", "Sure. <answer>", "<answer>"),
        ("assistant\nSure", "Sure", ""),
        ("assistant\n<think>\n\n</think>\n\nIt is", "It is", "<think>\n\n</think>\n\nIt is"),
        ("assistant\n<think>", "<think>\n", "<think>"),
    ],
)
def test_what_is_open_where_a_prompt_ends(text: str, said: str, opened: str) -> None:
    assert of_text(text, said) == opened


def test_prompts_know_what_their_template_opens(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"prompt": "Answer in <answer> tags: 2+2?", "answer": "4"}\n')
    for template, opened in ((templates.OPENS_THINK, "<think>\n"), (templates.CHATML, "")):
        (prompt,) = Prompts([str(source)], DataConfig(), make_tokenizer(template), 0).all()
        assert prompt.opened == opened
