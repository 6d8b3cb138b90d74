"""The code reward: golden verdicts for every form of tests, and programs that try to win without solving anything."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rewards.code.code import Code, given_names, prelude, program_of, same_output
from rewards.code.tests import code_gold, read_tests
from rlcore.errors import ConfigError, UnparseableGold
from rlcore.isolated.sandbox import sandbox
from rlcore.isolated.sandbox.harness import decode, encode
from rlcore.records import Prompt, Score

needs_sandbox = pytest.mark.skipif(
    "refused: new namespaces" in sandbox.missing(), reason=f"no user namespaces here: {sandbox.missing()}"
)

MBPP = {"test_list": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0", "assert add(2, 2) == 4"]}
APPS = {"input_output": json.dumps({"inputs": ["1 2\n", "-1 1\n"], "outputs": ["3\n", "0\n"]})}
CALLS = {"input_output": {"inputs": [[1, 2], [-1, 1]], "outputs": [[3], 0], "fn_name": "add"}}
LCB = {"tests": {"inputs": ["[1, 2]\n3", "[]\n0"], "outputs": ["6", "0"], "fn_name": "total"}}
PAIRS = {"tests": [{"input": "1 2", "output": "3"}, {"input": "5 5", "output": "10"}]}
HUMANEVAL = {
    "prompt": "import math\n\n\ndef poly(x):\n    return 2 * x\n\n\ndef half(x: int):\n    '''Solve.'''\n",
    "entry_point": "half",
    "test": "X = {}\n\n\ndef check(candidate):\n    assert poly(candidate(3)) == 3\n    assert candidate(0) == 0\n",
}
LEETCODE = {
    "entry_point": "Solution().twoSum",
    "test": "def check(candidate):\n    assert candidate(nums=[2, 7], target=9) == [0, 1]\n",
}
SUM = "print(sum(map(int, input().split())))"


def prompt(row: dict[str, Any], answer: str = "") -> Prompt:
    return Prompt("rows.jsonl:1", [], answer, row)


def fenced(program: str) -> str:
    return f"Let me see.\n```python\n{program}\n```\n"


def case(test: str, **row: Any) -> dict[str, Any]:
    return {"test_list": [test], **row}


# name -> row, program, share of tests passed
GOLDEN: dict[str, tuple[dict[str, Any], str, float]] = {
    "mbpp right": (MBPP, "def add(a, b): return a + b", 1),
    "mbpp one of three": (MBPP, "def add(a, b): return 3", 1 / 3),
    "mbpp raises at one": (MBPP, "def add(a, b):\n    if a < 0: raise ValueError\n    return a + b", 2 / 3),
    "mbpp other name": (MBPP, "def plus(a, b): return a + b", 0),
    "syntax error": (MBPP, "def add(a, b) return a + b", 0),
    "text of asserts": ({"tests": "assert add(1, 2) == 3\nassert add(0, 0) == 0"}, "def add(a, b): return a + b", 1),
    "set-up code": (
        case("assert isclose(half(3), K)", test_imports=["from math import isclose"], test_setup_code="K = 1.5"),
        "def half(x): return x / 2",
        1,
    ),
    "module of the program": (case("assert math.isclose(f(1), 0.1)"), "import math\ndef f(x): return .1", 1),
    "called sum": (case("assert sum(10, 15) == 6"), "def sum(a, b): return 6", 1),
    "tuple is no list": (case("assert f() == (1, 2)"), "def f(): return [1, 2]", 0),
    "set": (case("assert f() == {1, 2}"), "def f(): return {2, 1}", 1),
    "nested": (
        case("assert f() == {'a': [(1, 2.5), None, True, 'ü']}"),
        "def f(): return {'a': [(1, 2.5), None, True, 'ü']}",
        1,
    ),
    "large number": (case("assert f() == 10 ** 6000"), "def f(): return 10 ** 6000", 1),
    "infinity": (case("assert f() == float('inf')"), "def f(): return float('inf')", 1),
    "counter": (case("assert f('aab') == {'a': 2, 'b': 1}"), "from collections import Counter as f", 1),
    "named tuple": (
        case("assert f() == (1, 2)"),
        "from collections import namedtuple\ndef f(): return namedtuple('P', 'x y')(1, 2)",
        1,
    ),
    "fraction": (case("assert f() == 0.5"), "from fractions import Fraction\ndef f(): return Fraction(1, 2)", 1),
    "generator": (case("assert list(f(3)) == [0, 1, 2]"), "def f(n):\n    yield from range(n)", 1),
    "in place": (case("x = [3, 1]\nf(x)\nassert x == [1, 3]"), "def f(x): x.sort()", 1),
    "not in place": (case("x = [3, 1]\nf(x)\nassert x == [1, 3]"), "def f(x): return sorted(x)", 0),
    "exception": (
        case("try:\n    f()\nexcept KeyError:\n    pass\nelse:\n    raise AssertionError"),
        "class Gone(KeyError): pass\ndef f(): raise Gone('x')",
        1,
    ),
    "objects": (
        case("s = Stack(2)\ns.push(5)\nassert s.peek() == 5 and len(s) == 1 and s.size == 2"),
        "class Stack:\n    def __init__(self, n): self.size, self.items = n, []\n"
        "    def push(self, x): self.items.append(x)\n    def peek(self): return self.items[-1]\n"
        "    def __len__(self): return len(self.items)",
        1,
    ),
    "prints": (MBPP, "print('noise')\ndef add(a, b):\n    print('1' * 9999)\n    return a + b", 1),
    "main block is not run": (MBPP, "def add(a, b): return a + b\nif __name__ == '__main__': input()", 1),
    "recursion": (MBPP, "def add(a, b): return add(b, a)", 0),
    "humaneval": (HUMANEVAL, "def half(x): return x / 2", 1),
    "humaneval wrong": (HUMANEVAL, "def half(x): return x", 0),
    "humaneval leans on the prompt": (HUMANEVAL, "def half(x): return math.fabs(x) / 2", 1),
    "leetcode": (LEETCODE, "class Solution:\n    def twoSum(self, nums, target): return [0, 1]", 1),
    "apps": (APPS, "a, b = map(int, input().split())\nprint(a + b)", 1),
    "apps half": (APPS, "print(3)", 1 / 2),
    "apps crash after the answer": (APPS, f"{SUM}\n1 / 0", 0),
    "apps main block": (APPS, f"if __name__ == '__main__':\n    {SUM}", 1),
    "calls": (CALLS, "def add(a, b): return a + b", 1),
    "calls of a class": (CALLS, "class Solution:\n    def add(self, a, b): return a + b", 1),
    "calls half": (CALLS, "def add(a, b): return 3 * a", 1 / 2),
    # Programs as models write them for these benchmarks, whose harnesses import half the standard library before them.
    "typing not imported": (
        LCB,
        "from __future__ import annotations\nclass Solution:\n"
        "    def total(self, xs: List[int], k: Optional[int]) -> int:\n"
        "        d: DefaultDict[int, int] = defaultdict(int)\n        heapq.heapify(xs)\n        return sum(xs) + k",
        1,
    ),
    "annotations are looked up": (LCB, "def total(xs: List[int], k: int) -> int: return reduce(add, xs, k)", 1),
    "leetcode not imported": (
        LEETCODE,
        "class Solution:\n    def twoSum(self, nums: List[int], target: int): return [0, int(inf > target)]",
        1,
    ),
    "what is imported is not the program's": (
        {"tests": {"inputs": ["4\n6"], "outputs": ["2"], "fn_name": "gcd"}},
        "x = gcd",
        0,
    ),
    "what is imported can be defined": (
        {"tests": {"inputs": ["4\n6"], "outputs": ["10"], "fn_name": "gcd"}},
        "def gcd(a, b): return a + b",
        1,
    ),
    "deep": (
        LCB,
        "def depth(n): return n and 1 + depth(n - 1)\ndef total(xs, k): return depth(20000) - 20000 + sum(xs) + k",
        1,
    ),
    "mbpp typing not imported": (MBPP, "def add(a: List[int], b): return a + b", 0),
    "stdin not imported": (PAIRS, "q = deque(map(int, stdin.readline().split()))\nprint(sum(q))\nexit()", 1),
    "stdin is the main program": (
        PAIRS,
        "import __main__, pickle, sys\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
        "p = pickle.loads(pickle.dumps(P(sum(map(int, input().split())))))\n"
        "if __main__.P is P and __name__ == '__main__' and [__file__] == sys.argv: print(p.x)",
        1,
    ),
    "stdin in a thread that nobody waits for": (
        PAIRS,
        "import threading, time\ndef main():\n    time.sleep(0.1)\n    print(sum(map(int, input().split())))\n"
        "threading.Thread(target=main).start()",
        1,
    ),
    "stdin exit code": (PAIRS, f"{SUM}\nexit(3)", 0),
    "livecodebench calls": (LCB, "class Solution:\n    def total(self, xs, k): return sum(xs) + k", 1),
    "pairs": (PAIRS, SUM, 1),
    "standard library": (APPS, f"import re, collections, heapq\n{SUM}", 1),
    "not the packages here": (APPS, f"import pytest\n{SUM}", 0),
}


@pytest.fixture(scope="module")
def code() -> Code:
    return Code(allow=True, partial=True, timeout_seconds=60.0)


def scores(code: Code, asked: Iterable[tuple[dict[str, Any], str]]) -> list[Score]:
    """In as many threads as there are processors: a verdict does not depend on the thread."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(lambda each: code(prompt(each[0]), fenced(each[1])), asked))


