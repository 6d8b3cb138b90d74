"""Preference rows in every form they come in, and the generated ones."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlcore.config import DataConfig
from rlcore.data.examples import Examples
from rlcore.data.generate.arithmetic import arithmetic
from rlcore.data.generate.arithmetic_pairs import arithmetic_pairs
from rlcore.data.preferences import Pairs, ResponsePairs
from rlcore.data.prompts import Prompts
from rlcore.errors import DataError
from rlcore.models.embedded import make_tokenizer
from rlcore.records import Batch, Group
from rlcore.workers.reward_model_rank import ending

ASK, YES, NO = ({"role": r, "content": c} for r, c in (("user", "Q"), ("assistant", "yes"), ("assistant", "no")))
PARTS = {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}
NIL = {"role": "assistant", "content": None}
CALL, TOOL = {**NIL, "tool_calls": [{"function": {"name": "f"}}]}, {"role": "tool", "content": "3"}
MORE, END = {"role": "user", "content": "more"}, {"role": "assistant", "content": "end"}


class Letters:
    """A tokenizer whose tokens are a text's letters, so that tests can read them. 36 is the padding, 33 the end."""

    chat_template, pad_token_id, eos_token_id = "yes", ord("$"), ord("!")
    special_tokens_map, added_tokens_decoder = dict[str, str](), dict[int, Any]()
    all_special_ids = (ord("$"), ord("!"))

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], tokenize: bool, add_generation_prompt: bool
    ) -> str:
        text = "".join(f"{m['role'][0]}:{m['content']};" for m in messages)
        if "refuse" in text:
            raise TypeError("no")
        return text + "a:" * add_generation_prompt

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}

    def decode(self, tokens: list[int], **how: bool) -> str:
        return read(tokens)


def read(tokens: list[int]) -> str:
    return "".join(map(chr, tokens))


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def config(**changes: Any) -> DataConfig:
    cfg = DataConfig(max_prompt_tokens=900)
    for key, value in changes.items():
        setattr(cfg, key, value)
    return cfg


def pairs_of(path: Path, rows: list[dict[str, Any]], most: int = 1000, **changes: Any) -> Pairs:
    cfg = config(**changes)
    return Pairs([jsonl(path / "pairs.jsonl", rows)], cfg, Letters(), 0, most - cfg.max_prompt_tokens)


def responses_of(path: Path, rows: list[dict[str, Any]], most: int = 100, **changes: Any) -> ResponsePairs:
    return ResponsePairs([jsonl(path / "pairs.jsonl", rows)], config(**changes), Letters(), 0, most)


def scored(group: Group) -> tuple[str, str]:
    """The two conversations, without the token that is added at the end."""
    chosen, rejected = group.rollouts
    return read(chosen.tokens[:-1]), read(rejected.tokens[:-1])


