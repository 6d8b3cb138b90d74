"""`rlcore rewards test FUNCTION --data FILE`: what a reward function says of a few rows, before any run.

Of every row it scores the row's own response, where it has one (text, a number or TRL's list of messages), the gold
answer as if a model had said it, and an empty response: what is right should score, what is empty should not.
"""

from __future__ import annotations

import argparse
import numbers
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from rewards.manager import Result, RewardManager
from rlcore.cli.shell import Arguments
from rlcore.compose.compose import compose_rewards
from rlcore.config import Config, DataConfig
from rlcore.data import opened
from rlcore.data.conversation import as_text, is_message, read_rows
from rlcore.data.layouts import PAIRS, TALKS, choose, response_column
from rlcore.data.messages import normalised
from rlcore.data.preferences import pairs_of
from rlcore.data.prompts import as_prompts, place, tokenized, untokenized
from rlcore.data.sources import Rows, load_rows
from rlcore.errors import ConfigError, DataError, RewardError, nearest
from rlcore.records import Prompt, Response
from rlcore.screen import message, shown

_START_SECONDS = 120.0
_SHOWN = 400  # characters of a text
_LAST = "the assistant's last message"
_EPILOG = """
FUNCTION is a built-in name, FILE.py:function or a dotted path; several are combined as in a run. key=value sets any key
of reward.*, data.* and model.* as in `rlcore train`: reward.weights=[1,0.2] reward.args.NAME.option=1
data.answer_column=answer model.path=MODEL

With model.path or model.tokenizer prompts end as its chat template ends them. What is open there, such as <think>, is
shown, and every response is read after it, as in a run; the response column may begin with it.
"""


def reward_test(args: Sequence[str]) -> int:
    """Runs the command. Raises ConfigError, DataError, or RewardError (exit 3) when a call ended without a score."""
    given = _arguments(args)
    cfg = compose_rewards({"reward.fns": given.functions, "data.train": [given.data]}, given.settings)
    loaded = load_rows(given.data)
    read = _read(loaded, cfg.data)
    everything = read.prompts
    prompts = _with_openings(everything[: given.rows], loaded, cfg, given.settings)
    responses = _responses(loaded, prompts, given.responses, read)
    manager = RewardManager(cfg.reward, cfg.rollout.max_response_tokens)
    try:
        manager.require_sources(everything)
        manager.ready(_START_SECONDS)
        unread = {p.id: why for p, why in manager.unscorable(prompts, _START_SECONDS)}
        asked = [(prompt, text) for prompt, each in zip(prompts, responses, strict=True) for _, text in each]
        results = _score(manager, asked)
        scored = iter(results)
        print(message(f"{read.told}; {len(everything)} rows"))
        for i, prompt in enumerate(prompts):
            print(f"\n== {message(loaded.at(place(prompt)[1]))}")
            _show_prompt(prompt)
            _show("gold", prompt.answer + (f"   (cannot be read: {unread[prompt.id]})" if prompt.id in unread else ""))
            for what, text in responses[i]:
                _show_result(what, text, next(scored))
    finally:
        manager.close()
    calls = len(results)
    if failed := sum(result.reward is None for result in results):
        common, n = manager.errors.most_common(1)[0]
        raise RewardError(
            f"{failed} of {calls} calls ended without a score; commonest, {n} times, for example: {common}"
        )
    print("\nThe gold answer alone may lack the form a rule asks for: a box, tags, an equation.")
    print("Lengths are in words here, in tokens in a run.")
    if cfg.data.chat_template and not _names_a_model(given.settings):
        print("Prompts are not rendered: what a chat template opens, as <think>, is seen with model.path=MODEL.")
    print(f"{calls} calls on {len(prompts)} rows, each ended with a score")
    return 0


