"""Reward functions: plain `(prompt, response) -> Score | float`, one task a file. `manager.py` runs them, isolated.

Values of BUILTIN are dotted paths, not functions: only a process that scores mathematics loads math-verify.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rlcore.plugins import Spec

REWARD_MODEL = "reward_model"  # in reward.fns, no function: a group of Ray actors
GATED = "gated"  # the part that says whether a gate kept a sample from the other functions

BUILTIN = {
    "gsm8k": "rewards.gsm8k.gsm8k",
    "gsm8k_strict": "rewards.gsm8k.gsm8k_strict",
    "boxed_math": "rewards.math.boxed.boxed_math",
    "boxed_math_strict": "rewards.math.boxed.boxed_math_strict",
    "math": "rewards.math.boxed.math",
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
    "code": "rewards.code.code.Code",
    "judge": "rewards.over_http.judge.Judge",
    "remote": "rewards.over_http.remote.Remote",
}

# The rules that read their gold answer have a function that says at once whether they can: `check(prompt) -> None`, or
# UnparseableGold, with those of the rule's options that it has. It is run over all rows when the data loads.
GOLD = {
    "gsm8k": "rewards.gsm8k.gsm8k_gold",
    "gsm8k_strict": "rewards.gsm8k.gsm8k_gold",
    "boxed_math": "rewards.math.boxed.boxed_math_gold",
    "boxed_math_strict": "rewards.math.boxed.boxed_math_gold",
    "math": "rewards.math.boxed.boxed_math_gold",
    "exact_match": "rewards.exact.exact_match_gold",
    "multiple_choice": "rewards.multiple_choice.multiple_choice_gold",
    "countdown": "rewards.countdown.countdown_gold",
    "knights_knaves": "rewards.knights_knaves.knights_knaves_gold",
    "knights_knaves_solved": "rewards.knights_knaves.knights_knaves_gold",
    "reasoning_gym": "rewards.reasoning_gym.reasoning_gym_gold",
    "length_cosine": "rewards.length.length_cosine_gold",
    "code": "rewards.code.tests.code_gold",
}


def names(fns: Sequence[str]) -> list[str]:
    """What each function is called in parts, status and metrics: a built-in's name, else the name of the function.

    Functions of one name in two files get the file's or module's name too: `a.score`, `b.score`; in two files of one
    name also the folders that tell them apart, as far as the paths are written: `f.score`, `sub.f.score`. Only the same
    function, however its path is written, has the same name twice. `f.gated` is one that would have the gate's name.
    """
    written = {os.path.abspath(f): f for f in reversed(fns)}
    parts = [_parts(written[os.path.abspath(f)]) for f in fns]
    found = [each[-1] for each in parts]
    for length in range(2, 1 + max(map(len, parts), default=1)):
        twice = {n for n, count in Counter(found).items() if count > 1 or n == GATED}
        found = [".".join(each[-length:]) if n in twice else n for each, n in zip(parts, found, strict=True)]
    return found


def _parts(spec: str) -> list[str]:
    """What a name may be made of, the function last."""
    home, name, is_file = Spec.of(BUILTIN.get(spec, spec))
    if is_file:
        return [*Path(home).parent.parts, Path(home).stem, name]
    return [*([home] if home else []), spec if spec in BUILTIN else name]
