"""The real loop over a toy world: it learns, resumes to the same numbers, and stops when something is not true."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlcore.compose.recipe import algorithm_names
from rlcore.config import Correction
from rlcore.errors import CheckpointError, ConfigError, RewardError, SyncError, WorkerError
from rlcore.records import Batch, Group
from rlcore.train.loop import train
from tests.close import assert_close
from tests.loop.fakes import toy_config, toy_run


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def untimed(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith(("time", "perf/", "sync/seconds"))} for row in rows]


def test_the_loop_learns(tmp_path: Path) -> None:
    train(toy_run(toy_config(tmp_path)).run)
    rows = lines(tmp_path)
    assert rows[0]["eval/toy/accuracy"] <= 0.5
    assert rows[-1]["eval/toy/accuracy"] == 1.0
    assert rows[-1]["reward/mean"] > 0.9
    assert [r["step"] for r in rows] == list(range(21))


def test_a_sign_error_would_be_seen(tmp_path: Path) -> None:
    toy = toy_run(toy_config(tmp_path))
    plain = toy.credit.advantage
    toy.credit.advantage = lambda batch, cfg: -plain(batch, cfg)
    train(toy.run)
    assert lines(tmp_path)[-1]["eval/toy/accuracy"] <= 0.5


def test_resume_gives_the_numbers_of_an_uninterrupted_run(tmp_path: Path) -> None:
    train(toy_run(toy_config(tmp_path / "whole", steps=9, save_every_steps=3)).run)
    cut = toy_run(toy_config(tmp_path / "cut", steps=9, save_every_steps=3))
    update = cut.actor.update

    def dies_in_step_eight(batch, step):
        if step == 7:
            raise RuntimeError("killed")
        return update(batch, step)

    cut.actor.update = dies_in_step_eight
    with pytest.raises(RuntimeError, match="killed"):
        train(cut.run)
    again = toy_run(toy_config(tmp_path / "cut", steps=9, save_every_steps=3))
    train(again.run)
    assert untimed(lines(tmp_path / "cut")) == untimed(lines(tmp_path / "whole"))


def test_unscored_rollouts_leave_the_baseline_and_the_loss(tmp_path: Path) -> None:
    toy = toy_run(toy_config(tmp_path, steps=1, reward__max_failed_fraction=0.5))
    toy.rewards.unscored = {0, 1}
    seen = []
    update = toy.actor.update
    toy.actor.update = lambda batch, *rest: (seen.append(batch), update(batch, *rest))[1]
    train(toy.run)
    batch = seen[0]
    failed = batch.reward.isnan()
    assert failed.sum() == 16
    assert not batch.mask.reshape(-1, 2)[failed].any()
    assert (batch.advantage.reshape(-1, 2)[failed] == 0).all()
    kept = batch.reward[~failed].reshape(8, 6)
    assert_close(batch.advantage[1::2][~failed].reshape(8, 6).sum(1), [0.0] * 8, 20, "sums of groups", scale=1.0)  # 1.0
    assert lines(tmp_path)[1]["reward/failed_fraction"] == 0.25
    assert_close(lines(tmp_path)[1]["reward/mean"], kept.mean(), 10, "reward/mean")  # 0


def test_too_many_unscored_end_the_run_naming_the_function(tmp_path: Path) -> None:
    toy = toy_run(toy_config(tmp_path, steps=1))
    toy.rewards.unscored = {3}
    with pytest.raises(RewardError, match="8 of 64 .*right.*'error'") as e:
        train(toy.run)
    assert e.value.exit_code == 3


def test_stale_weights_end_the_run(tmp_path: Path) -> None:
    toy = toy_run(toy_config(tmp_path, steps=5))
    publish = toy.actor.publish

    def forgets_the_third(version):
        numbers = publish(version)
        if version == 3:
            toy.policy.published[3] = toy.policy.published[2]
        return numbers

    toy.actor.publish = forgets_the_third
    with pytest.raises(SyncError, match="step 3") as e:
        train(toy.run)
    assert e.value.exit_code == 5


def test_stale_last_weights_are_found_too(tmp_path: Path) -> None:
    toy = toy_run(toy_config(tmp_path, steps=2))
    publish = toy.actor.publish

    def forgets_the_last(version):
        numbers = publish(version)
        toy.policy.published[2] = toy.policy.published[0]
        return numbers

    toy.actor.publish = forgets_the_last
    with pytest.raises(SyncError, match="step 2"):
        train(toy.run)


def test_several_updates_get_old_logp_before_any(tmp_path: Path) -> None:
    toy = toy_run(toy_config(tmp_path, steps=2, actor__epochs_per_step=2))
    seen = []
    update = toy.actor.update
    toy.actor.update = lambda batch, *rest: (seen.append((batch, toy.actor.logp(batch))), update(batch, *rest))[1]
    train(toy.run)
    assert all(torch.equal(batch.old_logp, now) for batch, now in seen)


def test_a_cut_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    train(toy_run(toy_config(tmp_path, steps=2, save_every_steps=1)).run)
    (tmp_path / "checkpoints" / "step_000002" / "toy.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"step_000002.toy\.json: 1 bytes"):
        train(toy_run(toy_config(tmp_path, steps=3)).run)


def test_a_half_written_checkpoint_is_not_one(tmp_path: Path) -> None:
    toy = toy_run(toy_config(tmp_path, steps=4, save_every_steps=1))
    save = toy.actor.save

    def dies_at_the_third(directory):
        if "000003" in str(directory):
            (directory / "toy.json").write_text("half")
            raise KeyboardInterrupt
        save(directory)

    toy.actor.save = dies_at_the_third
    with pytest.raises(KeyboardInterrupt):
        train(toy.run)
    assert toy.run.checkpoints.latest().name == "step_000002"


def test_old_checkpoints_go(tmp_path: Path) -> None:
    toy = toy_run(toy_config(tmp_path, steps=5, save_every_steps=1, keep_checkpoints=2))
    train(toy.run)
    assert [p.name for p in toy.run.checkpoints.all()] == ["step_000004", "step_000005"]


def test_a_nan_difference_is_not_the_same_weights(tmp_path: Path) -> None:
    toy = toy_run(toy_config(tmp_path, steps=2))
    update = toy.actor.update
    toy.actor.update = lambda *args: update(*args)._replace(logp_diff_max=float("nan"))
    with pytest.raises(SyncError):
        train(toy.run)


def test_an_evaluation_without_scores_ends_the_run_and_is_not_zero(tmp_path: Path) -> None:
    toy = toy_run(toy_config(tmp_path, steps=1))
    sample = toy.rollouts.sample

    def unscored(prompts, ask):
        failed = {"reward": None, "status": {"right": "timeout"}, "parts": {}}
        return [Group([dataclasses.replace(r, **failed) for r in g.rollouts]) for g in sample(prompts, ask)]

    toy.rollouts.sample = unscored
    with pytest.raises(RewardError, match="right.*'timeout'"):
        train(toy.run)


def test_a_step_in_which_nothing_is_scored_goes_on_where_that_is_allowed(tmp_path: Path) -> None:
    toy = toy_run(toy_config(tmp_path, steps=1, reward__max_failed_fraction=1.0))
    toy.rewards.unscored = set(range(8))
    train(toy.run)
    assert lines(tmp_path)[1]["reward/mean"] is None


@pytest.mark.parametrize("name", algorithm_names())
def test_every_algorithm_learns(tmp_path: Path, name: str) -> None:
    cfg = toy_config(tmp_path, algorithm=name)
    train(toy_run(cfg).run)
    rows = lines(tmp_path)
    assert rows[0]["eval/toy/accuracy"] <= 0.5 and rows[-1]["eval/toy/accuracy"] == 1.0
    assert rows[-1]["reward/mean"] > 0.9


def test_resume_with_everything_that_has_a_state(tmp_path: Path) -> None:
    """Critic, its scale of returns, the KL's controller, a reference that moves, and more prompts drawn than used."""
    settings: dict[str, object] = dict(
        steps=9, save_every_steps=3, advantage__name="gae", critic__ranks=1, critic__whiten_returns=True,
        critic__warmup_steps=2, kl__coef=0.05, kl__target=0.001, kl__horizon=100, reference__refresh_steps=2,
        rollout__dynamic_draws=2.0, actor__epochs_per_step=2, actor__minibatches_per_step=2, prompts_per_step=5,
        actor__learning_rate=0.1,
    )  # fmt: skip
    train(toy_run(toy_config(tmp_path / "whole", **settings)).run)
    whole = untimed(lines(tmp_path / "whole"))
    assert len({row["kl/coef"] for row in whole[1:]}) > 5 and {row["group/drawn"] for row in whole[1:]} != {5.0}
    cut = toy_run(toy_config(tmp_path / "cut", **settings))
    finish = cut.critic.finish

    def dies_in_step_eight() -> dict[str, float]:
        if cut.run.tracker.run_dir.joinpath("metrics.jsonl").read_text().count("\n") == 8:
            raise RuntimeError("killed")
        return finish()

    cut.critic.finish = dies_in_step_eight
    with pytest.raises(RuntimeError, match="killed"):
        train(cut.run)
    train(toy_run(toy_config(tmp_path / "cut", **settings)).run)
    assert untimed(lines(tmp_path / "cut")) == whole


