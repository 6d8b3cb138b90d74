"""Which columns of a source are what: the layouts that published sets and other frameworks have, by their columns.

A layout has a name for the user; what is taken follows from two lists, PROMPTS and GOLDS, the first that there is.
docs/data.md has both, and what is special about a set: rows without a gold answer, problems that come many times.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rlcore.config import DataConfig
from rlcore.data.cells import as_text, why_no_text
from rlcore.errors import DataError, nearest

if TYPE_CHECKING:
    from rlcore.data.sources import Row, Rows

PROMPTS = ("prompt", "question", "problem", "instruction", "input", "messages", "conversations")
GOLDS = (
    *("reward_model.ground_truth", "reward_spec.ground_truth", "ground_truth"),
    *("answer", "expected_answer", "final_answer", "reference_answer", "label", "solution", "extra_info.answer"),
    "response",
)
_RECORDS = ("reward_model", "reward_spec", "extra_info")  # may be JSON text, as in a CSV file
TALKS = ("messages", "conversations")
_BESIDE = ("Alpaca", "ShareGPT")  # layouts that may have a system message and earlier turns in columns of their own
_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class Layout(NamedTuple):
    """What a set is called that has all of these columns; `record.field` is a field of a column of records.

    With `gaps`, rows without a gold answer are left out and counted; elsewhere the first is an error.
    """

    name: str
    columns: frozenset[str]
    not_gold: frozenset[str] = frozenset()  # of GOLDS, what is something else here
    gold: str | None = None  # one more column that may be the gold answer, after GOLDS
    response: str | None = None  # what `rlcore sft` learns, where no column is called as data.response_column says
    gaps: bool = False
    boxed: bool = False  # a gold answer without a box is none: it is a proof


def _layout(name: str, columns: str, not_gold: str = "", **more: Any) -> Layout:
    return Layout(name, frozenset(columns.split()), frozenset(not_gold.split()), **more)


LAYOUTS = (  # the first that fits: the more columns it asks for, the earlier
    _layout("preference pairs (TRL)", "chosen rejected"),
    _layout("veRL", "prompt reward_model.ground_truth"),
    _layout("SkyRL", "prompt reward_spec.ground_truth"),
    _layout("NuminaMath-1.5", "problem solution answer problem_is_valid solution_is_valid", gaps=True),
    _layout("OpenR1-Math", "problem solution answer generations", gaps=True),
    _layout("NuminaMath-CoT", "source problem solution messages", gaps=True, boxed=True),
    _layout("Big-Math", "problem answer llama8b_solve_rate", gaps=True),
    _layout("problem, answer and solution (DeepScaleR)", "problem answer solution", gaps=True),
    _layout("MATH", "problem solution level type"),
    _layout("INTELLECT-3-RL", "question avg@", gold="info"),
    _layout("prompt, completion and label (TRL, unpaired)", "prompt completion label", "label"),
    _layout("prompt and completion (TRL)", "prompt completion", response="completion"),
    _layout("Alpaca", "instruction output", response="output"),
    _layout("OpenRLHF", "input label"),
    _layout("slime", "prompt label"),
    _layout("RLVR (open-instruct)", "messages ground_truth"),
    _layout("AReaL", "messages answer"),
    _layout("ShareGPT", "conversations"),
    _layout("messages (OpenAI)", "messages"),
    _layout("question and answer (GSM8K)", "question answer"),
    _layout("problem and answer", "problem answer"),
    _layout("prompt (TRL)", "prompt"),
)
_ANY = Layout("no known one", frozenset())


PAIRS = LAYOUTS[0]


class Chosen(NamedTuple):
    """What the columns of a source are taken for.

    columns    all, with the fields of records: `reward_model.ground_truth`
    others     columns that could be the gold answer too
    """

    layout: Layout
    columns: list[str]
    prompt: str | None
    gold: str | None
    others: list[str]

    def told(self, loaded: Rows, left_out: Iterable[str] = ()) -> str:
        """In one line, for the user: from where prompt and gold answer are, and `left_out`, why each row is."""
        rest = [c for c in self.columns if c != self.prompt and "." not in c]
        none = f"no gold answer (data.answer_column may name one: {', '.join(rest)})" if rest else "no gold answer"
        return self._line(loaded, self._gold() or none, left_out)

    def told_learned(self, loaded: Rows, column: str) -> str:
        """The same of rows that bring their own answers."""
        response = column if column in self.columns else "the assistant's last message"
        gold = f"{self._gold()}, " if self.gold not in (None, column) else ""
        return self._line(loaded, f"{gold}response from {response}", ())

    def _gold(self) -> str:
        also = f", not {' or '.join(self.others)} (data.answer_column says which)" if self.others else ""
        return f"gold answer from {self.gold}{also}" if self.gold else ""

    def told_pairs(self, loaded: Rows) -> str:
        """The same of pairs."""
        beginning = "" if self.prompt else " (the prompt is what both begin with)"
        return self._line(loaded, f"answers from chosen and rejected{beginning}", ())

    def _line(self, loaded: Rows, taken: str, left_out: Iterable[str]) -> str:
        prompt = f"prompt from {self.prompt}" if self.prompt else "no prompt column"
        lost = [f"{n} {why}" for why, n in Counter(left_out).items()]
        if loaded.copies:
            lost.insert(0, f"{loaded.copies} copies of others")
        without = f"; left out {', '.join(lost)}" if lost else ""
        return f"{loaded.source}: {self.layout.name}; {prompt}, {taken}{without}"


def choose(loaded: Rows, cfg: DataConfig, learned: bool = False) -> Chosen:
    """What is taken for what. `learned`: for rows that bring their own answers, which may be in a list of messages.

    Raises DataError when data.prompt_column or data.answer_column names no column.
    """
    columns = _all_columns(loaded, cfg)
    layout = _recognised(columns)
    candidates = [c for c in (*GOLDS, layout.gold) if c in columns and c not in layout.not_gold]
    filled = [c for c in candidates if any(value_of(loaded, i, c) not in (None, "") for i in range(len(loaded.rows)))]
    golds = filled or candidates[:1]
    gold = _named(loaded, "data.answer_column", cfg.answer_column, columns) or next(iter(golds), None)
    first = _fields(loaded, 0, _may_be_json(cfg))
    prompts = (*TALKS, *PROMPTS) if learned and _learns_a_talk(columns, layout, cfg) else PROMPTS
    prompt = _named(loaded, "data.prompt_column", cfg.prompt_column, first)
    prompt = prompt or next((c for c in prompts if c in first), None)
    # What is asked, or learned, is no other gold answer.
    others = [c for c in golds if c not in (gold, prompt, "response")]
    return Chosen(layout, columns, prompt, gold, others)


def response_column(loaded: Rows, cfg: DataConfig) -> str:
    """The column that `rlcore sft` learns from: the one of the config, or the layout's where no row has that."""
    columns = _all_columns(loaded, cfg)
    layout = _recognised(columns)
    return cfg.response_column if layout.response is None or cfg.response_column in columns else layout.response