@pytest.mark.parametrize(
    ("row", "changes", "chosen", "rejected"),
    [
        ({"prompt": "Q", "chosen": "yes", "rejected": "no"}, {}, "u:Q;a:yes;", "u:Q;a:no;"),
        ({"question": "Q", "chosen": "yes", "rejected": "no"}, {}, "u:Q;a:yes;", "u:Q;a:no;"),
        ({"x": "Q", "chosen": "yes", "rejected": "no"}, {"prompt_column": "x"}, "u:Q;a:yes;", "u:Q;a:no;"),
        ({"prompt": [ASK], "chosen": [YES], "rejected": [NO]}, {}, "u:Q;a:yes;", "u:Q;a:no;"),
        ({"prompt": "Q", "chosen": [YES], "rejected": [NO]}, {}, "u:Q;a:yes;", "u:Q;a:no;"),
        ({"prompt": [ASK], "chosen": "yes", "rejected": "no"}, {}, "u:Q;a:yes;", "u:Q;a:no;"),
        ({"chosen": [ASK, YES], "rejected": [ASK, NO]}, {}, "u:Q;a:yes;", "u:Q;a:no;"),
        # As ultrafeedback has it: the prompt column again in the conversations.
        ({"prompt": "Q", "chosen": [ASK, YES], "rejected": [ASK, NO]}, {}, "u:Q;a:yes;", "u:Q;a:no;"),
        ({"x": "-", "chosen": [ASK, YES], "rejected": [ASK, NO]}, {"prompt_column": "x"}, "u:Q;a:yes;", "u:Q;a:no;"),
        (
            {"chosen": [ASK, YES, MORE, END], "rejected": [ASK, YES, MORE, NO]},
            {},
            "u:Q;a:yes;u:more;a:end;",
            "u:Q;a:yes;u:more;a:no;",
        ),
        ({"prompt": [ASK], "chosen": [YES, MORE, END], "rejected": [NO]}, {}, "u:Q;a:yes;u:more;a:end;", "u:Q;a:no;"),
        ({"prompt": "Q", "chosen": [PARTS], "rejected": ""}, {}, "u:Q;a:yes;", "u:Q;a:;"),
        ({"chosen": "Q yes", "rejected": "Q no"}, {"chat_template": False}, "Q yes", "Q no"),
        (
            {"prompt": "Q", "chosen": "[1, 2]", "rejected": "[]"},
            {"system_prompt": "S", "prompt_template": "<{prompt}>"},
            "s:S;u:<Q>;a:[1, 2];",
            "s:S;u:<Q>;a:[];",
        ),
        ({"chosen": [ASK, YES], "rejected": [ASK, NO]}, {"system_prompt": "S"}, "s:S;u:Q;a:yes;", "s:S;u:Q;a:no;"),
    ],
)
def test_forms_of_a_row(tmp_path: Path, row: dict[str, Any], changes: Any, chosen: str, rejected: str) -> None:
    (pair,) = pairs_of(tmp_path, [row], **changes).all()
    assert scored(pair) == (chosen, rejected)