def test_groups_without_a_signal_are_drawn_logged_and_not_trained_on(tmp_path: Path) -> None:
    toy = toy_run(toy_config(tmp_path, steps=12, rollout__dynamic_draws=2.0, prompts_per_step=4))
    seen = []
    update = toy.actor.update
    toy.actor.update = lambda batch, *rest: (seen.append(batch), update(batch, *rest))[1]
    train(toy.run)
    rows = lines(tmp_path)[1:]
    assert any(row["group/drawn"] > row["group/used"] for row in rows)
    for row, batch in zip(rows, seen, strict=True):
        assert len(batch) == 8 * row["group/used"] and row["group/used"] <= 4 and row["group/drawn"] <= 8
        signal = [batch.reward[batch.group == g].unique().numel() > 1 for g in batch.group.unique()]
        assert row["group/zero_advantage_fraction"] == 1 - sum(signal) / len(signal)
        assert all(signal) or row["group/equal_reward_fraction"] == 1.0
        written = (tmp_path / "rollouts" / f"step_{row['step']:06d}.jsonl").read_text().splitlines()
        uses = [json.loads(line)["use"] for line in written]
        assert uses.count("loss") == len(batch) and uses.count("none") == 8 * row["group/drawn"] - len(batch)


def test_in_the_critics_warm_up_only_the_critic_learns(tmp_path: Path) -> None:
    toy = toy_run(toy_config(tmp_path, steps=4, advantage__name="gae", critic__ranks=1, critic__warmup_steps=3))
    train(toy.run)
    published = toy.policy.published
    assert torch.equal(published[3], published[0]) and not torch.equal(published[4], published[3])
    rows = lines(tmp_path)[1:]
    assert rows[0]["critic/value"] == 0.0 and rows[3]["critic/value"] > 0.0