def _learns_a_talk(columns: Sequence[str], layout: Layout, cfg: DataConfig) -> bool:
    """Whether what is learned is what the assistant says in a list of messages: there is no column of responses."""
    there = {cfg.response_column, "chosen"}.intersection(columns)
    return not there and layout.response is None


def _recognised(columns: Sequence[str]) -> Layout:
    known = {*columns, *("avg@" for column in columns if column.startswith("avg@"))}
    return next((layout for layout in LAYOUTS if layout.columns <= known), _ANY)


def _named(loaded: Rows, key: str, column: str, columns: Sequence[str]) -> str | None:
    """The column that the config names; None for "auto"."""
    if column == "auto":
        return None
    if column not in columns:
        raise DataError(
            f"{loaded.source}: no column {column}{nearest(column, columns)}; {key} must be one of {', '.join(columns)}"
        )
    return column


def gold_of(loaded: Rows, i: int, chosen: Chosen, needed: bool) -> tuple[str, str | None]:
    """The gold answer of row i, and why the row is left out for it; "" where there is none or it is not `needed`."""
    if chosen.gold is None:
        return "", None
    value = value_of(loaded, i, chosen.gold)
    if not needed:
        return "" if value is None or why_no_text(value) else as_text(value), None
    if chosen.layout.gaps and (why := _why_no_gold(loaded.rows[i], value, chosen)):
        return "", why
    return as_text(cell(loaded, i, chosen.gold)), None


def _why_no_gold(row: Row, value: Any, chosen: Chosen) -> str | None:
    """What of its layout's rows has no gold answer. NuminaMath writes "proof" and "notfound" where there is none."""
    text = value.strip() if isinstance(value, str) else value
    if text is None or text == "" or text != text:
        return f"without {chosen.gold}"
    if text in ("proof", "notfound"):
        return f"whose {chosen.gold} is {text}"
    for column in ("problem_is_valid", "solution_is_valid"):
        if column in chosen.layout.columns and row.get(column) != "Yes":
            return f"whose {column} is not Yes"
    if chosen.layout.boxed and chosen.gold == "solution" and "\\boxed" not in str(text):
        return "whose solution has no \\boxed{}"
    return None


def prompt_of(loaded: Rows, i: int, column: str) -> Any:
    """The prompt cell of row i: Alpaca's instruction with its input on the next lines, ShareGPT's turns as messages."""
    value, row = cell(loaded, i, column), loaded.rows[i]
    if column == "conversations":
        return _from_sharegpt(value, loaded.at(i))
    if column == "instruction" and isinstance(value, str) and isinstance(row.get("input"), str):
        return f"{value}\n{row['input']}" if row["input"].strip() else value
    return value


