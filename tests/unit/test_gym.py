"""reasoning-gym: rows by name, scores by the task's own scorer, and that none of its scorers runs text."""

from __future__ import annotations

import builtins
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewards.reasoning_gym import reasoning_gym, reasoning_gym_gold
from rlcore.data.generate import reasoning_gym as gym
from rlcore.data.sources import load_rows, source_name
from rlcore.errors import DataError, UnparseableGold
from rlcore.records import Prompt, Score

# One of each kind: the base class's scorer, its own, tuples in what is kept, numbers as keys, no single answer.
USED = ("basic_arithmetic", "chain_sum", "leg_counting", "knights_knaves", "countdown", "arc_1d", "graph_color", "maze")


def prompt(row: dict[str, Any]) -> Prompt:
    return Prompt(id="test:7", tokens=[1], answer=row.get("answer", ""), row=row)


@pytest.mark.parametrize("task", USED)
def test_rows_are_scored_right(task: str) -> None:
    """Through JSON, as a row goes to its worker."""
    rows = json.loads(json.dumps(load_rows(f"reasoning_gym:{task}?size=4&seed=3").rows))
    assert len(rows) == 4
    for row in rows:
        assert {"question", "answer", "task", "entry"} <= row.keys() and row["task"] == task
        reasoning_gym_gold(prompt(row))
        if gym.entry(row).answer is None:
            continue
        for response in (row["answer"], f"<think>0</think><answer> {row['answer']} </answer>", f"{row['answer']}\n"):
            assert reasoning_gym(prompt(row), response) == Score(1.0, {"unreadable": 0.0})
        assert reasoning_gym(prompt(row), "<answer>none</answer>").reward < 0.2
        assert reasoning_gym(prompt(row), f"{row['answer']} <answer>none</answer>").reward < 0.2


def test_a_task_with_many_answers() -> None:
    row = load_rows("reasoning_gym:graph_color?size=1").rows[0]
    found = gym.entry(row)
    puzzle = found.metadata["puzzle"]
    assert found.answer is None and row["answer"] == ""
    assert all(isinstance(edge, tuple) for edge in puzzle["edges"])
    assert reasoning_gym(prompt(row), "{}").reward == 0.01
    coloring: dict[int, int] = {}
    for vertex in puzzle["vertices"]:
        taken = {coloring.get(a if b == vertex else b) for a, b in puzzle["edges"] if vertex in (a, b)}
        coloring[vertex] = next(c for c in puzzle["color_options"] if c not in taken)
    assert reasoning_gym(prompt(row), json.dumps(coloring)).reward == 1.0


def test_countdown_is_our_exact_rule() -> None:
    row = load_rows("reasoning_gym:countdown?size=1&min_numbers=3&max_numbers=3").rows[0]
    assert len(row["numbers"]) == 3
    assert reasoning_gym(prompt(row), f"{row['answer']} = {row['target']}").reward == 1.0
    assert reasoning_gym(prompt(row), str(row["target"])).reward == 0.0
    assert reasoning_gym(prompt(row), "__import__('os').getcwd()").reward == 0.0


def test_the_same_source_gives_the_same_rows_and_seeds_share_none() -> None:
    first = load_rows("reasoning_gym:chain_sum?size=50").rows
    assert first == load_rows("reasoning_gym:chain_sum?size=50&seed=1").rows
    assert first[:10] == load_rows("reasoning_gym:chain_sum?size=10&seed=1").rows
    second = load_rows("reasoning_gym:chain_sum?size=50&seed=2").rows
    assert not {row["question"] for row in first} & {row["question"] for row in second}
    assert source_name("reasoning_gym:chain_sum?size=50") == "chain_sum"


