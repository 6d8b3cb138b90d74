"""Messages in every form datasets have them, through templates as models ship them: nothing lost, doubled, made up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlcore.config import DataConfig
from rlcore.data.chat_template import mark_in, with_defaults
from rlcore.data.conversation import asked, conversation_tokens
from rlcore.data.examples import Examples
from rlcore.data.messages import normalised
from rlcore.data.preferences import Pairs, ResponsePairs
from rlcore.data.prompts import Prompts
from rlcore.errors import ConfigError, DataError
from tests import templates

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3's: thoughts before every last answer, also before one that is to be continued.
QWEN3 = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}{{- '<|im_start|>assistant\n' }}"
    "{%- set text = m.content if m.content is string else '' %}"
    "{%- if '</think>' in text %}{%- set text = text.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{%- if loop.last %}{{- '<think>\n\n</think>\n\n' + text.lstrip('\n') }}{%- else %}{{- text }}{%- endif %}"
    "{%- for call in m.tool_calls or [] %}{%- set f = call.function or call %}"
    '{{- \'<tool_call>\n{"name": "\' + f.name + \'", "arguments": \' }}'
    "{{- f.arguments if f.arguments is string else f.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>\n' }}{%- elif m.role != 'developer' %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
# As of DeepSeek's R1 distills: the template opens the thoughts.
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
# As Llama 3's: every message is trimmed, and what is no text would become a word.
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | string | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# As Mistral's: no prompt for an answer, and no system messages.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "qwen3": QWEN3, "r1": R1, "llama3": LLAMA3, "mistral": MISTRAL}
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<think>", "</think>"]


def make_tokenizer(template: str | None = CHATML, around: str = "$A") -> Any:
    """A letter is a token; `around` is what it puts around a text, as "<s> $A </s>"."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    named = ["<unk>", "<s>", "</s>"]
    vocab = {t: i for i, t in enumerate([*named, *SPECIAL, *map(chr, range(32, 127)), "\n"])}
    letters = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # type: ignore[assignment]
    letters.decoder = decoders.Fuse()  # type: ignore[assignment]
    ends = [(token, vocab[token]) for token in ("<s>", "</s>")]
    letters.post_processor = TemplateProcessing(single=around, special_tokens=ends)  # type: ignore[assignment]
    unk, bos, eos = named
    made = PreTrainedTokenizerFast(
        tokenizer_object=letters, unk_token=unk, bos_token=bos, eos_token=eos, additional_special_tokens=SPECIAL
    )
    made.chat_template = template
    return made


