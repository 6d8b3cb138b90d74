"""The learning rate of a step."""

from __future__ import annotations

import math

from rlcore.config import ActorConfig, Schedule


def learning_rate(step: int, steps: int, cfg: ActorConfig, peak: float | None = None) -> float:
    """Of the step that is done after `step` others, in a run of `steps`.

    Rises in `warmup_steps` equal parts, the first step having one part and not 0, to `peak` (None: `learning_rate`);
    then constant, or falling along a line or half a cosine that reaches 0 when the run ends.
    """
    peak = cfg.learning_rate if peak is None else peak
    if step < cfg.warmup_steps:
        return peak * (step + 1) / cfg.warmup_steps
    if cfg.schedule is Schedule.constant:
        return peak
    done = min(1.0, (step - cfg.warmup_steps) / max(1, steps - cfg.warmup_steps))
    left = 1.0 - done if cfg.schedule is Schedule.linear else 0.5 * (1.0 + math.cos(math.pi * done))
    return peak * left
