"""What a scoring process does with the functions it is told of: load them, try their options, find their gold checks.

`rules` is the loader that rewards/pools.py names; rlcore/isolated calls what it returns.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards import BUILTIN, GOLD
from rewards.signatures import Fn, LoadedFn, gold_rule, load, load_rule
from rlcore.errors import ConfigError
from rlcore.isolated.rule import Rule, Submission
from rlcore.records import Prompt, Response


def rules(fns: Sequence[Sequence[Any]], context: Mapping[str, Any]) -> list[Rule]:
    """Functions, each the fields of an `Fn`, as rules, in order; then the gold checks of those that have one.

    `context`: keyword arguments for all functions that have parameters of these names. Raises ConfigError for a
    function that cannot be loaded or called, or an option that cannot work.
    """
    named = [Fn(*fn) for fn in fns]
    loaded = [load_rule(fn, context) for fn in named]
    for fn, rule in zip(named, loaded, strict=True):
        if fn.spec in BUILTIN and fn.args and not (rule.many or rule.asynchronous):
            _try_options(rule)
    return [*loaded, *(gold_rule(fn.name, _gold_check(fn)) for fn in named if fn.spec in GOLD)]


def _gold_check(fn: Fn) -> Callable[[Prompt], None]:
    """What reads the gold answers of a rule of rewards.GOLD, with those of the rule's options that it has."""
    check = load(GOLD[fn.spec])
    shared = inspect.signature(check).parameters.keys() & fn.args.keys()
    return functools.partial(check, **{option: fn.args[option] for option in shared})


def _try_options(rule: LoadedFn) -> None:
    """Call a built-in rule once: what it says of its options' values is known before the run."""
    submission = Submission(Prompt("", [], ""), Response("one two " * 100, 200))
    try:
        for call in rule.calls([submission]):
            rule.fn(*call.args, **call.kwargs)
    except ConfigError:
        raise
    except (Exception, SystemExit):  # about the submission, which is none
        return
