"""The two programs of a function's tests; whoever runs them copies this file into two sandboxes.

`harness.py candidate IN OUT` loads the model's program and answers calls; `harness.py judge IN OUT` runs the tests,
whose calls go over the pipe to the candidate, a message being one line of JSON. So neither tests nor verdict are in a
process that the model's program runs in: docs/isolation.md. Standard library only; nothing of rlcore is imported.
"""

from __future__ import annotations

import builtins
import contextlib
import datetime
import decimal
import fractions
import functools
import importlib
import json
import math
import operator
import os
import runpy
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

_MESSAGE_BYTES = 64 << 20  # of one answer
_TEXT_CLASSES = {c.__name__: c for c in (decimal.Decimal, fractions.Fraction)}
_DATES = {c.__name__: c for c in (datetime.datetime, datetime.date, datetime.time)}
_LISTS: dict[str, Any] = {c.__name__: c for c in (list, tuple, set, frozenset)}


class Unsupported(BaseException):
    """A test hands over what cannot go to the other process. Not the model's fault, so no except clause hides it."""


def encode(value: Any, refer: Any) -> Any:
    """`value` as JSON: plain values by content, any other through `refer(value)`."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    for name, kind in _LISTS.items():
        if isinstance(value, kind):
            return [name, [encode(v, refer) for v in kind.__iter__(value)]]
    if isinstance(value, dict):
        return ["dict", [[encode(k, refer), encode(v, refer)] for k, v in dict.items(value)]]
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", list(value)]
    if isinstance(value, range):
        return ["range", [value.start, value.stop, value.step]]
    if type(value).__name__ in _TEXT_CLASSES and isinstance(value, tuple(_TEXT_CLASSES.values())):
        return [type(value).__name__, str(value)]
    if type(value).__name__ in _DATES and isinstance(value, tuple(_DATES.values())):
        return [type(value).__name__, value.isoformat()]
    if hasattr(value, "tolist") and hasattr(value, "dtype"):  # an array or a number of numpy
        return encode(value.tolist(), refer)
    return ["ref", refer(value)]


def decode(message: Any, resolve: Any) -> Any:
    """The value of `encode`'s JSON; a reference through `resolve`."""
    if not isinstance(message, list):
        return message
    name, content = message
    if name in _LISTS:
        return _LISTS[name](decode(v, resolve) for v in content)
    if name == "dict":
        return {decode(k, resolve): decode(v, resolve) for k, v in content}
    if name == "complex":
        return complex(*content)
    if name == "bytes":
        return bytes(content)
    if name == "range":
        return range(*content)
    if name in _TEXT_CLASSES:
        return _TEXT_CLASSES[name](content)
    if name in _DATES:
        return _DATES[name].fromisoformat(content)
    if name == "ref":
        return resolve(content)
    raise ValueError(f"no value is called {name!r}")


def _send(out: BinaryIO, message: Any) -> None:
    out.write(json.dumps(message).encode() + b"\n")
    out.flush()


# --- the candidate's side -------------------------------------------------------------------------------------------


class Objects:
    """What the judge was given references to."""

    def __init__(self) -> None:
        self._kept: list[Any] = []

    def refer(self, value: Any) -> Any:
        if isinstance(value, type(math)):
            return {"module": value.__name__}
        self._kept.append(value)
        return {"number": len(self._kept) - 1, "class": type(value).__name__}

    def resolve(self, reference: Any) -> Any:
        return self._kept[reference["number"]]


def candidate(requests: BinaryIO, answers: BinaryIO) -> None:
    """Load solution.py as a module, say which names it has, then answer the judge's requests until it is gone."""
    objects = Objects()
    sys.path.append(os.getcwd())
    importlib.import_module("prelude")
    try:
        names = vars(importlib.import_module("solution"))
    except BaseException as e:
        _send(answers, _raised(e))
        return
    _send(answers, ["ok", {k: encode(v, objects.refer) for k, v in names.items() if not k.startswith("__")}])
    for line in requests:
        _send(answers, _answer(json.loads(line), objects))