@needs_sandbox
def test_golden(code: Code) -> None:
    wrong = {}
    verdicts = scores(code, [(row, program) for row, program, _ in GOLDEN.values()])
    for (name, (_, _, share)), score in zip(GOLDEN.items(), verdicts, strict=True):
        failed = name == "not the packages here"
        if score.reward != pytest.approx(share) or score.parts["passed"] != score.reward:
            wrong[name] = score
        if score.parts["import_failed"] != failed:
            wrong[name] = score
    assert wrong == {}


# Programs that solve nothing: none may pass a single test.
CHEATS = {
    "exits": "raise SystemExit(0)",
    "exits hard": "import os\nos._exit(0)",
    "exits hard when called": "import os\ndef add(a, b): os._exit(0)",
    "exits when called": "def add(a, b): raise SystemExit(0)",
    "equals everything": (
        "class E:\n    def __eq__(self, o): return True\n    def __hash__(self): return 3\ndef add(a, b): return E()"
    ),
    "a number that equals everything": (
        "class E(int):\n    def __eq__(self, o): return True\n    def __int__(self): return 4\n"
        "    def __hash__(self): return 4\ndef add(a, b): return E(77)"
    ),
    "prints verdicts": "print('L\\n1\\n1\\n1\\n', flush=True)\ndef add(a, b): return 99",
    "writes verdicts to every descriptor": (
        "import os\ndef add(a, b):\n    for fd in range(64):\n        try: os.write(fd, b'R\\nL\\n1\\n1\\n1\\n')\n"
        "        except OSError: pass\n    return 99"
    ),
    "forges answers": (
        "import os\ndef add(a, b):\n    for fd in range(3, 64):\n"
        "        try: os.write(fd, b'[\"ok\", true, null]\\n' * 9)\n        except OSError: pass\n    return 99"
    ),
    "replaces built-ins": (
        "import builtins\nclass A(BaseException): pass\nbuiltins.AssertionError = A\nbuiltins.len = lambda x: 3\n"
        "def add(a, b): return 99"
    ),
    "shadows built-ins": "set = sorted = all = isinstance = lambda *a: True\ndef add(a, b): return 99",
    "finds the tests in a file": (
        "import glob\nfs = {f for f in glob.glob('/tmp/**', recursive=True) if f[-1] in 'ny'} - {'/tmp/solution.py'}\n"
        "found = ''.join(open(f).read() for f in fs)\n"
        "def add(a, b): return 4 if 'wanted 4' in found else 99"
    ),
    "walks the frames": (
        "import sys\ndef add(a, b):\n    f = sys._getframe()\n    while f:\n"
        "        for v in list(f.f_locals.values()):\n"
        "            if isinstance(v, dict) and 'cases' in v: return v['cases']\n        f = f.f_back\n    return 99"
    ),
    "asks the garbage collector": (
        "import gc\ndef add(a, b):\n"
        "    return next((o['wants'] for o in gc.get_objects() if isinstance(o, dict) and 'wants' in o), 99)"
    ),
    "patches the harness": (
        "import sys\nmain = sys.modules['__main__']\nmain.same = lambda *a: True\n"
        "main._answer = lambda *a: ['ok', True, None]\ndef add(a, b): return 99"
    ),
    "sends nonsense": "import sys\nsys.modules['__main__']._answer = lambda *a: 'nonsense'\ndef add(a, b): return 99",
    "sends depth": (
        "import sys\nclass S:\n    loads = sys.modules['__main__'].json.loads\n    @staticmethod\n"
        "    def dumps(m): return '[' * 100000\nsys.modules['__main__'].json = S\ndef add(a, b): return 99"
    ),
    "names a module": (
        "import sys\nmain = sys.modules['__main__']\n"
        "main._answer = lambda *a: ['ok', ['ref', {'module': 'os'}], None]\ndef add(a, b): return 99"
    ),
    "names a module that is not there": (
        "import sys\nmain = sys.modules['__main__']\n"
        "main._answer = lambda *a: ['ok', ['ref', {'module': 'os.nothing'}], None]\ndef add(a, b): return 99"
    ),
    "kills": "import os, signal\ndef add(a, b): os.kill(os.getppid(), 9); os.kill(os.getpid(), 9)",
}


