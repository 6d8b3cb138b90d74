"""Hostile text, as response and as gold answer, to every built-in rule: a score or UnparseableGold, and nothing else.

The rules run in a worker of the pool, so a text that hangs a rule is a status that names both. An audit hook in the
worker notes whatever runs code, starts a program, writes a file or opens a socket.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from rewards import BUILTIN
from rewards.pools import reward_pool
from rewards.signatures import Fn
from rlcore.data.sources import load_rows
from rlcore.records import Prompt, Response
from tests.processes.pools import collect
from tests.unit.test_rewards import BOXED

ELSEWHERE = {"judge", "remote", "reward_model", "code"}  # they talk to a server or run programs: their own tests
OPTIONS = {"length_cosine": {"of": "exact_match"}}  # any rule: those behind it are here themselves

CODE = [  # {canary} is the file that they try to make
    "__import__('os').system('touch {canary}')",
    "__import__('pathlib').Path('{canary}').touch()",
    "exec(\"open('{canary}','w')\")",
    "eval(\"open('{canary}','w')\")",
    "open('{canary}','w')",
    "open('{canary}','w').write('3')+3",
    "(lambda: open('{canary}','w'))()",
    "[x for x in [open('{canary}','w')]]",
    "().__class__.__base__.__subclasses__()[140]('touch {canary}')",
    "3 if open('{canary}','w') else 3",
    "f(open('{canary}','w'))",
    "\\text{{__import__('os').system('touch {canary}')}}",
    "\\frac{{__import__('os').system('touch {canary}')}}{{1}}",
    "\\sqrt[__import__('os').system('touch {canary}')]{{2}}",
    "x_{{__import__('os').system('touch {canary}')}}",
    "\\operatorname{{exec}}(open('{canary}','w'))",
    "\\input{{|touch {canary}}}",
    "\\immediate\\write18{{touch {canary}}}",
    "\\openout1={canary}",
    "$(touch {canary})",
    "`touch {canary}`",
    "; touch {canary} #",
    "cos\nsystem\n(S'touch {canary}'\ntR.",  # a pickle
    "!!python/object/apply:os.system ['touch {canary}']",  # YAML
    "{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}",
    "__import__('socket').create_connection(('127.0.0.1', 9))",
    "import os; os.system('touch {canary}')\n",
    "().__class__.__base__.__subclasses__()",
    "lambda: open('{canary}','w')",
    "2+__import__('os').getpid()",
    "__import__('os').system('touch {canary}') = 3",
]
NUMBERS = [
    "9**9**9", "9^{9^{9^9}}", "10**10**10", "10^{10^{10}}", "((9^{99})^{99})^{99}", "2^{1+99999999}", "2^{99!}",
    "(9999999+1)!", "99999!", "((9!)!)!", "\\binom{9^9}{9^8}", "\\binom{1+99999}{50000}", "(x+1)^{9999}",
    "(x+y+z)^{99}", "\\frac{x^{999}-1}{x-1}", "\\sum_{i=1}^{10^{9}} i", "\\prod_{i=1}^{99999} i", "\\int_0^1 x^x dx",
    "\\begin{pmatrix}x&2\\\\3&y\\end{pmatrix}^{99}", "\\operatorname{eye}(9999)", "9" * 5000, "-" + "9" * 5000,
    "1." + "3" * 5000, "9" * 90 + "/" + "7" * 90, "1e999", "-1e999", "1e-999", "1e99999999", "nan", "NaN", "inf",
    "-inf", "\\infty", "1/0", "0/0", "\\frac{0}{0}", "0^{-1}", "0x10", "1_000", "\u0667\u0662", "\u00b2", "\u2162",
    "\u4e09", "\u00bd", "\U0001d7d1", "(((1+2)*3)-4)/0", "1" + "+1" * 5000, "(" * 3000 + "1" + ")" * 3000,
]  # fmt: skip
TEXTS = [
    "", " ", "\x00", "3\x00", "\x00" * 1000, "\ud800", "3\udfff", "\u202e3\u202c", "\u200f3", "\ufeff3", "3\u200b",
    "\x1b[2J\x1b[31m3", "\x1b]0;x\x07", "\x7f\x80\x9f", "%s%s%n%d", "{}{0}{x.__class__}", "{0:999999999}",
    "%999999999d", "'; DROP TABLE runs; --", "\" OR 1=1 --", "../../etc/passwd", "\\input{/etc/passwd}",
    "\\include{/etc/passwd}", "file:///etc/passwd", "http://127.0.0.1:9/", "<script>alert(1)</script>",
    "<!--#exec cmd=\"id\"-->", "&xxe;", "\r\n\r\n", "\ufdfa" * 300, "e\u0301" * 300, "Zalgo" + "\u0336" * 3000,
    "\\boxed" * 1000, "\\boxed{" * 1000 + "3" + "}" * 1000, "\\boxed{3" + "}" * 1000, "\\frac" * 100,
    "\\text{" * 100 + "3" + "}" * 100, "^" * 300, "_" * 300, "\\" * 301, "\\left" * 60 + "3", "$" * 301,
    "<answer>" * 1000, "</answer>" * 1000, "<answer>" * 500 + "3" + "</answer>" * 500, "</answer><answer>",
    "<think>" * 1000, "A or B", "ABCDEFGHIJ", "(A)(B)(C)", "A" * 1000, "knight" * 1000, "x is a knight and a knave",
]  # fmt: skip
# For every repetition in a pattern in rewards/, text that it can be tempted to divide in many ways.
REPEATED = [
    " ", "\t", "\n", " \n", "-", "- ", "1", "1,", "1 ", "1.", "9" * 30 + " ", "1/", ",", ".", "$", "$ ", "$1", "\\(",
    "\\[", "\\", "{", "}", "(", ")", "[", "]", "\\frac{", "\\frac{1", "\\text{", "\\text{a ", "^{", "^", "*", "**",
    "** ", "=", "1=", "#", "####", "#### ", "####1 ", "\\boxed{", "\\boxed ", "<answer>", "</answer>", "<think>",
    "</think>", "<answer>1</answer>", "answer ", "answer is ", "answer is: ", "the answer is a ", "option ", "A ",
    "A or ", "A, ", "so ", "hence B", "A\nso ", "(A) ", "a", "a ", "a.", "Zoey is a ", "Zoey ", "is a ", "knight ",
    "x is a knight ", "(1) ",
    "(1+", "1+", "1 + ", "-(", "\u00e9", "\u4e09", "\u0e01", "\u0301", "\u00bd", "\u00b2", "\U0001f600",
]  # fmt: skip
_WATCH = """
import os
import sys

RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.", "ctypes.dlopen", "pty.")
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.chmod", "os.link", "os.symlink", "shutil.", "pickle.find_class")
log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def watch(event, args):
    if event == "open":
        noted = set(str(args[1] or "")) & set("wax+") or (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    elif event == "compile":
        source = args[0] if isinstance(args[0], bytes) else str(args[0]).encode(errors="replace")
        noted = args[0] is not None and b"def monomial_" not in source  # sympy writes these for itself
    else:
        noted = event.startswith(RUNS + CHANGES)
    if noted:
        os.write(log, (event + " " + repr(args)[:300] + "\\n").encode(errors="replace"))

def arm(prompt, response):
    if response == "arm":
        sys.addaudithook(watch)
        eval("1")
        return 1.0
    return 0.0
"""


def everywhere(text: str) -> list[str]:
    """The text as a response, and, cut so that it is not refused unread, where the rules look for an answer."""
    short = text[:380]
    return [
        text,
        f"#### {short}\nThe answer is {short}",
        f"<think>\\boxed{{{short}}} </think><answer>{short[:290]}</answer>",
    ]


def attacks(canary: Path) -> list[str]:
    texts = [t.format(canary=canary) for t in CODE] + NUMBERS + TEXTS
    return texts + [t * (8_000 // len(t)) for t in REPEATED]  # cubic work would take an hour


class Watched:
    """A pool of one worker with every rule in it, and what its audit hook noted."""

    def __init__(self, tmp_path: Path) -> None:
        self._log = tmp_path / "noted"
        (tmp_path / "watch.py").write_text(_WATCH.format(log=str(self._log)))
        self.rules = sorted(set(BUILTIN) - ELSEWHERE)
        fns = [Fn(name, BUILTIN[name], OPTIONS.get(name, {})) for name in self.rules]
        watch = Fn("watch", f"{tmp_path / 'watch.py'}:arm")
        self.pool = reward_pool(
            [*fns, watch], 1, timeout_seconds=60.0, memory_mib=4096, context={"max_response_tokens": 256}
        )
        self._prompts: dict[int, tuple[Prompt, str]] = {}

    def submit(self, prompt: Prompt, response: str, names: list[str] | None = None) -> None:
        self._prompts[len(self._prompts)] = prompt, response
        self.pool.submit(len(self._prompts) - 1, prompt, Response(response, 5, "stop"), names or self.rules)

    def wrong(self) -> list[str]:
        """Wait for all; what is neither a finite score nor an unreadable gold answer, with rule and text."""
        results = collect(self.pool, seconds=900)
        found = []
        for key, outcomes in results.items():
            prompt, response = self._prompts[key]
            for name, o in outcomes.items():
                scored = not o.status and o.reward is not None and math.isfinite(o.reward)
                if not scored and o.status != "unparseable_gold":
                    column = str(next(iter(prompt.row.values()), ""))  # hostile like all the others, if they are
                    texts = f"gold {prompt.answer[:60]!r}, row {column[:60]!r}, response {response[:60]!r}"
                    found.append(f"{name}: {o.status or o.reward} {o.message[:200]}: {texts}")
        return found

    def noted(self) -> list[str]:
        return self._log.read_text(errors="replace").splitlines()


@pytest.fixture
def watched(tmp_path: Path):
    made = Watched(tmp_path)
    yield made
    made.pool.close()


def row() -> dict[str, Any]:
    """A row that every rule can use; its answer is 3, its choice D."""
    own = {"names": ["Zoey", "x"], "solution": [True, False], "choices": ["zero", "one", "two", "three"]}
    return load_rows("reasoning_gym:countdown?size=1").rows[0] | own


def hostile(value: Any, text: str) -> Any:
    """The value of a column with the text in place of each text and number in it."""
    return [hostile(v, text) for v in value] if isinstance(value, list) else text


def armed(watched: Watched) -> dict[str, Any]:
    """Every rule has run once, so what it loads or compiles for itself is not noted."""
    watched.pool.ready(120)
    good = row()
    watched.submit(Prompt("warm", [], "3", good), "<answer>three</answer>")
    watched.submit(Prompt("warm", [], "x^2+1", good), r"\boxed{1+x^2}")
    watched.submit(Prompt("warm", [], "1,2", good), r"\boxed{\{1, \sqrt{4}\}}")
    assert watched.wrong() == []
    watched.submit(Prompt("warm", [], "3"), "arm", ["watch"])
    assert watched.wrong() == []
    assert [line.split()[0] for line in watched.noted()] == ["compile"], "the hook does not see eval()"
    return good


def test_hostile_responses(watched: Watched, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    good = armed(watched)
    for text in attacks(canary):
        for response in everywhere(text):
            watched.submit(Prompt("test:0", [], "3", good), response)
    for gold, answer, _ in BOXED:
        watched.submit(Prompt("test:0", [], gold), f"\\boxed{{{answer}}}", ["boxed_math"])
    assert watched.wrong() == []
    assert watched.noted()[1:] == []
    assert not canary.exists()


def test_hostile_gold_answers(watched: Watched, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    good = armed(watched)
    for text in attacks(canary):
        watched.submit(Prompt("test:0", [], text, good), text)
        watched.submit(Prompt("test:0", [], f"#### 3 \\boxed{{{text[:390]}}}", good), "#### 3 \\boxed{3} A")
        bad = {column: hostile(value, text[:5000]) for column, value in good.items()}
        watched.submit(Prompt("test:0", [], "3", bad), "<answer>3</answer>")
    assert watched.wrong() == []
    assert watched.noted()[1:] == []
    assert not canary.exists()


def test_a_megabyte(watched: Watched) -> None:
    good = armed(watched)
    for text in ("{", "\\boxed{", " ", "1", "<answer>", "answer is ", "is a knight "):
        watched.submit(Prompt("test:0", [], "3", good), text * (1_000_000 // len(text)))
    assert watched.wrong() == []


def test_a_rule_that_runs_text_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test itself: rules that evaluate, hang, overflow or raise are named with the text."""
    (tmp_path / "bad.py").write_text(
        "def evaluates(prompt, response):\n    try:\n        return float(bool(eval(response)))\n"
        "    except Exception:\n        return 0.0\n"
        "def raises(prompt, response):\n    return float(int(response[-1:] == '3') / (1 - response.count('nan')))\n"
    )
    bad = {name: f"{tmp_path}/bad.py:{name}" for name in ("evaluates", "raises")}
    monkeypatch.setattr("tests.processes.test_attacks.BUILTIN", bad)
    watched = Watched(tmp_path)
    try:
        canary = tmp_path / "canary"
        armed(watched)
        for text in ("nan", f"open('{canary}','w')"):
            watched.submit(Prompt("test:0", [], "3"), text)
        wrong = watched.wrong()
        assert len(wrong) == 1 and wrong[0].startswith("raises: error ZeroDivisionError") and "'nan'" in wrong[0]
        assert canary.exists()
        assert {line.split()[0] for line in watched.noted()[1:]} == {"compile", "open"}
    finally:
        watched.pool.close()