def instructions(
    loaded: Rows, i: int, chosen: Chosen, conversation: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The system message that a row of Alpaca or ShareGPT has in a column `system`. DataError for turns in a column
    `history`, which would be left out, and for two system messages."""
    if chosen.layout.name not in _BESIDE:
        return []
    row, where = loaded.rows[i], loaded.at(i)
    if row.get("history"):
        raise DataError(
            f"{where}: column history has earlier turns; write the row as messages, or leave the column out"
        )
    system = row.get("system")
    if not isinstance(system, str) or not system.strip():
        return []
    if conversation[0]["role"] == "system" and conversation[0]["content"] != system:
        raise DataError(f"{where}: there is a system message in column system and another in the messages; keep one")
    return [] if conversation[0]["role"] == "system" else [{"role": "system", "content": system}]


def _from_sharegpt(value: Any, where: str) -> Any:
    """`[{from: human, value: ...}]` as `[{role: user, content: ...}]`; anything else as it is."""
    turns = _parsed(value, "[", where, "conversations")
    if not isinstance(turns, list) or not any(isinstance(t, Mapping) and {"from", "value"} <= t.keys() for t in turns):
        return turns
    messages = []
    for turn in turns:
        speaker = turn.get("from") if isinstance(turn, Mapping) else None
        if not isinstance(speaker, str) or speaker not in _SPEAKERS:
            raise DataError(
                f"{where}: column conversations: a turn is from {as_text(speaker)}, must be from one of "
                f"{', '.join(_SPEAKERS)}; write other turns as messages with role and content"
            )
        messages.append({"role": _SPEAKERS[speaker], "content": turn.get("value")})
    return messages


def problem_of(row: Row) -> str | None:
    """What says which problem a row of DAPO-Math-17k is, where each comes 100 times; None for rows of other sets."""
    if row.get("data_source") != "math_dapo" or "prompt" not in row or "reward_model" not in row:
        return None
    extra = row.get("extra_info")
    extra = _loads(extra) if isinstance(extra, str) else extra
    if not isinstance(extra, Mapping) or list(extra) != ["index"]:  # AIME-2024, to evaluate on, repeats on purpose
        return None
    return json.dumps([row["prompt"], row["reward_model"]], default=str)


def cell(loaded: Rows, i: int, column: str) -> Any:
    """A cell that is not missing, of text or what has a text form. DataError names the row and the column."""
    row, value = loaded.rows[i], value_of(loaded, i, column)
    if value is None:
        what = "is empty" if column in row else f"is missing{nearest(column, row)}"
        raise DataError(f"{loaded.at(i)}: column {column} {what}")
    if why := why_no_text(value):
        raise DataError(f"{loaded.at(i)}: column {column} {why}")
    return value


def value_of(loaded: Rows, i: int, column: str) -> Any:
    """A cell, or a field of a record: of `reward_model.ground_truth` the field; None where it is missing."""
    return _value(loaded.rows[i], column, loaded.at(i))


def _value(row: Mapping[str, Any], column: str, where: str) -> Any:
    outer, dot, name = column.partition(".")
    if column in row or not dot:
        return row.get(column)
    record = _parsed(row.get(outer), "{", where, outer)
    return _value(record, name, where) if isinstance(record, Mapping) else None


def _all_columns(loaded: Rows, cfg: DataConfig) -> list[str]:
    as_json = _may_be_json(cfg)
    return list(dict.fromkeys(name for i in range(len(loaded.rows)) for name in _fields(loaded, i, as_json)))


def _may_be_json(cfg: DataConfig) -> set[str]:
    """Columns of records that may be JSON text: where that is usual, and where the config names a field."""
    return {*_RECORDS, *(c.partition(".")[0] for c in (cfg.prompt_column, cfg.answer_column) if "." in c)}


def _fields(loaded: Rows, i: int, as_json: set[str]) -> list[str]:
    """The columns of row i, and the fields of its records: `reward_model.ground_truth`, as veRL's data has it."""
    row = loaded.rows[i]
    names = list(row)
    for column, value in row.items():
        if column in as_json and isinstance(value, str):
            value = _parsed(value, "{", loaded.at(i), column)
        if isinstance(value, dict):
            for name, inner in value.items():
                names.append(f"{column}.{name}")
                names += [f"{column}.{name}.{field}" for field in inner] if isinstance(inner, dict) else ()
    return names


def _parsed(value: Any, bracket: str, where: str, column: str) -> Any:
    """What JSON text that begins with the bracket stands for, as in a CSV file; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(bracket):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as e:
        what = "a record" if bracket == "{" else "a list"
        raise DataError(f"{where}: column {column} looks like {what} but is not valid JSON: {e}") from e


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
