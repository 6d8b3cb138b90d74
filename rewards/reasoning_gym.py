"""Tasks of reasoning-gym (`data.train=reasoning_gym:TASK?size=5000&seed=1`), scored by the task's own scorer.

Which tasks can be used, and how their scorers are kept from running text, is in rlcore/data/generate/reasoning_gym.py.
"""

from __future__ import annotations

from rewards.countdown import makes
from rewards.format import last_answer
from rlcore.data.generate import reasoning_gym as gym
from rlcore.errors import UnparseableGold
from rlcore.records import Prompt, Score


def reasoning_gym(prompt: Prompt, response: str) -> Score:
    """What the task's scorer says of the last `<answer>`, or of the whole response if it has none, 0.0 to 1.0.

    Many tasks give a little for a wrong answer. A text that makes the scorer raise gets 0.0, and part `unreadable` is
    1.0. `countdown` is scored by our own exact rule, 1.0 or 0.0. Raises UnparseableGold when the row is not one of a
    reasoning_gym source, or of a task that is refused.
    """
    entry = _entry(prompt)
    answer = last_answer(response)
    try:
        return Score(_score(entry, response.strip() if answer is None else answer), {"unreadable": 0.0})
    except (gym.Evaluated, TimeoutError, MemoryError):
        raise
    except Exception:  # scorers raise what they like on text they did not expect; on their own answer they did not
        return Score(0.0, {"unreadable": 1.0})


def reasoning_gym_gold(prompt: Prompt) -> None:
    """Raises UnparseableGold for a row that cannot be scored: its task's scorer must give its own answer 1.0."""
    entry = _entry(prompt)
    if entry.answer is None:  # many answers are right, and the task names none
        return
    try:
        value = _score(entry, entry.answer)
    except Exception as e:
        raise UnparseableGold(
            f"prompt {prompt.id}: {entry.task} fails on its own answer: {type(e).__name__}: {e}"
        ) from e
    if value != 1.0:
        raise UnparseableGold(f"prompt {prompt.id}: {entry.task} gives its own answer {entry.answer[:80]!r} {value}")


def _entry(prompt: Prompt) -> gym.Entry:
    try:
        return gym.entry(prompt.row)
    except (KeyError, TypeError, ValueError, RecursionError) as e:
        raise UnparseableGold(
            f"prompt {prompt.id}: not a row of a reasoning_gym: source (columns question, task and entry): "
            f"{type(e).__name__}: {e}"
        ) from e


def _score(entry: gym.Entry, answer: str) -> float:
    if entry.task == "countdown":
        return float(makes(answer, entry.metadata["numbers"], entry.metadata["target"]))
    return gym.score(entry, answer)
