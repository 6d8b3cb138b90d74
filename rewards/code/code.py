"""Code that a model writes, run on the tests of its row (tests.py), in the sandbox of rlcore/isolated/sandbox.

stdin tests are compared here, so the program never sees what is expected. The other forms run in two sandboxes
(harness.py): tests in one, the program in the other, and only calls and plain values pass. What decides, what a program
finds there and what remains possible: docs/rewards.md, "Code".
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from rewards.code.tests import Tests, read_tests
from rlcore.errors import ConfigError
from rlcore.isolated.sandbox import sandbox
from rlcore.records import Prompt, Score

_ANSWER = "<answer>", "</answer>"
_PYTHON = ("python", "python3", "py")

# What stands before a program in LiveCodeBench, as `from MODULE import *`, of which a later one wins, and as
# `import MODULE`, which wins over those. Of the last three the module, and of sys what is named below it.
_IMPORTED = (
    "typing string re datetime collections heapq bisect copy math random statistics itertools functools operator io "
    "json sys time fractions"
).split()
_SELECTED = {"sys": ("stdin", "stdout", "stderr", "argv", "maxsize", "setrecursionlimit"), "time": (), "fractions": ()}
_RECURSION_LIMIT = 50_000
_WORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)

_MISSING = "ModuleNotFoundError: "  # how Python's last line on stderr begins


class Verdict(NamedTuple):
    """How many tests passed, whether the program could be started or loaded, whether it missed a module."""

    passed: int
    ran: bool
    import_failed: bool


@dataclass(eq=False)
class Code:
    """1.0 if the response's program passes every test of its row, else 0.0; 0.0 too without a program.

    Parts: "passed" the share of tests passed, "ran" 1 if the program could be started or loaded, "import_failed" 1 if
    it imports what is not there. Raises ConfigError for options that cannot work and where the machine has no sandbox,
    UnparseableGold for a row without tests, ValueError for tests that cannot be run so.
    """

    allow: bool = False  # must be true: nothing that a model writes is run unasked
    # Run this instead of Python, {file} being the program: ["sh", "-c", "g++ -o a {file} && ./a"]. Only for stdin
    # tests; compiled anew for each.
    command: Sequence[str] | None = None
    file_name: str = "solution.py"  # of the program; its ending may matter to `command`
    # Wall clock for all tests of a sample; those not done by then are failed. Below reward.timeout_seconds, or a slow
    # program is a sample without a score instead of a wrong one.
    timeout_seconds: float = 6.0
    cpu_seconds: int = 6  # this and the next four: see Limits of the sandbox
    memory_mib: int = 512
    file_mib: int = 16
    scratch_mib: int = 64
    processes: int = 32
    tolerance: float = 0.0  # numbers may differ by this, absolutely or relatively; 0: 1.0 equals 1.00 and nothing else
    partial: bool = False  # give the share of tests passed; otherwise the first test that fails is the last one run
    site_packages: bool = False  # let programs import what is installed beside rlcore, such as numpy
    show: Sequence[str] = ()  # folders that programs may read besides /usr and the interpreter's

    def __post_init__(self) -> None:
        if self.allow is not True:
            raise ConfigError(
                "reward.args.code.allow: the reward `code` runs programs that the model writes, in a sandbox on this "
                "machine (what that protects from and what not: docs/isolation.md). Set "
                "reward.args.code.allow=true to switch it on."
            )
        command = self.command
        if command is not None and (isinstance(command, str) or not any("{file}" in str(word) for word in command)):
            raise ConfigError(
                "reward.args.code.command: a list of words, one of them with {file}, like [node, '{file}']"
            )
        if "/" in self.file_name or not self.file_name.strip("."):
            raise ConfigError(f"reward.args.code.file_name={self.file_name!r}: a plain name without folders")
        if missing := sandbox.missing():
            raise ConfigError(f"reward.args.code: this machine has no sandbox to run programs in: {missing}")
        self._limits = sandbox.Limits(
            self.timeout_seconds, self.cpu_seconds, self.memory_mib, self.file_mib, self.scratch_mib, self.processes
        )
        self._python = [sys.executable, "-s", "-P"] if self.site_packages else [sandbox.python(), "-S", "-s", "-P"]
        self._shown = [*self.show, *([sys.prefix] if self.site_packages else [])]

    def __call__(self, prompt: Prompt, response: str) -> Score:
        tests = read_tests(prompt)
        if self.command is not None and not tests.pairs:
            raise ValueError(f"prompt {prompt.id}: reward.args.code.command runs stdin tests only, this row has others")
        begun = tests.cases[0]["check"] if tests.header.strip() else ""
        program = program_of(response, self.command is None, begun)
        if program is None:
            return _score(0.0, 0.0, Verdict(0, False, False))
        verdict = self._run_pairs(tests, program) if tests.pairs else self._run_cases(tests, program)
        share = verdict.passed / len(tests)
        return _score(share if self.partial else float(verdict.passed == len(tests)), share, verdict)

    def _run_pairs(self, tests: Tests, program: str) -> Verdict:
        """Each pair in a sandbox of its own."""
        deadline = time.monotonic() + self._limits.wall_seconds
        if self.command is None:
            argv = [*self._python, "-c", _as_main(self.file_name, prelude(program))]
        else:
            argv = [str(word).replace("{file}", self.file_name) for word in self.command]
        passed, import_failed = 0, False
        for given, wanted in tests.pairs:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            limits = self._limits._replace(wall_seconds=left)
            ran = sandbox.run(argv, given, {self.file_name: program}, limits, self._shown)
            good = ran.exit_code == 0 and same_output(ran.stdout, wanted, self.tolerance)
            passed += good
            import_failed |= not good and ran.stderr.rstrip().rpartition("\n")[2].startswith(_MISSING)
            if not good and not self.partial:
                break
        return Verdict(passed, True, import_failed)

    def _run_cases(self, tests: Tests, program: str) -> Verdict:
        """All cases in one go: judge and candidate, joined by two pipes."""
        harness = Path(sandbox.__file__).with_name("harness.py").read_text(encoding="utf-8")
        cases = {"cases": tests.cases, "all": self.partial, "tolerance": self.tolerance}
        whole = f"{tests.header}\n{program}"
        given = prelude(whole) if tests.imported else ""
        its_files = {"harness.py": harness, "solution.py": whole, "prelude.py": given}
        judge_files = {"harness.py": harness, "cases.json": json.dumps(cases), **tests.files}
        with contextlib.ExitStack() as stack:
            asked, ask = os.pipe()
            answered, answer = os.pipe()
            try:
                candidate = self._start("candidate", its_files, asked, answer)
                stack.callback(candidate.stop)
                judge = self._start("judge", judge_files, answered, ask)
                stack.callback(judge.stop)
            finally:
                for fd in (asked, ask, answered, answer):
                    os.close(fd)
            lines = judge.wait().stdout.splitlines()
            if "R" not in lines:
                raise sandbox.SandboxError(
                    "the tests could not be read in the sandbox: memory_mib or scratch_mib too small"
                )
            if "L" not in lines:
                candidate.wait()  # raises if it is the sandbox that failed, not the program
        if unsupported := next((line for line in lines if line.startswith("? ")), ""):
            raise ValueError(unsupported[2:])
        return Verdict(lines.count("1"), "L" in lines, "M" in lines)

    def _start(self, role: str, files: dict[str, str], incoming: int, outgoing: int) -> sandbox.Program:
        argv = [*self._python, "harness.py", role, str(incoming), str(outgoing)]
        return sandbox.start(argv, "", files, self._limits, self._shown, (incoming, outgoing))


def _score(reward: float, share: float, verdict: Verdict) -> Score:
    parts = {"passed": share, "ran": float(verdict.ran), "import_failed": float(verdict.import_failed)}
    return Score(reward, parts)


def prelude(program: str) -> str:
    """Python statements that make built-in names of those of `given_names` that the program has as words.

    Built-in ones: they are not among the module's own names, and a program that has its own is not disturbed. Only
    those that occur, for to import all of them takes longer than most tests.
    """
    words = set(_WORD.findall(program))
    found = {name: path for name, path in given_names().items() if name in words}
    modules = {path.partition(".")[0] for path in found.values()} | {"builtins", "sys"}
    imports = [f"import {module}" for module in sorted(modules)]
    names = [f"builtins.{name} = {path}" for name, path in found.items()]
    return "\n".join([*imports, *names, f"sys.setrecursionlimit({_RECURSION_LIMIT})"])


@functools.cache
def given_names() -> dict[str, str]:
    """What a program may use without an import, and where it is from: "deque" -> "collections.deque"."""
    names: dict[str, str] = {}
    for path in _IMPORTED:
        module = importlib.import_module(path)
        public = _SELECTED.get(path, getattr(module, "__all__", dir(module)))
        names |= {name: f"{path}.{name}" for name in public if not name.startswith("_") and not hasattr(builtins, name)}
    return names | {path: path for path in _IMPORTED} | {"exit": "sys.exit", "quit": "sys.exit"}


def _as_main(file: str, first: str) -> str:
    """A program that runs the statements `first`, then a file as if it alone had been started."""
    named = f"sys.argv, __file__ = [{file!r}], {file!r}"
    return f"{first}\n{named}\nexec(compile(open(__file__, 'rb').read(), __file__, 'exec'))"


def program_of(response: str, python: bool, begun: str = "") -> str | None:
    """The program in a response: the last fenced block (of Python, if `python` and there is one), else <answer>.

    `begun`: the entry point that the text before the program begins. An indented program is then its body and stays
    indented, unless it defines the entry point anew; without a block and <answer> a response may be such a body.
    """
    _, opened, after = response.rpartition(_ANSWER[0])
    answer, closed, _ = after.partition(_ANSWER[1])
    answer = answer.strip("\n") if opened and closed and answer.strip() else None
    blocks = _blocks(response) or _blocks(answer or "")
    marked = [body for language, body in blocks if language in _PYTHON]
    if blocks:
        text = marked[-1] if python and marked else blocks[-1][1]
        return text if begun and _is_body(text, begun) else textwrap.dedent(text)
    return response if answer is None and begun and _is_body(response, begun) else answer


def _is_body(text: str, entry: str) -> bool:
    """Whether a text is indented and is not, but for that, a program with a function or class of the entry's name."""
    if not text.lstrip("\r\n").startswith((" ", "\t")):
        return False
    name = entry.partition("(")[0]
    return not re.search(rf"^(async +def|def|class) +{name}\b", textwrap.dedent(text), re.MULTILINE)