@needs_sandbox
def test_no_cheat_passes(code: Code) -> None:
    row = {
        "test_list": [
            "assert add(1, 3) == 4, 'wanted 4'",
            "assert set([add(5, 5)]) == set([10])",
            "assert add(6, 5) == 11",
        ]
    }
    verdicts = scores(code, [(row, cheat) for cheat in CHEATS.values()])
    assert {name: score for name, score in zip(CHEATS, verdicts, strict=True) if score.reward != 0.0} == {}


@needs_sandbox
def test_an_answer_too_large_or_too_late_is_a_failed_test() -> None:
    code = Code(allow=True, timeout_seconds=60.0, memory_mib=200, cpu_seconds=1)
    large, at_call, at_import, on_stdin = scores(code, [
        (MBPP, "def add(a, b): return [0] * (1 << 24)"),
        (MBPP, "def add(a, b):\n    while True: pass"),
        (MBPP, "while True: pass"),
        ({"tests": PAIRS["tests"][:1]}, "while True: pass"),
    ])  # fmt: skip
    assert large.reward == at_call.reward == on_stdin.reward == 0.0
    assert at_import == Score(0.0, {"passed": 0.0, "ran": 0.0, "import_failed": 0.0})
    hurried = Code(allow=True, timeout_seconds=0.5, partial=True)
    assert hurried(prompt(APPS), fenced("import time; time.sleep(1000)")).reward == 0.0