def said(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def prompt_of(messages: Sequence[Any], template: str = CHATML, args: dict[str, Any] | None = None) -> str:
    tokenizer = make_tokenizer(template)
    form = normalised(messages, "row 1")
    return tokenizer.decode(asked("row 1", form, DataConfig(chat_template_args=args or {}), tokenizer).tokens)


def jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prompts_of(path: Path, row: dict[str, Any], template: str | None = CHATML, around: str = "$A", **keys: Any) -> str:
    tokenizer = make_tokenizer(template, around)
    (prompt,) = Prompts([jsonl(path / "rows.jsonl", row)], DataConfig(**keys), tokenizer, 0).all()
    return tokenizer.decode(prompt.tokens)


# -- a prompt that ends with the assistant's words


@pytest.mark.parametrize(
    ("name", "words", "end"),
    [
        ("chatml", "<think>\n", "<|im_start|>assistant\n<think>\n"),
        ("chatml", "Sure. ", "<|im_start|>assistant\nSure. "),
        # No empty thoughts before those that are begun.
        ("qwen3", "<think>\n", "Q<|im_end|>\n<|im_start|>assistant\n<think>\n"),
        ("qwen3", "Let", "Q<|im_end|>\n<|im_start|>assistant\nLet"),
        # What the template opens is not opened twice.
        ("r1", "<think>\n", "<s><|User|>Q<|Assistant|><think>\n"),
        ("r1", "<think>\nOkay, ", "<s><|User|>Q<|Assistant|><think>\nOkay, "),
        # What the template trims is there all the same.
        ("llama3", "<think>\n", "Q<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n<think>\n"),
        ("llama3", " So", "<|start_header_id|>assistant<|end_header_id|>\n\n So"),
        ("mistral", "So ", "<s>[INST] Q [/INST] So "),
    ],
)
def test_the_assistants_last_words_are_gone_on_from(name: str, words: str, end: str) -> None:
    text = prompt_of(said(("user", "Q"), ("assistant", words)), TEMPLATES[name])
    assert text.endswith(end) and text.count("<think>") == words.count("<think>")


def test_a_template_that_thinks_first_goes_on_in_its_thoughts() -> None:
    prompt = "'<|im_start|>assistant\n' }}{%- if enable"
    opens = QWEN3.replace(prompt, prompt.replace("' }}", "<think>\n' }}"))
    assert opens != QWEN3
    for words, end in (("<think>\nOkay", "<think>\nOkay"), ("Okay", "<think>\nOkay"), ("<think>\n", "<think>\n")):
        text = prompt_of(said(("user", "Q"), ("assistant", words)), opens)
        assert text == f"<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n{end}"


@pytest.mark.parametrize(
    ("last", "template", "why"),
    [
        ({"content": ""}, CHATML, "no words to be continued"),
        ({"content": "\n"}, LLAMA3, "no words to be continued"),
        ({"content": "<think>a</think>b"}, R1, "row 1: the tokenizer's chat template refuses it: ValueError"),
        (
            {"content": "a"},
            CHATML.replace("m.content }}", "m.content + (m.content | upper) }}"),
            "does not end with these",
        ),
        ({"content": "x", "tool_calls": [{"name": "f", "arguments": {}}]}, CHATML, "no words to be continued"),
    ],
)
def test_words_that_cannot_be_gone_on_from_are_refused(last: dict[str, Any], template: str, why: str) -> None:
    with pytest.raises(DataError, match=why):
        prompt_of([*said(("user", "Q")), {"role": "assistant", **last}], template)


def test_the_last_words_in_every_stage(tmp_path: Path) -> None:
    turns = said(("user", "Q"), ("assistant", "<think>"))
    want = "<|im_start|>user\n(Q)<|im_end|>\n<|im_start|>assistant\n<think>"
    keys: dict[str, Any] = {"prompt_template": "({prompt})"}
    assert prompts_of(tmp_path, {"prompt": turns, "answer": "4"}, **keys) == want
    # A whole conversation is an answered one: only who says so goes on from its end.
    with pytest.raises(
        DataError, match="line 1: column messages ends with .* data.prompt_column=messages the model goes"
    ):
        prompts_of(tmp_path, {"messages": turns, "answer": "4"})
    assert prompts_of(tmp_path, {"messages": turns, "answer": "4"}, prompt_column="messages", **keys) == want
    with pytest.raises(DataError, match="several messages .*data.chat_template=True"):
        prompts_of(tmp_path, {"prompt": turns, "answer": "4"}, chat_template=False)
    # Of a row to learn from it is what is learned, unless that has a column of its own.
    tokenizer = make_tokenizer()
    rows = [{"messages": turns}, {"prompt": turns}, {"prompt": turns, "response": "r"}]
    files = [jsonl(tmp_path / f"{i}.jsonl", row) for i, row in enumerate(rows)]
    learned = [Examples([file], DataConfig(**keys), tokenizer, 0, 20).all()[0].rollouts[0] for file in files]
    assert [tokenizer.decode(r.tokens) for r in learned] == [
        f"{want}<|im_end|>",
        f"{want}<|im_end|>",
        f"{want}r<|im_end|>",
    ]
    assert [r.response_tokens for r in learned] == [2, 2, 2]
    with pytest.raises(DataError, match="column messages ends with"):
        Examples([jsonl(tmp_path / "two.jsonl", {"messages": turns, "response": "r"})], DataConfig(), tokenizer, 0, 20)


# -- messages in one form


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_null_or_in_parts_never_reaches_a_template(name: str) -> None:
    parts = [{"type": "text", "text": "Q", "image_url": None}, {"type": "text", "text": "?", "image_url": None}]
    arrow = [
        {"role": "system", "content": None, "name": None, "tool_calls": None},
        {"role": "user", "content": parts, "name": None, "tool_calls": None},
    ]
    assert prompt_of(arrow, TEMPLATES[name]) == prompt_of(said(("user", "Q?")), TEMPLATES[name])


def test_arrows_nulls_are_not_written(tmp_path: Path) -> None:
    """A parquet file has every field of any row in each of its rows, also inside the arguments of a call."""
    import pyarrow
    import pyarrow.parquet

    def call(arguments: dict[str, Any]) -> dict[str, Any]:
        return {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": arguments}}]}

    rows = [
        {"prompt": said(("system", "S"), ("user", "Q"))},
        {"prompt": [*said(("user", "Q")), call({"a": 1}), {"role": "tool", "content": "3", "tool_call_id": "1"}]},
        {"prompt": [{**said(("user", "Q"))[0], "name": "Ann"}, call({"b": [2]}), *said(("tool", "4"))]},
    ]
    rows = [row | {"answer": "x"} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "arrow.parquet")
    sources = str(tmp_path / "arrow.parquet"), jsonl(tmp_path / "plain.jsonl", *rows)
    arrow, plain = (Prompts([source], DataConfig(), make_tokenizer(QWEN3), 0).all() for source in sources)
    assert "None" in str(arrow[0].row), "there are nulls in it"
    assert [p.messages for p in arrow] == [p.messages for p in plain] and "None" not in str(
        [p.messages for p in plain[:1]]
    )
    assert [p.tokens for p in arrow] == [p.tokens for p in plain]


def test_fields_are_kept_where_they_are_valid() -> None:
    calls = [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": null, "b": [1]}'}, "x": None}
    ]
    given = [
        {"role": "user", "content": "Q", "name": "Ann", "weight": 0},
        {"role": "assistant", "tool_calls": calls, "reasoning_content": "hm"},
        {"role": "tool", "content": "3", "tool_call_id": "1", "tool_calls": []},
        {"role": "assistant", "content": "x", "tool_calls": [{"name": "g", "arguments": {"a": 1, "b": None}}]},
    ]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": None, "b": [1]}}}
    assert normalised(given, "") == [
        {"role": "user", "content": "Q", "name": "Ann", "weight": 0},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "3", "tool_call_id": "1"},
        {"role": "assistant", "content": "x", "tool_calls": [{"name": "g", "arguments": {"a": 1}}]},
    ]
    assert "function" in calls[0] and "x" in calls[0], "a row is not changed"


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (
            {"role": "usr", "content": "a"},
            r"message 2 \(usr\): no such role; did you mean user\?; it must be one of system",
        ),
        ({"role": "human", "content": "a"}, r"message 2 \(human\): no such role"),
        ({"role": 1, "content": "a"}, "message 2 is .* must be {role, content}"),
        ({"role": "user", "content": None}, r"message 2 \(user\) has no content \(null\)"),
        ({"role": "tool"}, "has no content"),
        ({"role": "assistant", "content": None, "tool_calls": None}, "has no content"),
        ({"role": "assistant", "content": None, "function_call": {"name": "f"}}, "write it as tool_calls"),
        ({"role": "user", "content": 12}, "has content 12, must be text or a list of parts"),
        ({"role": "user", "content": {"text": "a"}}, "must be text or a list"),
        ({"role": "user", "content": []}, "must be text or a list"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, 'must be {"type": "text"'),
        ({"role": "user", "content": [3]}, 'must be {"type": "text"'),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "image-text models are not supported"),
        ({"role": "user", "content": "a", "name": 3}, "name is 3, must be text"),
        ({"role": "user", "content": "a", "tool_calls": [{"name": "f"}]}, "tool_calls are the assistant's"),
        ({"role": "assistant", "content": "a", "tool_calls": "f()"}, "must be a list"),
        ({"role": "assistant", "content": "a", "tool_calls": [{"function": {}}]}, "tool call 1 is .* must be {name"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}, "arguments are not valid JSON"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}, "must be a mapping"),
    ],
)
def test_a_message_that_is_none_is_refused_by_row(message: dict[str, Any], why: str) -> None:
    with pytest.raises(DataError, match=f"a.jsonl, line 3: column prompt: {'' if 'message 2' in why else '.*'}{why}"):
        normalised([*said(("user", "Q")), message], "a.jsonl, line 3: column prompt")