def _answer(request: Any, objects: Objects) -> Any:
    """One call or attribute; with it the arguments, where the call has changed them."""
    what, target, name, args, kwargs = request
    try:
        found = objects.resolve(target)
        if what == "get":
            return ["ok", encode(getattr(found, name), objects.refer), None]
        if what == "operate":
            found = functools.partial(_OPERATIONS[name], found)
        given = [decode(a, objects.resolve) for a in args]
        value = found(*given, **{k: decode(v, objects.resolve) for k, v in kwargs.items()})
        result = encode(value, objects.refer)
        changed = [encode(g, objects.resolve) if _mutable(g) else a for g, a in zip(given, args, strict=True)]
        return ["ok", result, changed if changed != args else None]
    except BaseException as e:
        return _raised(e)


def _raised(e: BaseException) -> Any:
    """An exception by the name of its nearest built-in class, and its text."""
    name = next(c.__name__ for c in type(e).__mro__ if c.__module__ == "builtins")
    return ["raise", name, str(e)[:500]]


_OPERATIONS: dict[str, Any] = {
    **{f.__name__: f for f in (bool, len, iter, next, str, repr, int, float)},
    **{f.__name__: f for f in (operator.getitem, operator.setitem, operator.delitem, operator.contains, operator.neg)},
    **{f.__name__: f for f in (operator.eq, operator.lt, operator.le, operator.gt, operator.ge)},
    **{f.__name__: f for f in (operator.add, operator.sub, operator.mul, operator.truediv)},
}


def _mutable(value: Any) -> bool:
    return isinstance(value, (list, dict, set))


# --- the judge's side -----------------------------------------------------------------------------------------------


