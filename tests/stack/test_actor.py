"""The real actor and reference ranks: Ray processes, gloo, DeepSpeed."""

from __future__ import annotations

import dataclasses
import json
import math
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from rlcore.algo.stats import merge
from rlcore.config import Aggregation, Config, Dtype
from rlcore.records import Allowed, Batch, Kept
from rlcore.workers.actor_rank import ActorRank
from rlcore.workers.group import Place
from rlcore.workers.packing import plan, split
from rlcore.workers.reference_rank import ReferenceRank
from tests.close import assert_close
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", tied=True)


def config_of(model: Path, **actor: Any) -> Config:
    cfg = Config()
    cfg.model.path = str(model)
    cfg.kl.coef = 0.1
    cfg.actor.learning_rate = 1e-3
    cfg.actor.max_grad_norm = 0.0
    for key, value in actor.items():
        setattr(cfg.actor, key, value)
    return cfg


class Restartable(ActorRank):
    """Starting a process costs far more than starting an engine in it."""

    def restart(self, cfg: Config) -> dict[str, Any]:
        self.cfg = cfg
        return self._load_model()

    def full(self) -> dict[str, torch.Tensor]:
        """What `publish` sends, gathered two parameters at a time."""
        shapes = self.engine.shapes()
        sent: dict[str, torch.Tensor] = {}
        for begin in range(0, len(shapes), 2):
            indices = list(range(begin, min(begin + 2, len(shapes))))
            with self._gather(indices) as tensors:
                sent |= {shapes[i][0]: t.clone() for i, t in zip(indices, tensors, strict=True)}
        assert all(tuple(sent[n].shape) == s for n, s in shapes)
        return sent


class Ranks:
    """All ranks of a role; a call is a call on each of them."""

    def __init__(self, cls: type, cfg: Config, ranks: int) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        remote = ray.remote(cls)
        places = [Place(rank, ranks, ("127.0.0.1", port), "cpu") for rank in range(ranks)]
        self.handles = [remote.remote(place, cfg) for place in places]
        self.started = self("start")[0]

    def restart(self, cfg: Config) -> Ranks:
        self.started = self("restart", *[(cfg,)] * len(self.handles))[0]
        return self

    def __call__(self, method: str, *each: tuple[Any, ...]) -> list[Any]:
        args = each or [()] * len(self.handles)
        return ray.get([getattr(h, method).remote(*a) for h, a in zip(self.handles, args, strict=True)], timeout=300)

    def update(
        self, batch: Batch, microbatch_tokens: int, minibatches: int = 1, rate: float = 1e-3, kl_coef: float = 0.1
    ) -> dict[str, float]:  # fmt: skip
        work = split(batch, len(self.handles), microbatch_tokens, minibatches)
        return merge(self("update", *[(w, rate, kl_coef) for w in work]))

    def logp(self, batch: Batch, microbatch_tokens: int) -> torch.Tensor:
        out = torch.zeros(len(batch.tokens))
        shares = plan(batch.lengths.tolist(), len(self.handles), microbatch_tokens)
        mine = [[i for m in share for i in m] for share in shares]
        local = [[[m.index(i) for i in micro] for micro in share] for m, share in zip(mine, shares, strict=True)]
        parts = self("logp", *[(batch.select(m), s) for m, s in zip(mine, local, strict=True)])
        for indices, part in zip(mine, parts, strict=True):
            out[batch.tokens_of(indices)] = part
        return out

    def save(self, directory: Path) -> Path:
        self("save", *[(str(directory),)] * len(self.handles))
        return directory

    def load(self, directory: Path) -> None:
        self("load", *[(str(directory),)] * len(self.handles))

    def end(self) -> None:
        for handle in self.handles:
            ray.kill(handle)


def batch_of(rollouts: int = 12, seed: int = 0, **columns: Any) -> Batch:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(6, 40, (rollouts,), generator=g)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    n = int(offsets[-1])
    first = torch.repeat_interleave(offsets[:-1], lengths)
    mask = torch.arange(n) - first >= 4
    mask[offsets[2] : offsets[3]] = False  # a rollout whose reward failed
    noise = torch.randn(n, generator=g)
    return Batch(
        tokens=torch.randint(4, 100, (n,), generator=g, dtype=torch.int32), offsets=offsets, mask=mask,
        rollout_logp=torch.full((n,), -4.8), reward=torch.zeros(rollouts), group=torch.arange(rollouts) // 4,
        baseline=torch.full((rollouts,), float("nan")),
        advantage=noise * mask, ref_logp=-4.8 + 0.3 * noise, **columns,
    )  # fmt: skip


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {k: v for f in sorted(directory.rglob("*.safetensors")) for k, v in load_file(f).items()}


