"""Rows in, prompts out: sources, templates, lengths, order, resuming, and what a user is told when a row is wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from rlcore.config import DataConfig
from rlcore.data.examples import Examples
from rlcore.data.preferences import ResponsePairs
from rlcore.data.prompts import Prompts
from rlcore.data.sources import load_rows, source_name, source_names
from rlcore.errors import ConfigError, DataError
from rlcore.models.embedded import make_tokenizer
from tests.tiny import make_tiny_model

USER = {"role": "user", "content": "a"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(make_tiny_model(tmp_path_factory.mktemp("tiny")))


def jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def sums(path: Path, count: int = 10) -> str:
    return jsonl(path / "sums.jsonl", [{"question": f"{i}+1", "answer": i + 1} for i in range(count)])


def text_of(tokenizer, prompt) -> str:
    return tokenizer.decode(prompt.tokens)


def test_every_kind_of_source_gives_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"question": "2+2?", "answer": "4"}, {"question": 'a "b", c\nd', "answer": "ü"}]
    jsonl(tmp_path / "a.jsonl", rows)
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "hub").mkdir()
    for name in ("a.parquet", "hub/train.parquet", "hub/test.parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
    for source in ("a.jsonl", "a.csv", "a.parquet", "hub", "hub@test"):
        loaded = load_rows(str(tmp_path / source))
        assert loaded.rows == rows, source


def test_source_names() -> None:
    names = {
        "data/test.jsonl": "test",
        "gsm8k/main.parquet": "main",
        "openai/gsm8k:main@test": "gsm8k",
        "gsm8k": "gsm8k",
        "generate:arithmetic?size=3&seed=1": "arithmetic",
        "generate:countdown": "countdown",
    }
    assert {s: source_name(s) for s in names} == names


@pytest.mark.parametrize(
    ("own", "unique"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "a", "a"], ["a", "a-2", "a-3"]),
        (["b", "a", "a"], ["b", "a", "a-3"]),
        # A file that is called so keeps its name: reward.sources may mean it.
        (["a", "a", "a-2"], ["a", "a-3", "a-2"]),
        (["a", "a-2", "a"], ["a", "a-2", "a-3"]),
        (["a-3", "a", "a"], ["a-3", "a", "a-4"]),
        (["a", "a", "a-2", "a-2", "a-2-4"], ["a", "a-3", "a-2", "a-2-5", "a-2-4"]),
    ],
)
def test_no_two_sources_have_the_same_name(own: list[str], unique: list[str]) -> None:
    assert source_names([f"{i}/{name}.jsonl" for i, name in enumerate(own)]) == unique


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", '{"question": "x"}\n\n{"question": \n', "a.jsonl, line 3: not valid JSON"),
        ("a.jsonl", '{"question": "x"}\n[1, 2]\n', "line 2: a JSON list, must be an object"),
        ("a.jsonl", "\n \n", "no rows"),
        ("a.jsonl", '{"answer": 1, "question": "x", "answer": 2}\n', "line 1: cannot be read: two keys answer"),
        ("a.jsonl", '{"a": 1}\n{"answer": ' + "1" * 5000 + "}\n", r"line 2: cannot be read: .*4300 digits"),
        ("a.jsonl", '{"a": ' + "[" * 200_000 + "]" * 200_000 + "}\n", "line 1: cannot be read: .*recursion"),
        ("a.jsonl", b'{"question": "\xff"}\n', "cannot be read"),
        ("a.csv", "question,answer\nx,1\ny\n", "line 3: not 2 fields"),
        ("a.csv", "question,answer\nx,1,2\n", "line 2: not 2 fields"),
        ("a.csv", 'question,answer\nx,"1\n', "not valid CSV"),
        ("a.csv", "question,answer\n", "no rows"),
        ("a.parquet", "not parquet", "not a readable parquet file"),
        ("a.json", "[]", "cannot read a .json file"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, name: str, content: str | bytes, complaint: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=complaint) as e:
        load_rows(str(path))
    assert str(path) in str(e.value)


def test_a_field_of_a_csv_file_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,tests\na," + "x" * 200_000 + "\n")
    assert len(load_rows(str(tmp_path / "a.csv")).rows[0]["tests"]) == 200_000


def test_a_missing_file_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    sums(tmp_path)
    with pytest.raises(DataError, match="no such file .*did you mean sums.jsonl"):
        load_rows(str(tmp_path / "sum.jsonl"))


def test_a_dataset_that_does_not_load_is_told_with_its_parts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nor a Hugging Face dataset that loads .name .*, config None, split dev"):
        load_rows(f"{tmp_path / 'nowhere'}@dev")


def test_rows_become_prompts(tmp_path: Path, tokenizer) -> None:
    prompts = Prompts([sums(tmp_path)], DataConfig(), tokenizer, seed=0)
    first = prompts.all()[0]
    assert (first.id, first.answer, first.row) == ("sums:0", "1", {"question": "0+1", "answer": 1})
    assert text_of(tokenizer, first) == "<user>0+1<assistant>"
    assert len(prompts) == len(prompts.all()) == 10 and [p.id for p in prompts.all(limit=2)] == ["sums:0", "sums:1"]


def test_tokens_are_those_of_the_chat_template_itself(tmp_path: Path, tokenizer) -> None:
    prompts = Prompts([sums(tmp_path)], DataConfig(system_prompt="Add."), tokenizer, seed=0)
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "3+1"}]
    wanted = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert prompts.all()[3].tokens == wanted


def test_messages_column_and_system_prompt(tmp_path: Path, tokenizer) -> None:
    said = [("user", "hi"), ("assistant", "ho"), ("user", "2?")]
    turns = [{"role": role, "content": text} for role, text in said]
    source = jsonl(tmp_path / "chat.jsonl", [{"messages": turns, "solution": "2"}])
    cfg = DataConfig(prompt_template="Q: {prompt}")
    (prompt,) = Prompts([source], cfg, tokenizer, 0).all()
    assert text_of(tokenizer, prompt) == "<user>hi<assistant>ho<user>Q: 2?<assistant>"
    old = [{"role": "system", "content": "old"}, *turns[:1]]
    source = jsonl(tmp_path / "system.jsonl", [{"prompt": old, "answer": "x"}])
    assert "system>new<user>hi" in text_of(
        tokenizer, Prompts([source], DataConfig(system_prompt="new"), tokenizer, 0).all()[0]
    )


def test_a_last_answer_without_content_is_no_shorter_conversation(tmp_path: Path, tokenizer) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": []}]
    source = jsonl(tmp_path / "tools.jsonl", [{"messages": turns, "answer": "2"}])
    with pytest.raises(DataError, match=r"tools.jsonl, line 1: column messages: message 2 .* has no content"):
        Prompts([source], DataConfig(), tokenizer, 0)


def test_messages_written_as_json_in_a_cell(tmp_path: Path, tokenizer) -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "2, [3]?"}]
    texts = [json.dumps(turns), " " + json.dumps(turns, indent=1), "[1, 2] sorted?", "[1, 2]", '[{"a": 1}]', "[[", "[]"]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "answer"], *([t, "x"] for t in texts)])
    prompts = Prompts([str(tmp_path / "a.csv")], DataConfig(), tokenizer, 0).all()
    seen = [text_of(tokenizer, p) for p in prompts]
    assert seen[0] == seen[1] == "<system>s<user>2, [3]?<assistant>"
    assert seen[2:] == [f"<user>{t}<assistant>" for t in texts[2:]]


def test_a_csv_of_broken_messages_is_told_with_its_line(tmp_path: Path, tokenizer) -> None:
    (tmp_path / "a.csv").write_text("prompt,answer\nx,1\n\"[{'role': 'user', 'content': 'a'}]\",2\n")
    with pytest.raises(DataError, match="a.csv, line 3: column prompt looks like a list of messages but is not valid"):
        Prompts([str(tmp_path / "a.csv")], DataConfig(), tokenizer, 0)


def test_the_answer_column_is_the_first_candidate_any_row_has(tmp_path: Path, tokenizer) -> None:
    rows = [{"prompt": "a", "response": "b", "solution": "c"}, {"prompt": "d", "solution": "e"}]
    prompts = Prompts([jsonl(tmp_path / "a.jsonl", rows)], DataConfig(), tokenizer, 0).all()
    assert [p.answer for p in prompts] == ["c", "e"]
    # Supervised examples need no gold answer.
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "d", "response": "e", "answer": "f"}]
    examples = Examples([jsonl(tmp_path / "b.jsonl", rows)], DataConfig(shuffle=False), tokenizer, 0, 8).take(2)
    assert [group.prompt.answer for group in examples] == ["", "f"]


def test_plain_text_prompts(tmp_path: Path, tokenizer) -> None:
    prompts = Prompts([sums(tmp_path)], DataConfig(chat_template=False), tokenizer, 0)
    assert text_of(tokenizer, prompts.all()[0]) == "0+1"
    with pytest.raises(DataError, match="need a chat template"):
        Prompts([sums(tmp_path)], DataConfig(chat_template=False, system_prompt="Add."), tokenizer, 0)


def test_template_fills_columns_once_and_keeps_braces(tmp_path: Path, tokenizer) -> None:
    rows = [{"question": "{topic}?", "topic": "{answer}", "answer": "secret", "level": 3}]
    source = jsonl(tmp_path / "t.jsonl", rows)
    cfg = DataConfig(prompt_template="{topic} {level}: {prompt} in \\boxed{{}}")
    assert text_of(tokenizer, Prompts([source], cfg, tokenizer, 0).all()[0]) == (
        "<user>{answer} 3: {topic}? in \\boxed{}<assistant>"
    )


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{prompt} in \\boxed{}", "write a literal brace twice"),
        ("{prompt", "write a literal brace twice"),
        ("{prompt} {answr}", "did you mean answer"),
        ("{prompt} = {answer}", "give it away"),
        ("{prompt.__class__}", "not a column"),
        ("{prompt!r}", "not a column"),
        ("Solve it.", "must contain {prompt}"),
    ],
)
def test_a_wrong_template_is_a_config_error(tmp_path: Path, tokenizer, template: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Prompts([sums(tmp_path)], DataConfig(prompt_template=template), tokenizer, 0)


@pytest.mark.parametrize(
    ("rows", "cfg", "complaint"),
    [
        ([{"text": "a"}], DataConfig(), "none of the columns prompt, question.*one of text"),
        ([{"question": "a"}], DataConfig(prompt_column="questions"), "did you mean question"),
        ([{"question": "a"}], DataConfig(answer_column="gold"), "data.answer_column must be one of question"),
        (
            [{"question": "a"}, {"qestion": "b"}],
            DataConfig(),
            "line 2: column question is missing; did you mean qestion",
        ),
        ([{"question": "a"}, {"question": None}], DataConfig(), "line 2: column question is empty"),
        ([{"question": " "}], DataConfig(), "line 1: column question is empty"),
        ([{"question": 5}], DataConfig(), "text or a list of"),
        ([{"question": [{"role": "user"}]}], DataConfig(), "text or a list of"),
        ([{"question": []}], DataConfig(), "no user message"),
        ([{"question": [USER | {"content": " "}]}], DataConfig(), "line 1: column question: the last user message is"),
        ([{"question": [USER, USER | {"content": None}]}], DataConfig(), r"message 2 \(user\) has no content"),
        ([{"question": [USER | {"content": ""}, {"role": "assistant", "content": "b"}]}], DataConfig(), "last user"),
        ([{"question": "a"}, {"question": " [ {'role': 'user'}]"}], DataConfig(), "line 2: column question looks like"),
        ([{"question": json.dumps([USER, {"role": "user"}])}], DataConfig(), "text or a list of"),
        ([{"question": json.dumps([USER | {"content": ""}])}], DataConfig(), "the last user message is empty"),
        ([{"question": "a", "answer": 1}, {"question": "b"}], DataConfig(), "line 2: column answer is missing"),
        ([{"question": "a"}, {"question": "b", "solution": 1}], DataConfig(), "line 1: column solution is missing"),
        ([{"question": "a"}, {"question": "b", "gold": 1}], DataConfig(answer_column="gold"), "line 1: column gold is"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, tokenizer, rows: list[dict], cfg: DataConfig, complaint: str) -> None:
    source = jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=complaint) as e:
        Prompts([source], cfg, tokenizer, 0)
    assert source in str(e.value)


def test_a_tokenizer_without_a_chat_template_is_told(tmp_path: Path, tokenizer) -> None:
    import copy

    base = copy.deepcopy(tokenizer)
    base.chat_template = None
    with pytest.raises(DataError, match="data.chat_template=False"):
        Prompts([sums(tmp_path)], DataConfig(), base, 0)


def test_answers_are_text(tmp_path: Path, tokenizer) -> None:
    rows = [{"prompt": "a", "answer": a} for a in ("x #### 7", 7, 1.5, True, {"ground_truth": "7"}, [1, "b"])]
    prompts = Prompts([jsonl(tmp_path / "a.jsonl", rows)], DataConfig(), tokenizer, 0).all()
    assert [p.answer for p in prompts] == ["x #### 7", "7", "1.5", "true", '{"ground_truth": "7"}', '[1, "b"]']
    free = Prompts([jsonl(tmp_path / "free.jsonl", [{"prompt": "a"}])], DataConfig(), tokenizer, 0).all()
    assert free[0].answer == ""


def test_overlong_prompts_are_left_out_and_counted(tmp_path: Path, tokenizer) -> None:
    rows = [{"question": "x" * n, "answer": ""} for n in (1, 9, 3)]
    source = jsonl(tmp_path / "long.jsonl", rows)
    prompts = Prompts([source], DataConfig(max_prompt_tokens=6), tokenizer, 0)
    assert prompts.dropped == 1 and [p.id for p in prompts.all()] == ["long:0", "long:2"]
    with pytest.raises(DataError, match="all 3 prompts are longer"):
        Prompts([source], DataConfig(max_prompt_tokens=2), tokenizer, 0)


def test_an_epoch_has_every_row_once_and_batches_run_on_into_the_next(tmp_path: Path, tokenizer) -> None:
    prompts = Prompts([sums(tmp_path)], DataConfig(), tokenizer, seed=1)
    ids = [p.id for _ in range(5) for p in prompts.take(6)]
    epochs = [[i for i in ids if i.endswith(f"@{e}")] for e in (2, 3)]
    assert sorted(ids[:10]) == sorted(f"sums:{i}" for i in range(10))
    assert ids[10:20] == epochs[0] and ids[20:] == epochs[1]
    assert sorted(epochs[0]) == sorted(f"sums:{i}@2" for i in range(10))
    assert [i.removesuffix("@2") for i in epochs[0]] != ids[:10], "every epoch has an order of its own"
    assert len(set(ids)) == 30


def test_order_is_a_function_of_the_seed(tmp_path: Path, tokenizer) -> None:
    def order(seed: int, **knobs) -> list[str]:
        return [p.id for p in Prompts([sums(tmp_path)], DataConfig(**knobs), tokenizer, seed).take(10)]

    assert order(1) == order(1) != order(2)
    # Held to the letter: another Python or platform must give the same run.
    assert order(1) == [f"sums:{i}" for i in (2, 1, 5, 8, 7, 3, 6, 0, 9, 4)]
    assert order(1, shuffle=False) == [f"sums:{i}" for i in range(10)]


def test_take_more_than_there_is(tmp_path: Path, tokenizer) -> None:
    ids = [p.id for p in Prompts([sums(tmp_path, 3)], DataConfig(), tokenizer, 0).take(8)]
    assert len(set(ids)) == 8 and [i.partition("@")[2] for i in ids] == [""] * 3 + ["2"] * 3 + ["3"] * 2


@pytest.mark.parametrize("before", [0, 4, 10, 13, 27])
def test_resuming_goes_on_exactly(tmp_path: Path, tokenizer, before: int) -> None:
    source = sums(tmp_path)
    whole = Prompts([source], DataConfig(), tokenizer, seed=3)
    whole.take(before)
    state = json.loads(json.dumps(whole.state()))
    resumed = Prompts([source], DataConfig(), tokenizer, seed=3)
    resumed.take(2)
    resumed.restore(state)
    assert [p.id for p in resumed.take(25)] == [p.id for p in whole.take(25)]


def test_resuming_on_other_data_is_refused(tmp_path: Path, tokenizer) -> None:
    state = Prompts([sums(tmp_path)], DataConfig(), tokenizer, seed=3).state()
    with pytest.raises(DataError, match="rows is 9, was 10"):
        Prompts([sums(tmp_path, 9)], DataConfig(), tokenizer, seed=3).restore(state)
    with pytest.raises(DataError, match="seed is 4, was 3"):
        Prompts([sums(tmp_path)], DataConfig(), tokenizer, seed=4).restore(state)
    for cfg, why in (
        (DataConfig(shuffle=False), "shuffle is False, was True"),
        (DataConfig(curriculum="source"), "curriculum"),
    ):
        with pytest.raises(DataError, match=f"{why}.* when saved: another data order"):
            Prompts([sums(tmp_path)], cfg, tokenizer, seed=3).restore(state)


def of_prompts(path: str, tokenizer) -> Prompts:
    return Prompts([path], DataConfig(), tokenizer, 3)


def of_examples(path: str, tokenizer) -> Examples:
    return Examples([path], DataConfig(), tokenizer, 3, 8)


def of_pairs(path: str, tokenizer) -> ResponsePairs:
    return ResponsePairs([path], DataConfig(), tokenizer, 3, 8)


@pytest.mark.parametrize("make", [of_prompts, of_examples, of_pairs])
def test_a_state_is_of_the_rows_of_its_files(tmp_path: Path, tokenizer, make) -> None:
    """What a row says counts, and its place; not when or how the file was written, nor where it is."""

    def row(i: int, **changes) -> dict:
        return {"prompt": str(i), "answer": i, "response": "a", "chosen": "a", "rejected": "b", "level": 1} | changes

    (tmp_path / "moved").mkdir()
    rows = [row(i) for i in range(4)]
    source = jsonl(tmp_path / "a.jsonl", rows)
    state = json.loads(json.dumps(make(source, tokenizer).state()))
    make(source, tokenizer).restore(state)
    make(jsonl(tmp_path / "moved" / "a.jsonl", [dict(reversed(r.items())) for r in rows]), tokenizer).restore(state)
    others = [{"prompt": "x"}, {"answer": 9}, {"response": "c"}, {"rejected": "c"}, {"level": 2}]
    for changed in ([*rows[:2], rows[3], rows[2]], *([row(0, **change), *rows[1:]] for change in others)):
        jsonl(tmp_path / "a.jsonl", changed)
        with pytest.raises(DataError, match=r"a\.jsonl: not the rows that the run began with; give it the same, or"):
            make(source, tokenizer).restore(state)
    del state["content"]
    with pytest.raises(DataError, match="does not say which rows it is of: an earlier rlcore wrote it"):
        make(source, tokenizer).restore(state)


def test_of_several_sources_the_one_that_has_changed_is_named(tmp_path: Path, tokenizer) -> None:
    sources = [jsonl(tmp_path / f"{name}.jsonl", [{"prompt": name, "answer": 1}]) for name in "abc"]
    state = Prompts(sources, DataConfig(), tokenizer, 0).state()
    jsonl(tmp_path / "b.jsonl", [{"prompt": "B", "answer": 1}])
    with pytest.raises(DataError, match=rf"^{tmp_path}/b\.jsonl: not the rows"):
        Prompts(sources, DataConfig(), tokenizer, 0).restore(state)
    generated = ["generate:arithmetic?size=5&seed=1", "generate:arithmetic?size=5&seed=2"]
    state = Prompts(generated[:1], DataConfig(), make_tokenizer(), 0).state()
    Prompts(generated[:1], DataConfig(), make_tokenizer(), 0).restore(state)
    with pytest.raises(DataError, match="seed=2: not the rows"):
        Prompts(generated[1:], DataConfig(), make_tokenizer(), 0).restore(state)


def test_examples_have_the_response_in_the_mask(tmp_path: Path, tokenizer) -> None:
    source = jsonl(tmp_path / "sft.jsonl", [{"prompt": "1+1", "response": "2!", "answer": "2"}])
    ((rollout,),) = (g.rollouts for g in Examples([source], DataConfig(), tokenizer, 0, max_response_tokens=8).take(1))
    chosen = [t for t, m in zip(rollout.tokens, rollout.mask, strict=True) if m]
    assert tokenizer.decode(rollout.tokens) == "<user>1+1<assistant>2!<eos>" and tokenizer.decode(chosen) == "2!<eos>"
    assert rollout.prompt.tokens == rollout.tokens[: -len(chosen)] and rollout.response_tokens == 3
    assert (rollout.reward, rollout.version, rollout.finish, rollout.text) == (0.0, 0, "stop", "2!")
    assert rollout.logp == [0.0] * len(rollout.tokens) and rollout.prompt.answer == "2"


def test_examples_from_messages_learn_the_last_turn(tmp_path: Path, tokenizer) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    source = jsonl(tmp_path / "chat.jsonl", [{"messages": turns}])
    ((rollout,),) = (group.rollouts for group in Examples([source], DataConfig(), tokenizer, 0, 8).take(1))
    assert tokenizer.decode(rollout.tokens) == "<user>a<assistant>b<eos>" and rollout.response_tokens == 2
    parts = [turns[0], turns[1] | {"content": [{"type": "text", "text": "b"}]}]
    source = jsonl(tmp_path / "parts.jsonl", [{"messages": parts}])
    ((same,),) = (group.rollouts for group in Examples([source], DataConfig(), tokenizer, 0, 8).take(1))
    assert same.tokens == rollout.tokens


def test_examples_without_a_response_are_refused_and_long_ones_counted(tmp_path: Path, tokenizer) -> None:
    empty = {"role": "assistant", "content": ""}
    with pytest.raises(DataError, match="line 1: the assistant's last message has no text"):
        Examples([jsonl(tmp_path / "empty.jsonl", [{"messages": [USER, empty]}])], DataConfig(), tokenizer, 0, 8)
    for row in ({"prompt": "a", "answer": "b"}, {"messages": [USER], "answer": "b"}):
        source = jsonl(tmp_path / "none.jsonl", [row])
        why = f"line 1: column response is missing; set data.response_column to .* one of {', '.join(row)}, or end"
        with pytest.raises(DataError, match=why):
            Examples([source], DataConfig(), tokenizer, 0, 8)
    nested = [{"prompt": "a", "said": {"text": "b"}}, {"prompt": "a", "said": {"txt": "b"}}]
    cfg = DataConfig(response_column="said.text")
    assert len(Examples([jsonl(tmp_path / "in.jsonl", nested[:1])], cfg, tokenizer, 0, 8)) == 1
    with pytest.raises(DataError, match="line 2: column said.text is missing; .* one of prompt, said, or"):
        Examples([jsonl(tmp_path / "in.jsonl", nested)], cfg, tokenizer, 0, 8)
    source = jsonl(tmp_path / "long.jsonl", [{"prompt": "a", "response": "b" * n} for n in (7, 8)])
    examples = Examples([source], DataConfig(), tokenizer, 0, max_response_tokens=8)
    assert examples.dropped == 1 and [group.prompt.id for group in examples.take(2)] == ["long:0", "long:0@2"]
    assert len(examples) == 1 and [group.prompt.id for group in examples.all()] == ["long:0"]


def test_the_demo_tokenizer_reads_and_writes_any_text(tmp_path: Path) -> None:
    made = make_tokenizer()
    for text in ("Mia has 14 apples. She buys 7 more. How many now?", "14+7=21\n#### 21", "Ünïcode ∑ 90210 \t<|x|>"):
        assert made.decode(made(text)["input_ids"]) == text
    # Digits are tokens of their own, known words are one token with their spaces.
    assert [made.decode([t]) for t in made("Mia has 14 apples")["input_ids"]] == ["Mia ", "has ", "1", "4", " apples"]
    prompts = Prompts(["generate:arithmetic?size=50"], DataConfig(), made, 0)
    assert max(len(p.tokens) for p in prompts.all()) < 40


def test_the_demo_base_is_the_same_every_time(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlcore.models.embedded import make_base

    torch.manual_seed(7)
    one = AutoModelForCausalLM.from_pretrained(make_base(tmp_path / "one"))
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.rand(1) == after, "making it must not move the caller's random state"
    two = AutoModelForCausalLM.from_pretrained(make_base(tmp_path / "two"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert 1_000_000 <= sum(p.numel() for p in one.parameters()) <= 5_000_000
    loaded = AutoTokenizer.from_pretrained(tmp_path / "one")
    assert loaded("3+4=7")["input_ids"] == AutoTokenizer.from_pretrained(tmp_path / "two")("3+4=7")["input_ids"]
    assert loaded.chat_template and one.config.eos_token_id == loaded.eos_token_id


def test_several_sources_are_one_set_of_prompts(tmp_path: Path, tokenizer) -> None:
    """Each with its own columns; names that are the same get a number, and `at` knows every row's file and line."""
    (tmp_path / "b").mkdir()
    one = jsonl(tmp_path / "a.jsonl", [{"question": "a", "answer": "1"}, {"question": "b", "answer": "2"}])
    two = jsonl(tmp_path / "b" / "a.jsonl", [{"problem": "c", "solution": "3", "data_source": "MATH"}])
    prompts = Prompts([one, two], DataConfig(shuffle=False), tokenizer, 0)
    assert [(p.id, p.answer, p.source) for p in prompts.all()] == [
        ("a:0", "1", "a"),
        ("a:1", "2", "a"),
        ("a-2:0", "3", "MATH"),
    ]
    later = prompts.take(6)[-1]
    assert later.id == "a-2:0@2" and prompts.at(later) == f"{two}, line 1"
    prompts.without({"a:0"})
    assert [p.id for p in prompts.take(4)] == ["a:1", "a-2:0", "a:1@2", "a-2:0@2"]


