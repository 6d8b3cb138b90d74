"""Code that a model writes, run on the tests of its row, in the sandbox of rlcore/isolated/sandbox/sandbox.py.

The forms of tests are in code_tests.py.

Who decides: stdin tests are compared here, so the program never sees what is expected. The other forms run in two
sandboxes (see code_harness.py): tests in one, the program in the other, and only calls and plain values pass. Printing
a marker, exiting early, replacing built-ins, overloading == or reading the interpreter's frames decides nothing.

What a program finds: for stdin, fn_name and entry points `Solution().name`, whose programs are written for a site that
has imported everything, the names that LiveCodeBench, TACO and APPS import before them (`List`, `deque`, `heapq`,
`inf`, ...; see _names), and a recursion limit of 50,000. They are not the program's own: an fn_name of `gcd` has to be
defined. numpy is not among them. Assert lists and HumanEval's rows have none of it, as with their own evaluations.

What can be imported is the standard library; numpy and all else that is installed beside rlcore with `site_packages`
only. Look at the part `import_failed`: it says how many programs wanted more than there was and lost by that. A test
that imports what is not there is no 0: the sample's status is `error`.

What remains possible: to know the tests by heart (arguments are seen as they come), to answer with an object of a class
of its own where a test asks only methods of it, to define a helper that a test uses and does not define. And honest
programs lose where a test needs one process: it hands over functions or objects of its own classes (the sample's
status is `error`, not 0), or compares what has no plain value (a deque, a match object) with a value of its own.
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
    "typing", "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics",
    "itertools", "functools", "operator", "io", "json", "sys", "time", "fractions",
)  # fmt: skip
_SELECTED = {"sys": ("stdin", "stdout", "stderr", "argv", "maxsize", "setrecursionlimit"), "time": (), "fractions": ()}
_RECURSION_LIMIT = 50_000
_WORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)

_MISSING = "ModuleNotFoundError: "  # how Python's last line on stderr begins


class Verdict(NamedTuple):
    """How many tests passed, whether the program could be started or loaded, whether it missed a module."""

    passed: int
    ran: bool
    import_failed: bool


class Code:
    """1.0 if the response's program passes every test of its row, else 0.0; with `partial` the share that it passes.

    The program is the last ```python block (with `command`: the last block of any language), else what stands in the
    last <answer>; a response without one gets 0. After a `prompt` an indented program is the rest of the function that
    the prompt begins, and needs no block. Parts: "passed" the share of tests passed, "ran" 1 if there was a
    program and it could be started or loaded, "import_failed" 1 if it imports a module that the sandbox does not have
    (see site_packages). Without `partial` the first test that fails is the last one run.

    allow            must be true: nothing that a model writes is run unasked
    command          run this instead of Python, {file} being the program: ["sh", "-c", "g++ -o a {file} && ./a"].
                     Only for stdin tests; compiled anew for each
    file_name        name of the program's file, its ending may matter to `command`
    timeout_seconds  wall clock for all tests of a sample; those not done by then are failed. Below the pool's
                     reward.timeout_seconds, or a slow program is a sample without a score instead of a wrong one
    cpu_seconds, memory_mib, file_mib, scratch_mib, processes   see rlcore.isolated.sandbox.sandbox.Limits
    tolerance        numbers may differ by this, absolutely or relatively. 0: 1.0 equals 1.00 and nothing else
    site_packages    let the program import what is installed beside rlcore, such as numpy; otherwise the standard
                     library only
    show             folders that the program may read besides /usr and the interpreter's

    Raises ConfigError without `allow` or where the machine has no sandbox; UnparseableGold for a row without tests.
    """

    def __init__(
        self,
        allow: bool = False,
        command: Sequence[str] | None = None,
        file_name: str = "solution.py",
        timeout_seconds: float = 6.0,
        cpu_seconds: int = 6,
        memory_mib: int = 512,
        file_mib: int = 16,
        scratch_mib: int = 64,
        processes: int = 32,
        tolerance: float = 0.0,
        partial: bool = False,
        site_packages: bool = False,
        show: Sequence[str] = (),
    ) -> None:
        if allow is not True:
            raise ConfigError(
                "reward.args.code.allow: the reward `code` runs programs that the model writes, in a sandbox on this "
                "machine (what that protects from and what not: rlcore/isolated/sandbox/sandbox.py). Set "
                "reward.args.code.allow=true to switch it on."
            )
        if command is not None and (isinstance(command, str) or not any("{file}" in str(word) for word in command)):
            raise ConfigError(
                "reward.args.code.command: a list of words, one of them with {file}, like [node, '{file}']"
            )
        if "/" in file_name or not file_name.strip("."):
            raise ConfigError(f"reward.args.code.file_name={file_name!r}: a plain name without folders")
        if missing := sandbox.missing():
            raise ConfigError(f"reward.args.code: this machine has no sandbox to run programs in: {missing}")
        self._limits = sandbox.Limits(timeout_seconds, cpu_seconds, memory_mib, file_mib, scratch_mib, processes)
        self._python = [sys.executable, "-s", "-P"] if site_packages else [sandbox.python(), "-S", "-s", "-P"]
        self._show = [*show, *([sys.prefix] if site_packages else [])]
        self._command, self._file_name = command, file_name
        self._tolerance, self._partial = tolerance, partial

    def __call__(self, prompt: Prompt, response: str) -> Score:
        tests = read_tests(prompt)
        if self._command is not None and not tests.pairs:
            raise ValueError(f"prompt {prompt.id}: reward.args.code.command runs stdin tests only, this row has others")
        begun = tests.cases[0]["check"] if tests.header.strip() else ""
        program = program_of(response, self._command is None, begun)
        if program is None:
            return _score(0.0, 0.0, Verdict(0, False, False))
        verdict = self._run_pairs(tests, program) if tests.pairs else self._run_cases(tests, program)
        share = verdict.passed / len(tests)
        return _score(share if self._partial else float(verdict.passed == len(tests)), share, verdict)

    def _run_pairs(self, tests: Tests, program: str) -> Verdict:
        """Each pair in a sandbox of its own."""
        deadline = time.monotonic() + self._limits.wall_seconds
        if self._command is None:
            argv = [*self._python, "-c", _as_main(self._file_name, prelude(program))]
        else:
            argv = [str(word).replace("{file}", self._file_name) for word in self._command]
        passed, import_failed = 0, False
        for given, wanted in tests.pairs:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            limits = self._limits._replace(wall_seconds=left)
            ran = sandbox.run(argv, given, {self._file_name: program}, limits, self._show)
            good = ran.exit_code == 0 and same_output(ran.stdout, wanted, self._tolerance)
            passed += good
            import_failed |= not good and ran.stderr.rstrip().rpartition("\n")[2].startswith(_MISSING)
            if not good and not self._partial:
                break
        return Verdict(passed, True, import_failed)

    def _run_cases(self, tests: Tests, program: str) -> Verdict:
        """All cases in one go: judge and candidate, joined by two pipes."""
        harness = Path(sandbox.__file__).with_name("code_harness.py").read_text()
        cases = {"cases": tests.cases, "all": self._partial, "tolerance": self._tolerance}
        whole = f"{tests.header}\n{program}"
        its_files = {
            "harness.py": harness, "solution.py": whole, "prelude.py": prelude(whole) if tests.imported else "",
        }  # fmt: skip
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
        return sandbox.start(argv, "", files, self._limits, self._show, (incoming, outgoing))


def _score(reward: float, share: float, verdict: Verdict) -> Score:
    parts = {"passed": share, "ran": float(verdict.ran), "import_failed": float(verdict.import_failed)}
    return Score(reward, parts)


def prelude(program: str) -> str:
    """Python statements that make built-in names of those of `_names` that the program has as words.

    Built-in ones: they are not among the module's own names, and a program that has its own is not disturbed. Only
    those that occur, for to import all of them takes longer than most tests.
    """
    words = set(_WORD.findall(program))
    found = {name: path for name, path in _names().items() if name in words}
    modules = {path.partition(".")[0] for path in found.values()} | {"builtins", "sys"}
    return "\n".join([
        *(f"import {module}" for module in sorted(modules)),
        *(f"builtins.{name} = {path}" for name, path in found.items()),
        f"sys.setrecursionlimit({_RECURSION_LIMIT})",
    ])  # fmt: skip


@functools.cache
def _names() -> dict[str, str]:
    """What a program may use without an import, and where it is from: "deque" -> "collections.deque"."""
    names: dict[str, str] = {}
    for path in _IMPORTED:
        module = importlib.import_module(path)
        public = _SELECTED.get(path, getattr(module, "__all__", dir(module)))
        names |= {name: f"{path}.{name}" for name in public if not name.startswith("_") and not hasattr(builtins, name)}
    return names | {path: path for path in _IMPORTED} | {"exit": "sys.exit", "quit": "sys.exit"}


def _as_main(file: str, first: str) -> str:
    """A program that runs the statements `first`, then a file as if it alone had been started."""
    return "\n".join([
        first,
        f"sys.argv, __file__ = [{file!r}], {file!r}",
        "exec(compile(open(__file__, 'rb').read(), __file__, 'exec'))",
    ])  # fmt: skip


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
