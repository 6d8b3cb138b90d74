"""Reward models from preference pairs: the training half of the loop with the loss of Bradley and Terry.

The same ranks, packing and checkpoints as reinforcement learning; prompts_per_step pairs make one optimizer update.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlcore import checkpoint
from rlcore.build import as_directory
from rlcore.checkpoint import Checkpoints, export
from rlcore.config import Config, compute_dtype
from rlcore.errors import DataError
from rlcore.pairs import Pair, Pairs
from rlcore.placement import Cluster
from rlcore.tracker import Tracker
from rlcore.waits import Watch

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from rlcore.records import Batch
    from rlcore.workers.group import PreferenceModel

_ROLE = "reward_model"


def train_rm(cfg: Config, resolved: DictConfig, say: Callable[[str], None]) -> tuple[Path, set[str]]:
    """Train for `steps` updates; resumes as training does. Returns the exported model's directory, `run_dir/export`,
    a sequence classification model of one label, and the config fields the workers read."""
    cfg = as_directory(cfg)
    assert cfg.run_dir is not None
    run_dir = Path(cfg.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    pairs, evals, lay_down = _data(cfg, say)
    watch = Watch()
    tracker, step = None, 0
    cluster = Cluster(cfg.ray, cfg.placement, cfg.deadline, {_ROLE: cfg.actor.ranks}, watch)
    try:
        model = _start(cfg, cluster, watch)
        checkpoints = Checkpoints(run_dir, cfg.keep_checkpoints)
        found = checkpoints.latest()
        if found is not None:
            model.load(found)
            state = checkpoint.state_of(found)
            step = state["step"]
            pairs.restore(state["data"])
        tracker = Tracker(run_dir, cfg.tracker, resolved, cfg.steps, resume_at=None if found is None else step)
        watch.phase = "train-rm"
        if found is None and evals:
            tracker.log(0, _evaluate(model, evals))
        while step < cfg.steps:
            began = time.monotonic()
            batch = lay_down(pairs.take(cfg.prompts_per_step))
            numbers = model.update(batch, step)
            step += 1
            numbers["perf/tokens_per_second"] = len(batch.tokens) / (time.monotonic() - began)
            last = step == cfg.steps
            if last or (cfg.eval.every_steps and step % cfg.eval.every_steps == 0):
                numbers |= _evaluate(model, evals)
            tracker.log(step, numbers)
            if last or (cfg.save_every_steps and step % cfg.save_every_steps == 0):
                checkpoints.save(step, model.save, {"data": pairs.state()})
        out = export(run_dir, run_dir / "export", compute_dtype(cfg.model, cluster.device))
        return out, model.group.fields_read()
    finally:
        if tracker is not None:
            tracker.close("done" if step == cfg.steps else "failed")
        cluster.close()


def _data(
    cfg: Config, say: Callable[[str], None]
) -> tuple[Pairs, dict[str, Batch], Callable[[Sequence[Pair]], Batch]]:  # fmt: skip
    """What to train on, what to evaluate on by name, and pairs -> Batch."""
    from rlcore.workers.reward_model import conversation_tokens, ending, pad_token, preference_tokenizer

    tokenizer = preference_tokenizer(cfg.model, cfg.data.chat_template)
    if cfg.data.chat_template and not tokenizer.chat_template:
        raise DataError("the tokenizer has no chat template; with a base model set data.chat_template=False")
    tokenize = functools.partial(conversation_tokens, tokenizer)

    def lay_down(some: Sequence[Pair]) -> Batch:
        return ending([tokens for pair in some for tokens in pair], pad_token(tokenizer))

    most = cfg.data.max_prompt_tokens + cfg.rollout.max_response_tokens
    pairs = Pairs(cfg.data.train, cfg.data, tokenize, cfg.seed, most)
    say(f"data: {len(pairs)} pairs; {pairs.dropped} left out, too long or of equal texts")
    evals: dict[str, Batch] = {}
    for i, source in enumerate(cfg.data.eval):
        held_out = Pairs([source], cfg.data, tokenize, cfg.seed, most)
        name = held_out.name if held_out.name not in evals else f"{held_out.name}-{i + 1}"
        evals[name] = lay_down(held_out.all(limit=cfg.eval.prompts))
    return pairs, evals, lay_down


def _start(cfg: Config, cluster: Cluster, watch: Watch) -> PreferenceModel:
    from rlcore.workers.group import PreferenceModel, rank_group
    from rlcore.workers.reward_model import PreferenceRank

    model = PreferenceModel(rank_group(_ROLE, PreferenceRank, cfg.actor.ranks, cfg, cluster, watch), cfg)
    model.group.call("start", seconds=cfg.deadline.start_seconds)
    return model


def _evaluate(model: PreferenceModel, evals: dict[str, Batch]) -> dict[str, float]:
    """`eval/NAME/loss`, `accuracy` and `margin` of every held-out source."""
    return {f"eval/{name}/{k}": v for name, batch in evals.items() for k, v in model.evaluate(batch).items()}
