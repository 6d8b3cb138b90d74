"""`rlcore rewards test`: the first thing a user runs; what it prints, and how it ends."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rlcore.cli.rewards_test import reward_test
from rlcore.cli.shell import guarded
from rlcore.errors import ConfigError, DataError, RewardError
from tests.templates import OPENS_THINK, make_tokenizer


@pytest.fixture
def data(tmp_path: Path) -> str:
    rows = [
        {"question": "3 + 4?", "answer": "#### 7", "response": "It is 8.", "wrong": "#### 9"},
        {"question": "2 + 2?", "answer": "#### 4", "response": "It is 4.", "wrong": "#### 5"},
        {"question": "1 + 1?", "answer": "many", "response": "It is 2.", "wrong": ""},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_it_shows_prompt_response_gold_parts_and_time_of_every_call(data: str, capsys: pytest.CaptureFixture) -> None:
    assert reward_test(["test", "gsm8k", "--data", data, "--rows", "2"]) == 0
    out = capsys.readouterr().out
    assert f"== {data}, line 2" in out and "prompt: 3 + 4?" in out and "gold: #### 7" in out
    assert "-- response: column response" in out and "response: It is 8." in out
    assert out.count("reward: 0   parts: gsm8k 0   time: ") == 3 and out.count("reward: 1   parts: gsm8k 1") == 3
    assert "6 calls on 2 rows, each ended with a score" in out


def test_no_text_of_a_model_a_row_or_a_reward_moves_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = "\x1b]52;c;aGk=\x07\x1b[2J\r\x9b31m\u202e\u2066\x08\ud800 \u00e9"
    seen = "\\x1b]52;c;aGk=\\x07\\x1b[2J\\r\\x9b31m\\u202e\\u2066\\x08\\ud800 \u00e9"
    row = {"question": f"q{codes}", "answer": f"a{codes}", f"response{codes}": f"r{codes}\r\n[rlcore] done\n"}
    (tmp_path / "rows\x1b[1m.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "mine.py").write_text(
        f"import os, sys\ncodes = {codes!r}\ndef says(prompt, response):\n"
        "    print(f'p{codes}')\n    print(os.environ['MY_API_KEY'], file=sys.stderr)\n"
        "    return {'score': 1.0, f'part{codes}': 1.0} if response[:1] == 'r' else str(1 / 0)\n"
        "def fails(prompt, response):\n    raise ValueError(f'e{codes}')\n"
    )
    monkeypatch.setenv("MY_API_KEY", "opensesame")
    data = [*("--data", f"{tmp_path}/rows\x1b[1m.jsonl"), "--responses", f"response{codes}"]
    with pytest.raises(RewardError) as error:
        reward_test(["test", f"{tmp_path}/mine.py:says", f"{tmp_path}/mine.py:fails", *data])
    out, err = capfd.readouterr()
    assert guarded(lambda: throw(error.value)) == 3
    err += capfd.readouterr().err
    assert re.findall(r"[^\n -~\u00e9]", out + err) == []
    for start in ("q", "a", "r", "p", "column response", "part", "ValueError: e"):
        assert start + seen in out, start
    assert f"ValueError: e{seen}" in err and "rows\\x1b[1m.jsonl, line 1" in out and "***\n" in err
    assert "\n            [rlcore] done\n" in out  # not at the margin


def throw(error: Exception) -> int:
    raise error


def test_what_a_prompt_opens_is_shown_and_a_response_read_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """As the chat template of the named tokenizer opens it, or as the prompt is written; a column may have it."""
    make_tokenizer(OPENS_THINK).save_pretrained(tmp_path / "tokenizer")
    said = ["<think>by hand</think><answer>4</answer>", "by hand</think><answer>4</answer>"]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": "2+2?", "answer": "4", "response": text}) + "\n" for text in said))
    command = ["test", "format", "--data", str(path)]
    assert reward_test([*command, f"model.tokenizer={tmp_path / 'tokenizer'}"]) == 0
    out = capsys.readouterr().out
    assert out.count("opened: <think>") == 2 and out.count("response: <think>") == 6
    assert out.count("reward: 1 ") == 2 and out.count("reward: 0 ") == 4 and "not rendered" not in out
    template = "data.prompt_template='User: {prompt} Think in <think> </think>.\nAssistant: <think>'"
    assert reward_test([*command, template, "data.chat_template=false"]) == 0
    assert capsys.readouterr().out.count("reward: 1 ") == 2
    assert reward_test(command) == 0
    out = capsys.readouterr().out
    assert out.count("reward: 1 ") == 1 and "opened" not in out and "seen with model.path=MODEL" in out


def test_a_gold_answer_that_cannot_be_read_is_said(data: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(RewardError, match=r"3 of 9 calls ended without a score; .*gsm8k: unparseable_gold"):
        reward_test(["test", "gsm8k", "--data", data])
    out = capsys.readouterr().out
    assert "gold: many   (cannot be read: gsm8k: " in out and "status: gsm8k unparseable_gold: " in out


def test_a_users_function_with_options_and_another_built_in(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "mine.py").write_text(
        "def brief(prompt, response, *, most=100):\n"
        "    return {'score': float(len(response) <= most), 'length': len(response)}\n"
    )
    fn = f"{tmp_path}/mine.py:brief"
    settings = ["reward.args.brief.most=4", "reward.weights=[1,0.5]"]
    assert reward_test(["test", "gsm8k", fn, *settings, "--data", data, "--rows", "1", "--responses", "wrong"]) == 0
    out = capsys.readouterr().out
    assert "reward: 0   parts: gsm8k 0, brief 0, length 6" in out
    assert "reward: 0.5   parts: gsm8k 0, brief 1, length 0" in out


def test_a_function_that_fails_ends_with_its_error_and_its_line(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "mine.py").write_text("def bad(prompt, response):\n    return [1.0]\n")
    with pytest.raises(
        RewardError, match=r"3 of 3 calls .* 3 times, for example: bad: bad_value: bad returned list \[1\.0\]"
    ):
        reward_test(["test", f"{tmp_path}/mine.py:bad", "--data", data, "--rows", "1"])
    assert "status: bad bad_value" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["gsm8kk"], ConfigError, "no built-in 'gsm8kk'; did you mean gsm8k"),
        (["gsm8k", "reward.args.gsm8k.x=1"], ConfigError, "reward.args.gsm8k.x: gsm8k has no such option"),
        (["gsm8k", "steps=3"], ConfigError, r"only keys of reward.\*, data.\* and model.\* count"),
        (["gsm8k", "reward.wieghts=[1]"], ConfigError, "did you mean reward.weights"),
        (["gsm8k", "--rows", "0"], ConfigError, "--rows is 0"),
        (["gsm8k", "--responses", "gone"], ConfigError, "--responses: .* has no column gone"),
        (["gsm8k", "data.answer_column=anwser"], DataError, "did you mean answer"),
        (
            ["gsm8k", "reward.sources.row=[gsm8k]"],
            DataError,
            r"reward\.sources\.row: no row .*; did you mean rows\?",
        ),
    ],
)
def test_what_is_wrong_is_named(data: str, arguments: list[str], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        reward_test(["test", "--data", data, *arguments])


def test_a_source_of_rows_that_are_not_shown_is_known(data: str, capsys: pytest.CaptureFixture) -> None:
    with Path(data).open("a") as file:
        file.write(json.dumps({"question": "2?", "answer": "#### 2", "response": "2", "data_source": "late"}) + "\n")
    settings = ["data.source_column=data_source", "reward.sources.late=[gsm8k]", "reward.sources.rows=[gsm8k]"]
    assert reward_test(["test", "gsm8k", "--data", data, "--rows", "1", *settings]) == 0


def rows_of(tmp_path: Path, *rows: dict) -> str:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"question": "?", "answer": "#### 0"} | row) + "\n" for row in rows))
    return str(path)


def said(out: str) -> list[str]:
    """Of each row the text of its own response; "none" where it has none."""
    rows = out.split("\n== ")[1:]
    marked = [row.partition("-- response: column ")[2].partition("response: ")[2] for row in rows]
    return [text.partition("\n")[0] or "none" for text in marked]


def test_a_row_is_scored_with_its_own_response_where_it_has_one(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "5"}]
    texts = [{}, {"response": None}, {"response": ""}, {"response": "It is 0."}]
    parts = [{"role": "assistant", "content": [{"type": "text", "text": "5"}]}]
    values = [{"response": value} for value in (0, False, 0.5, parts, [talk[1], *talk, talk[0]])]
    assert reward_test(["test", "gsm8k", "--data", rows_of(tmp_path, *texts, *values), "--rows", "9"]) == 0
    out = capsys.readouterr().out
    assert said(out) == ["none", "none", "(empty)", "It is 0.", "0", "false", "0.5", "5", "5"]
    assert "25 calls on 9 rows, each ended with a score" in out
    late = rows_of(tmp_path, {"mine": None}, {"mine": "1"})
    assert reward_test(["test", "gsm8k", "--data", late, "--responses", "mine"]) == 0
    assert said(capsys.readouterr().out) == ["none", "1"]
    with pytest.raises(
        ConfigError, match=r"no column mine in the rows to score \(--rows 1\); there are question, answer"
    ):
        reward_test(
            ["test", "gsm8k", "--data", rows_of(tmp_path, {}, {"mine": "1"}), "--rows", "1", "--responses", "mine"]
        )


@pytest.mark.parametrize(
    "value",
    [
        [],
        ["5"],
        {"text": "5"},
        [{"role": "user", "content": "5"}],
        [{"role": "assistant", "content": "5"}, {"role": "assistant", "content": None}],
    ],
)
def test_a_response_that_is_no_text_is_named(tmp_path: Path, value: object) -> None:
    data = rows_of(tmp_path, {}, {"response": value})
    with pytest.raises(
        DataError, match=r"own\.jsonl, line 2: column response is .*; a response must be text, a number"
    ):
        reward_test(["test", "gsm8k", "--data", data, "--responses", "response"])
    assert reward_test(["test", "gsm8k", "--data", data]) == 0  # it may happen to be called so


def test_it_says_what_was_taken_of_the_source(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "verl.jsonl"
    record = {"prompt": [{"role": "user", "content": "2+2?"}], "reward_model": {"ground_truth": "4"}}
    path.write_text(json.dumps(record | {"extra_info": {"answer": "#### 4"}}) + "\n")
    assert reward_test(["test", "gsm8k", "--data", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        f"{path}: veRL; prompt from prompt, gold answer from reward_model.ground_truth, not extra_info.answer "
        "(data.answer_column says which); 1 rows\n"
    )
    assert "prompt: 2+2?" in out and "gold: 4" in out and "reward: 1   parts: gsm8k 1" in out


def test_rows_that_are_left_out_are_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "deep.jsonl"
    rows = [{"problem": f"{i}?", "solution": "a", "answer": answer} for i, answer in enumerate([None, "5", "6"])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert reward_test(["test", "gsm8k", "--data", str(path), "--rows", "1"]) == 0
    out = capsys.readouterr().out
    assert "; left out 1 without answer; 2 rows\n" in out
    assert f"== {path}, line 2\n" in out and "prompt: 1?" in out and "gold: 5" in out and "0?" not in out


@pytest.mark.parametrize("implicit", [False, True])
def test_of_preference_pairs_both_answers_are_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture, implicit: bool
) -> None:
    asked = [{"role": "user", "content": "2+2?"}]
    row = {"chosen": [{"role": "assistant", "content": "four"}], "rejected": [{"role": "assistant", "content": "5"}]}
    row = {k: asked + v for k, v in row.items()} if implicit else {"prompt": asked, **row}
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert reward_test(["test", "length_linear", "--data", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{path}: preference pairs (TRL); ") and "answers from chosen and rejected" in out
    assert ("(the prompt is what both begin with)" in out) == implicit and "prompt: 2+2?" in out
    assert "-- response: column chosen\n  response: four" in out and "-- response: column rejected" in out


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_what_the_assistant_says_in_a_row_is_scored(tmp_path: Path, capsys: pytest.CaptureFixture, column: str) -> None:
    turns = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "It is 4."}]
    if column == "messages":
        turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "It is 4."}]
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps({column: turns, "problem": "2+2?", "answer": "4", "solution": "2+2=4"}) + "\n")
    assert reward_test(["test", "gsm8k", "--data", str(path)]) == 0
    out = capsys.readouterr().out
    assert "-- response: the assistant's last message\n  response: It is 4.\n    reward: 1 " in out
    assert "3 calls on 1 rows" in out


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_a_conversation_that_the_assistant_ends_is_a_prompt_and_its_response(
    tmp_path: Path, capsys: pytest.CaptureFixture, column: str
) -> None:
    """OpenAI's and ShareGPT's rows, as `rlcore sft` learns them; a prompt column is asked, as in a run."""
    talk = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "It is 4."}]
    row = {column: talk, "answer": "#### 4"}
    for more, asked in (({}, "2+2?"), ({"prompt": "Again: 2+2?"}, "Again: 2+2?")):
        (tmp_path / "talk.jsonl").write_text(json.dumps({**row, **more}))
        assert reward_test(["test", "gsm8k", "--data", str(tmp_path / "talk.jsonl")]) == 0
        out = capsys.readouterr().out
        assert f"prompt: {asked}\n" in out and "gold: #### 4\n" in out
        assert "-- response: the assistant's last message\n  response: It is 4.\n    reward: 1 " in out


def test_what_the_assistant_began_is_read_before_the_response_without_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    prompt = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "<think>\n"}]
    row = {"prompt": prompt, "answer": "4", "response": "by hand</think>\n<answer>4</answer>"}
    assert reward_test(["test", "format", "--data", rows_of(tmp_path, row)]) == 0
    assert re.search(r"-- response: column response\n(?s:.*?)reward: 1 ", capsys.readouterr().out)


def test_two_files_are_refused(data: str) -> None:
    with pytest.raises(ConfigError, match=r"--data is given 2 times \(a.jsonl, .*\); test one file at a time"):
        reward_test(["test", "gsm8k", "--data", "a.jsonl", "--data", data])


def test_settings_may_stand_after_the_options(data: str, capsys: pytest.CaptureFixture) -> None:
    assert reward_test(["test", "gsm8k", "--data", data, "--rows", "1", "reward.weights=[2]"]) == 0
    assert "reward: 2   parts: gsm8k 1" in capsys.readouterr().out


def test_half_a_surrogate_pair_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text('{"question": "a \\ud800", "answer": "#### 1", "response": "b \\udc00"}\n')
    assert reward_test(["test", "gsm8k", "--data", str(path)]) == 0
    out = capsys.readouterr().out.encode()  # raises where it could not be printed
    assert b"prompt: a \\ud800" in out


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=r"gone\.jsonl"):
        reward_test(["test", "gsm8k", "--data", str(tmp_path / "gone.jsonl")])


def test_a_batched_function_gets_several_and_lengths_are_in_words(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """One sample a call would hide a list of the wrong length."""
    (tmp_path / "mine.py").write_text("def one(prompts, responses):\n    return [1.0]\n")
    with pytest.raises(RewardError, match=r"one: bad_value: one returned a list of 1 for \d+ samples"):
        reward_test(["test", f"{tmp_path}/mine.py:one", "--data", data])
    assert reward_test(["test", "length_linear", "--data", data, "--rows", "1"]) == 0
    out = capsys.readouterr().out
    assert "reward: -0.00" in out and "Lengths are in words here, in tokens in a run." in out


def test_functions_are_not_settings(data: str) -> None:
    with pytest.raises(ConfigError, match=r"reward.fns=\[gsm8k\]: name the functions"):
        reward_test(["test", "math", "reward.fns=[gsm8k]", "--data", data])