@needs_sandbox
def test_all_or_nothing_unless_partial(code: Code) -> None:
    strict = Code(allow=True, timeout_seconds=60.0)
    half = fenced("def add(a, b): return 3")
    assert strict(prompt(MBPP), half) == Score(0.0, {"passed": 1 / 3, "ran": 1.0, "import_failed": 0.0})
    right = Score(1.0, {"passed": 1.0, "ran": 1.0, "import_failed": 0.0})
    assert strict(prompt(MBPP), fenced("def add(a, b): return a + b")) == right
    assert strict(prompt(MBPP), "I do not know.") == Score(0.0, {"passed": 0.0, "ran": 0.0, "import_failed": 0.0})
    assert code(prompt({}, json.dumps(MBPP["test_list"])), half).reward == pytest.approx(1 / 3), "in the answer column"


@needs_sandbox
def test_what_a_test_cannot_do_is_an_error_and_not_a_zero(code: Code) -> None:
    hands_over_code = "try:\n    assert f(lambda x: x) == 1\nexcept Exception:\n    pass"
    with pytest.raises(ValueError, match="class function.*only plain values"):
        code(prompt(case(hands_over_code)), fenced("def f(g): return 1"))
    with pytest.raises(RuntimeError, match="No space left"):
        Code(allow=True, scratch_mib=1)(prompt(case(f"x = '{'x' * (1 << 21)}'")), fenced("x = 1"))