class Remote:
    """The candidate, from the judge's side."""

    def __init__(self, answers: BinaryIO, requests: BinaryIO) -> None:
        self._answers, self._requests = answers, requests

    def names(self) -> dict[str, Any]:
        """The names of the model's program: plain values as they are, the rest as references."""
        return {name: decode(value, self.resolve) for name, value in self._next()[1].items()}

    def _next(self) -> Any:
        line = self._answers.readline(_MESSAGE_BYTES)
        if not line.endswith(b"\n"):
            raise EOFError("the program has ended, or its answer is too long")
        answer = json.loads(line)
        if answer[0] == "raise":
            kind = getattr(builtins, str(answer[1]), Exception)
            known = isinstance(kind, type) and issubclass(kind, Exception)
            raise (kind if known else Exception)(str(answer[2]))
        return answer

    def ask(self, what: str, target: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        sent = [encode(a, _reference) for a in args]
        _send(self._requests, [what, target, name, sent, {k: encode(v, _reference) for k, v in kwargs.items()}])
        _, value, changed = self._next()
        for arg, after in zip(args, changed or (), strict=False):
            if _mutable(arg):
                _overwrite(arg, decode(after, self.resolve))
        return decode(value, self.resolve)

    def resolve(self, reference: Any) -> Any:
        if "module" in reference:
            # A test may lean on an import of the program; it gets the real module, of the standard library only.
            name = str(reference["module"])
            with contextlib.suppress(ImportError):  # a name that the program has made up is not the test's fault
                return importlib.import_module(name) if name.partition(".")[0] in sys.stdlib_module_names else None
            return None
        return Reference(self, reference)


def _reference(value: Any) -> Any:
    if isinstance(value, Reference):
        return value._reference
    raise Unsupported(
        f"a test hands an object of class {type(value).__name__} to the program: only plain values can go"
    )


def _overwrite(value: Any, after: Any) -> None:
    if type(value) is not type(after) or value == after:
        return
    if isinstance(value, list):
        value[:] = after
    else:
        value.clear()
        value.update(after)


class Reference:
    """An object that stays in the candidate. It equals nothing but, if its class says so, another one from there."""

    def __init__(self, remote: Remote, reference: Any) -> None:
        self._remote, self._reference = remote, reference

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._remote.ask("call", self._reference, "", args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._remote.ask("get", self._reference, name, (), {})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reference) and self._operate("eq", other) is True

    def __hash__(self) -> int:
        return id(self)

    def __iter__(self) -> Iterator[Any]:
        iterator = self._operate("iter")
        while True:
            try:
                yield iterator._operate("next")
            except StopIteration:
                return

    def _operate(self, name: str, *args: Any) -> Any:
        return self._remote.ask("operate", self._reference, name, args, {})


for _name in _OPERATIONS.keys() - {"iter", "eq"}:
    setattr(Reference, f"__{_name}__", functools.partialmethod(Reference._operate, _name))


def judge(answers: BinaryIO, requests: BinaryIO, verdicts: int) -> None:
    """Run the cases of cases.json in order. One line each: "1" passed, "0" not, "? why" the test itself cannot be run.

    First comes "R" when the cases are read, then "L" when the program could be loaded; "M" before or after it says that
    the program wanted a module that is not there. Stops at the first that does not pass unless "all" is set.
    """
    with open("cases.json", "rb") as f:
        spec = json.loads(f.read())
    os.write(verdicts, b"R\n")
    remote = Remote(answers, requests)
    try:
        names = remote.names()
    except Exception as e:
        if isinstance(e, ModuleNotFoundError):
            os.write(verdicts, b"M\n")
        return
    os.write(verdicts, b"L\n")
    for case in spec["cases"]:
        try:
            passed = _passes(case, names, spec["tolerance"])
        except Unsupported as e:
            os.write(verdicts, f"? {e}\n".encode())
            return
        except BaseException as e:
            if isinstance(e, ModuleNotFoundError):
                os.write(verdicts, b"M\n")
            passed = False
        os.write(verdicts, b"1\n" if passed else b"0\n")
        if not passed and not spec["all"]:
            return


def _passes(case: dict[str, Any], names: dict[str, Any], tolerance: float) -> bool:
    """A case is a file of statements, a file that defines check(candidate), or a call and the values it may give."""
    if "call" in case:
        got = _entry(case["call"], names)(*case["args"])
        return any(same(got, want, tolerance) for want in case["wants"])
    # The test's own names win over the program's, and the built-in ones do: a program that calls its function `set`
    # would decide what the test compares.
    given = {k: v for k, v in names.items() if not hasattr(builtins, k) or k in case["tested"]}
    try:
        defined = runpy.run_path(case["file"], init_globals=given, run_name="test")
        if "check" in case:
            defined["check"](_entry(case["check"], names))
    except ModuleNotFoundError as e:
        if e.name is None:  # the candidate's, see Remote._next
            raise
        raise Unsupported(f"a test imports {e.name}, which is not there; see reward.args.code.site_packages") from e
    return True


def _entry(path: str, names: dict[str, Any]) -> Any:
    """`add`, or `Solution().add`; a bare name that only a class Solution has is looked up there."""
    first, _, method = path.partition("().")
    if first not in names and not method and "Solution" in names:
        first, method = "Solution", first
    return getattr(names[first](), method) if method else names[first]


def same(got: Any, want: Any, tolerance: float) -> bool:
    """Equality of JSON-like values: tuples are lists, a key of a dict may be text; numbers within `tolerance`."""
    if isinstance(got, (list, tuple)) and isinstance(want, (list, tuple)):
        return len(got) == len(want) and all(same(g, w, tolerance) for g, w in zip(got, want, strict=True))
    if isinstance(got, dict) and isinstance(want, dict):
        texts = {str(k): v for k, v in got.items()}
        return len(texts) == len(want) and all(
            str(k) in texts and same(texts[str(k)], want[k], tolerance) for k in want
        )
    if isinstance(got, bool) or isinstance(want, bool):
        return got is want
    if isinstance(got, (int, float)) and isinstance(want, (int, float)):
        return got == want or math.isclose(got, want, rel_tol=tolerance, abs_tol=tolerance)
    return type(got) is type(want) and got == want


def main() -> None:
    role, incoming, outgoing = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    verdicts = os.dup(1)
    os.set_inheritable(outgoing, False)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):  # what the program or a test prints is nobody's message
        os.dup2(nothing, fd)
    sys.set_int_max_str_digits(0)
    with os.fdopen(incoming, "rb") as reader, os.fdopen(outgoing, "wb") as writer:
        if role == "candidate":
            candidate(reader, writer)
        else:
            judge(reader, writer, verdicts)


if __name__ == "__main__":
    main()
