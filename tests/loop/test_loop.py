"""The real loop over a toy world: it learns, resumes to the same numbers, and stops when something is not true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rlcore.errors import CheckpointError, RewardError, SyncError
from rlcore.train import train
from tests.loop.fakes import ToyActor, toy_config, toy_parts


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def untimed(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith(("time", "perf/", "sync/seconds"))} for row in rows]


def test_the_loop_learns(tmp_path: Path) -> None:
    train(toy_parts(toy_config(tmp_path)))
    rows = lines(tmp_path)
    assert rows[0]["eval/toy/accuracy"] <= 0.5
    assert rows[-1]["eval/toy/accuracy"] == 1.0
    assert rows[-1]["reward/mean"] > 0.9
    assert [r["step"] for r in rows] == list(range(21))


def test_a_sign_error_would_be_seen(tmp_path: Path) -> None:
    parts = toy_parts(toy_config(tmp_path))
    plain = parts.advantage
    parts.advantage = lambda batch, cfg: -plain(batch, cfg)
    train(parts)
    assert lines(tmp_path)[-1]["eval/toy/accuracy"] <= 0.5


def test_resume_gives_the_numbers_of_an_uninterrupted_run(tmp_path: Path) -> None:
    train(toy_parts(toy_config(tmp_path / "whole", steps=9, save_every_steps=3)))
    cut = toy_parts(toy_config(tmp_path / "cut", steps=9, save_every_steps=3))
    update = cut.actor.update

    def dies_in_step_eight(batch, step):
        if step == 7:
            raise RuntimeError("killed")
        return update(batch, step)

    cut.actor.update = dies_in_step_eight
    with pytest.raises(RuntimeError, match="killed"):
        train(cut)
    again = toy_parts(toy_config(tmp_path / "cut", steps=9, save_every_steps=3))
    train(again)
    assert untimed(lines(tmp_path / "cut")) == untimed(lines(tmp_path / "whole"))


def test_unscored_rollouts_leave_the_baseline_and_the_loss(tmp_path: Path) -> None:
    parts = toy_parts(toy_config(tmp_path, steps=1, reward__max_failed_fraction=0.5))
    parts.rollouts.unscored = {0, 1}
    seen = []
    update = parts.actor.update
    parts.actor.update = lambda batch, step: (seen.append(batch), update(batch, step))[1]
    train(parts)
    batch = seen[0]
    failed = batch.reward.isnan()
    assert failed.sum() == 16
    assert not batch.mask.reshape(-1, 2)[failed].any()
    assert (batch.advantage.reshape(-1, 2)[failed] == 0).all()
    kept = batch.reward[~failed].reshape(8, 6)
    assert torch.allclose(batch.advantage[1::2][~failed].reshape(8, 6).sum(1), torch.zeros(8), atol=1e-5)
    assert lines(tmp_path)[1]["reward/failed_fraction"] == 0.25
    assert lines(tmp_path)[1]["reward/mean"] == pytest.approx(float(kept.mean()))


def test_too_many_unscored_end_the_run_naming_the_function(tmp_path: Path) -> None:
    parts = toy_parts(toy_config(tmp_path, steps=1))
    parts.rollouts.unscored = {3}
    with pytest.raises(RewardError, match="8 of 64 .*right.*'error'") as e:
        train(parts)
    assert e.value.exit_code == 3


def test_stale_weights_end_the_run(tmp_path: Path) -> None:
    parts = toy_parts(toy_config(tmp_path, steps=5))
    publish = parts.actor.publish

    def forgets_the_third(version):
        numbers = publish(version)
        if version == 3:
            parts.actor.published[3] = parts.actor.published[2]
        return numbers

    parts.actor.publish = forgets_the_third
    with pytest.raises(SyncError, match="step 3") as e:
        train(parts)
    assert e.value.exit_code == 5


def test_stale_last_weights_are_found_too(tmp_path: Path) -> None:
    parts = toy_parts(toy_config(tmp_path, steps=2))
    publish = parts.actor.publish

    def forgets_the_last(version):
        numbers = publish(version)
        parts.actor.published[2] = parts.actor.published[0]
        return numbers

    parts.actor.publish = forgets_the_last
    with pytest.raises(SyncError, match="step 2"):
        train(parts)


def test_several_updates_get_old_logp_before_any(tmp_path: Path) -> None:
    parts = toy_parts(toy_config(tmp_path, steps=2, actor__epochs_per_step=2))
    seen = []
    update = parts.actor.update
    parts.actor.update = lambda batch, step: (seen.append((batch, parts.actor.logp(batch))), update(batch, step))[1]
    train(parts)
    assert all(torch.equal(batch.old_logp, now) for batch, now in seen)


def test_a_cut_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    train(toy_parts(toy_config(tmp_path, steps=2, save_every_steps=1)))
    (tmp_path / "checkpoints" / "step_000002" / "toy.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"step_000002.toy\.json: 1 bytes"):
        train(toy_parts(toy_config(tmp_path, steps=3)))


def test_a_half_written_checkpoint_is_not_one(tmp_path: Path) -> None:
    parts = toy_parts(toy_config(tmp_path, steps=4, save_every_steps=1))
    save = ToyActor.save

    def dies_at_the_third(directory):
        if "000003" in str(directory):
            (directory / "toy.json").write_text("half")
            raise KeyboardInterrupt
        save(parts.actor, directory)

    parts.actor.save = dies_at_the_third
    with pytest.raises(KeyboardInterrupt):
        train(parts)
    assert parts.checkpoints.latest().name == "step_000002"


def test_old_checkpoints_go(tmp_path: Path) -> None:
    parts = toy_parts(toy_config(tmp_path, steps=5, save_every_steps=1, keep_checkpoints=2))
    train(parts)
    assert [p.name for p in parts.checkpoints.all()] == ["step_000004", "step_000005"]


def test_a_nan_difference_is_not_the_same_weights(tmp_path: Path) -> None:
    parts = toy_parts(toy_config(tmp_path, steps=2))
    update = parts.actor.update
    parts.actor.update = lambda batch, step: update(batch, step) | {"sync/logp_diff_max": float("nan")}
    with pytest.raises(SyncError):
        train(parts)


def test_an_evaluation_without_scores_ends_the_run_and_is_not_zero(tmp_path: Path) -> None:
    parts = toy_parts(toy_config(tmp_path, steps=1))
    sample = parts.rollouts.sample

    def unscored(prompts, samples, temperature):
        groups = sample(prompts, samples, temperature)
        for rollout in (r for g in groups for r in g.rollouts):
            rollout.reward, rollout.status, rollout.parts = None, {"right": "timeout"}, {}
        return groups

    parts.rollouts.sample = unscored
    with pytest.raises(RewardError, match="right.*'timeout'"):
        train(parts)


def test_a_step_in_which_nothing_is_scored_goes_on_where_that_is_allowed(tmp_path: Path) -> None:
    parts = toy_parts(toy_config(tmp_path, steps=1, reward__max_failed_fraction=1.0))
    parts.rollouts.unscored = set(range(8))
    train(parts)
    assert lines(tmp_path)[1]["reward/mean"] is None
