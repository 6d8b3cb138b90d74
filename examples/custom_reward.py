"""A reward of your own, in one file. Run it:

    rlcore train demo 'reward.fns=[gsm8k,examples/custom_reward.py:score]' 'reward.weights=[1.0,0.2]'

It runs in a process of its own, so it may be slow, print, or crash: that costs its own sample only.
"""

from __future__ import annotations

from rlcore.records import Prompt, Score

WORDS_WANTED = 40  # used when the dataset row has no column `words`


def score(prompt: Prompt, response: str) -> Score:
    """1.0 for a response as long as the row asks for, down to 0.0 at twice that; less for shouting."""
    wanted = float(prompt.row.get("words", WORDS_WANTED))  # prompt.row is the whole dataset row
    if wanted <= 0:  # what it cannot judge is an error, not a 0: a failed sample is counted and left out
        raise ValueError(f"prompt {prompt.id}: column words is {wanted:g}, must be above 0")
    words = response.split()
    length = max(0.0, 1.0 - abs(len(words) - wanted) / wanted)
    shouting = sum(word.isupper() and len(word) > 1 for word in words) / max(1, len(words))
    # A number would do. The parts of a Score are logged as reward/part/NAME.
    return Score(length - 0.5 * shouting, {"length": length, "shouting": shouting, "words": float(len(words))})