@needs_sandbox
def test_other_commands() -> None:
    shell = Code(allow=True, command=["/bin/sh", "{file}"], file_name="run.sh", timeout_seconds=60)
    assert shell(prompt(PAIRS), "```sh\nread a b; echo $((a + b))\n```").reward == 1.0
    assert shell(prompt(PAIRS), "<answer>read a b; echo $((a - b))</answer>").reward == 0.0
    with pytest.raises(ValueError, match="stdin tests"):
        shell(prompt(MBPP), "```sh\ntrue\n```")
    packages = Code(allow=True, site_packages=True, timeout_seconds=60, memory_mib=2000)
    assert packages(prompt(PAIRS), fenced(f"import pytest\n{SUM}")).reward == 1.0


@needs_sandbox
@pytest.mark.parametrize("packages", [False, True])
def test_a_package_that_is_not_there_is_told(code: Code, packages: bool) -> None:
    """By the program's part, or, where a test wants it, by the sample's status."""
    ours = Code(allow=True, partial=True, timeout_seconds=60.0, site_packages=True) if packages else code
    for row, program, ran in (
        (PAIRS, f"import numpy as np\n{SUM}", 1.0),
        (MBPP, "import numpy as np\ndef add(a, b): return np.add(a, b)", 0.0),
        (CALLS, "def add(a, b):\n    import numpy as np\n    return np.add(a, b)", 1.0),
    ):
        passes, fails = {"passed": 1.0, "ran": 1.0}, {"passed": 0.0, "ran": ran}
        parts = (passes if packages else fails) | {"import_failed": float(not packages)}
        assert ours(prompt(row), fenced(program)) == Score(float(packages), parts)
    test = case("import numpy as np\nassert np.isclose(f(), 3)")
    if packages:
        assert ours(prompt(test), fenced("def f(): return 3.0")).reward == 1.0
    else:
        with pytest.raises(ValueError, match="a test imports numpy, which is not there; .*site_packages"):
            ours(prompt(test), fenced("def f(): return 3.0"))


@needs_sandbox
def test_every_name_given_to_programs_is_there(code: Code) -> None:
    """In the sandbox's interpreter; and they are those that the benchmarks' harnesses give."""
    names = given_names()
    assert names.items() >= {
        "List": "typing.List", "Counter": "collections.Counter", "heappush": "heapq.heappush", "heapq": "heapq",
        "bisect": "bisect", "datetime": "datetime", "time": "time", "inf": "math.inf", "cache": "functools.cache",
        "ascii_lowercase": "string.ascii_lowercase", "exit": "sys.exit", "accumulate": "itertools.accumulate",
    }.items()  # fmt: skip
    assert not names.keys() & {"pow", "open", "sum", "print", "numpy", "np"}
    assert code(prompt(PAIRS), fenced(f"found = [{', '.join(names)}]\n{SUM}")).reward == 1.0