def _arguments(args: Sequence[str]) -> argparse.Namespace:
    parser = Arguments(
        prog="rlcore rewards", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("test", choices=["test"])
    parser.add_argument("functions", nargs="+", metavar="FUNCTION|key=value")
    parser.add_argument(
        "--data", required=True, action="append", help="as data.train: a .jsonl, .parquet or .csv file, hub name, ..."
    )
    parser.add_argument("--rows", type=int, default=3, help="how many rows, from the first on (default 3)")
    parser.add_argument("--responses", metavar="COLUMN", help="column with responses (default: response, if there)")
    found = parser.parse_intermixed_args(list(args))
    if len(found.data) > 1:
        raise ConfigError(f"--data is given {len(found.data)} times ({', '.join(found.data)}); test one file at a time")
    found.data = found.data[0]
    if found.rows < 1:
        raise ConfigError(f"--rows is {found.rows}; it must be at least 1")
    found.settings = [f for f in found.functions if "=" in f]
    found.functions = [f for f in found.functions if "=" not in f]
    for setting in found.settings:
        if (key := setting.partition("=")[0]) in ("reward.fns", "data.train"):
            raise ConfigError(f"{setting}: name the functions and --data FILE on the command line instead of {key}")
    return found


class _Read(NamedTuple):
    """Prompts, in words from which columns, the column of responses, and by prompt what else is to be scored."""

    prompts: list[Prompt]
    told: str
    column: str
    said: dict[str, list[tuple[str, str]]]


def _read(loaded: Rows, cfg: DataConfig) -> _Read:
    chosen, column = choose(loaded, cfg), response_column(loaded, cfg)
    if chosen.layout is PAIRS:
        pairs = list(pairs_of(loaded, cfg))
        last = {pair.prompt.id: [messages[-1]["content"] or "" for messages in pair.answers] for pair in pairs}
        texts = {i: [("column chosen", good), ("column rejected", bad)] for i, (good, bad) in last.items()}
        return _Read([pair.prompt for pair in pairs], chosen.told_pairs(loaded), column, texts)
    said: dict[str, list[tuple[str, str]]] = {}
    if column not in chosen.columns and cfg.prompt_column == "auto" and set(TALKS).intersection(chosen.columns):
        read = read_rows(loaded, cfg, answers_needed=False)
        said = {f"{loaded.name}:{i}": [(_LAST, m["content"])] for i, m in enumerate(read.said) if m and m["content"]}
        if said and chosen.prompt in TALKS:  # a run would have to be told whether they are responses, or begin one
            told = choose(loaded, cfg, learned=True).told_learned(loaded, column)
            return _Read(as_prompts(loaded, read, cfg), told, column, said)
    return _Read(*untokenized(loaded, cfg, loaded.name), column, said)


def _responses(loaded: Rows, prompts: Sequence[Prompt], asked: str | None, read: _Read) -> list[list[tuple[str, str]]]:
    """Of each prompt the texts to score, each with what it is. Not every row need have a response of its own."""
    columns = list(dict.fromkeys(name for prompt in prompts for name in prompt.row))
    if asked is not None and asked not in columns:
        raise ConfigError(
            f"--responses: {loaded.source} has no column {asked}{nearest(asked, columns)} in the rows to score "
            f"(--rows {len(prompts)}); there are {', '.join(columns)}"
        )
    column = asked or read.column
    responses = []
    for prompt in prompts:
        text = _own(loaded, place(prompt)[1], column, required=asked is not None)
        own = [(f"column {column}", text)] if text is not None else []
        golds = [("the gold answer", prompt.answer)] if prompt.answer or not read.said else []
        texts = [*own, *([] if asked else read.said.get(prompt.id, [])), *golds, ("nothing", "")]
        responses.append([(what, _after(prompt, text)) for what, text in texts])
    return responses


def _after(prompt: Prompt, text: str) -> str:
    """A response after what its prompt has opened, which a whole message begins with already."""
    if not prompt.opened:
        return text
    rest = opened.after(prompt.opened, text)
    return prompt.opened + (text if rest is None else rest)


def _names_a_model(settings: Sequence[str]) -> bool:
    return any(setting.startswith(("model.path=", "model.tokenizer=")) for setting in settings)


def _with_openings(prompts: list[Prompt], loaded: Rows, cfg: Config, settings: Sequence[str]) -> list[Prompt]:
    """The prompts with what is open at their end: as rendered, where a tokenizer is named, or as they are written."""
    asked = [prompt for prompt in prompts if prompt.messages]
    if _names_a_model(settings):
        from rlcore.models.load import load_tokenizer

        tokenizer = load_tokenizer(cfg.model)
        found = [tokenized(prompt, loaded.at(place(prompt)[1]), cfg.data, tokenizer) for prompt in asked]
    elif cfg.data.chat_template:  # what the assistant has begun is known all the same
        begun = [prompt for prompt in asked if prompt.messages[-1]["role"] == "assistant"]
        found = [replace(p, opened=opened.of_text(said, said)) for p in begun if (said := p.messages[-1]["content"])]
    else:
        found = [replace(prompt, opened=opened.of_text(prompt.messages[-1]["content"])) for prompt in asked]
    by_id = {prompt.id: prompt for prompt in found}
    return [by_id.get(prompt.id, prompt) for prompt in prompts]


def _own(loaded: Rows, i: int, column: str, required: bool) -> str | None:
    """The response that row i has: None if it has none. Of messages it is what the assistant said last. DataError for
    what is no response in a column that was `required`; any other may happen to be called so."""
    value = loaded.rows[i].get(column)
    if isinstance(value, numbers.Number):
        return as_text(value)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(is_message(m) for m in value):
        try:
            said = [m["content"] for m in normalised(value, column) if m["role"] == "assistant"]
        except DataError:
            said = []
        if said and said[-1] is not None:
            return said[-1]
    if required:
        raise DataError(
            f"{loaded.at(i)}: column {column} is {as_text(value)[:80]}; a response must be text, a number, or a list "
            "of {role, content} messages whose last one by the assistant has text as its content"
        )
    return None


def _score(manager: RewardManager, asked: Sequence[tuple[Prompt, str]]) -> list[Result]:
    """All at once, as in a run: a batched function gets several a call. There is no tokenizer: a word is a token."""
    for i, (prompt, text) in enumerate(asked):
        manager.submit(i, prompt, Response(text, len(text.split())))
    results: dict[int, Result] = {}
    while manager.pending:
        results.update(manager.poll(1.0))
    return [results[i] for i in range(len(asked))]


def _show_prompt(prompt: Prompt) -> None:
    """What is asked, and the beginning of the response where the prompt has one. Pairs may have none."""
    if not prompt.messages:
        return _show("prompt", "")
    begun = prompt.messages[-1]["role"] == "assistant"
    _show("prompt", prompt.messages[-2 if begun else -1]["content"])
    if begun:
        _show("begun", prompt.messages[-1]["content"])
    if prompt.opened:
        _show("opened", prompt.opened)


def _show(what: str, text: str) -> None:
    seen = shown(text)
    short = seen if len(seen) <= _SHOWN else f"{seen[:_SHOWN]} ... ({len(text)} characters)"
    print(textwrap.indent(short or "(empty)", " " * 12).replace(" " * 12, f"{what:>10}: ", 1))


def _show_result(what: str, text: str, result: Result) -> None:
    print(message(f"  -- response: {what}"))
    _show("response", text)
    reward = "none" if result.reward is None else f"{result.reward:g}"
    parts = ", ".join(f"{name} {value:g}" for name, value in result.parts.items())
    print(message(f"    reward: {reward}   parts: {parts or 'none'}   time: {1000 * result.seconds:.1f} ms"))
    for name, status in result.status.items():
        _show("status", f"{name} {status}: {result.why[name]}")