def _blocks(response: str) -> list[tuple[str, str]]:
    """(language, text) of each closed fenced block. By lines: a regular expression can be made to take for ever."""
    blocks: list[tuple[str, str]] = []
    language: str | None = None
    body: list[str] = []
    margin = ""
    for line in response.split("\n"):
        mark = line.strip().removeprefix(_ANSWER[0]).removesuffix(_ANSWER[1]).strip()
        if mark == "```" and language is not None:
            blocks.append((language, _without(margin, body)))
            language = None
        elif mark.startswith("```"):
            language, body = mark[3:].partition(" ")[0].strip().lower(), []
            margin = line[: len(line) - len(line.lstrip())]
        elif language is not None:
            body.append(line)
    return blocks


def _without(margin: str, lines: list[str]) -> str:
    """The lines of a block whose fence stands behind `margin`, as in a list; they need not stand behind it too."""
    behind = all(line.startswith(margin) for line in lines if line.strip())
    return "\n".join(line.removeprefix(margin) if behind else line for line in lines)


def same_output(got: str, want: str, tolerance: float = 0.0) -> bool:
    """Whether two outputs agree: line by line but for blanks at the ends, else word by word with numbers as numbers."""
    if [line.rstrip() for line in got.rstrip().split("\n")] == [line.rstrip() for line in want.rstrip().split("\n")]:
        return True
    its, ours = got.split(), want.split()
    return len(its) == len(ours) and all(_same_word(a, b, tolerance) for a, b in zip(its, ours, strict=True))


def _same_word(got: str, want: str, tolerance: float) -> bool:
    if got == want:
        return True
    if max(len(got), len(want)) > 100:
        return False
    try:
        a, b = Decimal(got), Decimal(want)
        return a == b or abs(a - b) <= Decimal(tolerance) * max(Decimal(1), abs(b))
    except ArithmeticError:  # not numbers, NaN, or too large to subtract
        return False