def test_arguments_reach_the_task_and_its_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    task, given = gym.tasks()["basic_arithmetic"][0], list[Any]()
    make = task.__init__
    monkeypatch.setattr(task, "__init__", lambda self, config: (given.append(config), make(self, config))[1])
    rows = load_rows('reasoning_gym:basic_arithmetic?size=20&operators=["%2B"]&allow_negation=false&min_terms=2').rows
    assert not any(set("*/") & set(gym.entry(row).metadata["expression"]) for row in rows)
    assert gym.entry(rows[0]).config == {"operators": ["+"], "allow_negation": False, "min_terms": 2}
    assert gym.score(gym.entry(rows[0]), rows[0]["answer"]) == 1.0
    both = [(each.operators, each.allow_negation, each.min_terms) for each in given]
    assert both == [(("+",), False, 2)] * 2  # a tuple, as its field says


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("reasoning_gym:countdwn", "no task countdwn; did you mean countdown.*maze"),
        ("reasoning_gym:", "no task ;"),
        ("reasoning_gym:chain_sum?sise=3", "no argument sise; did you mean size.*min_terms"),
        ("reasoning_gym:chain_sum?size=many", "size=many is not of type int"),
        ("reasoning_gym:chain_sum?size=3.5", "size=3.5 is not of type int"),
        ("reasoning_gym:chain_sum?allow_negation=2", "allow_negation=2 is not of type bool"),
        ("reasoning_gym:graph_color?edge_probability=nan", "nan is not of type float"),
        ("reasoning_gym:countdown?operators=add", "operators=add is not of type list"),
        ("reasoning_gym:countdown?operators=5", "operators=5 is not of type list"),
        ("reasoning_gym:word_sorting?transformation=upper", "no argument transformation"),
        ("reasoning_gym:chain_sum?size", "write the arguments as"),
        ("reasoning_gym:chain_sum?size=0", "size=0, must be 1 to"),
        ("reasoning_gym:chain_sum?seed=-1", "seed=-1, must be 0 to 4293"),
        ("reasoning_gym:chain_sum?seed=4294", "seed=4294, must be 0 to 4293"),
        ("reasoning_gym:chain_sum?min_terms=9&max_terms=2", "chain_sum: AssertionError"),
        ("reasoning_gym:n_queens", "n_queens cannot be used: its scorer may run text as code .eval in n_queens.py"),
        ("reasoning_gym:codeio", "codeio cannot be used: making its problems runs programs.*exec in codeio.py"),
        ("reasoning_gym:composite", "composite cannot be used"),
    ],
)
def test_a_source_that_cannot_be_used_says_why(source: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        load_rows(source)


REFUSED = (
    "binary_matrix bitwise_arithmetic codeio composite intermediate_integration n_queens number_sorting "
    "polynomial_multiplication puzzle24 simple_integration spiral_matrix string_insertion"
).split()


@pytest.mark.parametrize("task", REFUSED)
def test_what_is_refused(task: str) -> None:
    """By hand, of reasoning-gym 0.1.25: all that evaluate, and below, some that do not."""
    assert gym.refusal(task)


@pytest.mark.parametrize("task", ["gsm_symbolic", "simple_equations", "propositional_logic", "word_sorting"])
def test_what_is_not(task: str) -> None:
    assert gym.refusal(task) == ""


EVIL = {
    "eval": "return float(eval(answer))",
    "by another name": "return float(check(answer))",
    "in a function": "return helper(answer)",
    "in another file": "return far(answer)",
    "through a package": "return indirect(answer)",
    "starred": "return starred(answer)",
    "in a module of the package": "return more.far(answer)",
    "in its class": "return self.run(answer)",
    "stored": "return self.stored(answer)",
    "in a table": "return float(TABLE['x'](answer))",
    "in the base class": "return super().score_answer(answer, entry)",
    "imported inside": "from sympy import S\n        return float(S(answer))",
    "sympy": "return float(sympy.sqrt(answer))",
    "sympy renamed": "return float(parse(answer))",
    "pickle": "return float(pickle.loads(answer))",
    "built-ins": "return float(getattr(b, 'ev' + 'al')(answer))",
    "its own __builtins__": "return float(__builtins__['ev' + 'al'](answer))",
    "exec": "exec(answer)",
    "os": "return float(os.system(answer))",
    "another's": "return self.other.score_answer(answer, entry)",
    "a lambda": "return (lambda f: f(answer))(eval)",
    "a default": "return defaulted(answer)",
    "a nested function": "def inner():\n            return eval(answer)\n        return inner()",
}
HEAD = """
import builtins as b, os, pickle, re
import sympy
from sympy.parsing.sympy_parser import parse_expr as parse
from {package} import indirect, more
from .more import *
from .more import far
check = eval
TABLE = {{'x': eval}}
def helper(answer):
    return deeper(answer)
def deeper(answer):
    return eval(answer)
def defaulted(answer, how=eval):
    return how(answer)
def text_length(answer):
    return float(len(re.compile('a').sub('', answer)))
class Base:
    def __init__(self):
        self.stored = eval
    def score_answer(self, answer, entry):
        return eval(answer)
    def kind(self):
        return 1.0
class Task(Base):
    def run(self, answer):
        return eval(answer)
    def unused(self, answer):
        return eval(answer)
    def score_answer(self, answer, entry):
        {body}
"""
MORE = "def far(answer):\n    return eval(answer)\ndef starred(answer):\n    return eval(answer)\n"


@pytest.fixture
def task_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], type]:
    """A class whose score_answer has this body, in a package of its own."""

    def make(body: str) -> type:
        package = f"evil{abs(hash(body))}"
        folder = tmp_path / package
        folder.mkdir()
        (folder / "__init__.py").write_text("from .more import far as indirect\n")
        (folder / "more.py").write_text(MORE)
        (folder / "task.py").write_text(HEAD.format(package=package, body=body))
        monkeypatch.syspath_prepend(tmp_path)
        module = __import__(f"{package}.task", fromlist=["Task"])
        monkeypatch.setitem(sys.modules, f"{package}.task", module)
        return module.Task

    return make


