"""The layouts that published sets and other frameworks have, each as a small file; what is taken of it, and said."""

from __future__ import annotations

import csv
import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rewards.exact import exact_match
from rewards.gsm8k import gsm8k, gsm8k_strict
from rewards.math.boxed import boxed_math, boxed_math_gold, math
from rlcore.config import Config, DataConfig
from rlcore.data.examples import Examples
from rlcore.data.layouts import choose, response_column
from rlcore.data.preferences import Pairs, ResponsePairs
from rlcore.data.prompts import Prompts, untokenized
from rlcore.data.sources import load_rows
from rlcore.errors import DataError, UnparseableGold
from rlcore.records import Prompt
from rlcore.train.prepare import read_held_out, read_prompts
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(make_tiny_model(tmp_path_factory.mktemp("tiny")))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    """A file of these rows, of the kind that its name says; in CSV what is no text is JSON."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(rows[0])
            writer.writerows([v if isinstance(v, str) else json.dumps(v) for v in row.values()] for row in rows)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def gold_from(column: str, *others: str) -> str:
    also = f", not {' or '.join(others)} (data.answer_column says which)" if others else ""
    return f"gold answer from {column}{also}"


VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [user("2+2?")],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"split": "train", "index": 0, "answer": "2+2=4 #### 4", "question": "2+2?"},
}
OF_VERL = ("veRL", "2+2?", "4", gold_from("reward_model.ground_truth", "extra_info.answer"))
SKYWORK = VERL | {"reward_model": {"style": "rule", "ground_truth": '["4", "4.0"]'}, "extra_info": {"index": 1}}
NUMINA = {"source": "olympiads", "problem": "2+2?", "solution": "It is \\boxed{4}.", "answer": "4"}
VALID = {"problem_type": "Algebra", "question_type": "math-word-problem"} | {
    f"{what}_is_valid": "Yes" for what in ("problem", "solution")
}
OPENR1 = NUMINA | {"uuid": "a", "generations": ["<think>2</think>4"], "correctness_count": 1}
TALK = [user("2+2?"), assistant("It is \\boxed{4}.")]

TO_SAMPLE = {  # name: (kind of file, row, (layout, prompt, gold answer, in words))
    "verl": ("parquet", VERL, OF_VERL),
    "verl as JSON text": ("csv", VERL, OF_VERL),
    "verl lines": ("jsonl", VERL, OF_VERL),
    "skywork": ("parquet", SKYWORK, ("veRL", "2+2?", '["4", "4.0"]', gold_from("reward_model.ground_truth"))),
    "skyrl": (
        "parquet",
        {"data_source": "a", "prompt": [user("2+2?")], "env_class": "a", "reward_spec": {"ground_truth": "4"}},
        ("SkyRL", "2+2?", "4", gold_from("reward_spec.ground_truth")),
    ),
    "trl text": ("jsonl", {"prompt": "2+2?", "answer": "4"}, ("prompt (TRL)", "2+2?", "4", gold_from("answer"))),
    "trl messages": (
        "parquet",
        {"prompt": [user("2+2?")], "solution": "4"},
        ("prompt (TRL)", "2+2?", "4", gold_from("solution")),
    ),
    "openai": (
        "jsonl",
        {"messages": [user("2+2?")], "reference_answer": "4", "topic": "sums"},
        ("messages (OpenAI)", "2+2?", "4", gold_from("reference_answer")),
    ),
    "dapo of open-r1": (
        "parquet",
        {"prompt": "2+2?", "solution": "4"} | {k: v for k, v in SKYWORK.items() if k != "prompt"},
        ("veRL", "2+2?", '["4", "4.0"]', gold_from("reward_model.ground_truth", "solution")),
    ),
    "dapo of slime": ("jsonl", {"prompt": [user("2+2?")], "label": "4"}, ("slime", "2+2?", "4", gold_from("label"))),
    "openrlhf": ("jsonl", {"input": "2+2?", "label": "4"}, ("OpenRLHF", "2+2?", "4", gold_from("label"))),
    "big-math": (
        "parquet",
        {"problem": "2+2?", "answer": "4", "source": "a", "domain": ["b"], "llama8b_solve_rate": 0.5},
        ("Big-Math", "2+2?", "4", gold_from("answer")),
    ),
    "openr1": ("parquet", OPENR1 | {"messages": TALK}, ("OpenR1-Math", "2+2?", "4", gold_from("answer", "solution"))),
    "deepscaler": (
        "jsonl",
        {"problem": "2+2?", "answer": "4", "solution": "2 and 2 are 4"},
        ("problem, answer and solution (DeepScaleR)", "2+2?", "4", gold_from("answer", "solution")),
    ),
    "numina 1.5": (
        "parquet",
        NUMINA | VALID | {"synthetic": False},
        ("NuminaMath-1.5", "2+2?", "4", gold_from("answer", "solution")),
    ),
    "numina cot": (
        "parquet",
        {k: v for k, v in NUMINA.items() if k != "answer"} | {"messages": TALK},
        ("NuminaMath-CoT", "2+2?", "It is \\boxed{4}.", gold_from("solution")),
    ),
    "math": (
        "parquet",
        {"problem": "2+2?", "level": "Level 1", "type": "Algebra", "solution": "It is \\boxed{4}."},
        ("MATH", "2+2?", "It is \\boxed{4}.", gold_from("solution")),
    ),
    "gsm8k": (
        "parquet",
        {"question": "2+2?", "answer": "2+2=4\n#### 4"},
        ("question and answer (GSM8K)", "2+2?", "2+2=4\n#### 4", gold_from("answer")),
    ),
    "rlvr": (
        "parquet",
        {"messages": [user("2+2?")], "ground_truth": "4", "dataset": "math"},
        ("RLVR (open-instruct)", "2+2?", "4", gold_from("ground_truth")),
    ),
    "rlvr of several": (
        "parquet",
        {"messages": [user("2+2?")], "ground_truth": ["4", "four"], "dataset": ["math"]},
        ("RLVR (open-instruct)", "2+2?", '["4", "four"]', gold_from("ground_truth")),
    ),
    "areal": ("jsonl", {"messages": [user("2+2?")], "answer": "4"}, ("AReaL", "2+2?", "4", gold_from("answer"))),
    "intellect": (
        "parquet",
        {"question": "2+2?", "answer": "4", "info": {"domain": "a"}, "avg@16_qwen3": 0.5},
        ("INTELLECT-3-RL", "2+2?", "4", gold_from("answer", "info")),
    ),
    "intellect code": (
        "parquet",
        {"question": "2+2?", "info": '{"tests": []}', "avg@8_qwen3_4b_instruct_2507": 0.5},
        ("INTELLECT-3-RL", "2+2?", '{"tests": []}', gold_from("info")),
    ),
}


@pytest.mark.parametrize("name", TO_SAMPLE)
def test_prompt_and_gold_answer_of_a_layout(tmp_path: Path, tokenizer, name: str) -> None:
    kind, row, (layout, text, gold, said) = TO_SAMPLE[name]
    source = written(tmp_path / f"a.{kind}", [row, row])
    prompts = Prompts([source], DataConfig(), tokenizer, 0)
    assert [p.id for p in prompts.all()] == ["a:0", "a:1"]
    for prompt in prompts.all():
        assert (prompt.messages, prompt.answer) == ([user(text)], gold)
        assert tokenizer.decode(prompt.tokens) == f"<user>{text}<assistant>"
    (note,) = prompts.notes
    assert note.startswith(f"{source}: {layout}; prompt from ") and note.endswith(f", {said}")


TO_LEARN = {  # name: (kind of file, row, (layout, prompt, response, column))
    "prompt and completion": (
        "jsonl",
        {"prompt": "2+2?", "completion": "4"},
        ("prompt and completion (TRL)", "2+2?", "4", "completion"),
    ),
    "messages": (
        "jsonl",
        {"messages": [user("2+2?"), assistant("4")]},
        ("messages (OpenAI)", "2+2?", "4", "the assistant's last message"),
    ),
    "sharegpt": (
        "parquet",
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        ("ShareGPT", "2+2?", "4", "the assistant's last message"),
    ),
    "sharegpt as JSON text": (
        "csv",
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        ("ShareGPT", "2+2?", "4", "the assistant's last message"),
    ),
    "alpaca": ("csv", {"instruction": "2+2?", "input": "", "output": "4"}, ("Alpaca", "2+2?", "4", "output")),
    "alpaca with input": (
        "jsonl",
        {"instruction": "Add.", "input": "2, 2", "output": "4"},
        ("Alpaca", "Add.\n2, 2", "4", "output"),
    ),
    "openr1": (
        "parquet",
        OPENR1 | {"messages": [user("2+2?"), assistant("<think>2</think>4")]},
        ("OpenR1-Math", "2+2?", "<think>2</think>4", "the assistant's last message"),
    ),
    "our own": (
        "jsonl",
        {"question": "2+2?", "answer": "#### 4", "response": "4"},
        ("question and answer (GSM8K)", "2+2?", "4", "response"),
    ),
}


@pytest.mark.parametrize("name", TO_LEARN)
def test_prompt_and_response_of_a_layout(tmp_path: Path, tokenizer, name: str) -> None:
    kind, row, (layout, text, response, column) = TO_LEARN[name]
    source = written(tmp_path / f"a.{kind}", [row])
    examples = Examples([source], DataConfig(), tokenizer, 0, 32)
    ((rollout,),) = (group.rollouts for group in examples.take(1))
    assert tokenizer.decode(rollout.tokens) == f"<user>{text}<assistant>{response}<eos>" and rollout.text == response
    (note,) = examples.notes
    assert note.startswith(f"{source}: {layout}; prompt from ") and note.endswith(f", response from {column}")


def test_a_response_column_that_is_named_is_taken(tmp_path: Path, tokenizer) -> None:
    source = written(tmp_path / "a.jsonl", [{"prompt": "2+2?", "completion": "4", "mine": "5"}])
    named = Examples([source], DataConfig(response_column="mine"), tokenizer, 0, 8)
    assert named.take(1)[0].rollouts[0].text == "5" and named.notes[0].endswith("response from mine")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
        {"prompt": [user("2+2?")], "chosen": [assistant("4")], "rejected": [assistant("5")]},
        {"chosen": [user("2+2?"), assistant("4")], "rejected": [user("2+2?"), assistant("5")]},
        {"question": "2+2?", "chosen": "4", "rejected": "5", "messages": [user("?"), assistant("!")]},
        {"instruction": "2+2?", "chosen": "4", "rejected": "5"},
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_preference_layouts(tmp_path: Path, tokenizer, row: dict[str, Any], kind: str) -> None:
    source = written(tmp_path / f"a.{kind}", [row])
    for make, text in ((ResponsePairs, ["4", "5"]), (Pairs, ["4", "5"])):
        pairs = make([source], DataConfig(), tokenizer, 0, 8)
        ((good, bad),) = (group.rollouts for group in pairs.take(1))
        (note,) = pairs.notes  # as of every other kind of rows
        assert note.startswith(f"{source}: preference pairs (TRL); ") and "answers from chosen and rejected" in note
        assert [good.text, bad.text] == text and tokenizer.decode(good.tokens).startswith("<user>2+2?<assistant>4")
    assert choose(load_rows(source), DataConfig()).layout.name == "preference pairs (TRL)"


def test_a_label_that_says_good_or_bad_is_no_gold_answer(tmp_path: Path) -> None:
    rows = [{"prompt": "2+2?", "completion": "4", "label": True}]
    loaded = load_rows(written(tmp_path / "a.parquet", rows))
    chosen = choose(loaded, DataConfig())
    assert chosen.gold is None and "no gold answer (data.answer_column may name one: completion, label)" in chosen.told(
        loaded
    )
    # Nor is what is called bad learned from unasked.
    assert response_column(loaded, DataConfig()) == "response"


def dapo(problem: str, gold: str, **extra: Any) -> dict[str, Any]:
    asked = f"Solve the following math problem step by step.\n\n{problem}\n\nAnswer: $Answer"
    record = {"ground_truth": gold, "style": "rule-lighteval/MATH_v2"}
    return {"data_source": "math_dapo", "prompt": [user(asked)], "ability": "MATH", "reward_model": record} | extra


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_dapo_has_each_problem_a_hundred_times_and_is_taken_once(tmp_path: Path, tokenizer, kind: str) -> None:
    rows = [dapo(p, g, extra_info={"index": p}) for p, g in [("2+2?", "4"), ("3+3?", "6")] * 100]
    rows[150] |= {"reward_model": {"ground_truth": "7", "style": "rule"}}  # another gold answer: another row
    source = written(tmp_path / f"dapo.{kind}", rows)
    prompts = Prompts([source], DataConfig(max_prompt_tokens=200), tokenizer, 0)
    assert [p.answer for p in prompts.all()] == ["4", "6", "7"] and len(prompts) == 3
    assert prompts.notes[0].endswith(f"{gold_from('reward_model.ground_truth')}; left out 197 copies of others")
    where = [prompts.at(p).rpartition(", ")[2] for p in prompts.all()]
    assert where == (["row 0", "row 1", "row 150"] if kind == "parquet" else ["line 2", "line 3", "line 152"])
    # AIME-2024 of the same authors repeats on purpose, and other sets are the user's own business.
    aime = [dapo("2+2?", "4", extra_info={"index": i, "raw_problem": "2+2?"}) for i in range(3)]
    other = [row | {"data_source": "mine"} for row in rows[:3]]
    assert len(load_rows(written(tmp_path / "aime.parquet", aime)).rows) == 3
    assert len(load_rows(written(tmp_path / "mine.parquet", other)).rows) == 3


def test_rows_without_a_gold_answer_are_left_out_where_a_set_is_known_to_have_such(tmp_path: Path, tokenizer) -> None:
    good = NUMINA | VALID
    rows = [
        *[good | {"answer": answer} for answer in ("proof", "4", "notfound", None, "")],
        good | {"problem_is_valid": "Incomplete"},
        good | {"solution_is_valid": "No"},
        good | {"answer": "proof"},
        good,
    ]
    source = written(tmp_path / "numina.parquet", rows)
    prompts = Prompts([source], DataConfig(), tokenizer, 0)
    assert [p.id for p in prompts.all()] == ["numina:1", "numina:8"]
    assert [prompts.at(p) for p in prompts.all()] == [f"{source}, row 1", f"{source}, row 8"]
    assert prompts.notes[0].endswith(
        "; left out 2 whose answer is proof, 1 whose answer is notfound, 2 without answer, "
        "1 whose problem_is_valid is not Yes, 1 whose solution_is_valid is not Yes"
    )
    with pytest.raises(DataError, match=r"numina-1\.parquet: NuminaMath-1\.5; .* left out 1 whose answer is proof"):
        Prompts([written(tmp_path / "numina-1.parquet", rows[:1])], DataConfig(), tokenizer, 0)
    cot = {"source": "a", "problem": "2+2?", "messages": TALK}
    rows = [cot | {"solution": "Obvious."}, cot | {"solution": "It is \\boxed{4}."}]
    prompts = Prompts([written(tmp_path / "cot.jsonl", rows)], DataConfig(), tokenizer, 0)
    assert [p.id for p in prompts.all()] == ["cot:1"]
    assert prompts.notes[0].endswith("; left out 1 whose solution has no \\boxed{}")
    rows = [{"problem": "2+2?", "answer": answer, "solution": "4"} for answer in ("4", None, float("nan"))]
    assert len(Prompts([written(tmp_path / "deep.jsonl", rows)], DataConfig(), tokenizer, 0)) == 1
    # In any other set that is an error, by its row.
    rows = [{"question": "2+2?", "answer": "4"}, {"question": "3+3?", "answer": None}]
    with pytest.raises(DataError, match=r"own\.jsonl, line 2: column answer is empty"):
        Prompts([written(tmp_path / "own.jsonl", rows)], DataConfig(), tokenizer, 0)


def test_the_choice_among_gold_answers_can_be_made(tmp_path: Path, tokenizer) -> None:
    for kind in ("parquet", "csv"):
        source = written(tmp_path / f"a.{kind}", [VERL])
        cfg = DataConfig(answer_column="extra_info.answer")
        prompts = Prompts([source], cfg, tokenizer, 0)
        assert prompts.all()[0].answer == "2+2=4 #### 4"
        assert gold_from("extra_info.answer", "reward_model.ground_truth") in prompts.notes[0]
    odd = written(tmp_path / "b.csv", [VERL | {"reward_model": "{'ground_truth': '4'}"}])
    with pytest.raises(DataError, match=r"b\.csv, line 2: column reward_model looks like a record but is not valid"):
        Prompts([odd], DataConfig(), tokenizer, 0)


def test_a_column_that_is_empty_in_all_rows_is_no_gold_answer(tmp_path: Path, tokenizer) -> None:
    """As a table has it that is made of several: every row has every column."""
    rows = [{"question": "2+2?", "answer": None, "ground_truth": "", "solution": s} for s in ("4", "5")]
    prompts = Prompts([written(tmp_path / "a.parquet", rows)], DataConfig(), tokenizer, 0)
    assert [p.answer for p in prompts.all()] == ["4", "5"]
    assert prompts.notes[0].endswith(gold_from("solution"))


def test_what_is_learned_needs_no_gold_answer(tmp_path: Path, tokenizer) -> None:
    rows = [{"question": "2+2?", "answer": a, "response": "4"} for a in (4.0, None, float("nan"))]
    examples = Examples([written(tmp_path / "a.jsonl", rows)], DataConfig(shuffle=False), tokenizer, 0, 8)
    assert [group.prompt.answer for group in examples.take(3)] == ["4", "", ""]


def test_what_was_taken_is_said_once_of_each_source(tmp_path: Path, tokenizer) -> None:
    train, held_out = written(tmp_path / "a.parquet", [VERL]), written(tmp_path / "b.jsonl", [NUMINA | VALID])
    cfg, said = Config(), list[str]()
    cfg.data.train, cfg.data.eval = [train], [held_out]
    read_prompts(cfg, tokenizer, said.append)
    read_held_out(cfg, tokenizer, said.append)
    assert said == [
        f"data: {train}: veRL; prompt from prompt, {gold_from('reward_model.ground_truth', 'extra_info.answer')}",
        f"data: {held_out}: NuminaMath-1.5; prompt from problem, {gold_from('answer', 'solution')}",
    ]


def test_a_record_of_ones_own_may_be_json_text(tmp_path: Path, tokenizer) -> None:
    source = written(tmp_path / "a.csv", [{"prompt": "2+2?", "meta": {"right": {"value": 4}}}])
    for column, gold in (("meta.right", '{"value": 4}'), ("meta.right.value", "4")):
        (prompt,) = Prompts([source], DataConfig(answer_column=column), tokenizer, 0).all()
        assert prompt.answer == gold


def test_a_system_message_in_a_column_of_its_own_is_not_lost(tmp_path: Path, tokenizer) -> None:
    talk = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]
    alpaca = {"instruction": "2+2?", "input": "", "output": "4"}
    for row in ({"conversations": talk}, alpaca):
        for system in ("Be brief", "", None):
            source = written(tmp_path / "rows.jsonl", [{**row, "system": system, "history": []}])
            (group,) = Examples([source], DataConfig(), tokenizer, 0, 20).all()
            first = group.prompt.messages[0]
            assert first == ({"role": "system", "content": "Be brief"} if system else user("2+2?"))
    for row, why in (
        ({**alpaca, "history": [["1+1?", "2"]]}, "column history has earlier turns"),
        ({"conversations": [{"from": "system", "value": "Be long"}, *talk], "system": "Be brief"}, "keep one"),
    ):
        with pytest.raises(DataError, match=f"line 1: .*{why}"):
            Examples([written(tmp_path / "rows.jsonl", [row])], DataConfig(), tokenizer, 0, 20)


def test_turns_of_unknown_speakers_are_refused(tmp_path: Path, tokenizer) -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "observation", "value": "b"}]
    source = written(tmp_path / "a.jsonl", [{"conversations": turns}])
    with pytest.raises(DataError, match=r"line 1: column conversations: a turn is from observation, must be from one"):
        Prompts([source], DataConfig(), tokenizer, 0)


@pytest.mark.parametrize("text", ["prompt,answer,answer\na,1,2\n", "answer,prompt,answer\n1,a,2\n"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=r"a\.csv: there are two columns answer"):
        load_rows(str(tmp_path / "a.csv"))


def arrow(path: Path, values: list[Any], kind: Any) -> str:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"prompt": ["2+2?"] * len(values), "answer": pyarrow.array(values, type=kind)})
    pyarrow.parquet.write_table(table, path)
    return str(path)


def kinds() -> dict[str, tuple[list[Any], Any, list[str]]]:
    import pyarrow as pa

    day = datetime.datetime(2024, 5, 1, 12, 30)
    return {
        "decimal128": ([Decimal("12.00"), Decimal("-0.50")], pa.decimal128(9, 2), ["12.00", "-0.50"]),
        "decimal256": ([Decimal("1E+3"), Decimal("7")], pa.decimal256(40, 0), ["1000", "7"]),
        "float64": ([72.0, 0.1, 1e23, 1e-7, -0.0], pa.float64(), ["72", "0.1", "1" + "0" * 23, "0.0000001", "0"]),
        "float32": ([0.1, 72.0], pa.float32(), ["0.1", "72"]),
        "float16": ([0.5], pa.float16(), ["0.5"]),
        "int64": ([2**53 + 1, -(2**63)], pa.int64(), [str(2**53 + 1), str(-(2**63))]),
        "uint64": ([2**64 - 1], pa.uint64(), [str(2**64 - 1)]),
        "bool": ([True, False], pa.bool_(), ["true", "false"]),
        "large_string": (["007"], pa.large_string(), ["007"]),
        "dictionary": (["a", "b", "a"], pa.dictionary(pa.int8(), pa.string()), ["a", "b", "a"]),
        "date": ([datetime.date(2024, 5, 1)], pa.date32(), ["2024-05-01"]),
        "timestamp": ([day], pa.timestamp("us"), ["2024-05-01T12:30:00"]),
        "timestamp in ns": ([day], pa.timestamp("ns"), ["2024-05-01T12:30:00"]),
        "timestamp of a zone": ([day], pa.timestamp("s", tz="UTC"), ["2024-05-01T12:30:00+00:00"]),
        "time": ([datetime.time(12, 30)], pa.time64("us"), ["12:30:00"]),
        "list of texts": ([["4", "four"]], pa.list_(pa.string()), ['["4", "four"]']),
        "list of decimals": ([[Decimal("1.50")]], pa.large_list(pa.decimal128(9, 2)), ['["1.50"]']),
        "fixed list": ([[1, 2]], pa.list_(pa.int64(), 2), ["[1, 2]"]),
        "record": (
            [{"a": Decimal("1.0"), "b": [datetime.date(2024, 5, 1)], "c": 1}],
            pa.struct([("a", pa.decimal128(9, 1)), ("b", pa.list_(pa.date32())), ("c", pa.int64())]),
            ['{"a": "1.0", "b": ["2024-05-01"], "c": 1}'],
        ),
        "map": ([[("a", Decimal("1.0"))]], pa.map_(pa.string(), pa.decimal128(9, 1)), ['{"a": "1.0"}']),
    }


@pytest.mark.parametrize("name", kinds())
def test_a_value_of_any_arrow_type_has_one_text(tmp_path: Path, name: str) -> None:
    values, kind, texts = kinds()[name]
    loaded = load_rows(arrow(tmp_path / "a.parquet", values, kind))
    assert [p.answer for p in untokenized(loaded, DataConfig(), "a").prompts] == texts
    json.dumps(loaded.rows, allow_nan=False)  # what reward functions get is JSON


@pytest.mark.parametrize(
    ("value", "kind", "complaint"),
    [
        (b"4", "binary", "holds bytes, which has no text form"),
        ([b"4"], "list<binary>", "holds bytes, which has no text form"),
        (datetime.timedelta(seconds=5), "duration", "holds timedelta, which has no text form"),
        (float("nan"), "double", "is nan, no number"),
        (float("inf"), "double", "is inf, no number"),
        (None, "null", "is empty"),
    ],
)
def test_a_value_without_a_text_is_refused_by_its_row(tmp_path: Path, value: Any, kind: str, complaint: str) -> None:
    import pyarrow as pa

    of = {"list<binary>": pa.list_(pa.binary()), "duration": pa.duration("s")}
    source = arrow(tmp_path / "a.parquet", [value], of.get(kind) or pa.type_for_alias(kind))
    with pytest.raises(DataError, match=rf"a\.parquet, row 0: column answer {complaint}"):
        untokenized(load_rows(source), DataConfig(), "a")
    # Elsewhere it does no harm.
    loaded = load_rows(source)
    rows = [row | {"label": "4"} for row in loaded.rows]
    (prompt,) = untokenized(loaded._replace(rows=rows), DataConfig(answer_column="label"), "a").prompts
    assert prompt.answer == "4"


def test_numbers_of_text_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,answer\na,007\nb,12.00\nc,NaN\n")
    found = untokenized(load_rows(str(tmp_path / "a.csv")), DataConfig(), "a").prompts
    assert [p.answer for p in found] == ["007", "12.00", "NaN"]  # a CSV file has nothing but text
    (tmp_path / "a.jsonl").write_text(
        "".join(f'{{"prompt": "a", "answer": {n}}}\n' for n in ("12.00", "9007199254740993", "1e3", "0.1"))
    )
    found = untokenized(load_rows(str(tmp_path / "a.jsonl")), DataConfig(), "a").prompts
    assert [p.answer for p in found] == ["12", "9007199254740993", "1000", "0.1"]
    (tmp_path / "b.jsonl").write_text('{"prompt": "a", "answer": 1e400}\n')
    with pytest.raises(DataError, match=r"b\.jsonl, line 1: column answer is inf, no number"):
        untokenized(load_rows(str(tmp_path / "b.jsonl")), DataConfig(), "a")


def test_a_column_that_is_not_used_may_hold_anything(tmp_path: Path) -> None:
    import numpy
    import pyarrow as pa
    import pyarrow.parquet

    odd = {
        "id": pa.array([b"\0" * 16], pa.uuid()),
        "image": pa.array([{"bytes": b"x", "path": None}]),
        "took": pa.array([datetime.timedelta(1)]),
        "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(numpy.ones((1, 2, 2), "float32")),
    }
    table = pa.table({"prompt": ["2+2?"], "answer": ["4"], **odd})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    loaded = load_rows(str(tmp_path / "a.parquet"))
    assert [p.answer for p in untokenized(loaded, DataConfig(), "a").prompts] == ["4"]
    for column in ("id", "image", "took"):
        with pytest.raises(DataError, match=rf"a\.parquet, row 0: column {column} holds "):
            untokenized(loaded, DataConfig(answer_column=column), "a")


@pytest.mark.parametrize("name", ["decimal128", "float64", "int64"])
def test_the_right_answer_to_a_gold_number_of_any_type_scores(tmp_path: Path, name: str) -> None:
    import pyarrow as pa

    kind = {"decimal128": pa.decimal128(9, 2), "float64": pa.float64(), "int64": pa.int64()}[name]
    value: Any = {"decimal128": Decimal("12.00"), "float64": 12.0, "int64": 12}[name]
    source = arrow(tmp_path / "a.parquet", [value], kind)
    (prompt,) = untokenized(load_rows(source), DataConfig(), "a").prompts
    assert boxed_math(prompt, "\\boxed{12}").reward == gsm8k(prompt, "#### 12") == 1.0
    assert boxed_math(prompt, "\\boxed{13}").reward == gsm8k(prompt, "#### 13") == 0.0


def test_any_of_a_list_of_gold_answers_is_right() -> None:
    several = Prompt("a:0", [], '["\\\\frac{1}{2}", "0.25"]')
    for text, right in (("0.5", 1.0), ("\\frac{1}{4}", 1.0), ("0.75", 0.0)):
        assert boxed_math(several, f"\\boxed{{{text}}}").reward == right
        assert math(several, f"The answer is {text}.").reward == right
    for number, right in ((4, 1.0), (40, 1.0), (5, 0.0)):
        prompt = Prompt("a:0", [], '["4", "40"]')
        assert gsm8k(prompt, f"#### {number}") == gsm8k_strict(prompt, f"#### {number}") == right
        assert exact_match(prompt, str(number)) == right
    one = Prompt("a:0", [], "[34]")
    assert boxed_math(one, "\\boxed{34}").reward == gsm8k(one, "34") == exact_match(one, "34") == 1.0
    interval = Prompt("a:0", [], "[1, 2]")
    assert boxed_math(interval, "\\boxed{[1, 2]}").reward == 1.0 and boxed_math(interval, "\\boxed{1}").reward == 0.0
    # What cannot be read among them does no harm, unless it is all.
    assert boxed_math(Prompt("a:0", [], '["", "4"]'), "\\boxed{4}").reward == 1.0
    for check in (boxed_math_gold, lambda p: gsm8k(p, "4"), lambda p: exact_match(p, "4")):
        with pytest.raises(UnparseableGold, match="prompt a:0: "):
            check(Prompt("a:0", [], '["", " "]'))