def test_calls_of_tools_are_written_or_refused() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]}
    turns = [*said(("user", "Q")), call, {"role": "tool", "content": "3"}]
    text = prompt_of(turns, QWEN3)
    assert '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call><|im_end|>\n<|im_start|>tool\n3' in text
    for template in (CHATML, LLAMA3):  # which would write the word None
        with pytest.raises(DataError, match=r"row 1: message 2 \(assistant\): .* leaves its tool_calls out"):
            prompt_of(turns, template)
    as_word = CHATML.replace(
        "{{ m.content }}", "{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }}{% endfor %}"
    )
    assert "assistant\nf<|im_end|>" in prompt_of(turns, as_word)
    # One that asks for null gets it.
    asks = as_word.replace("{{ m.content }}", "{{ 'calls ' if m.content is none else m.content }}")
    assert "assistant\ncalls f<|im_end|>" in prompt_of(turns, asks)


def test_a_message_the_template_leaves_out_is_refused() -> None:
    turns = said(("developer", "Be brief."), ("user", "Q"))
    with pytest.raises(DataError, match=r"row 1: message 1 \(developer\): .* leaves it out"):
        prompt_of(turns, QWEN3)
    assert "developer\nBe brief." in prompt_of(turns, CHATML)
    # Earlier thoughts may go, and a text may be trimmed.
    earlier = said(("user", " Q "), ("assistant", "<think>a</think>b"), ("user", "R"))
    assert "assistant\nb<|im_end|>" in prompt_of(earlier, QWEN3) and "<think>" not in prompt_of(earlier, QWEN3)
    with pytest.raises(DataError, match="row 1: .*Only user and assistant roles are supported"):
        prompt_of(said(("system", "S"), ("user", "Q")), MISTRAL)


