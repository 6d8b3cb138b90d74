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

from rewards.manager import Result, RewardManager
from rlcore.compose.compose import compose_rewards
from rlcore.config import Config
from rlcore.data import opened
from rlcore.data.conversation import as_text, is_message
from rlcore.data.prompts import tokenized, untokenized
from rlcore.data.sources import Rows, load_rows
from rlcore.errors import ConfigError, DataError, RewardError, nearest
from rlcore.records import Prompt, Response

_START_SECONDS = 120.0
_SHOWN = 400  # characters of a text
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
    everything = untokenized(loaded, cfg.data, loaded.name)
    prompts = _with_openings(everything[: given.rows], loaded, cfg, given.settings)
    responses = _responses(loaded, prompts, given.responses)
    manager = RewardManager(cfg.reward, cfg.rollout.max_response_tokens)
    try:
        manager.require_sources(everything)
        manager.ready(_START_SECONDS)
        unread = {p.id: why for p, why in manager.unscorable(prompts, _START_SECONDS)}
        asked = [(prompt, text) for prompt, each in zip(prompts, responses, strict=True) for _, text in each]
        results = _score(manager, asked)
        scored = iter(results)
        for i, prompt in enumerate(prompts):
            print(f"\n== {loaded.at(i)}")
            _show("prompt", prompt.messages[-1]["content"])
            if prompt.opened:
                _show("opened", prompt.opened)
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
    parser = argparse.ArgumentParser(
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


def _responses(loaded: Rows, prompts: Sequence[Prompt], asked: str | None) -> list[list[tuple[str, str]]]:
    """Of each prompt the texts to score, each with what it is. Not every row need have a response of its own."""
    columns = list(dict.fromkeys(name for prompt in prompts for name in prompt.row))
    if asked is not None and asked not in columns:
        raise ConfigError(
            f"--responses: {loaded.source} has no column {asked}{nearest(asked, columns)} in the rows to score "
            f"(--rows {len(prompts)}); there are {', '.join(columns)}"
        )
    column = asked or "response"
    said = [_own(loaded, i, column, required=asked is not None) for i in range(len(prompts))]
    found: list[list[tuple[str, str]]] = []
    for prompt, own in zip(prompts, said, strict=True):
        texts = ([] if own is None else [(f"column {column}", own)]) + [
            ("the gold answer", prompt.answer),
            ("nothing", ""),
        ]
        found.append([(what, _after(prompt, text)) for what, text in texts])
    return found


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
    if _names_a_model(settings):
        from rlcore.models.load import load_tokenizer

        tokenizer = load_tokenizer(cfg.model)
        return [tokenized(prompt, loaded.at(i), cfg.data, tokenizer) for i, prompt in enumerate(prompts)]
    if cfg.data.chat_template:
        return prompts
    texts = [prompt.messages[-1]["content"] for prompt in prompts]
    return [
        replace(p, opened=opened.of_text(t)) if isinstance(t, str) else p for p, t in zip(prompts, texts, strict=True)
    ]


def _own(loaded: Rows, i: int, column: str, required: bool) -> str | None:
    """The response that row i has: None if it has none. Of messages it is what the assistant said last. DataError for
    what is no response in a column that was `required`; any other may happen to be called so."""
    value = loaded.rows[i].get(column)
    if isinstance(value, numbers.Number):
        return as_text(value) if isinstance(value, (bool, int, float)) else str(value)
    if value is None or isinstance(value, str):
        return value
    messages = value if isinstance(value, list) and all(is_message(m) for m in value) else []
    said = [m["content"] for m in messages if m["role"] == "assistant"]
    if said and isinstance(said[-1], str):
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


def _show(what: str, text: str) -> None:
    text = text.encode(errors="backslashreplace").decode()  # half a surrogate pair cannot be printed
    short = text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ... ({len(text)} characters)"
    print(textwrap.indent(short or "(empty)", " " * 12).replace(" " * 12, f"{what:>10}: ", 1))


def _show_result(what: str, text: str, result: Result) -> None:
    print(f"  -- response: {what}")
    _show("response", text)
    reward = "none" if result.reward is None else f"{result.reward:g}"
    parts = ", ".join(f"{name} {value:g}" for name, value in result.parts.items())
    print(f"    reward: {reward}   parts: {parts or 'none'}   time: {1000 * result.seconds:.1f} ms")
    for name, status in result.status.items():
        _show("status", f"{name} {status}: {result.why[name]}")