def test_the_controller_moves_the_coefficient_towards_its_target(tmp_path: Path) -> None:
    low, high = (
        toy_run(toy_config(tmp_path / str(t), steps=6, kl__coef=0.1, kl__target=t, kl__horizon=64)) for t in (1e-6, 1e3)
    )
    for toy in (low, high):
        train(toy.run)
    assert low.actor.kl.coef > 0.1 > high.actor.kl.coef
    coefficients = [r["kl/coef"] for r in lines(tmp_path / "1000.0")[1:]]
    assert_close(coefficients, [0.1 * 0.8**i for i in range(6)], 10, "coefficients")  # 0.3


def test_failed_greedy_baselines_count_as_failures(tmp_path: Path) -> None:
    toy = toy_run(toy_config(tmp_path, steps=1, advantage__name="remax", rollout__greedy_baseline=True))
    toy.rewards.unscored = {8}
    with pytest.raises(RewardError, match="8 of 72"):
        train(toy.run)
    toy = toy_run(
        toy_config(tmp_path / "on", steps=1, advantage__name="remax", rollout__greedy_baseline=True,
                   reward__max_failed_fraction=0.5)
    )  # fmt: skip
    toy.rewards.unscored = {8}
    train(toy.run)
    row = lines(tmp_path / "on")[1]
    assert row["group/baseline_failed_fraction"] == 1.0 and row["reward/failed_fraction"] == 0.0
    assert row["actor/loss"] == 0.0, "no baseline, no advantage"


def test_an_advantage_of_ones_own_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def centered(batch, cfg):\n    return (batch.reward - 0.5)[batch.rollout_of_token]\n"
        "def by_rollout(batch, cfg):\n    return batch.reward\n"
        "def divides_by_zero(batch, cfg):\n    return batch.rollout_logp * float('inf')\n"
    )
    train(toy_run(toy_config(tmp_path / "right", advantage__name=f"{file}:centered")).run)
    assert lines(tmp_path / "right")[-1]["eval/toy/accuracy"] == 1.0
    for name, why in (("by_rollout", r"by_rollout.*shape \(64,\).*shape \(128,\)"), ("divides_by_zero", "not finite")):
        with pytest.raises(ConfigError, match=f"advantage.name: .*{why}") as e:
            train(toy_run(toy_config(tmp_path / name, advantage__name=f"{file}:{name}")).run)
        assert e.value.exit_code == 2


