"""What supervised training and DPO learn to say: the assistant's words as its chat template writes them, and an end."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from rlcore.config import DataConfig
from rlcore.data.conversation import conversation_text, conversation_tokens, prompt_of_text
from rlcore.data.endings import endings, text_of
from rlcore.data.examples import Examples
from rlcore.data.preferences import ResponsePairs
from rlcore.data.prompts import Prompts
from rlcore.data.responses import response_tokens
from rlcore.errors import ConfigError, DataError
from rlcore.records import Rollout
from tests.templates import CHATML, GLM_4, LLAMA_2, OPENS_THINK, OPENS_THINK_SHOWS_IT, PHI_3, make_tokenizer

ASK, MORE = {"role": "user", "content": "2+2?"}, {"role": "user", "content": "more"}
SAID = {"role": "assistant", "content": "It is 4"}
THOUGHT = {"role": "assistant", "content": "<think>\nby hand\n</think>\n\nIt is 4"}
KEPT = {"role": "assistant", "content": "It is 4", "reasoning_content": "by hand"}
CALL = {
    "role": "assistant", "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}],
}  # fmt: skip
TOOL = {"role": "tool", "content": "4"}
TWO = ['<tool_call>add{"a": 2}</tool_call><|im_end|>', "It is 4<|im_end|>"]


def rows_of(path: Path, rows: list[dict[str, Any]], template: str | None, **changes: Any) -> Examples:
    file = path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = DataConfig(shuffle=False, **changes)
    return Examples([str(file)], cfg, make_tokenizer(template), 0, 200)


def learned(rollout: Rollout) -> list[str]:
    """The stretches that are learned, as text."""
    tokenizer, found = make_tokenizer(None), [""]
    for token, mask in zip(rollout.tokens, rollout.mask, strict=True):
        found[-1] += text_of(tokenizer, [token]) if mask else ""
        if not mask and found[-1]:
            found.append("")
    return [text for text in found if text]


def only(examples: Examples) -> Rollout:
    (group,) = examples.all()
    return group.rollouts[0]


@pytest.mark.parametrize(
    "completion",
    ["It is 4", [SAID], SAID, json.dumps([SAID]), [{**SAID, "tool_calls": None, "reasoning_content": None}]],
)
def test_a_completion_of_messages_is_what_they_say(tmp_path: Path, completion: Any) -> None:
    """TRL's conversational rows. The message's JSON was learned."""
    rollout = only(
        rows_of(tmp_path, [{"prompt": [ASK], "completion": completion}], CHATML, response_column="completion")
    )
    assert learned(rollout) == ["It is 4<|im_end|>"] and rollout.text == "It is 4"
    whole = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\nIt is 4<|im_end|>"
    assert text_of(make_tokenizer(None), rollout.tokens) == whole
    assert rollout.prompt.tokens == rollout.tokens[: -rollout.response_tokens]


@pytest.mark.parametrize(
    ("template", "message", "said"),
    [
        (CHATML, SAID, "It is 4<|im_end|>"),
        (CHATML, {**SAID, "content": "  It is 4\n"}, "  It is 4\n<|im_end|>"),
        (CHATML, THOUGHT, "<think>\nby hand\n</think>\n\nIt is 4<|im_end|>"),
        (
            CHATML,
            {**SAID, "content": "<think>by hand</think>It is 4"},
            "<think>\nby hand\n</think>\n\nIt is 4<|im_end|>",
        ),
        (CHATML, KEPT, "<think>\nby hand\n</think>\n\nIt is 4<|im_end|>"),
        (CHATML, CALL, '<tool_call>add{"a": 2}</tool_call><|im_end|>'),
        (LLAMA_2, SAID, " It is 4 <|endoftext|>"),
        (PHI_3, SAID, "It is 4<|end|>"),
        (GLM_4, SAID, "It is 4<|endoftext|>"),
        # A thought that the template ends like a turn would be all that is learned.
        (CHATML.replace("\\n</think>", "</think><|im_end|>"), THOUGHT, THOUGHT["content"] + "<|im_end|>"),
        # The prompt ends with <think> and a line's end, so the answer goes on after them.
        (OPENS_THINK, THOUGHT, "by hand\n</think>\n\nIt is 4<|endoftext|>"),
        (OPENS_THINK, {**SAID, "content": "by hand</think>It is 4"}, "by hand</think>It is 4<|endoftext|>"),
        (OPENS_THINK_SHOWS_IT, SAID, "\n</think>\n\nIt is 4<|im_end|>"),
        (OPENS_THINK_SHOWS_IT, KEPT, "by hand\n</think>\n\nIt is 4<|im_end|>"),
        # It would write an empty thought before the one in the content.
        (OPENS_THINK_SHOWS_IT, THOUGHT, "by hand\n</think>\n\nIt is 4<|im_end|>"),
    ],
)
def test_an_answer_is_what_the_template_writes_after_the_prompt(
    tmp_path: Path, template: str, message: dict[str, Any], said: str
) -> None:
    examples = rows_of(tmp_path, [{"messages": [ASK, message]}], template)
    rollout = only(examples)
    assert learned(rollout) == [said]
    # And the prompt is the one that is sampled from: its tokens are the same.
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"prompt": [ASK], "answer": "4"}))
    (prompt,) = Prompts([str(asked)], DataConfig(), make_tokenizer(template), 0).all()
    assert rollout.prompt.tokens == prompt.tokens and rollout.prompt.opened == prompt.opened


@pytest.mark.parametrize(
    ("template", "row", "why"),
    [
        (OPENS_THINK, {"messages": [ASK, SAID]}, "the prompt ends with <think>, and the assistant's message neither"),
        (OPENS_THINK, {"messages": [ASK, KEPT]}, "leaves out the reasoning_content of the assistant's message"),
        (LLAMA_2, {"messages": [ASK, {**CALL, "content": "let me"}]}, "leaves out the tool_calls of the assistant's"),
        # Its name is in <|endoftext|>, which ends the turn.
        (LLAMA_2, {"messages": [ASK, {**SAID, "tool_calls": [{"name": "f"}]}]}, "leaves out the tool_calls of the"),
        (CHATML, {"messages": [ASK, {**SAID, "content": "4<|im_end|>"}]}, r"the response holds <\|im_end\|>, "),
        (CHATML, {"prompt": "2+2?", "response": "a<|endoftext|>b"}, r"the response holds <\|endoftext\|>, "),
        (CHATML, {"prompt": "2+2?", "response": {"a": 4}}, "column response must be text or a list of .* messages"),
        (CHATML, {"prompt": "2+2?", "response": [1, 2]}, "column response must be text or a list of .* messages"),
        (CHATML, {"prompt": "2+2?", "response": [MORE, SAID]}, "must begin and end with what the assistant says"),
        (CHATML, {"prompt": "2+2?", "response": [SAID, MORE]}, "must begin and end with what the assistant says"),
        (CHATML, {"prompt": "2+2?", "response": [{**SAID, "content": ""}]}, "column response is empty"),
        (CHATML, {"prompt": "2+2?", "response": " \n"}, "column response is empty"),
        (CHATML, {"messages": [ASK, {**SAID, "weight": 0}]}, "the assistant's last message has weight 0"),
        (CHATML, {"messages": [ASK, {**SAID, "weight": 0.5}]}, "has weight 0.5; it must be 1"),
        (
            LLAMA_2,
            {"prompt": "2+2?", "response": [SAID, TOOL, SAID]},
            "chat template refuses it.*only user and assistant",
        ),
    ],
)
def test_what_cannot_be_learned_as_it_is_is_refused_by_row(
    tmp_path: Path, template: str, row: dict[str, Any], why: str
) -> None:
    with pytest.raises(DataError, match=f"rows.jsonl, line 1: .*{why}"):
        rows_of(tmp_path, [row], template)


@pytest.mark.parametrize(
    ("template", "row", "said", "last_only"),
    [
        (CHATML, {"messages": [ASK, SAID, MORE, SAID]}, ["It is 4<|im_end|>"] * 2, 0),
        (LLAMA_2, {"messages": [ASK, SAID, MORE, SAID]}, [" It is 4 <|endoftext|>"] * 2, 0),
        (PHI_3, {"messages": [ASK, SAID, MORE, SAID]}, ["It is 4<|end|>"] * 2, 0),
        (CHATML, {"messages": [ASK, CALL, TOOL, SAID]}, TWO, 0),
        # OpenAI's rows say of each what is not to be learned.
        (CHATML, {"messages": [ASK, {**SAID, "weight": 0}, MORE, {**SAID, "weight": 1}]}, ["It is 4<|im_end|>"], 0),
        # A completion's turns are learned, the prompt's are not.
        (CHATML, {"prompt": [ASK, SAID, MORE], "response": [CALL, TOOL, SAID]}, TWO, 0),
        # Thoughts of an earlier question are left out of the prompt, so what was said then cannot be learned from it.
        (CHATML, {"messages": [ASK, THOUGHT, MORE, SAID]}, ["It is 4<|im_end|>"], 1),
        # Nothing ends an earlier turn.
        (GLM_4, {"messages": [ASK, SAID, MORE, SAID]}, ["It is 4<|endoftext|>"], 1),
    ],
)
def test_every_turn_of_the_assistants_is_learned_where_it_is_in_the_prompt_as_it_was_said(
    tmp_path: Path, template: str, row: dict[str, Any], said: list[str], last_only: int
) -> None:
    examples = rows_of(tmp_path, [row], template)
    rollout = only(examples)
    assert learned(rollout) == said and examples.last_only == last_only
    # The last turn answers the prompt, as where the held-out rows are answered.
    assert rollout.tokens[: len(rollout.prompt.tokens)] == rollout.prompt.tokens
    assert [m["role"] for m in rollout.prompt.messages][-1] != "assistant"


def test_a_template_for_prompts_does_not_name_what_is_learned(tmp_path: Path) -> None:
    tokenizer, file = make_tokenizer(CHATML), tmp_path / "rows.jsonl"
    for make, row, name in (
        (Examples, {"prompt": "2+2?", "response": "4"}, "response"),
        (Examples, {"prompt": "2+2?", "completion": "4"}, "completion"),
        (ResponsePairs, {"prompt": "2+2?", "chosen": "4", "rejected": "5"}, "chosen"),
    ):
        file.write_text(json.dumps(row))
        with pytest.raises(ConfigError, match=f"{{{name}}} is .*: the prompt would give it away"):
            make([str(file)], DataConfig(prompt_template=f"{{prompt}} {{{name}}}"), tokenizer, 0, 200)
    # Nor the record that has the gold answer in it.
    file.write_text(json.dumps({"prompt": "2+2?", "reward_model": {"ground_truth": "4"}}))
    with pytest.raises(ConfigError, match="{reward_model} is the answer column"):
        Prompts([str(file)], DataConfig(prompt_template="{prompt} {reward_model}"), tokenizer, 0)


def test_a_begun_thought_is_gone_on_from_whatever_the_template_does_with_it(tmp_path: Path) -> None:
    for begun in ("<think>\n", "<think>", "<think>Well, "):
        row = {"prompt": [ASK, {"role": "assistant", "content": begun}], "response": "by hand</think>It is 4"}
        for template, end in ((OPENS_THINK, "<|endoftext|>"), (OPENS_THINK_SHOWS_IT, "<|im_end|>")):
            rollout = only(rows_of(tmp_path, [row], template))
            assert learned(rollout) == [f"{row['response']}{end}"]
            assert text_of(make_tokenizer(None), rollout.prompt.tokens).count("<think>") == 1


def test_no_thought_is_learned_after_one_that_the_prompt_has_closed(tmp_path: Path) -> None:
    closes = CHATML.removesuffix("{% endif %}") + "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    assert learned(only(rows_of(tmp_path, [{"messages": [ASK, SAID]}], closes))) == ["It is 4<|im_end|>"]
    with pytest.raises(DataError, match="line 1: .*a thought that is closed"):
        rows_of(tmp_path, [{"messages": [ASK, THOUGHT]}], closes)


def test_messages_in_a_csv_file_are_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "response"), ("2+2?", json.dumps([SAID])), ("2+2?", "[4]")])
    groups = Examples([str(path)], DataConfig(shuffle=False), make_tokenizer(CHATML), 0, 200).all()
    assert [learned(group.rollouts[0]) for group in groups] == [["It is 4<|im_end|>"], ["[4]<|im_end|>"]]


def test_without_a_template_an_answer_is_its_text_and_the_tokenizers_end(tmp_path: Path) -> None:
    rows = [{"prompt": "2+2=", "response": response} for response in ("4", [{**SAID, "content": "4"}], 4)]
    for group in rows_of(tmp_path, rows, CHATML, chat_template=False).all():
        assert text_of(make_tokenizer(None), group.rollouts[0].tokens) == "2+2=4<|endoftext|>"
    with pytest.raises(DataError, match="line 1: .*must be text|line 1: .*leaves out the tool_calls"):
        rows_of(tmp_path, [{"prompt": "2+2=", "response": [CALL]}], CHATML, chat_template=False)


@pytest.mark.parametrize(
    ("template", "message", "said"),
    [
        (CHATML, THOUGHT, "<think>\nby hand\n</think>\n\nIt is 4<|im_end|>"),
        (OPENS_THINK, THOUGHT, "by hand\n</think>\n\nIt is 4<|endoftext|>"),
        (LLAMA_2, SAID, " It is 4 <|endoftext|>"),
    ],
)
def test_pairs_say_what_examples_say(tmp_path: Path, template: str, message: dict[str, Any], said: str) -> None:
    other = {**message, "content": message["content"].replace("4", "5")}
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": [ASK], "chosen": [message], "rejected": [other]}))
    (pair,) = ResponsePairs([str(file)], DataConfig(), make_tokenizer(template), 0, 200).all()
    assert [learned(r) for r in pair.rollouts] == [[said], [said.replace("4", "5")]]
    assert pair.rollouts[0].tokens == only(rows_of(tmp_path, [{"messages": [ASK, message]}], template)).tokens


@pytest.mark.parametrize(
    ("make", "row", "texts"),
    [
        (Examples, {"prompt": [ASK], "response": [SAID]}, 2),  # the prompt, the whole
        (ResponsePairs, {"prompt": [ASK], "chosen": [SAID], "rejected": [{**SAID, "content": "5"}]}, 3),
        (Examples, {"messages": [ASK, SAID, MORE, SAID]}, 4),  # each turn with its prompt
    ],
)
def test_a_prompt_is_rendered_and_tokenized_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, row: dict[str, Any], texts: int
) -> None:
    tokenizer, file, done = make_tokenizer(CHATML), tmp_path / "rows.jsonl", list[str]()
    for method in ("__call__", "apply_chat_template"):
        monkeypatch.setattr(type(tokenizer), method, counted(getattr(type(tokenizer), method), done))
    counts = []
    for rows in (1, 1, 3):  # what is found out once about a tokenizer is, in the first
        file.write_text(f"{json.dumps(row)}\n" * rows)
        done.clear()
        assert len(make([str(file)], DataConfig(), tokenizer, 0, 200)) == rows
        counts.append([done.count(name) for name in ("__call__", "apply_chat_template")])
    assert [more - one for one, more in zip(*counts[1:], strict=True)] == [2 * texts] * 2


def counted(method: Any, done: list[str]) -> Any:
    def call(*args: Any, **how: Any) -> Any:
        done.append(method.__name__)
        return method(*args, **how)

    return call


@pytest.mark.parametrize("chat_template", [True, False])
@pytest.mark.parametrize("template", [CHATML, OPENS_THINK, OPENS_THINK_SHOWS_IT, LLAMA_2, PHI_3, GLM_4])
def test_what_goes_on_from_a_prompt_that_is_known_is_the_same_as_from_a_new_one(
    tmp_path: Path, template: str, chat_template: bool
) -> None:
    tokenizer, cfg = make_tokenizer(template), DataConfig(chat_template=chat_template)
    ends, conversation = endings(tokenizer, chat_template), [ASK, THOUGHT]
    text = conversation_text(tokenizer, [ASK], chat_template, generation_prompt=True)
    anew = response_tokens("row 1", tokenizer, conversation, cfg, ends, prompt_of_text(tokenizer, text, chat_template))
    rollout = only(rows_of(tmp_path, [{"messages": conversation}], template, chat_template=chat_template))
    assert rollout.tokens == conversation_tokens(tokenizer, [ASK], chat_template, generation_prompt=True) + anew
    assert [t for t, m in zip(rollout.tokens, rollout.mask, strict=True) if m] == anew