def test_only_what_a_program_names_is_imported() -> None:
    """Importing all of it takes longer than most tests."""
    assert prelude("x = deque()").splitlines() == [
        "import builtins", "import collections", "import sys", "builtins.deque = collections.deque",
        "sys.setrecursionlimit(50000)",
    ]  # fmt: skip


def test_off_unless_switched_on() -> None:
    with pytest.raises(ConfigError, match=r"reward\.args\.code\.allow=true"):
        Code()
    with pytest.raises(ConfigError, match=r"reward\.args\.code\.allow"):
        Code(allow="yes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"\{file\}"):
        Code(allow=True, command=["node"])
    with pytest.raises(ConfigError, match="file_name"):
        Code(allow=True, file_name="../x")


def test_no_sandbox_no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "missing", lambda: "the kernel refused: everything")
    with pytest.raises(ConfigError, match="the kernel refused: everything"):
        Code(allow=True)


PROGRAMS = {
    "```python\na\n```": "a",
    "```py\na\n```\nthen\n```Python\nb\n```\nso": "b",
    "```python\na\n```\noutput:\n```\nb\n```": "a",
    "```\na\n```": "a",
    "```python\na": None,
    "```python\nunclosed\n```python\nb\n```": "b",
    "1. so\n   ```python\n   if a:\n       b\n   ```": "if a:\n    b",
    "<answer>a = 1\nb</answer>": "a = 1\nb",
    "<answer>a</answer> or <answer>\nb\n</answer>": "b",
    "<answer>\n```python\na\n```\n</answer>": "a",
    "<answer>```python\na\n    b\n```</answer>": "a\n    b",
    "So: <answer>```python\na\n```</answer> Done.": "a",
    "```python\na\n```\n<answer>```python\nb\n```</answer>": "b",
    "```python\n    if a:\n        b\n```": "if a:\n    b",
    "   ```python\nif a:\n  b\n   ```": "if a:\n  b",
    "    return a": None,
    "<answer>a": None,
    "<answer> </answer>": None,
    "a": None,
    "```" + "`" * 100_000 + "python" * 100_000: None,
}


def test_the_program_of_a_response() -> None:
    found = {response: program_of(response, python=True) for response in PROGRAMS}
    assert {r[:100]: (found[r], program) for r, program in PROGRAMS.items() if found[r] != program} == {}


BODIES = {  # the prompt begins half
    "```python\n    return x\n```": "    return x",
    "```python\n\n    y = x\n    return y\n```": "\n    y = x\n    return y",
    "- so\n  ```python\n      return x\n  ```": "    return x",
    "- so\n  ```python\n  def half(x):\n      return x\n  ```": "def half(x):\n    return x",
    "```python\n    import math\n    def half(x):\n        return x\n```": "import math\ndef half(x):\n    return x",
    "```python\n    def halfway(x):\n        return x\n```": "    def halfway(x):\n        return x",
    "```python\ndef half(x):\n    return x\n```": "def half(x):\n    return x",
    "<answer>\n    return x\n</answer>": "    return x",
    "<answer>```python\n    return x\n```</answer>": "    return x",
    "    return x\n": "    return x\n",
    "\n\treturn x": "\n\treturn x",
    "    def half(x):\n        return x": None,
    "return x": None,
    "": None,
}


def test_the_rest_of_a_function_that_the_prompt_begins() -> None:
    assert {response: program_of(response, python=True, begun="half") for response in BODIES} == BODIES


@needs_sandbox
@pytest.mark.parametrize("response", [fenced("    return x / 2"), "    return x / 2\n"])
def test_humaneval_bodies_run(code: Code, response: str) -> None:
    assert code(prompt(HUMANEVAL), response) == Score(1.0, {"passed": 1.0, "ran": 1.0, "import_failed": 0.0})


