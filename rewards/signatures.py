"""The forms a reward function may have, and what is made of what it returns: docs/rewards.md, "Your own function".

plain `fn(prompt, response)`, batch `fn(prompts, responses)`, TRL's `fn(prompts, completions, **columns)` and veRL's
`fn(data_source, solution_str, ground_truth, extra_info)`, each also as `async def` or as a class with `__call__`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_type_hints

from rewards import BUILTIN
from rewards.outcomes import checked, listed
from rlcore.data.cells import as_text
from rlcore.errors import ConfigError, UnparseableGold, nearest
from rlcore.isolated.outcome import BadValue, Outcome, failure, last_line
from rlcore.isolated.rule import Call, Submission
from rlcore.plugins import plugin
from rlcore.records import Prompt, Response

SHAPES = ("plain", "batch", "trl", "verl")
_FORMS = (
    "fn(prompt, response), fn(prompts, responses), TRL's fn(prompts, completions, **columns), "
    "veRL's fn(data_source, solution_str, ground_truth, extra_info)"
)
_SAMPLE = {  # parameters that hold the sample; those of other plain functions are the first two
    "batch": ("prompts", "responses"),
    "trl": ("prompts", "completions"),
    "verl": ("data_source", "solution_str", "ground_truth", "extra_info"),
}
_PAIRS = (("prompt", "response"), ("prompts", "responses"))
_IS_RESPONSE = {"response", "completion", "generation", "prediction", "output"}
_IS_PROMPT = {"prompt", "question", "problem"}
_IS_GOLD = {"ground_truth", "gold", "label", "reference", "target", "solution"}
_OF_RESPONSE = ("response_tokens", "finish")
_NOT_COLUMNS = ("prompt", "completion", "completion_ids")  # TRL passes these under other names
_OF_TRL_TRAINER = ("completion_ids", "trainer_state", "log_extra", "log_metric")


class Fn(NamedTuple):
    """One reward function as the config names it.

    name  in parts, status and messages
    spec  a name of rewards.BUILTIN, a dotted path, file.py:function or file.py:Class
    args  its options, keyword arguments; the key "signature" is the shape: auto, plain, batch, trl, verl
    """

    name: str
    spec: str
    args: dict[str, Any] = {}


@dataclass
class LoadedFn:
    """A function with its options, ready to be called: a Rule of rlcore/isolated."""

    name: str
    fn: Callable[..., Any]
    shape: str  # one of SHAPES
    asynchronous: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    given: tuple[str, ...] = ()  # its parameters among `response_tokens` and `finish`
    by_name: tuple[str, ...] = ()  # of plain and batch: what prompt and response are called, where these are our names
    columns: frozenset[str] | None = None  # of trl and verl: the names it takes, None for all
    needed: frozenset[str] = frozenset()  # of trl: those of its columns that have no default

    @property
    def many(self) -> bool:
        """Whether one call scores several submissions."""
        return self.shape in ("batch", "trl")

    def calls(self, submissions: Sequence[Submission]) -> list[Call]:
        """The calls that score these: one, or for trl one for those of each set of columns."""
        prompts = [s.prompt for s in submissions]
        texts = [s.response.text for s in submissions]
        filled: dict[str, Any] = {name: [_of_response(name, s.response) for s in submissions] for name in self.given}
        if self.shape == "trl":
            return [_trl_call(self, submissions, index) for index in _by_columns(prompts)]
        everything = list(range(len(submissions)))
        if self.shape == "batch":
            return [self._call(everything, prompts, texts, filled)]
        assert len(submissions) == 1
        filled = {name: values[0] for name, values in filled.items()}
        if self.shape == "verl":
            return [Call(everything, (), _verl_arguments(prompts[0], texts[0], self.columns) | self.options | filled)]
        return [self._call(everything, prompts[0], texts[0], filled)]

    def _call(self, index: list[int], prompt: Any, response: Any, filled: dict[str, Any]) -> Call:
        """By name where the names are ours, else the prompt first."""
        if not self.by_name:
            return Call(index, (prompt, response), self.options | filled)
        return Call(index, (), dict(zip(self.by_name, (prompt, response), strict=True)) | self.options | filled)

    def outcomes(self, submissions: Sequence[Submission], results: Sequence[tuple[Call, Any]]) -> list[Outcome]:
        """What the calls returned, as one outcome a submission; BadValue where a list as a whole is wrong."""
        found = [Outcome(None)] * len(submissions)
        for call, value in results:
            items = listed(self.name, value, len(call.index)) if self.many else [value]
            for at, item in zip(call.index, items, strict=True):
                found[at] = self._outcome(item, at)
        return found

    def _outcome(self, value: Any, at: int) -> Outcome:
        if self.many and value is None:
            return Outcome(None)
        if self.many and isinstance(value, Exception):
            return failure(value)
        try:
            score = checked(self.name, value, f" at index {at}" if self.many else "")
        except BadValue as e:
            return failure(e)
        return Outcome(score.reward, score.parts)


def load(spec: str) -> Any:
    """What stands behind a built-in name, a dotted path or `file.py:name`; ConfigError says why there is nothing."""
    try:
        return plugin(BUILTIN.get(spec, spec), "reward.fns")
    except ConfigError:
        raise
    except BaseException as e:
        raise ConfigError(f"reward.fns: {spec} cannot be loaded: {last_line(e)}") from e


def load_rule(fn: Fn, context: Mapping[str, Any] | None = None) -> LoadedFn:
    """The function of `fn` with its shape and options, ready to be called; a class is made an object here.

    `context`: keyword arguments given to every function that has a parameter of that name. ConfigError names the
    function and says what is wrong: not to be loaded, an unknown or missing option, no known shape.
    """
    args = dict(fn.args)
    shape = args.pop("signature", "auto")
    if shape not in ("auto", *SHAPES):
        raise ConfigError(f"reward.args.{fn.name}.signature: {shape!r} is none of auto, {', '.join(SHAPES)}")
    target, context = load(fn.spec), context or {}
    if fn.spec in BUILTIN:
        _require_types(fn.name, target, args)
    if inspect.isclass(target):
        options = _options(fn.name, args, _parameters(target), (), context)
        try:
            target = target(**options)
        except ConfigError:
            raise
        except BaseException as e:
            raise ConfigError(f"reward.fns: {fn.name}: making a {fn.spec} raised {last_line(e)}") from e
        if not callable(target):
            raise ConfigError(f"reward.fns: {fn.name}: objects of {fn.spec} cannot be called; give it a __call__")
        args = {}
    parameters = _parameters(target)
    if shape == "auto":
        shape = _detect(fn.name, parameters)
    return _rule(fn.name, target, shape, args, parameters, context)


def gold_rule(name: str, check: Callable[[Prompt], None]) -> LoadedFn:
    """A check of rewards.GOLD as a batch rule: of each prompt None, or the UnparseableGold that it raises."""

    def checks(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[UnparseableGold | None]:
        return [_unparseable(check, prompt) for prompt in prompts]

    return LoadedFn(name, checks, "batch")


def _unparseable(check: Callable[[Prompt], None], prompt: Prompt) -> UnparseableGold | None:
    try:
        check(prompt)
    except UnparseableGold as e:
        return e
    return None


def _rule(
    name: str,
    target: Callable[..., Any],
    shape: str,
    args: dict[str, Any],
    parameters: Mapping[str, inspect.Parameter] | None,
    context: Mapping[str, Any],
) -> LoadedFn:
    own = _named(parameters or {})
    by_name = next((pair for pair in _PAIRS if shape in ("plain", "batch") and own.keys() >= set(pair)), ())
    taken = by_name or _SAMPLE.get(shape) or _positional(parameters or {})[:2]
    options = _options(name, args, parameters, taken, context, needs_all=shape != "trl")
    given = tuple(n for n in _OF_RESPONSE if n in own and n not in options)
    rule = LoadedFn(name, target, shape, _is_async(target), options, given, by_name)
    if parameters is None or shape not in ("trl", "verl"):
        return rule
    if not _takes_any(parameters):
        rule.columns = frozenset(own)
    if shape == "trl":
        given = {*taken, *options, *rule.given}
        rule.needed = frozenset(n for n, p in own.items() if p.default is p.empty and n not in given)
        if impossible := rule.needed.intersection(_OF_TRL_TRAINER):
            what = ", ".join(sorted(impossible))
            raise ConfigError(f"reward.fns: {name} needs {what}, which only TRL's trainer has; give it a default")
    return rule


def _require_types(name: str, target: Any, args: Mapping[str, Any]) -> None:
    """ConfigError for an option of a built-in function whose value is not of its annotated type."""
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    for option, value in args.items():
        hint = hints.get(option)
        if hint not in (int, float, str, bool):  # a list, or one of several: the function itself says
            continue
        fits = isinstance(value, (int, float) if hint is float else hint)
        if not fits or (isinstance(value, bool) and hint is not bool):
            raise ConfigError(f"reward.args.{name}.{option}: {value!r} is not {hint.__name__}")


def _is_async(target: Any) -> bool:
    target = getattr(target, "func", target)  # of functools.partial
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(type(target).__call__)


def _parameters(target: Any) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(target).parameters
    except (ValueError, TypeError):  # some written in C have none
        return None


def _named(parameters: Mapping[str, inspect.Parameter]) -> dict[str, inspect.Parameter]:
    return {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _positional(parameters: Mapping[str, inspect.Parameter]) -> tuple[str, ...]:
    return tuple(n for n, p in parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def _takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _detect(name: str, parameters: Mapping[str, inspect.Parameter] | None) -> str:
    """The shape that these parameters' names say."""
    names = set(parameters or {})
    if "solution_strs" in names:
        raise ConfigError(
            f"reward.fns: {name} has veRL's batch form (data_sources, solution_strs, ground_truths, extra_infos), "
            "which is not supported; write it for one sample a call, like veRL's "
            "compute_score(data_source, solution_str, ground_truth, extra_info), or as fn(prompts, responses)"
        )
    if names & {"completions", "completion_ids"}:
        return "trl"
    if "solution_str" in names:
        return "verl"
    if {"prompts", "responses"} <= names:
        return "batch"
    first = _positional(parameters or {})[:2]
    if len(first) == 2 and not {"prompt", "response"} <= names:
        if first[0] in _IS_RESPONSE or first[1] in _IS_PROMPT | _IS_GOLD:
            raise ConfigError(
                f"reward.fns: {name} begins with ({', '.join(first)}), but is called with the prompt first and the "
                f"response second; the gold answer is prompt.answer. If only the names mislead, set "
                f"reward.args.{name}.signature=plain"
            )
    if len(first) == 2:
        return "plain"
    seen = "has no readable parameters" if parameters is None else f"has the parameters ({', '.join(parameters)})"
    options = [n for n, p in (parameters or {}).items() if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if sample := [n for n in options if n not in _OF_RESPONSE]:
        seen += f", but {sample[0]} is keyword-only, as an option is; if it is none, remove the * before it"
    raise ConfigError(
        f"reward.fns: {name} {seen}; it is called as fn(prompt, response), the first of: {_FORMS}. "
        f"reward.args.{name}.signature names one: {', '.join(SHAPES)}"
    )


def _options(
    name: str,
    args: Mapping[str, Any],
    parameters: Mapping[str, inspect.Parameter] | None,
    taken: Sequence[str],
    context: Mapping[str, Any],
    needs_all: bool = True,
) -> dict[str, Any]:
    """The keyword arguments of every call: `args`, which must be parameters, and what of `context` it asks for."""
    if parameters is None:
        return dict(args)
    own = {n: p for n, p in _named(parameters).items() if n not in taken}
    offered = [n for n in own if n not in _OF_RESPONSE and n not in context]
    for option in args:
        if option in own or (_takes_any(parameters) and option not in taken):
            continue
        have = f"its options: {', '.join(offered)}" if offered else "it has none"
        raise ConfigError(f"reward.args.{name}.{option}: {name} has no such option{nearest(option, offered)} ({have})")
    options = {n: v for n, v in context.items() if n in own} | dict(args)
    missing = [n for n, p in own.items() if p.default is p.empty and n not in options and n not in _OF_RESPONSE]
    if missing and needs_all:
        raise ConfigError(f"reward.args.{name}.{missing[0]}: {name} needs this option; it has no default")
    return options


def _of_response(name: str, response: Response) -> int | str:
    return response.tokens if name == "response_tokens" else response.finish


def _by_columns(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Positions of the prompts of one kind, and of one set of columns: a verdict must not depend on its neighbours."""
    kinds: dict[Any, list[int]] = {}
    for i, prompt in enumerate(prompts):
        kinds.setdefault((frozenset(prompt.row), _conversational(prompt)), []).append(i)
    return list(kinds.values())


def _conversational(prompt: Prompt) -> bool:
    """Whether the row's prompt is a list of messages, not text."""
    lists = [v for v in prompt.row.values() if isinstance(v, list) and v]
    return any(all(isinstance(m, dict) and "role" in m and "content" in m for m in value) for value in lists)


def _trl_call(rule: LoadedFn, submissions: Sequence[Submission], index: list[int]) -> Call:
    chosen = [submissions[i] for i in index]
    first = chosen[0].prompt
    kwargs: dict[str, Any] = {}
    if _conversational(first):
        kwargs["prompts"] = [s.prompt.messages for s in chosen]
        kwargs["completions"] = [[{"role": "assistant", "content": s.response.text}] for s in chosen]
    else:
        kwargs["prompts"] = [s.prompt.messages[-1]["content"] if s.prompt.messages else "" for s in chosen]
        kwargs["completions"] = [s.response.text for s in chosen]
    for column in first.row:
        if column not in _NOT_COLUMNS:
            kwargs.setdefault(column, [s.prompt.row[column] for s in chosen])
    if rule.columns is not None:
        kwargs = {n: v for n, v in kwargs.items() if n in rule.columns}
    if missing := rule.needed.difference(kwargs):
        raise ValueError(
            f"{rule.name} takes the column {min(missing)!r}, which {first.id} does not have; "
            f"its columns: {', '.join(first.row) or 'none'}"
        )
    filled = {name: [_of_response(name, s.response) for s in chosen] for name in rule.given}
    return Call(index, (), kwargs | rule.options | filled)


def _verl_arguments(prompt: Prompt, text: str, accepted: frozenset[str] | None) -> dict[str, Any]:
    row = prompt.row
    arguments = {
        "data_source": row.get("data_source", prompt.id.rpartition(":")[0]),
        "solution_str": text,
        "ground_truth": _ground_truth(prompt),
        "extra_info": _mapping(prompt, "extra_info"),
    }
    return {n: v for n, v in arguments.items() if accepted is None or n in accepted}


def _ground_truth(prompt: Prompt) -> Any:
    """The gold answer that every rule sees; where it is the field of veRL's record, as it stands there."""
    if prompt.row.get("reward_model"):
        value = _mapping(prompt, "reward_model").get("ground_truth")
        if value is not None and as_text(value) == prompt.answer:
            return value
    return prompt.answer


def _mapping(prompt: Prompt, column: str) -> dict[str, Any]:
    """A cell that is a mapping, {} if there is none. A CSV file has it as JSON."""
    value = prompt.row.get(column)
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as e:
            raise ValueError(f"{prompt.id}: column {column} is text, but not JSON: {value[:80]!r}") from e
    if not value:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{prompt.id}: column {column} is {type(value).__name__}, not a mapping")
    return value
