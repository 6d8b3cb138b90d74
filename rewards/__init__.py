"""Reward functions: plain `(prompt, response) -> Score | float`, one task a file. `manager.py` runs them, isolated.

Values of BUILTIN are dotted paths, not functions, so that only a worker that scores mathematics loads math-verify.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

REWARD_MODEL = "reward_model"  # in reward.fns, no function: a group of Ray actors

BUILTIN = {
    "gsm8k": "rewards.gsm8k.gsm8k",
    "gsm8k_strict": "rewards.gsm8k.gsm8k_strict",
    "boxed_math": "rewards.boxed_math.boxed_math",
    "boxed_math_strict": "rewards.boxed_math.boxed_math_strict",
    "math": "rewards.boxed_math.math",
    "exact_match": "rewards.exact.exact_match",
    "multiple_choice": "rewards.multiple_choice.multiple_choice",
    "countdown": "rewards.countdown.countdown",
    "knights_knaves": "rewards.knights_knaves.knights_knaves",
    "knights_knaves_solved": "rewards.knights_knaves.knights_knaves_solved",
    "logic_rl_format": "rewards.knights_knaves.logic_rl_format",
    "reasoning_gym": "rewards.reasoning_gym.reasoning_gym",
    "format": "rewards.format.think_answer",
    "length_linear": "rewards.length.length_linear",
    "length_cosine": "rewards.length.length_cosine",
    "overlong": "rewards.length.overlong",
    "repetition": "rewards.repetition.repetition",
    "language": "rewards.language.language",
    "code": "rewards.code.Code",
    "judge": "rewards.judge.Judge",
    "remote": "rewards.remote.Remote",
}

# The rules that read their gold answer have a function that says at once whether they can: `check(prompt) -> None`, or
# UnparseableGold. It is run over all rows when the data loads.
GOLD = {
    "gsm8k": "rewards.gsm8k.gsm8k_gold",
    "gsm8k_strict": "rewards.gsm8k.gsm8k_gold",
    "boxed_math": "rewards.boxed_math.boxed_math_gold",
    "boxed_math_strict": "rewards.boxed_math.boxed_math_gold",
    "math": "rewards.boxed_math.boxed_math_gold",
    "exact_match": "rewards.exact.exact_match_gold",
    "multiple_choice": "rewards.multiple_choice.multiple_choice_gold",
    "countdown": "rewards.countdown.countdown_gold",
    "knights_knaves": "rewards.knights_knaves.knights_knaves_gold",
    "knights_knaves_solved": "rewards.knights_knaves.knights_knaves_gold",
    "reasoning_gym": "rewards.reasoning_gym.reasoning_gym_gold",
    "code": "rewards.code_tests.code_gold",
}


def names(fns: Sequence[str]) -> list[str]:
    """What each function is called in parts, status and metrics: a built-in's name, else the name of the function.

    Functions of one name in two files get the file's or module's name too: `a.score`, `b.score`.
    """
    short = [f if f in BUILTIN else f.replace(":", ".").rpartition(".")[2] for f in fns]
    twice = {n for n, count in Counter(short).items() if count > 1}
    return [f"{_home(f)}.{n}" if n in twice else n for f, n in zip(fns, short, strict=True)]


def _home(spec: str) -> str:
    file, colon, _ = BUILTIN.get(spec, spec).rpartition(":")
    return Path(file).stem if colon else BUILTIN.get(spec, spec).rpartition(".")[0]
