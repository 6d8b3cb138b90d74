"""Preference rows in every form they come in, and the generated ones."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlcore.config import DataConfig
from rlcore.data.generate.arithmetic_pairs import arithmetic_pairs
from rlcore.data.generate.problems import arithmetic
from rlcore.data.preferences import Pairs
from rlcore.errors import DataError

ASK, YES, NO = ({"role": r, "content": c} for r, c in (("user", "Q"), ("assistant", "yes"), ("assistant", "no")))
PARTS = {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}
NIL = {"role": "assistant", "content": None}
CALL, TOOL = {**NIL, "tool_calls": [{"function": {"name": "f"}}]}, {"role": "tool", "content": "3"}
MORE, END = {"role": "user", "content": "more"}, {"role": "assistant", "content": "end"}


def text_of(conversation: Sequence[Mapping[str, Any]]) -> str:
    return "".join(f"{m['role'][0]}:{m['content']};" for m in conversation)


def tokenize(conversation: Sequence[Mapping[str, Any]]) -> list[int]:
    """Its letters, so that tests can read them."""
    if "refuse" in text_of(conversation):
        raise ValueError("refused")
    return [ord(c) for c in text_of(conversation)]


def read(tokens: list[int]) -> str:
    return "".join(map(chr, tokens))


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def pairs_of(path: Path, rows: list[dict[str, Any]], most: int = 1000, **changes: Any) -> Pairs:
    cfg = DataConfig()
    for key, value in changes.items():
        setattr(cfg, key, value)
    return Pairs([jsonl(path / "pairs.jsonl", rows)], cfg, tokenize, 0, most)


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
            {"chosen": [ASK, YES, MORE, END], "rejected": [ASK, YES, MORE, NO]}, {},
            "u:Q;a:yes;u:more;a:end;", "u:Q;a:yes;u:more;a:no;",
        ),
        ({"prompt": [ASK], "chosen": [YES, MORE, END], "rejected": [NO]}, {}, "u:Q;a:yes;u:more;a:end;", "u:Q;a:no;"),
        ({"prompt": "Q", "chosen": [PARTS], "rejected": ""}, {}, f"u:Q;a:{PARTS['content']};", "u:Q;a:;"),
        ({"chosen": "Q yes", "rejected": "Q no"}, {"chat_template": False}, "a:Q yes;", "a:Q no;"),
        (
            {"prompt": "Q", "chosen": "[1, 2]", "rejected": "[]"},
            {"system_prompt": "S", "prompt_template": "<{prompt}>"},
            "s:S;u:<Q>;a:[1, 2];", "s:S;u:<Q>;a:[];",
        ),
        ({"chosen": [ASK, YES], "rejected": [ASK, NO]}, {"system_prompt": "S"}, "s:S;u:Q;a:yes;", "s:S;u:Q;a:no;"),
    ],
)  # fmt: skip
def test_forms_of_a_row(tmp_path: Path, row: dict[str, Any], changes: Any, chosen: str, rejected: str) -> None:
    (pair,) = pairs_of(tmp_path, [row], **changes).all()
    assert (read(pair.chosen), read(pair.rejected)) == (chosen, rejected)


def test_messages_in_a_csv_file_are_json(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("chosen", "rejected"), (json.dumps([ASK, YES]), json.dumps([ASK, NO]))])
    (pair,) = Pairs([str(path)], DataConfig(), tokenize, 0, 100).all()
    assert read(pair.chosen) == "u:Q;a:yes;"


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
            "line 1: the prompt .* in common has no user message, but of usr",
        ),
        (
            [{"chosen": [ASK, YES], "rejected": [ASK, NO]}, {"chosen": "a", "rejected": "b"}],
            "line 2: chosen and rejected are answers, in the first row whole conversations",
        ),
        ([{"prompt": "Q", "chosen": "refuse", "rejected": "b"}], "line 1: refused"),
        (
            [{"prompt": "Q", "chosen": [YES], "rejected": [NO]}, {"prompt": "Q", "chosen": [YES], "rejected": [NIL]}],
            r"pairs.jsonl,? line 2: rejected: message 2 .* \(assistant\) has content null, must be text or",
        ),
        ([{"chosen": [ASK, CALL, TOOL, YES], "rejected": [ASK, CALL, TOOL, NO]}], "line 1: chosen: message 2 .* null"),
        ([{"prompt": [ASK, CALL, TOOL], "chosen": "a", "rejected": "b"}], "line 1: chosen: message 2 .* null"),
        ([{"prompt": "Q", "chosen": [{**YES, "content": 3}], "rejected": "b"}], "chosen: .* content 3, must be"),
        ([{"prompt": "Q", "chosen": [{**YES, "content": []}], "rejected": "b"}], r"chosen: .* content \[\], must be"),
        ([{"prompt": "Q", "chosen": [{"role": "assistant"}], "rejected": "b"}], "column chosen must be text or"),
        ([{"prompt": "Q", "chosen": "same", "rejected": "same"}], "all 1 pairs are of equal texts, or longer"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_say_why(tmp_path: Path, rows: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(DataError, match=why):
        pairs_of(tmp_path, rows)


def test_pairs_too_long_or_equal_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Q", "chosen": c, "rejected": r} for c, r in (("a", "b"), ("a", "a"), ("a" * 9, "b"), ("a", "b" * 9))
    ]
    pairs = pairs_of(tmp_path, rows, most=10)
    assert (len(pairs), pairs.dropped) == (1, 3)
    assert read(pairs.all()[0].chosen) == "u:Q;a:a;"


def test_order_resumes(tmp_path: Path) -> None:
    rows = [{"prompt": str(i), "chosen": "a", "rejected": "b"} for i in range(10)]
    first, again = pairs_of(tmp_path, rows), pairs_of(tmp_path, rows)
    whole = [first.take(7) for _ in range(4)]
    again.take(14)
    state = json.loads(json.dumps(again.state()))
    other = pairs_of(tmp_path, rows)
    other.restore(state)
    assert [other.take(7), other.take(7)] == whole[2:]
    assert sorted(map(str, whole[0] + whole[1][:3])) == sorted(map(str, first.all())) and whole[0] != first.all()[:7]


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