def test_what_a_row_would_give_its_template_besides_messages_is_refused(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    row = {"prompt": "Q", "answer": "x"}
    for more, why in (
        ({"tools": [tool]}, "column tools has functions to call"),
        ({"tools": [tool["function"]]}, "column tools has functions"),
        ({"tools": json.dumps([tool])}, "column tools has functions"),
        ({"chat_template_kwargs": {"a": 1}}, "set data.chat_template_args for all rows"),
    ):
        with pytest.raises(DataError, match=f"rows.jsonl, line 1: .*{why}"):
            prompts_of(tmp_path, row | more)
    for more in ({"tools": ["hammer"]}, {"tools": []}, {"tools": None}, {"chat_template_kwargs": {"a": None}}):
        prompts_of(tmp_path, row | more)


def test_a_system_prompt_takes_the_place_of_the_rows_own(tmp_path: Path) -> None:
    for turns in (
        said(("developer", "old"), ("user", "Q")),
        said(("system", "a"), ("system", "b"), ("user", "Q")),
        said(("system", None), ("user", "Q")),
    ):
        text = prompts_of(tmp_path, {"prompt": turns, "answer": "x"}, system_prompt="new")
        assert text == prompt_of(said(("system", "new"), ("user", "Q")))


# -- special tokens, once each


@pytest.mark.parametrize("around", ["$A", "<s> $A", "$A </s>", "<s> $A </s>"])
def test_without_a_template_a_prompt_begins_once_and_does_not_end(tmp_path: Path, around: str) -> None:
    begun = "<s>" if "<s>" in around else ""
    for text in ("Q: 1+1?", "<s>Q", "<s>[INST] <|im_start|> [/INST]", "Q</s>"):
        row = {"prompt": text, "answer": "2"}
        want = text if text.startswith("<s>") else begun + text
        assert prompts_of(tmp_path, row, None, around, chat_template=False) == want
    # A whole conversation ends too, once.
    tokenizer = make_tokenizer(None, around)
    ended = "</s>" if "</s>" in around else ""
    for text in ("ab", "ab</s>" if ended else "ab"):
        whole = conversation_tokens(tokenizer, said(("user", text)), chat_template=False)
        assert tokenizer.decode(whole) == f"{begun}ab{ended}"


@pytest.mark.parametrize(
    ("template", "text", "mark"),
    [
        (CHATML, "<|im_start|>user\nUsing [1, 2]<|im_end|>\n<|im_start|>assistant\n<think>", "<|im_start|>"),
        (CHATML, "<s>Q", "<s>"),
        (CHATML, "the end</s>", "</s>"),
        (CHATML, "<|eot_id|>", "<|eot_id|>"),
        (R1, "a<|Assistant|>b", "<|Assistant|>"),  # no special token, but what parts the turns
        (LLAMA3, "<|start_header_id|>user", "<|start_header_id|>"),
        (MISTRAL, "[INST] Q [/INST]", "[INST]"),
        (CHATML, "Think in <think> </think>, then [1] <b>bold</b> <|User|> [INST]", None),
        (MISTRAL, "[1] [/b] <|im|> x[I]", None),
        (QWEN3, "<think>a</think>", None),
    ],
)
def test_a_text_with_marks_is_refused_by_row(tmp_path: Path, template: str, text: str, mark: str | None) -> None:
    assert mark_in(make_tokenizer(template), text) == mark
    row = {"prompt": text, "answer": "2", "response": text}
    if mark is None:
        assert text in prompts_of(tmp_path, row, template)
        return
    tokenizer = make_tokenizer(template)
    with pytest.raises(DataError, match=r"rows.jsonl, line 1: message 1 \(user\) holds .*data.chat_template=false"):
        prompts_of(tmp_path, row, template)
    learned = jsonl(tmp_path / "learned.jsonl", {"prompt": "Q", "response": text, "chosen": text, "rejected": "b"})
    with pytest.raises(DataError, match="learned.jsonl, line 1: the response holds"):
        Examples([learned], DataConfig(), tokenizer, 0, 99)
    with pytest.raises(DataError, match="learned.jsonl, line 1: chosen: the response holds"):
        ResponsePairs([learned], DataConfig(), tokenizer, 0, 99)
    with pytest.raises(DataError, match=r"learned.jsonl, line 1: message 2 \(assistant\) holds"):
        Pairs([learned], DataConfig(), tokenizer, 0, 99)


def test_what_pads_may_be_a_text(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = make_tokenizer()
    tokenizer.pad_token = "!"
    tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert any(token.content == "!" for token in tokenizer.added_tokens_decoder.values() if token.special)
    assert mark_in(tokenizer, "No!") is None and mark_in(tokenizer, "a <unk>") == "<unk>"


def test_a_response_without_a_template_must_not_hold_the_end(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"prompt": "Q", "response": "a</s>"})
    with pytest.raises(DataError, match=r"line 1: the response holds </s>.*the end of the sequence is put after it"):
        Examples([source], DataConfig(chat_template=False), make_tokenizer(None), 0, 99)
    source = jsonl(tmp_path / "b.jsonl", {"prompt": "Q", "response": "a<|im_end|>"})
    assert len(Examples([source], DataConfig(chat_template=False), make_tokenizer(None), 0, 99)) == 1


# -- what a reward model learns from is the whole answer

THOUGHT = "<think>by hand</think>It is 4"


def pair_of(path: Path, template: str | None, chosen: dict[str, Any], **keys: Any) -> str:
    tokenizer, other = make_tokenizer(template), {"role": "assistant", "content": "It is 5"}
    row = {"prompt": "by hand?", "chosen": [{"role": "assistant", **chosen}], "rejected": [other]}
    (pair,) = Pairs([jsonl(path / "a.jsonl", row)], DataConfig(**keys), tokenizer, 0, 99).all()
    return tokenizer.decode(pair.rollouts[0].tokens[:-1])


@pytest.mark.parametrize("name", ["r1", "qwen3"])
@pytest.mark.parametrize(
    ("chosen", "lost"),
    [
        ({"content": THOUGHT}, "content"),
        ({"content": "It is 4", "reasoning_content": "I add"}, "reasoning_content"),
        # What the user says is not what the assistant thinks.
        ({"content": "It is 4", "reasoning_content": "by hand"}, "reasoning_content"),
    ],
)
def test_an_answer_is_not_scored_without_what_the_template_drops(
    tmp_path: Path, name: str, chosen: dict[str, Any], lost: str
) -> None:
    with pytest.raises(
        DataError, match=f"a.jsonl, line 1: chosen: the chat template does not write the whole {lost} of"
    ):
        pair_of(tmp_path, TEMPLATES[name], chosen)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("content", ["It is 4", " It  is\n 4 \n\n", ""])
def test_an_answer_that_is_trimmed_is_scored(tmp_path: Path, name: str, content: str) -> None:
    assert content.strip() in pair_of(tmp_path, TEMPLATES[name], {"content": content, "reasoning_content": " "})


def test_thoughts_that_a_template_writes_are_scored(tmp_path: Path) -> None:
    for chosen in ({"content": THOUGHT}, {"content": "It is 4", "reasoning_content": "by hand"}):
        for template in (templates.CHATML, templates.OPENS_THINK_SHOWS_IT):
            text = pair_of(tmp_path, template, chosen)
            assert "".join(text.split()).endswith("by hand</think>It is 4<|im_end|>".replace(" ", ""))
    # Beside the content that has it, it is written there.
    assert THOUGHT in pair_of(tmp_path, CHATML, {"content": THOUGHT, "reasoning_content": "by hand"})
    with pytest.raises(DataError, match="line 1: chosen: without a chat template nothing writes the whole reasoning_c"):
        pair_of(tmp_path, None, {"content": "4", "reasoning_content": "by hand"}, chat_template=False)


# -- arguments of the template

BLOCKS = "{% set x = style %}{% generation %}{% endgeneration -%}{% for a in b %}{% break %}{% endfor %}"


def test_arguments_reach_the_template_in_every_stage(tmp_path: Path) -> None:
    tokenizer, off = make_tokenizer(QWEN3), DataConfig(chat_template_args={"enable_thinking": False}, shuffle=False)
    plain = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    want = f"{plain}<think>\n\n</think>\n\n"
    row = {"prompt": "Q", "answer": "2", "response": "r", "chosen": "c", "rejected": "d"}
    source = jsonl(tmp_path / "a.jsonl", row)
    prompts = [
        Prompts([source], off, tokenizer, 0).all()[0],
        Examples([source], off, tokenizer, 0, 9).all()[0].prompt,
        ResponsePairs([source], off, tokenizer, 0, 9).all()[0].prompt,
    ]
    assert [tokenizer.decode(p.tokens) for p in prompts] == [want] * 3
    assert tokenizer.decode(Prompts([source], DataConfig(), tokenizer, 0).all()[0].tokens) == plain


def test_a_reward_model_reads_as_it_has_learned_to(tmp_path: Path) -> None:
    """What it learns with is in the template that is saved with it; what the template is given goes before."""
    marked = "{% macro m() %}{{ style }}{% endmacro %}{% for i in [1] %}{{ style }}{% endfor %}{{ m() }}" + CHATML
    args = {"style": 'a "b" \\ ü\n'}
    learned = make_tokenizer(with_defaults(marked, args))
    row = {"prompt": "Q", "chosen": "c", "rejected": "d"}
    (pair,) = Pairs([jsonl(tmp_path / "a.jsonl", row)], DataConfig(chat_template_args=args), learned, 0, 99).all()
    turns = said(("user", "Q"), ("assistant", "c"))
    assert conversation_tokens(learned, turns, chat_template=True) == pair.rollouts[0].tokens[:-1]
    want = make_tokenizer(marked).apply_chat_template(turns, tokenize=False, **args)
    assert learned.apply_chat_template(turns, tokenize=False) == want
    assert learned.apply_chat_template(turns, tokenize=False, style="").startswith("<|im_start|>")


@pytest.mark.parametrize(
    ("template", "key", "why"),
    [
        (QWEN3, "enable_thinkin", "does not read it; did you mean enable_thinking.; it reads enable_thinking, text$"),
        (CHATML, "enable_thinking", "does not read it$"),
        (QWEN3, "messages", "is not to be set here"),
        (QWEN3, "add_generation_prompt", "is not to be set here"),
        (R1, "bos_token", "is not to be set here"),
        (QWEN3, "f", "does not read it"),  # which the template sets itself
        (
            QWEN3 + "{% generation %}{{ style }}{%- endgeneration -%}{% for a in b %}{% break %}{% endfor %}",
            "c",
            "reads b, en",
        ),
    ],
)
def test_an_argument_that_is_not_read_is_refused(template: str, key: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"data.chat_template_args.{key}: .*{why}"):
        prompt_of(said(("user", "Q")), template, {key: 1})
    with pytest.raises(ConfigError, match=f"data.chat_template_args.{key}: .*{why}"):
        with_defaults(template, {key: 1})
