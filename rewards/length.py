"""Rewards of how long a response is: linear, cosine (arXiv 2502.03373), overlong (DAPO, arXiv 2503.14476).

`response_tokens`, `max_response_tokens` and `finish` are filled in for them; the end-of-sequence token counts where it
was sampled.
"""

from __future__ import annotations

import contextlib
import math
from functools import lru_cache

from rewards import BUILTIN, GOLD
from rewards.outcomes import checked
from rewards.signatures import Fn, LoadedFn, load, load_rule
from rlcore.errors import ConfigError
from rlcore.isolated.rule import Submission
from rlcore.plugins import plugin
from rlcore.records import Prompt, Response, Score


def length_linear(
    prompt: Prompt,
    response: str,
    *,
    response_tokens: int,
    max_response_tokens: int,
    short: float = 0.0,
    long: float = -1.0,
) -> float:
    """On the line from `short` for no tokens to `long` at the limit, right or wrong."""
    return short + (long - short) * response_tokens / max_response_tokens


def length_cosine(
    prompt: Prompt,
    response: str,
    *,
    of: str,
    response_tokens: int,
    max_response_tokens: int,
    correct_short: float = 2.0,
    correct_long: float = 1.0,
    wrong_short: float = -10.0,
    wrong_long: float = 0.0,
    at_limit: float = -10.0,
    finish: str = "stop",
) -> Score:
    """The cosine reward of arXiv 2502.03373: short is good when right, long is less bad when wrong.

    It takes the place of the rule `of`, which says what is right (a reward of at least 1; the part `correct`). See
    docs/rewards.md, "Length". Raises what `of` raises, and ConfigError for one that is not fn(prompt, response).
    """
    rule = _rule(of, max_response_tokens)
    (call,) = rule.calls([Submission(prompt, Response(response, response_tokens, finish))])
    correct = checked(of, rule.fn(*call.args, **call.kwargs)).reward >= 1.0
    parts = {"correct": float(correct)}
    if response_tokens >= max_response_tokens:
        return Score(at_limit, parts)
    short, long = (correct_short, correct_long) if correct else (wrong_short, wrong_long)
    return Score(cosine(response_tokens / max_response_tokens, short, long), parts)


def length_cosine_gold(prompt: Prompt, *, of: str) -> None:
    """UnparseableGold if the rule `of` reads gold answers and cannot read this one."""
    if of in GOLD:
        load(GOLD[of])(prompt)


def cosine(progress: float, start: float, end: float) -> float:
    """Half a cosine wave from `start` at progress 0 to `end` at 1, flat at both."""
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * progress))


def overlong(
    prompt: Prompt,
    response: str,
    *,
    response_tokens: int,
    max_response_tokens: int,
    fraction: float = 0.2,
    penalty: float = 1.0,
) -> float:
    """`overlong_penalty` as a rule. `reward.overlong_fraction` takes the same, in training only: use one of the two.

    DAPO's limit is 20480 tokens, of which the last 4096 are punished: a fraction of 0.2.
    """
    if not 0.0 < fraction <= 1.0:
        raise ConfigError(f"reward.args: overlong.fraction is {fraction}, must be above 0 and at most 1")
    return overlong_penalty(response_tokens, max_response_tokens, fraction, penalty)


def overlong_penalty(tokens: int, limit: int, fraction: float, penalty: float) -> float:
    """What a response of `tokens` of at most `limit` tokens loses, 0 or below (arXiv 2503.14476, eq. 13).

    With C = fraction * limit: 0 up to limit - C, from there along a line to -penalty at the limit.
    """
    last = fraction * limit
    return penalty * max(-1.0, min(0.0, (limit - last - tokens) / last))


@lru_cache(maxsize=8)
def _rule(of: str, max_response_tokens: int) -> LoadedFn:
    """The function `of`; ConfigError unless it is called for one sample as `(prompt, response)`."""
    key = "reward.args.length_cosine.of"
    with contextlib.suppress(ConfigError):  # it would name another key
        rule = load_rule(Fn(of, of), {"max_response_tokens": max_response_tokens})
        if rule.shape == "plain" and not rule.asynchronous:
            return rule
    plugin(BUILTIN.get(of, of), key)
    raise ConfigError(
        f"{key}: {of} must be called as fn(prompt, response) for one sample: no async def, none of TRL's, veRL's or "
        "the batched form, and every other parameter needs a default"
    )