def test_a_prompt_keeps_its_conversation(tmp_path: Path, tokenizer) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"question": "2+2?", "answer": "4"}])
    cfg = DataConfig(prompt_template="Q: {prompt}", system_prompt="Add.")
    (prompt,) = Prompts([source], cfg, tokenizer, 0).all()
    assert prompt.messages == [{"role": "system", "content": "Add."}, {"role": "user", "content": "Q: 2+2?"}]


def test_a_template_may_be_made_of_other_columns_than_the_prompt(tmp_path: Path, tokenizer) -> None:
    """As for published countdown problems, which have no text at all."""
    source = jsonl(tmp_path / "a.jsonl", [{"nums": [3, 5], "target": 8}])
    cfg = DataConfig(prompt_template="Reach {target} from {nums}.")
    (prompt,) = Prompts([source], cfg, tokenizer, 0).all()
    assert prompt.messages == [{"role": "user", "content": "Reach 8 from [3, 5]."}] and prompt.answer == ""


def test_a_curriculum_hands_out_easy_rows_first_in_every_epoch(tmp_path: Path, tokenizer) -> None:
    people = [3, 2, 3, 2, 4, 2]
    source = jsonl(tmp_path / "a.jsonl", [{"question": "a", "answer": "1", "people": n} for n in people])
    prompts = Prompts([source], DataConfig(curriculum="people"), tokenizer, 3)
    order = prompts.take(12)
    assert [p.row["people"] for p in order] == [2, 2, 2, 3, 3, 4] * 2
    first, second = [p.id for p in order[:3]], [p.id.partition("@")[0] for p in order[6:9]]
    assert sorted(first) == sorted(second) and len({tuple(first), tuple(second), ("a:1", "a:3", "a:5")}) > 1
    restored = Prompts([source], DataConfig(curriculum="people"), tokenizer, 3)
    restored.restore(prompts.state())
    assert [p.id for p in restored.take(5)] == [p.id for p in prompts.take(5)]