def test_a_loss_of_ones_own_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def plain(logp, batch, cfg):\n    return -logp * batch.advantage, {'mine': logp.detach()}\n"
        "def averaged(logp, batch, cfg):\n    return -(logp * batch.advantage).mean(), {}\n"
    )
    train(toy_run(toy_config(tmp_path / "right", loss__name=f"{file}:plain")).run)
    assert lines(tmp_path / "right")[-1]["eval/toy/accuracy"] == 1.0 and "actor/mine" in lines(tmp_path / "right")[-1]
    with pytest.raises(ConfigError, match="loss.name: .*averaged"):
        train(toy_run(toy_config(tmp_path / "wrong", loss__name=f"{file}:averaged")).run)


def test_no_forward_for_rollouts_that_have_no_loss(tmp_path: Path) -> None:
    toy = toy_run(toy_config(tmp_path, steps=2, kl__coef=0.1, actor__minibatches_per_step=2))
    toy.rewards.unscored = {0, 1}
    toy.run.cfg.reward.max_failed_fraction = 0.5
    sent, batches = [], []
    for role in (toy.actor, toy.reference):
        rank = role.group.workers[0].handle
        forward = rank.logp
        rank.logp = lambda batch, microbatches, forward=forward: (
            sent.append(len(batch)),
            forward(batch, microbatches),
        )[1]
    update = toy.actor.update
    toy.actor.update = lambda batch, *args: (
        batches.append((batch, toy.policy._logp(batch)[0])),
        update(batch, *args),
    )[1]
    train(toy.run)
    assert sent[:4] == [48] * 4  # of 64
    for batch, plain in batches:
        assert torch.equal(batch.old_logp, plain.detach() * batch.mask)


def test_resuming_with_another_kl_coefficient_counts(tmp_path: Path) -> None:
    for name, target, coef, then in (("fixed", None, 0.1, 0.5), ("adaptive", 0.05, 0.1, 0.5), ("new", None, 0.1, 0.2)):
        settings = {"save_every_steps": 2, "kl__target": target, "kl__horizon": 64}
        train(toy_run(toy_config(tmp_path / name, steps=2, kl__coef=coef, **settings)).run)
        train(toy_run(toy_config(tmp_path / name, steps=3, kl__coef=then, **settings)).run)
        assert lines(tmp_path / name)[3]["kl/coef"] == then
    again = tmp_path / "again"
    settings = {"save_every_steps": 2, "kl__coef": 0.1, "kl__target": 0.05, "kl__horizon": 64}
    train(toy_run(toy_config(again, steps=2, **settings)).run)
    train(toy_run(toy_config(again, steps=3, **settings)).run)
    assert lines(again)[3]["kl/coef"] not in (0.1, lines(again)[2]["kl/coef"])


def test_the_kl_coefficient_waits_while_the_policy_cannot_move(tmp_path: Path) -> None:
    settings = {"critic__warmup_steps": 3, "kl__target": 0.01, "kl__horizon": 64, "steps": 5}
    train(
        toy_run(toy_config(tmp_path, algorithm="ppo", critic__ranks=1, actor__minibatches_per_step=2, **settings)).run
    )
    coefficients = [row["kl/coef"] for row in lines(tmp_path)[1:]]
    assert coefficients[:4] == [coefficients[0]] * 4 and coefficients[4] != coefficients[0]


def test_nothing_trained_on_leaves_the_weights_and_the_coefficient_alone(tmp_path: Path) -> None:
    changes = {"kl__coef": 0.1, "kl__target": 0.05, "kl__horizon": 64, "reward__max_failed_fraction": 1.0, "steps": 4}
    toy = toy_run(toy_config(tmp_path, **changes))
    tables, update = [], toy.actor.update

    def scores_fail_from_the_third_step_on(batch, step):
        toy.rewards.unscored = set(range(8)) if step >= 1 else set()
        numbers = update(batch, step)
        tables.append(toy.policy.table.detach().clone())
        return numbers

    toy.actor.update = scores_fail_from_the_third_step_on
    train(toy.run)
    assert not torch.equal(tables[0], tables[1]) and torch.equal(tables[1], tables[2])
    rows = lines(tmp_path)
    assert "actor/kl" not in rows[3] and rows[3]["actor/loss"] is None
    assert rows[4]["kl/coef"] == rows[3]["kl/coef"] != rows[2]["kl/coef"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("role", "method", "says"),
    [
        ("reference", "logp", "reference: its log-probability"),
        ("actor", "logp", "actor: the policy's log-probability"),
        ("critic", "value", "critic: its value"),
    ],
)
def test_a_number_that_is_none_is_named_before_the_update(
    tmp_path: Path, role: str, method: str, says: str, value: float
) -> None:
    """With the reference's the loss would be NaN, its gradient 0 there, and the update made."""
    settings = dict(steps=3, kl__coef=0.1, actor__minibatches_per_step=2, advantage__name="gae", critic__ranks=1)
    toy = toy_run(toy_config(tmp_path, **settings))
    rank = getattr(toy, role).group.workers[0].handle
    of, before = getattr(rank, method), toy.policy.table.detach().clone()

    def spoiled(batch: Batch, microbatches: list[list[int]]) -> Tensor:
        return of(batch, microbatches).index_fill(0, torch.tensor([0, 2 * 9 + 1]), value)

    setattr(rank, method, spoiled)
    with pytest.raises(
        WorkerError, match=rf"{says} is -?(nan|inf) at token 1 of rollout 1 of prompt toy:\d@1; of 64"
    ) as e:
        train(toy.run)
    assert e.value.exit_code == 4 and torch.equal(toy.policy.table, before)


