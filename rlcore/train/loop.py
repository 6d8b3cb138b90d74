"""THE LOOP, of every stage: reinforcement learning, supervised fine-tuning, reward models, preferences."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlcore.train.run import Run


def train(run: Run) -> None:
    """Train until step `cfg.steps`; a step that is done is counted. Goes on from the newest checkpoint, if any."""
    step = run.restore()
    with run.phase("publish"):
        run.publish(step)
    run.evaluate(step)  # this, log and save: when it is due
    while step < run.cfg.steps:
        with run.phase("rollout"):  # rollouts, or rows with answers, or pairs
            groups = run.source.take(run.cfg.prompts_per_step)
        with run.phase("credit"):  # the columns that this configuration needs
            batch = run.credit(groups, step)
        with run.phase("update"):
            run.update(batch, step)
        step += 1
        with run.phase("publish"):  # weights of version `step`
            run.publish(step)
        run.evaluate(step)
        run.log(step)
        run.save(step)