def test_a_curriculum_of_sources_takes_them_in_order(tmp_path: Path, tokenizer) -> None:
    sources = [jsonl(tmp_path / f"{n}.jsonl", [{"question": "a", "answer": "1"}] * 3) for n in ("hard", "easy")]
    prompts = Prompts(sources[::-1], DataConfig(curriculum="source"), tokenizer, 0)
    assert [p.source for p in prompts.take(6)] == ["easy"] * 3 + ["hard"] * 3


def test_rows_of_sources_with_names_alike_stay_apart(tmp_path: Path, tokenizer) -> None:
    sources = []
    for i, name in enumerate(("a-3", "a", "a", "a-2")):
        (tmp_path / str(i)).mkdir()
        sources.append(jsonl(tmp_path / str(i) / f"{name}.jsonl", [{"question": str(i), "answer": "1"}]))
    prompts = Prompts(sources, DataConfig(shuffle=False, curriculum="source"), tokenizer, 0)
    assert [p.id for p in prompts.all()] == ["a-3:0", "a:0", "a-4:0", "a-2:0"]
    assert [p.row["question"] for p in prompts.take(4)] == ["0", "1", "2", "3"]
    assert [prompts.at(p) for p in prompts.all()] == [f"{source}, line 1" for source in sources]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"peple": 3}, r"line 1: no column people, which data.curriculum names; did you mean peple\?"),
        ({"people": "3"}, "line 1: column people is '3'; data.curriculum needs a number"),
        ({"people": True}, "column people is True"),
        ({"people": float("nan")}, "column people is nan"),
    ],
)
def test_a_curriculum_needs_a_number_in_every_row(tmp_path: Path, tokenizer, row: dict, complaint: str) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"question": "a", "answer": "1"} | row])
    with pytest.raises(DataError, match=complaint):
        Prompts([source], DataConfig(curriculum="people"), tokenizer, 0)


def test_the_gold_answer_may_be_a_field_of_a_record_as_in_verls_data(tmp_path: Path, tokenizer) -> None:
    rows = [{"prompt": [USER], "data_source": "gsm8k", "reward_model": {"style": "rule", "ground_truth": "72"}}]
    (found,) = Prompts([jsonl(tmp_path / "a.jsonl", rows)], DataConfig(), tokenizer, 0).all()
    assert found.answer == "72" and found.source == "gsm8k"
    named = DataConfig(answer_column="reward_model.style")
    assert Prompts([jsonl(tmp_path / "b.jsonl", rows)], named, tokenizer, 0).all()[0].answer == "rule"
    with pytest.raises(DataError, match="no column reward_model.truth; did you mean reward_model.ground_truth"):
        Prompts([jsonl(tmp_path / "c.jsonl", rows)], DataConfig(answer_column="reward_model.truth"), tokenizer, 0)