def gradient(group: Ranks, to: Path, microbatch_tokens: int) -> dict[str, torch.Tensor]:
    """Of one update: Adam's first exp_avg is a tenth of it."""
    metrics = group.update(batch_of(), microbatch_tokens)
    assert metrics["actor/skipped_updates"] == 0
    numbers = {k: torch.tensor(metrics[k]) for k in ("actor/loss", "actor/grad_norm", "actor/entropy", "actor/kl")}
    return numbers | {k: v for k, v in tensors(group.save(to)).items() if k.startswith("exp_avg/")}


@pytest.fixture(scope="module")
def one(tiny: Path) -> Iterator[Ranks]:
    """One rank, stage 0."""
    group = Ranks(Restartable, config_of(tiny, zero_stage=0), 1)
    yield group
    group.end()


@pytest.fixture(scope="module")
def two(tiny: Path) -> Iterator[Ranks]:
    group = Ranks(Restartable, config_of(tiny, ranks=2), 2)
    yield group
    group.end()


@pytest.fixture(scope="module")
def reference_gradient(one: Ranks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return gradient(one, tmp_path_factory.mktemp("one"), 10_000)


def assert_same_gradient(found: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    """Each tensor to its own largest entry. The numbers beside them are means of numbers of order 1, which cancel."""
    assert found.keys() == want.keys() and len(want) > 10
    for name, value in want.items():
        scale = None if value.ndim else max(1.0, float(value.abs()))
        assert_close(found[name], value, 150, name, scale)  # 8.7


def test_four_microbatches_give_the_gradient_of_one(
    one: Ranks, tiny: Path, tmp_path: Path, reference_gradient: dict[str, torch.Tensor]
) -> None:
    one.restart(config_of(tiny, zero_stage=0))
    assert len(split(batch_of(), 1, 80)[0][0].microbatches) >= 4
    assert_same_gradient(gradient(one, tmp_path, 80), reference_gradient)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_of_any_stage_give_the_gradient_of_one(
    two: Ranks, tiny: Path, tmp_path: Path, reference_gradient: dict[str, torch.Tensor], stage: int, checkpointing: bool
) -> None:
    two.restart(config_of(tiny, ranks=2, zero_stage=stage, gradient_checkpointing=checkpointing))
    assert_same_gradient(gradient(two, tmp_path, 80), reference_gradient)


def test_zero_3_that_keeps_nothing_gathered_gives_the_same_gradient(
    two: Ranks, tiny: Path, tmp_path: Path, reference_gradient: dict[str, torch.Tensor]
) -> None:
    args = {"zero_optimization": {"stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0}}
    two.restart(config_of(tiny, ranks=2, deepspeed_args=args, gradient_checkpointing=True))
    assert two.started["deepspeed"]["zero_optimization"]["stage3_max_live_parameters"] == 0
    assert_same_gradient(gradient(two, tmp_path, 80), reference_gradient)


def test_a_rank_without_rollouts_keeps_in_step(two: Ranks, one: Ranks, tiny: Path, tmp_path: Path) -> None:
    alone = batch_of().select([0])
    found = []
    for group, name in ((one, "one"), (two, "two")):
        group.restart(config_of(tiny, ranks=len(group.handles)))
        metrics = group.update(alone, 80)
        saved = {k: v for k, v in tensors(group.save(tmp_path / name)).items() if k.startswith("exp_avg/")}
        found.append(saved | {"loss": torch.tensor(metrics["actor/loss"])})
    assert_same_gradient(found[1], found[0])


def test_resumed_in_new_processes_is_never_interrupted_to_the_bit(two: Ranks, tiny: Path, tmp_path: Path) -> None:
    cfg = config_of(tiny, ranks=2, weight_decay=0.1, max_grad_norm=0.5)
    first, second = batch_of(seed=1), batch_of(seed=2)
    two.restart(cfg).update(first, 80)
    half = two.save(tmp_path / "half")
    two.update(second, 80)
    whole = tensors(two.save(tmp_path / "whole"))

    fresh = Ranks(Restartable, cfg, 2)
    fresh.load(half)
    fresh.update(second, 80)
    resumed = tensors(fresh.save(tmp_path / "resumed"))
    fresh.end()
    assert json.loads((tmp_path / "resumed" / "optimizer.json").read_text()) == {"step": 2}
    assert resumed.keys() == whole.keys()
    assert all(resumed[k].equal(whole[k]) for k in whole)


@pytest.mark.parametrize("stage", [0, 2])
def test_a_checkpoint_loads_in_another_stage_and_number_of_ranks(
    one: Ranks, two: Ranks, tiny: Path, tmp_path: Path, stage: int
) -> None:
    two.restart(config_of(tiny, ranks=2)).update(batch_of(seed=1), 80)
    saved = two.save(tmp_path / "saved")
    one.restart(config_of(tiny, zero_stage=stage)).load(saved)
    again = one.save(tmp_path / "again")
    assert all(v.equal(tensors(saved)[k]) for k, v in tensors(again).items())
    assert_close(one.logp(batch_of(), 80), two.logp(batch_of(), 80), 20, "logp")  # 0


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_keeps_float32_master_weights_and_resumes_to_the_bit(
    two: Ranks, tiny: Path, tmp_path: Path, stage: int
) -> None:
    cfg = config_of(tiny, ranks=2, zero_stage=stage)
    cfg.model.dtype = Dtype.bfloat16
    two.restart(cfg).update(batch_of(seed=1), 80, rate=1e-5)
    half = two.save(tmp_path / "half")
    before = two.logp(batch_of(), 80)
    two.update(batch_of(seed=2), 80, rate=1e-5)
    whole = tensors(two.save(tmp_path / "whole"))
    two.restart(cfg).load(half)
    assert two.logp(batch_of(), 80).equal(before)
    two.update(batch_of(seed=2), 80, rate=1e-5)
    resumed = tensors(two.save(tmp_path / "resumed"))
    assert all(resumed[k].equal(whole[k]) for k in whole)
    weight = whole["model.layers.0.mlp.up_proj.weight"]
    assert weight.dtype is torch.float32 and not weight.equal(weight.bfloat16().float())


@pytest.mark.parametrize("stage", [0, 3])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(
    two: Ranks, tiny: Path, tmp_path: Path, stage: int
) -> None:
    two.restart(config_of(tiny, ranks=2, zero_stage=stage))
    batch = batch_of()
    batch.advantage[batch.mask.nonzero()[0]] = float("nan")
    before = two.logp(batch, 80)
    assert two.update(batch, 80)["actor/skipped_updates"] == 1
    assert two.logp(batch, 80).equal(before)
    assert two.update(batch_of(), 80)["actor/skipped_updates"] == 0
    assert not two.logp(batch, 80).equal(before)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_update_without_a_trained_token_changes_nothing_and_is_counted(
    two: Ranks, tiny: Path, tmp_path: Path, stage: int
) -> None:
    """Neither weights nor Adam's state and count, as the first update and after one; stages 1 and 3 in bfloat16."""
    cfg = config_of(tiny, ranks=2, zero_stage=stage, weight_decay=0.1)
    cfg.model.dtype = Dtype.bfloat16 if stage in (1, 3) else Dtype.float32
    two.restart(cfg)
    nothing = batch_of(seed=2)
    nothing.mask[:] = False

    def state(name: str) -> tuple[dict[str, torch.Tensor], int]:
        saved = two.save(tmp_path / name)
        return tensors(saved), json.loads((saved / "optimizer.json").read_text())["step"]

    for updates, step in enumerate((0, 1)):
        before = state(f"before {updates}")
        for minibatches in (1, 2):
            old = two.logp(nothing, 80)
            found = two.update(nothing.with_(old_logp=old), 80, minibatches, kl_coef=0.0)
            assert found["actor/empty_updates"] == minibatches and found["actor/skipped_updates"] == 0
        after = state(f"after {updates}")
        assert before[1] == after[1] == step
        assert before[0].keys() == after[0].keys() and all(v.equal(before[0][k]) for k, v in after[0].items())
        assert two.update(batch_of(seed=1), 80)["actor/empty_updates"] == 0
    assert not tensors(two.save(tmp_path / "moved"))["model.norm.weight"].equal(before[0]["model.norm.weight"])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_gradients_of_microbatches_are_added_up_in_float32(
    two: Ranks, tiny: Path, tmp_path: Path, stage: int
) -> None:
    cfg = config_of(tiny, ranks=2, zero_stage=stage)
    cfg.model.dtype = Dtype.bfloat16
    found = []
    for tokens in (10_000, 40):
        gradients = gradient(two.restart(cfg), tmp_path / str(tokens), tokens)
        found.append(gradients["exp_avg/model.layers.0.mlp.up_proj.weight"].double())
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 0.01


def test_several_updates_a_step(two: Ranks, tiny: Path) -> None:
    two.restart(config_of(tiny, ranks=2, learning_rate=1e-2))
    batch = batch_of()
    old = two.logp(batch, 80)
    assert float(old[~batch.mask].abs().sum()) == 0
    metrics = two.update(batch.with_(old_logp=old), 80, minibatches=3, rate=1e-2)
    assert metrics["actor/ratio_max"] > 1.01 and metrics["actor/clip_fraction"] > 0
    want = (old + 4.8).abs()[batch.mask].max()
    assert_close(metrics["sync/logp_diff_max"], want, 20, "logp_diff_max", scale=4.8)  # 0
    on_policy = two.update(batch, 80)
    assert on_policy["actor/ratio_max"] == 1.0 and on_policy["actor/clip_fraction"] == 0.0


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_every_rank_gathers_the_updated_weights(two: Ranks, tiny: Path, tmp_path: Path, stage: int) -> None:
    args = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    two.restart(config_of(tiny, ranks=2, zero_stage=stage, deepspeed_args=args)).update(batch_of(), 80)
    saved = tensors(two.save(tmp_path) / "model")
    for gathered in two("full"):
        assert gathered.keys() == saved.keys()
        assert all(gathered[n].equal(t) for n, t in saved.items())


def test_the_saved_model_is_a_hugging_face_model(two: Ranks, tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    two.restart(config_of(tiny, ranks=2)).update(batch_of(), 80)
    directory = two.save(tmp_path) / "model"
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.dtype is torch.float32 and model.config._attn_implementation != "rlcore_packed"
    tokens = batch_of().tokens[:20].long()
    logp = model(tokens[None]).logits[0, :-1].log_softmax(-1).gather(-1, tokens[1:, None])[:, 0]
    whole = Batch(
        tokens=tokens.int(), offsets=torch.tensor([0, 20]), mask=torch.arange(20) > 0, rollout_logp=torch.zeros(20),
        reward=torch.zeros(1), group=torch.zeros(1, dtype=torch.int64), baseline=torch.zeros(1),
    )  # fmt: skip
    assert_close(two.logp(whole, 80)[1:], logp, 20, "logp")  # 0.8
    assert AutoTokenizer.from_pretrained(directory).chat_template


def test_a_rate_of_0_only_looks(two: Ranks, tiny: Path, tmp_path: Path) -> None:
    """As in the critic's warm-up: after a real update, so that Adam has a state that could move."""
    two.restart(config_of(tiny, ranks=2, weight_decay=0.1)).update(batch_of(seed=1), 80)
    batch = batch_of(seed=2)
    old = two.logp(batch, 80)
    before = tensors(two.save(tmp_path / "before"))
    looked = two.update(batch.with_(old_logp=old), 80, minibatches=2, rate=0.0)
    after = tensors(two.save(tmp_path / "after"))
    assert all(v.equal(before[k]) for k, v in after.items()) and len(after) > 30
    assert json.loads((tmp_path / "after" / "optimizer.json").read_text()) == {"step": 1}
    assert looked["actor/grad_norm"] == looked["actor/skipped_updates"] == 0 and looked["actor/ratio_max"] == 1.0
    learned = two.update(batch, 80)
    for name in ("actor/entropy", "actor/kl", "sync/logp_diff_max"):
        assert_close(looked[name], torch.tensor(learned[name]), 10, name)  # 0.4
    assert not two.logp(batch, 80).equal(old)


def test_the_entropy_bonus_raises_the_entropy_whatever_the_split(
    one: Ranks, two: Ranks, tiny: Path, tmp_path: Path
) -> None:
    """The temperature makes a random model sure of itself; without advantage and KL only the bonus moves it."""
    found = []
    batch = batch_of()
    batch.advantage.zero_()
    for group, ranks, microbatch_tokens in ((one, 1, 10_000), (two, 2, 80)):
        cfg = config_of(tiny, ranks=ranks)
        cfg.loss.entropy_coef, cfg.rollout.temperature = 0.5, 0.1
        group.restart(cfg)
        first = group.update(batch, microbatch_tokens, kl_coef=0.0)
        adam = tensors(group.save(tmp_path / str(ranks)))
        found.append({k: v for k, v in adam.items() if k.startswith("exp_avg/")})
        for _ in range(4):
            last = group.update(batch, microbatch_tokens, kl_coef=0.0)
        assert last["actor/entropy"] > first["actor/entropy"] + 0.1
    assert_same_gradient(found[1], found[0])


def test_pairs_give_the_same_gradient_whatever_the_split(one: Ranks, two: Ranks, tiny: Path, tmp_path: Path) -> None:
    """DPO: whole pairs, on one rank and two, and it prefers the chosen ones afterwards."""
    batch = batch_of(seed=3)
    whole = dataclasses.replace(batch, mask=batch.mask.clone(), group=torch.arange(len(batch)) // 2)
    whole.mask[whole.offsets[2] + 4 : whole.offsets[3]] = True
    found = []
    for group, ranks, microbatch_tokens in ((one, 1, 10_000), (two, 2, 80)):
        cfg = config_of(tiny, ranks=ranks)
        cfg.loss.name, cfg.loss.aggregation, cfg.kl.coef = "dpo", Aggregation.sequence_sum, 0.0
        group.restart(cfg)
        pairs = dataclasses.replace(whole, ref_logp=group.logp(whole, 120))
        work = split(pairs, ranks, microbatch_tokens, whole_groups=True)
        first, *_, last = (merge(group("update", *[(w, 1e-3, 0.0) for w in work])) for _ in range(4))
        assert_close(first["actor/loss"], torch.tensor(math.log(2)), 20, "loss")
        assert last["actor/margin"] > 0.05 and last["actor/loss"] < first["actor/loss"]
        adam = {k: v for k, v in tensors(group.save(tmp_path / str(ranks))).items() if k.startswith("exp_avg/")}
        found.append(adam | {"loss": torch.tensor(last["actor/loss"])})
    assert_same_gradient(found[1], found[0])


def test_what_tokens_were_chosen_from_counts_on_every_rank(one: Ranks, two: Ranks, tiny: Path, tmp_path: Path) -> None:
    """Also in old_logp; a rank without rollouts has none of it."""
    whole = batch_of(3)
    sampled = [
        [token, *{5, 50, token + 1} - {token}] if m else []
        for token, m in zip(whole.tokens.tolist(), whole.mask.tolist(), strict=True)
    ]
    whole = dataclasses.replace(whole, allowed=Allowed.of([Kept.of(sampled)]))
    found = []
    for group, ranks, microbatch_tokens in ((one, 1, 10_000), (two, 2, 30)):
        group.restart(config_of(tiny, ranks=ranks))
        old = group.logp(whole, microbatch_tokens)
        metrics = group.update(whole.with_(old_logp=old), microbatch_tokens)
        assert metrics["actor/ratio_max"] < 1.001 and metrics["actor/entropy"] < math.log(4)
        adam = {k: v for k, v in tensors(group.save(tmp_path / str(ranks))).items() if k.startswith("exp_avg/")}
        found.append(adam | {"loss": torch.tensor(metrics["actor/loss"])})
    assert_same_gradient(found[1], found[0])


def test_reference_ranks_agree_with_the_actor_now_and_after_a_refresh(two: Ranks, tiny: Path, tmp_path: Path) -> None:
    two.restart(config_of(tiny, ranks=2))
    cfg = config_of(tiny)
    cfg.reference.ranks = 2
    reference = Ranks(ReferenceRank, cfg, 2)
    batch = batch_of()
    for _ in range(2):
        assert_close(reference.logp(batch, 80), two.logp(batch, 120), 20, "logp")  # 0
    few = batch.select([0])
    assert_close(reference.logp(few, 80), two.logp(few, 80), 20, "logp of one rollout")  # 0
    assert "KLConfig.coef" not in reference("fields_read")[0]

    two.update(batch, 80)
    assert float((reference.logp(batch, 80) - two.logp(batch, 80)).abs().max()) > 1e-3
    two("save_weights", *[(str(tmp_path / "refreshed"),)] * 2)
    reference.load(tmp_path / "refreshed")
    assert_close(reference.logp(batch, 80), two.logp(batch, 80), 20, "logp")  # 0
    assert not list(tmp_path.rglob("optimizer*"))
    reference.end()
