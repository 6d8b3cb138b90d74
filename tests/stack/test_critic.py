"""The real critic: its driver's handle, Ray processes, gloo, DeepSpeed, a value model of Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlcore.algo.value import ReturnScale
from rlcore.cluster.deadlines import Watch
from rlcore.cluster.placement import Cluster
from rlcore.config import Config, DeadlineConfig, Device, Dtype, PlacementConfig, RayConfig
from rlcore.records import Batch
from rlcore.workers.critic import Critic
from rlcore.workers.critic_rank import CriticRank
from rlcore.workers.group import rank_group
from tests.close import assert_close
from tests.stack.test_actor import assert_same_gradient, batch_of, tensors
from tests.tiny import give_head, make_tiny_model

ROLES = {"one": 1, "two": 2}  # two critics, of as many ranks


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", tied=True)


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its backbone is not the policy's."""
    directory = make_tiny_model(tmp_path_factory.mktemp("model") / "reward", seed=1)
    return give_head(directory, directory, std=0.1)


def config_of(model: Path, reward_model: Path | None = None, **actor: Any) -> Config:
    cfg = Config()
    cfg.model.path = str(model)
    cfg.critic.path = None if reward_model is None else str(reward_model)
    cfg.critic.learning_rate = 1e-3
    cfg.steps = 100
    cfg.actor.max_grad_norm, cfg.actor.microbatch_tokens = 0.0, 80
    for key, value in actor.items():
        setattr(cfg.actor, key, value)
    return cfg


class Restartable(CriticRank):
    """Starting a process costs far more than starting an engine in it."""

    def restart(self, cfg: Config) -> dict[str, Any]:
        self.cfg = cfg
        return self._load_model()


@pytest.fixture(scope="module")
def critics(tiny: Path) -> Iterator[dict[str, Critic]]:
    watch = Watch()
    place = PlacementConfig(device=Device.cpu)
    cluster = Cluster(RayConfig(object_store_mib=200), place, DeadlineConfig(), ROLES, watch)
    try:
        cfg = config_of(tiny)
        groups = {role: rank_group(role, Restartable, n, cfg, cluster, watch) for role, n in ROLES.items()}
        starting = [(group, group.begin("start")) for group in groups.values()]
        for group, refs in starting:
            group.finish("start", refs, 300)
        yield {role: Critic(group, cfg) for role, group in groups.items()}
    finally:
        cluster.close()


def started(critics: dict[str, Critic], role: str, cfg: Config) -> Critic:
    critic = critics[role]
    critic.group.call("restart", cfg, seconds=300)
    critic.cfg, critic.scale = cfg, ReturnScale()
    return critic


def update(critic: Critic, batch: Batch, step: int = 0) -> dict[str, float]:
    critic.begin(batch, step)
    return critic.finish()


def lesson(seed: int = 0, rollouts: int = 12) -> Batch:
    """Values near 0, and returns that the tokens before tell: what the last token's number was."""
    batch = batch_of(rollouts, seed)
    told = (batch.tokens.roll(1).float() - 50) / 30
    g = torch.Generator().manual_seed(seed)
    return batch.with_(value=0.3 * torch.randn(len(told), generator=g) * batch.mask, returns=told * batch.mask)


def gradient(critic: Critic, to: Path) -> dict[str, torch.Tensor]:
    """Of one update: Adam's first exp_avg is a tenth of it."""
    metrics = update(critic, lesson())
    assert metrics["critic/skipped_updates"] == 0 and metrics["critic/lr"] == 1e-3
    assert 0 < metrics["critic/clip_fraction"] < 1
    names = ("critic/loss", "critic/grad_norm", "critic/value", "critic/clip_fraction", "critic/explained_variance")
    critic.save(to)
    numbers = {k: torch.tensor(metrics[k]) for k in names}
    return numbers | {k: v for k, v in tensors(to).items() if k.startswith("exp_avg/")}


