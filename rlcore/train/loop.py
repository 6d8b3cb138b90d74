"""THE LOOP."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rlcore.errors import SyncError
from rlcore.records import Batch
from rlcore.runs import metrics
from rlcore.runs.require_scores import require_scores

if TYPE_CHECKING:
    from rlcore.train.run import Parts


def train(parts: Parts) -> None:
    """Train until step `cfg.steps`. Resumes from the newest checkpoint of the run directory when there is one."""
    cfg, phases = parts.cfg, parts.phases
    step = parts.restore()
    with phases("publish"):
        parts.publish(version=step)
    if step == 0 and parts.evals:
        parts.tracker.log(step, evaluate(parts, step))
    while step < cfg.steps:
        began = time.monotonic()
        phases.seconds.clear()
        with phases("rollout"):  # P prompts, G scored rollouts each
            groups = parts.rollouts.collect(cfg.prompts_per_step)
        numbers = metrics.of_rollouts(groups)
        parts.tracker.rollouts(step + 1, groups)
        require_scores(groups, cfg.reward.max_failed_fraction, parts.quarantine)
        with phases("credit"):
            batch = parts.credit(Batch.from_groups(groups))
        numbers |= {"group/zero_advantage_fraction": 1 - batch.groups_with_advantage / batch.groups}
        with phases("update"):
            numbers |= parts.update(batch, step)
        if batch.mask.any():  # else no token of this step could be compared
            demand_same_weights(numbers[parts.logp_diff], parts.max_logp_diff, step)
        step += 1
        with phases("publish"):
            numbers |= parts.publish(version=step)
        numbers |= {"rollout/staleness_steps": float(step - 1 - min(r.version for g in groups for r in g.rollouts))}
        numbers |= {"perf/tokens_per_second": len(batch.tokens) / (time.monotonic() - began)}
        last = step == cfg.steps
        if last or (cfg.eval.every_steps and step % cfg.eval.every_steps == 0):
            numbers |= evaluate(parts, step)
        parts.tracker.log(step, numbers | phases.metrics())
        if last:
            demand_same_weights(parts.probe(), parts.max_logp_diff, step)
        if last or (cfg.save_every_steps and step % cfg.save_every_steps == 0):
            parts.save(step)


def evaluate(parts: Parts, step: int) -> dict[str, float]:
    """`eval/NAME/...` of every held-out source with the weights the engines hold now."""
    numbers: dict[str, float] = {}
    for name, prompts in parts.evals.items():
        with parts.phases("eval"):
            groups = parts.rollouts.sample(prompts, samples=1, temperature=parts.cfg.eval.temperature)
        require_scores(groups, parts.cfg.reward.max_failed_fraction, parts.quarantine)
        found = metrics.accuracy(groups, parts.reward_names)
        numbers |= {f"eval/{name}/{k}": v for k, v in found.items()}
        parts.tracker.evaluation(step, name, found, groups)
    return numbers


def demand_same_weights(difference: float, most: float, step: int) -> None:
    """Raise SyncError (exit 5) when the engine's log-probabilities of the step's own tokens are not the trainer's."""
    if not difference <= most:
        raise SyncError(
            f"step {step}: the engine's and the trainer's log-probabilities differ by {difference:.3g} "
            f"(sync.max_logp_diff {most:g}), so the engine does not sample from version {step} of the weights"
        )