def test_messages_in_a_csv_file_are_json(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("chosen", "rejected"), (json.dumps([ASK, YES]), json.dumps([ASK, NO]))])
    (pair,) = Pairs([str(path)], DataConfig(), Letters(), 0, 100).all()
    assert scored(pair) == ("u:Q;a:yes;", "u:Q;a:no;")


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([{"prompt": "Q", "chosen": "yes"}], "line 1: column rejected is missing"),
        ([{"prompt": "Q", "chosen": "yes", "rejected": None}], "line 1: column rejected is empty"),
        ([{"prompt": "Q", "chosen": 3, "rejected": "no"}], "column chosen must be text or a list of .* messages"),
        ([{"prompt": "Q", "chosen": [], "rejected": [NO]}], "column chosen must be text or a list of .* messages"),
        ([{"chosen": "yes", "rejected": "no"}], "without a prompt column.*data.chat_template=false"),
        ([{"chosen": [ASK, YES], "rejected": [ASK, MORE]}], "line 1: a prompt must end before the assistant speaks"),
        ([{"prompt": [ASK, YES], "chosen": "a", "rejected": "b"}], "line 1: a prompt must end before the assistant"),
        ([{"chosen": [YES], "rejected": [ASK, NO]}], "line 1: chosen and rejected have no prompt in common"),
        ([{"prompt": "Q", "chosen": [ASK, YES], "rejected": [{**ASK, "content": "?"}, NO]}], "chosen .* no prompt"),
        (
            [{"chosen": [{**ASK, "role": "usr"}, YES], "rejected": [{**ASK, "role": "usr"}, NO]}],
            r"line 1: column chosen: message 1 \(usr\): no such role; did you mean user\?",
        ),
        (
            [{"chosen": [ASK, YES], "rejected": [ASK, NO]}, {"chosen": "a", "rejected": "b"}],
            "line 2: chosen and rejected are answers, in the first row whole conversations",
        ),
        (
            [{"prompt": [{"role": "system", "content": "S"}, ASK], "chosen": [ASK, YES], "rejected": [ASK, NO]}],
            "line 1: column prompt has a message that chosen and rejected, whole conversations, do not begin with",
        ),
        ([{"prompt": "P", "chosen": [ASK, YES], "rejected": [ASK, NO]}], "line 1: column prompt has a message that"),
        ([{"prompt": "Q", "chosen": "refuse", "rejected": "b"}], "line 1: the tokenizer's chat template refuses it"),
        (
            [{"prompt": "Q", "chosen": [YES], "rejected": [NO]}, {"prompt": "Q", "chosen": [YES], "rejected": [NIL]}],
            r"pairs.jsonl, line 2: column rejected: message 1 \(assistant\) has no content",
        ),
        ([{"chosen": [ASK, CALL, TOOL, YES], "rejected": [ASK, CALL, TOOL, NO]}], "message 2 .* leaves its tool_calls"),
        ([{"prompt": [ASK, CALL, TOOL], "chosen": "a", "rejected": "b"}], "line 1: message 2 .* leaves its tool_calls"),
        ([{"prompt": "Q", "chosen": [{**YES, "content": 3}], "rejected": "b"}], "chosen: .* content 3, must be"),
        ([{"prompt": "Q", "chosen": "a", "rejected": [{**YES, "content": [{"type": "image"}]}]}], "type 'image'"),
        ([{"prompt": "Q", "chosen": [{**YES, "content": []}], "rejected": "b"}], r"chosen: .* content \[\], must be"),
        ([{"prompt": "Q", "chosen": [{"role": "assistant"}], "rejected": "b"}], "column chosen must be text or"),
        ([{"prompt": "Q", "chosen": "same", "rejected": "same"}], "all 1 pairs are of equal texts, or longer"),
    ],
)
def test_rows_that_cannot_be_used_say_why(tmp_path: Path, rows: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(DataError, match=why):
        pairs_of(tmp_path, rows)


def test_pairs_too_long_or_equal_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Q", "chosen": c, "rejected": r} for c, r in (("a", "b"), ("a", "a"), ("a" * 9, "b"), ("a", "b" * 9))
    ]
    pairs = pairs_of(tmp_path, rows, most=10)
    assert (len(pairs), pairs.dropped) == (1, 3)
    assert scored(pairs.all()[0])[0] == "u:Q;a:a;"
    # Of responses, the end of sequence included; a prompt is dropped by its own length.
    rows += [{"prompt": "Q" * 7, "chosen": "a", "rejected": "b"}, {"prompt": "Q", "chosen": "a" * 8, "rejected": ""}]
    responses = responses_of(tmp_path, rows, most=9, max_prompt_tokens=10)
    assert [[r.text for r in g.rollouts] for g in responses.all()] == [["a", "b"], ["a" * 8, ""]]
    assert (len(responses), responses.dropped) == (2, 4)
    with pytest.raises(DataError, match="all 6 pairs are of equal texts, or over 2 tokens of prompt or 9 of response"):
        responses_of(tmp_path, rows, most=9, max_prompt_tokens=2)


def test_pairs_of_conversations_are_laid_down_as_a_reward_model_reads_them(tmp_path: Path) -> None:
    """Padding at the end counts for nothing, as in transformers; of nothing but padding the first token stays."""
    texts = [("a", "b"), ("yes$$", "no$"), ("$ab$c", "$$a"), ("$$$", "x")]
    rows = [{"chosen": chosen, "rejected": rejected} for chosen, rejected in texts]
    pairs = pairs_of(tmp_path, rows, chat_template=False).all()
    found = Batch.from_groups(pairs)
    want = ending([[ord(c) for c in text] for pair in texts for text in pair], ord("$"))
    assert found.tokens.equal(want.tokens) and found.offsets.equal(want.offsets) and found.mask.equal(want.mask)
    assert found.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and found.reward.tolist() == [1.0, 0.0] * 4
    assert [scored(pair) for pair in pairs[1:]] == [("yes", "no"), ("$ab$c", "$$a"), ("$", "x")]
    assert [[r.text for r in pair.rollouts] for pair in pairs] == [list(pair) for pair in texts]