@pytest.mark.parametrize("how", EVIL)
def test_an_evil_scorer_is_found(how: str, task_of: Callable[[str], type]) -> None:
    assert gym.unsafe_scorer(task_of(EVIL[how]))


@pytest.mark.parametrize(
    "body",
    [
        "return float(answer == entry['answer'])",
        "return text_length(answer)",
        "return self.kind()",
        "return super().kind()",
        "return float(re.compile('a').search(answer) is not None)",
        "evaluated = answer.strip()\n        return float(evaluated == 'eval(1)')",
    ],
)
def test_an_innocent_scorer_is_not(body: str, task_of: Callable[[str], type]) -> None:
    assert gym.unsafe_scorer(task_of(body)) == ""


def test_a_scorer_without_source_is_refused() -> None:
    assert "cannot be read" in gym.unsafe_scorer(type("Ghost", (), {"__module__": "sqlite_ghost", "score_answer": len}))


def evaluates(self: Any, answer: str, item: dict[str, Any]) -> float:
    """Finds eval at run time, and swallows what happens."""
    try:
        return float(vars(builtins)["eval"](answer))
    except Exception:
        return 0.0


def sympifies(self: Any, answer: str, item: dict[str, Any]) -> float:
    import sympy

    try:
        return float(sympy.Integer(1) + sympy.sympify(answer))
    except Exception:
        return 0.0


# A scorer is made once for its arguments, so each test has arguments of its own.
@pytest.mark.parametrize(("scorer", "arguments"), [(evaluates, "min_terms=2"), (sympifies, "min_terms=3")])
def test_what_the_reading_missed_does_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scorer: Any, arguments: str
) -> None:
    row = load_rows(f"reasoning_gym:chain_sum?size=1&{arguments}").rows[0]
    trace, evaluating = tmp_path / "trace", builtins.eval
    monkeypatch.setattr(gym.tasks()["chain_sum"][0], "score_answer", scorer)
    with pytest.raises(gym.Evaluated, match="tried to evaluate"):
        reasoning_gym(prompt(row), f"open({str(trace)!r}, 'w').close() or 1.0")
    assert not trace.exists() and builtins.eval is evaluating
    assert float(__import__("sympy").sympify("1+1")) == 2.0


ATTACKS = ["__import__('os').system('touch {trace}')", "open({trace!r}, 'w')", "[open({trace!r}, 'w')]", "9**9**9**9"]


@pytest.mark.parametrize("task", [*USED, "simple_equations", "propositional_logic", "prime_factorization", "boxnet"])
def test_attacks_do_nothing(task: str, tmp_path: Path) -> None:
    row = load_rows(f"reasoning_gym:{task}?size=1").rows[0]
    trace = tmp_path / "trace"
    for attack in ATTACKS:
        text = attack.format(trace=str(trace))
        assert reasoning_gym(prompt(row), f"<answer>{text}</answer>").reward < 0.3
        assert not trace.exists()


def test_a_scorer_that_fails_on_the_text_is_counted() -> None:
    row = load_rows("reasoning_gym:prime_factorization?size=1").rows[0]
    assert reasoning_gym(prompt(row), "hello") == Score(0.0, {"unreadable": 1.0})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"entry": None}, "not a row of a reasoning_gym: source"),
        ({"entry": "{"}, "not a row of a reasoning_gym: source.*JSON"),
        ({"entry": "{}"}, "not a row of a reasoning_gym: source.*answer"),
        ({"task": "n_queens"}, "n_queens cannot be used"),
        ({"task": "codeio"}, "codeio cannot be used"),
        ({"entry": '{"answer": "1", "metadata": {}, "config": {"no_such": 1}}'}, "chain_sum fails on its own answer"),
    ],
)
def test_a_row_that_was_changed_is_unparseable(change: dict[str, Any], says: str) -> None:
    row = load_rows("reasoning_gym:chain_sum?size=1").rows[0] | change
    with pytest.raises(UnparseableGold, match=f"test:7.*{says}"):
        reasoning_gym_gold(prompt({k: v for k, v in row.items() if v is not None}))


def test_a_task_that_denies_its_own_answer_is_unparseable(monkeypatch: pytest.MonkeyPatch) -> None:
    row = load_rows("reasoning_gym:chain_sum?size=1&min_terms=4").rows[0]
    monkeypatch.setattr(gym.tasks()["chain_sum"][0], "score_answer", lambda self, answer, item: 0.5)
    with pytest.raises(UnparseableGold, match="its own answer.*0.5"):
        reasoning_gym_gold(prompt(row))


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(DataError, match="pip install .rlcore.gym"):
        load_rows("reasoning_gym:chain_sum")