def test_a_number_of_the_engine_that_is_none_is_named(tmp_path: Path) -> None:
    toy = toy_run(toy_config(tmp_path, steps=1))
    take = toy.rollouts.take

    def spoiled(n: int) -> list[Group]:
        groups = take(n)
        groups[2].rollouts[5].logp[-1] = float("-inf")
        return groups

    toy.rollouts.take = spoiled
    with pytest.raises(WorkerError, match=r"rollout: the engine's log-probability is -inf at token 1 of rollout 5 of"):
        train(toy.run)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e39])
@pytest.mark.parametrize("name", ["grpo", "remax"])
def test_an_infinite_reward_is_named_and_not_the_advantage(tmp_path: Path, value: float, name: str) -> None:
    greedy = {"advantage__name": name, "rollout__greedy_baseline": name == "remax"}
    toy = toy_run(toy_config(tmp_path, steps=1, reward__fns=["right"], **greedy))
    sample = 8 if name == "remax" else 3
    poll = toy.rewards.poll

    def spoiled(wait_seconds: float) -> list[Any]:
        done = poll(wait_seconds)
        for key, scored in done:
            if toy.rewards.watch.phase == "rollout" and key == (4, sample):
                scored.reward, scored.parts = value, {"right": value}
        return done

    toy.rewards.poll = spoiled
    said = rf"rollout {sample} of prompt toy:\d@1 has the reward (inf|nan|1e\+39).*gave: right (inf|nan|1e\+39)"
    with pytest.raises(RewardError, match=said):
        train(toy.run)


def test_a_minibatch_without_a_trained_token_is_no_update_and_counted(tmp_path: Path) -> None:
    toy = toy_run(toy_config(tmp_path, steps=2, actor__minibatches_per_step=4, reward__max_failed_fraction=0.9))
    take = toy.rollouts.take

    def unscored(n: int) -> list[Group]:
        groups = take(n)
        failed = {"reward": None, "status": {"right": "error"}}
        for g in (2, 3, 6, 7):  # the second and the fourth quarter
            groups[g] = Group([dataclasses.replace(r, **failed) for r in groups[g].rollouts])
        return groups

    toy.rollouts.take = unscored
    train(toy.run)
    empty = [row["actor/empty_updates"] for row in lines(tmp_path)[1:]]
    assert min(empty) >= 2 and max(empty) < 4, "more where the rewards of all groups of a quarter are equal"
    assert int(toy.policy.adam.state[toy.policy.table]["step"]) == 2 * 4 - sum(empty)


def test_a_run_that_cannot_learn_ends(tmp_path: Path) -> None:
    toy = toy_run(toy_config(tmp_path))
    update = toy.actor.update
    toy.actor.update = lambda *args: update(*args)._replace(skipped=1, grad_norm=float("nan"))
    with pytest.raises(WorkerError, match="last 3 steps no gradient was finite"):
        train(toy.run)
    assert lines(tmp_path)[-1]["step"] == 2


def test_a_correction_is_for_tokens_that_differ(tmp_path: Path) -> None:
    for name, ends in (("none", True), ("mask_token", False)):
        toy = toy_run(toy_config(tmp_path / name, steps=1, correction__name=Correction(name), sync__max_logp_diff=0.1))
        take = toy.rollouts.take

        def one_token_differs(n, take=take):
            groups = take(n)
            groups[0].rollouts[0].logp[-1] -= 3.0
            return groups

        toy.rollouts.take = one_token_differs
        if ends:
            with pytest.raises(SyncError):
                train(toy.run)
        else:
            train(toy.run)
            assert 0 < lines(tmp_path / name)[1]["correction/clipped_fraction"] < 0.1