@pytest.mark.parametrize(
    ("row", "changes", "prompt"),
    [
        ({"prompt": "Q", "chosen": "yes", "rejected": "no"}, {}, "u:Q;a:"),
        ({"prompt": [ASK], "chosen": [YES], "rejected": [NO], "answer": "yes"}, {}, "u:Q;a:"),
        ({"chosen": [ASK, YES], "rejected": [ASK, NO]}, {"system_prompt": "S"}, "s:S;u:Q;a:"),
        ({"chosen": [ASK, END, MORE, YES], "rejected": [ASK, END, MORE, NO]}, {}, "u:Q;a:end;u:more;a:"),
        ({"prompt": "Q", "chosen": "yes", "rejected": "no"}, {"chat_template": False}, "Q"),
    ],
)
def test_pairs_of_responses(tmp_path: Path, row: dict[str, Any], changes: Any, prompt: str) -> None:
    (pair,) = responses_of(tmp_path, [row], **changes).all()
    for rollout, text, reward in zip(pair.rollouts, ("yes", "no"), (1.0, 0.0), strict=True):
        assert read(rollout.tokens) == f"{prompt}{text}!" and rollout.prompt is pair.prompt
        learned = [t for t, m in zip(rollout.tokens, rollout.mask, strict=True) if m]
        assert read(learned) == f"{text}!" and read(pair.prompt.tokens) == prompt
        assert (rollout.text, rollout.reward, rollout.version, rollout.finish) == (text, reward, 0, "stop")
        assert rollout.logp == [0.0] * len(rollout.tokens)
    assert (pair.prompt.id, pair.prompt.source, pair.prompt.answer) == ("pairs:0", "pairs", row.get("answer", ""))


def test_prompts_and_responses_have_the_tokens_of_the_other_stages(tmp_path: Path) -> None:
    """So what is learned from pairs is what is sampled from prompts."""
    tokenizer, cfg = make_tokenizer(), DataConfig(shuffle=False)
    source = ["generate:arithmetic_pairs?size=30"]
    rows = [{"question": r["question"], "response": r["chosen"], "answer": r["answer"]} for r in arithmetic_pairs(30)]
    pairs = ResponsePairs(source, cfg, tokenizer, 0, 90).take(60)
    prompts = Prompts(source, cfg, tokenizer, 0).take(60)
    examples = Examples([jsonl(tmp_path / "sft.jsonl", rows)], cfg, tokenizer, 0, 90).take(60)
    assert [(p.prompt.id, p.prompt.tokens, p.prompt.messages) for p in pairs] == [
        (p.id, p.tokens, p.messages) for p in prompts
    ]
    assert pairs[30].prompt.id == "arithmetic_pairs:0@2"
    assert [(p.rollouts[0].tokens, p.rollouts[0].mask) for p in pairs] == [
        (e.rollouts[0].tokens, e.rollouts[0].mask) for e in examples
    ]


@pytest.mark.parametrize(
    ("row", "changes", "why"),
    [
        ({"chosen": "Q yes", "rejected": "Q no"}, {"chat_template": False}, "without a prompt column; set data.prompt"),
        ({"prompt": "Q", "chosen": [YES, MORE, END], "rejected": [NO]}, {}, "line 1: chosen: must be one message of"),
        ({"prompt": "Q", "chosen": "yes", "rejected": [PARTS, MORE]}, {}, "line 1: a prompt must end before"),
        ({"prompt": "Q", "chosen": "yes", "rejected": [NIL]}, {}, "line 1: column rejected: message 1 .* no content"),
        ({"prompt": "refuse", "chosen": "yes", "rejected": "no"}, {}, "line 1: the tokenizer's chat template refuses"),
        ({"prompt": [ASK, YES, MORE], "chosen": "yes", "rejected": "no"}, {"chat_template": False}, "several messages"),
    ],
)
def test_pairs_a_policy_cannot_learn_from_say_why(tmp_path: Path, row: dict[str, Any], changes: Any, why: str) -> None:
    with pytest.raises(DataError, match=why):
        responses_of(tmp_path, [row], **changes)