@pytest.fixture(scope="module")
def whole_gradient(
    critics: dict[str, Critic], tiny: Path, reward_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    """One rank, one micro-batch."""
    cfg = config_of(tiny, reward_model, zero_stage=0, microbatch_tokens=10_000)
    return gradient(started(critics, "one", cfg), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(("role", "stage"), [("one", 0), ("two", 0), ("two", 3)])
def test_the_gradient_is_that_of_one_microbatch_on_one_rank(
    critics: dict[str, Critic], tiny: Path, reward_model: Path, tmp_path: Path,
    whole_gradient: dict[str, torch.Tensor], role: str, stage: int,
) -> None:  # fmt: skip
    critic = started(critics, role, config_of(tiny, reward_model, zero_stage=stage, ranks=ROLES[role]))
    found = gradient(critic, tmp_path)
    assert found["exp_avg/score.weight"].any()
    assert_same_gradient(found, whole_gradient)


def one_by_one(directory: Path, batch: Batch) -> torch.Tensor:
    """The scoring layer on the hidden state before each token, each rollout alone in the untouched model."""
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    values = []
    for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True):
        with torch.no_grad():
            hidden = model.base_model(batch.tokens[None, a:b].long()).last_hidden_state[0]
            values += [torch.zeros(1), model.get_submodule("score")(hidden)[:-1, 0]]
    return torch.cat(values) * batch.mask


def test_values_are_those_of_the_reward_model_and_after_an_update_of_what_is_saved(
    critics: dict[str, Critic], tiny: Path, reward_model: Path, tmp_path: Path
) -> None:
    critic = started(critics, "two", config_of(tiny, reward_model, ranks=2))
    batch = lesson()
    first = critic.value(batch)
    assert float(first.abs().max()) > 0.1
    assert_close(first, one_by_one(reward_model, batch), 25, "values")  # 0.9
    update(critic, batch)
    critic.save(tmp_path)
    second = critic.value(batch)
    assert float((second - first).abs().max()) > 1e-3
    assert_close(second, one_by_one(tmp_path / "model", batch), 25, "values after an update")  # 0.3
    few = batch.select([0])  # fewer rollouts than ranks
    assert_close(critic.value(few), second[: len(few.tokens)], 25, "values of one rollout")  # 0.4


def test_a_language_model_begins_with_values_of_0_and_learns(critics: dict[str, Critic], tiny: Path) -> None:
    cfg = config_of(tiny, ranks=2, minibatches_per_step=2, epochs_per_step=3, zero_stage=1)
    cfg.critic.learning_rate, cfg.critic.clip = 5e-3, 0.0
    critic = started(critics, "two", cfg)
    batch = lesson()
    first = critic.value(batch)
    assert not first.any()
    for step in range(5):
        again = Batch(**{k: v for k, v in vars(batch).items() if k != "value"})
        metrics = update(critic, again.with_(value=critic.value(batch)), step)
        if step == 0:
            assert metrics["critic/explained_variance"] == 0
    assert metrics["critic/explained_variance"] > 0.5


@pytest.mark.parametrize("dtype", [Dtype.float32, Dtype.bfloat16])
def test_saved_and_loaded_it_goes_on_to_the_bit(
    critics: dict[str, Critic], tiny: Path, reward_model: Path, tmp_path: Path, dtype: Dtype
) -> None:
    cfg = config_of(tiny, reward_model, ranks=2, weight_decay=0.1, max_grad_norm=0.5)
    cfg.model.dtype = dtype
    critic = started(critics, "two", cfg)
    update(critic, lesson(1))
    critic.save(tmp_path / "half")
    value = critic.value(lesson())
    update(critic, lesson(2), 1)
    critic.save(tmp_path / "whole")
    whole = tensors(tmp_path / "whole")

    critic = started(critics, "two", config_of(tiny, None, ranks=2) if dtype is Dtype.float32 else cfg)
    critic.load(tmp_path / "half")
    assert critic.value(lesson()).equal(value)
    critic = started(critics, "two", cfg)
    critic.load(tmp_path / "half")
    update(critic, lesson(2), 1)
    critic.save(tmp_path / "resumed")
    resumed = tensors(tmp_path / "resumed")
    assert resumed.keys() == whole.keys() and all(v.equal(whole[k]) for k, v in resumed.items())
    assert json.loads((tmp_path / "resumed" / "optimizer.json").read_text()) == {"step": 2}


def test_a_checkpoint_loads_in_another_stage_and_number_of_ranks(
    critics: dict[str, Critic], tiny: Path, reward_model: Path, tmp_path: Path
) -> None:
    two = started(critics, "two", config_of(tiny, reward_model, ranks=2))
    update(two, lesson(1))
    two.save(tmp_path / "saved")
    one = started(critics, "one", config_of(tiny, zero_stage=0))
    one.load(tmp_path / "saved")
    one.save(tmp_path / "again")
    saved, again = tensors(tmp_path / "saved"), tensors(tmp_path / "again")
    assert saved.keys() == again.keys() and all(v.equal(saved[k]) for k, v in again.items())
    assert_close(one.value(lesson()), two.value(lesson()), 25, "values")  # 0


def test_whitened_returns_are_learned_in_deviations_and_said_in_the_rewards_unit(
    critics: dict[str, Critic], tiny: Path, tmp_path: Path
) -> None:
    cfg = config_of(tiny, ranks=2)
    cfg.critic.whiten_returns, cfg.critic.clip, cfg.critic.learning_rate = True, 0.2, 1e-9
    critic = started(critics, "two", cfg)
    batch = lesson()
    columns = {k: v for k, v in vars(batch).items() if k not in ("value", "returns")}
    returns = (500 + 40 * batch.returns) * batch.mask  # type: ignore
    masked = returns[batch.mask]

    def ask() -> Batch:
        return Batch(**columns, returns=returns, value=critic.value(batch))

    first = ask()
    assert first.value is not None and not first.value.any()  # nothing is known of the scale yet
    metrics = update(critic, first)
    # The head is 0 and hardly moves: its squared error is the variance of targets that were whitened, and half of it.
    assert_close(metrics["critic/loss"], torch.tensor(0.5), 15, "critic/loss")  # 0.8
    second = ask()
    assert second.value is not None
    assert_close(second.value[batch.mask], masked.mean().expand(len(masked)), 15, "values")  # 0.5
    assert not second.value[~batch.mask].any()
    metrics = update(critic, second, 1)
    assert_close(metrics["critic/value"], masked.mean(), 15, "critic/value")  # 0.5
    assert metrics["critic/clip_fraction"] == 0  # the old value is where the head is, in the head's own unit

    state = json.loads(json.dumps(critic.state()))
    critic.scale = ReturnScale()
    critic.restore(state)
    assert critic.value(batch).equal(second.value)