@needs_sandbox
def test_a_body_that_is_wrong_is_run_and_gets_nothing(code: Code) -> None:
    assert code(prompt(HUMANEVAL), fenced("    return x")) == Score(
        0.0, {"passed": 0.0, "ran": 1.0, "import_failed": 0.0}
    )


def test_the_program_in_another_language_is_the_last_block() -> None:
    assert program_of("```python\na\n```\n```c\nb\n```", python=False) == "b"


@pytest.mark.parametrize(
    ("got", "want", "tolerance", "same"),
    [
        ("3\n", "3", 0, True),
        ("3  \n\n", "3\n", 0, True),
        ("1 2\n3", "1 2\n4", 0, False),
        ("1\n2", "1 2", 0, True),
        ("1.0", "1", 0, True),
        ("0.333333", "0.3333333333", 0, False),
        ("0.333333", "0.3333333333", 1e-5, True),
        ("YES", "yes", 0, False),
        ("nan", "nan", 0, True),
        ("nan", "1", 1e9, False),
        ("inf", "1", 1e-6, False),
        ("1e999999999", "1", 0, False),
        ("9" * 200, "9" * 199 + "8", 0.5, False),
        ("", "1", 0, False),
        ("", "", 0, True),
        ("1 1", "1", 0, False),
    ],
)
def test_outputs_agree(got: str, want: str, tolerance: float, same: bool) -> None:
    assert same_output(got, want, tolerance) is same


@pytest.mark.parametrize("row", [MBPP, APPS, CALLS, LCB, PAIRS, HUMANEVAL, LEETCODE])
def test_gold_of_every_form(row: dict[str, Any]) -> None:
    code_gold(prompt(row))
    assert len(read_tests(prompt(row))) > 0


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({}, "none of the columns"),
        ({"tests": []}, "column tests: an empty list"),
        ({"tests": 5}, "column tests: int 5"),
        ({"tests": ["assert ("]}, r"column tests: 'assert \('.*not Python"),
        ({"test_list": ["# nothing"]}, "column test_list: test 0 is empty"),
        ({"test_list": ["assert f()"], "test_setup_code": "import ("}, "column test_setup_code"),
        ({"input_output": '{"inputs": ["1"], "outputs": []}'}, "column input_output: .*one length"),
        ({"input_output": '{"inputs": [], "outputs": []}'}, "not empty"),
        ({"input_output": '{"inputs": [1], "outputs": [2]}'}, "neither a text nor a list of lines"),
        ({"input_output": {"inputs": ["x"], "outputs": ["1"], "fn_name": "f"}}, "not JSON"),
        ({"input_output": {"inputs": [3], "outputs": [1], "fn_name": "f"}}, "not a list of arguments"),
        ({"input_output": {"inputs": [[3]], "outputs": [1], "fn_name": "f;g"}}, "fn_name 'f;g'"),
        ({"test": "def check(c): pass", "entry_point": "f(); g"}, "column entry_point"),
        ({"test": "def test(c): pass", "entry_point": "f"}, "column test: .*check"),
        ({"test": "def check(c) pass", "entry_point": "f"}, "column test: .*not Python"),
    ],
)
def test_gold_that_cannot_be_read(row: dict[str, Any], says: str) -> None:
    with pytest.raises(UnparseableGold, match=re.compile(says, re.DOTALL)):
        code_gold(prompt(row))


def test_values_go_over_the_wire_as_they_are() -> None:
    values = [None, True, 1, -(10**30), 2.5, "ü\ud800", (1, [2]), {1: {2}}, {(1, 2): "x"}, 1j, b"\0", range(3)]
    for value in values:
        back = decode(json.loads(json.dumps(encode(value, None))), None)
        assert back == value and type(back) is type(value)