@pytest.mark.parametrize("make", [pairs_of, responses_of])
def test_order_resumes(tmp_path: Path, make: Callable[..., Pairs | ResponsePairs]) -> None:
    rows = [{"prompt": str(i), "chosen": "a", "rejected": "b"} for i in range(10)]
    first, again = make(tmp_path, rows), make(tmp_path, rows)
    whole = [first.take(7) for _ in range(4)]
    again.take(14)
    # What is still to come is known ahead, wherever `take` stands.
    seven = [group.prompt.id for group in whole[0]]
    assert [group.prompt.id for group in again.ahead(7, None)] == seven and len(again.ahead(1000, None)) == 10
    state = json.loads(json.dumps(again.state()))
    later = {group.prompt.id.partition("@")[0] for group in whole[2]}
    assert {group.prompt.id for group in again.ahead(7, state)} == later
    other = make(tmp_path, rows)
    other.restore(state)
    assert [other.take(7), other.take(7)] == whole[2:]
    ids = [group.prompt.id for part in whole for group in part]
    assert sorted(ids[:10]) == [f"pairs:{i}" for i in range(10)] and ids[:10] != [g.prompt.id for g in first.all()]
    assert sorted(ids[10:20]) == [f"pairs:{i}@2" for i in range(10)]
    assert len(first.all()) == 10 and [g.prompt.id for g in first.all(limit=2)] == ["pairs:0", "pairs:1"]
    with pytest.raises(DataError, match="rows is 9, was 10 when saved"):
        make(tmp_path, rows[:9]).restore(state)


def test_generated_pairs_have_one_mistake() -> None:
    """Every operation but the wrong one is right, and each goes on from the one before."""
    rows = arithmetic_pairs(300, seed=3, bare=0.0)
    assert [r["question"] for r in rows] == [r["question"] for r in arithmetic(300, seed=3)]
    assert rows == arithmetic_pairs(300, seed=3, bare=0.0) != arithmetic_pairs(300, seed=4, bare=0.0)
    held = arithmetic_pairs(50, split="eval")
    assert not {r["question"] for r in held} & {r["question"] for r in arithmetic_pairs(2000)}
    places = set()
    for row in rows:
        assert row["chosen"].endswith(f"#### {row['answer']}")
        work, _, answer = row["rejected"].partition("\n#### ")
        assert answer != row["answer"]
        right = row["chosen"].partition("\n")[0].split(", ")
        mistakes, before = [], right[0].split("=")[0]
        for i, (line, good) in enumerate(zip(work.split(", "), right, strict=True)):
            left, _, result = line.partition("=")
            op = next(c for c in left[1:] if c in "+-*")
            a, _, b = (left[0] + left[1:].replace(op, " ", 1)).partition(" ")
            assert good.split("=")[0].endswith(op + b) and (i == 0 or a == before)
            if {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[op] != int(result):
                mistakes.append(i)
            before = result
        assert len(mistakes) == 1 and before == answer
        places.add(mistakes[0])
    assert places == {0, 1, 2}


def test_a_share_of_the_rejected_have_the_wrong_answer_only() -> None:
    rows = arithmetic_pairs(400, bare=0.6)
    bare = [r for r in rows if re.fullmatch(r"#### \d+", r["rejected"])]
    assert 0.5 < len(bare) / 400 < 0.7 and all(r["rejected"] != f"#### {r['answer']}" for r in bare)
    assert all("=" in r["chosen"] for r in rows)
    with pytest.raises(DataError, match="bare=1.5, must be between 0 and 1"):
        arithmetic_pairs(1, bare=1.5)
