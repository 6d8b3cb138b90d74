"""Real ranks of reward models: Ray processes, gloo, DeepSpeed. They learn from pairs, resume, are exported, score."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForSequenceClassification

from rlcore.cluster.deadlines import Watch
from rlcore.cluster.placement import Cluster
from rlcore.compose.stages import STAGES
from rlcore.config import Config, DeadlineConfig, Device, PlacementConfig, RayConfig
from rlcore.data.generate.arithmetic_pairs import arithmetic_pairs
from rlcore.isolated.outcome import Outcome
from rlcore.models.load import load_tokenizer_path, load_value_path
from rlcore.records import Batch, Prompt, Response
from rlcore.runs.tracker import Tracker
from rlcore.train import build
from rlcore.train.proof import require_critic
from rlcore.train.reward_model import RewardModelling
from rlcore.workers.group import WorkerGroup, rank_group
from rlcore.workers.reward_model import RewardModel, RewardModelLane
from rlcore.workers.reward_model_rank import PreferenceRank, RewardModelRank, conversation_tokens, ending
from tests.close import assert_close
from tests.stack.test_actor import assert_same_gradient, tensors
from tests.tiny import give_head, make_tiny_model

ROLES = {"one": 1, "two": 2}  # groups of as many ranks


class Either(PreferenceRank):
    """Starting a process costs far more than starting an engine in it, so one process is now this, now that."""

    def start(self) -> dict[str, Any]:
        return {} if hasattr(self, "device") else super().start()

    def restart(self, cfg: Config) -> dict[str, Any]:
        self.cfg = cfg
        return self._load_model()

    def score_from_now(self, cfg: Config) -> dict[str, Any]:
        self.scoring = RewardModelRank(self.place, cfg)
        self.scoring.device = self.device
        return self.scoring._load_model()

    def score(self, conversations: list[list[dict[str, Any]]]) -> list[Outcome]:
        return self.scoring.score(conversations)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", tied=True)


@pytest.fixture(scope="module")
def with_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_tiny_model(tmp_path_factory.mktemp("model") / "reward", seed=1)
    return give_head(directory, directory, std=0.1)


def config_of(model: Path, **actor: Any) -> Config:
    cfg = Config()
    cfg.model.path, cfg.steps = str(model), 100
    cfg.actor.learning_rate, cfg.actor.max_grad_norm, cfg.actor.microbatch_tokens = 1e-3, 0.0, 80
    for key, value in actor.items():
        setattr(cfg.actor, key, value)
    return cfg


@pytest.fixture(scope="module")
def groups(tiny: Path) -> Iterator[dict[str, WorkerGroup]]:
    watch = Watch()
    place = PlacementConfig(device=Device.cpu)
    cluster = Cluster(RayConfig(object_store_mib=200), place, DeadlineConfig(), ROLES, watch)
    try:
        cfg = config_of(tiny)
        found = {role: rank_group(role, Either, n, cfg, cluster, watch) for role, n in ROLES.items()}
        starting = [(group, group.begin("start")) for group in found.values()]
        for group, refs in starting:
            group.finish("start", refs, 300)
        yield found
    finally:
        cluster.close()


def started(group: WorkerGroup, cfg: Config) -> RewardModel:
    group.call("restart", cfg, seconds=300)
    return RewardModel(group, cfg)


def pairs(count: int = 9, seed: int = 0) -> Batch:
    """Of unequal lengths; some end with the padding token."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 40, (2 * count,), generator=g).tolist()
    batch = ending([[*torch.randint(4, 100, (n,), generator=g).tolist(), *[0] * (n % 3)] for n in lengths], 0)
    return dataclasses.replace(batch, group=batch.group // 2)


def gradient(model: RewardModel, to: Path) -> dict[str, torch.Tensor]:
    """Of one update: Adam's first exp_avg is a tenth of it."""
    before = model.look(pairs()).metrics
    metrics = model.update(pairs(), 0).metrics
    assert metrics["train/skipped_updates"] == 0 and metrics["train/lr"] == 1e-3
    for name in ("train/loss", "train/accuracy", "train/margin"):
        assert_close(metrics[name], torch.tensor(before[name]), 10, name, scale=1.0)  # 0.2
    model.save(to)
    names = ("train/loss", "train/grad_norm", "train/accuracy", "train/margin")
    numbers = {k: torch.tensor(metrics[k]) for k in names}
    return numbers | {k: v for k, v in tensors(to).items() if k.startswith("exp_avg/")}


@pytest.fixture(scope="module")
def whole_gradient(
    groups: dict[str, WorkerGroup], with_head: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    """One rank, one micro-batch."""
    cfg = config_of(with_head, zero_stage=0, microbatch_tokens=10_000)
    return gradient(started(groups["one"], cfg), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(("role", "stage"), [("one", 0), ("two", 0), ("two", 3)])
def test_the_gradient_is_that_of_one_microbatch_on_one_rank(
    groups: dict[str, WorkerGroup], with_head: Path, tmp_path: Path, whole_gradient: dict[str, torch.Tensor],
    role: str, stage: int,
) -> None:  # fmt: skip
    model = started(groups[role], config_of(with_head, zero_stage=stage, ranks=ROLES[role]))
    found = gradient(model, tmp_path)
    assert found["exp_avg/score.weight"].any()
    assert_same_gradient(found, whole_gradient)


def test_the_loss_is_the_mean_over_pairs_of_what_transformers_scores_say(
    with_head: Path, whole_gradient: dict[str, torch.Tensor]
) -> None:
    batch = pairs()
    alone = [batch.select([i]).tokens[:-1].tolist() for i in range(len(batch))]
    scores = one_by_one(with_head, alone)
    margin = scores[0::2] - scores[1::2]
    want = {
        "loss": (1 + (-margin).exp()).log().mean(),
        "margin": margin.mean(),
        "accuracy": (margin > 0).float().mean(),
    }
    for name, value in want.items():
        assert_close(whole_gradient[f"train/{name}"], value, 10, name, scale=1.0)  # 0.4


def one_by_one(path: Path, tokens: list[list[int]]) -> torch.Tensor:
    plain = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        return torch.stack([plain(input_ids=torch.tensor([t])).logits[0, 0] for t in tokens])


class Shared:
    """The cluster that is already there, in the place of one that a run would start."""

    device, colocated = "cpu", True

    def __enter__(self) -> Shared:
        return self

    def __exit__(self, *_error: object) -> None: ...


def rm_config(model: Path, run_dir: Path, steps: int = 4) -> Config:
    cfg = config_of(model, ranks=2, zero_stage=3, learning_rate=3e-3)
    cfg.run_dir, cfg.steps, cfg.prompts_per_step, cfg.save_every_steps = str(run_dir), steps, 8, 2
    for name, split, size in (("pairs", "train", 40), ("held_out", "eval", 12)):
        rows = "\n".join(json.dumps(row) for row in arithmetic_pairs(size, split=split))
        (model.parent / f"{name}.jsonl").write_text(rows)
    cfg.data.train, cfg.data.eval = [str(model.parent / "pairs.jsonl")], [str(model.parent / "held_out.jsonl")]
    cfg.data.max_prompt_tokens, cfg.eval.every_steps = 200, 2
    return cfg


def metrics_of(run_dir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time", "perf/"))} for line in lines]


@pytest.fixture(scope="module")
def trained(groups: dict[str, WorkerGroup], tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The export of a whole run, started from a language model."""
    run_dir = tmp_path_factory.mktemp("whole_run")
    with pytest.MonkeyPatch.context() as patch:
        out, read = run(groups["two"], rm_config(tiny, run_dir), patch)
    assert out == run_dir / "export" and "ActorConfig.zero_stage" in read
    yield out


def run(group: WorkerGroup, cfg: Config, patch: pytest.MonkeyPatch) -> tuple[Path, set[str]]:
    patch.setattr(build, "Cluster", lambda *args: Shared())
    patch.setattr(RewardModelling, "make_model", lambda self, cluster, watch: started(group, cfg))
    read = set[str]()
    note = lambda by_workers: read.update(by_workers) or {}  # noqa: E731
    return build.whole_run(cfg, OmegaConf.create({"seed": 0}), STAGES["train-rm"], print, note).exported, read


@pytest.mark.parametrize("dies_at", [2, 4])  # before the first checkpoint, and after it
def test_a_run_that_was_killed_goes_on_to_the_same_numbers(
    groups: dict[str, WorkerGroup], tiny: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    dies_at: int,
) -> None:  # fmt: skip
    whole = metrics_of(trained.parent)
    assert [line["step"] for line in whole] == [0, 1, 2, 3, 4]
    assert whole[0]["eval/held_out/accuracy"] == 0.5 and whole[0]["eval/held_out/margin"] == 0
    assert_close(whole[1]["train/loss"], torch.tensor(math.log(2)), 10, "train/loss")  # 0
    assert whole[4]["train/loss"] != math.log(2)
    assert {k for k in whole[2] if k.startswith("eval/")} == {
        f"eval/held_out/{k}" for k in ("loss", "accuracy", "margin")
    }
    log = Tracker.log

    def log_or_die(self: Tracker, step: int, metrics: dict[str, float]) -> None:
        if step == dies_at:
            raise KeyboardInterrupt
        log(self, step, metrics)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Tracker, "log", log_or_die)
        run(groups["two"], rm_config(tiny, tmp_path), patch)
    assert [line["step"] for line in metrics_of(tmp_path)] == list(range(dies_at))
    with monkeypatch.context() as patch:
        out, _ = run(groups["two"], rm_config(tiny, tmp_path), patch)
    assert metrics_of(tmp_path) == whole
    a, b = tensors(out), tensors(trained)
    assert a.keys() == b.keys() and all(v.equal(b[k]) for k, v in a.items())


def conversations() -> list[tuple[Prompt, Response]]:
    asked = [{"role": "user", "content": "What is 1+2?"}]
    texts = ["3", "1+2=3\n#### 3", "4", "x" * 60, "", "3" * 600, "1+2=4\n#### 4"]
    return [(Prompt(f"p:{i}", [1] * 14, "3", {}, asked), Response(t, len(t))) for i, t in enumerate(texts)]


def scored(lane: RewardModelLane, samples: list[tuple[Prompt, Response]]) -> list[Outcome]:
    for key, (prompt, response) in enumerate(samples):
        lane.submit(key, prompt, response)
    got: dict[int, Outcome] = {}
    until = time.monotonic() + 120
    while len(got) < len(samples) and time.monotonic() < until:
        got |= {key: outcomes["reward_model"] for key, outcomes in lane.poll(0.5)}
    assert lane.pending == 0 and got.keys() == set(range(len(samples)))
    return [got[i] for i in range(len(samples))]


@pytest.mark.parametrize(("role", "microbatch_tokens"), [("two", 10_000), ("two", 30), ("one", 100)])
def test_what_was_exported_scores_as_transformers_does(
    groups: dict[str, WorkerGroup], trained: Path, role: str, microbatch_tokens: int
) -> None:
    cfg = config_of(Path("none"), microbatch_tokens=microbatch_tokens)
    cfg.reward_model.path = str(trained)
    groups[role].call("score_from_now", cfg, seconds=300)
    found = scored(RewardModelLane(groups[role], cfg), conversations())
    too_long = found.pop(5)
    assert (too_long.reward, too_long.status) == (None, "error")
    assert "has 614 tokens, the reward model's context ends after 511" in too_long.message
    tokenizer = load_tokenizer_path(str(trained), "reward_model.path")
    tokens = [
        conversation_tokens(tokenizer, [*p.messages, {"role": "assistant", "content": r.text}])
        for p, r in conversations()
        if len(r.text) < 600
    ]
    want = one_by_one(trained, tokens)
    assert float(want.std()) > 1e-3
    assert {o.status for o in found} == {""}
    assert_close([float(o.reward) for o in found if o.reward is not None], want, 20, "scores")  # 0.7
    again = scored(RewardModelLane(groups[role], cfg), conversations()[:1])  # fewer samples than ranks
    assert again[0].reward is not None
    assert_close([again[0].reward], want[:1], 20, "score of one", scale=float(want.abs().max()))  # 0.2


def test_what_was_exported_is_a_critic_of_the_policy_too(tiny: Path, trained: Path, tmp_path: Path) -> None:
    cfg = config_of(tiny)
    cfg.critic.path, cfg.run_dir = str(trained), str(tmp_path)
    require_critic(cfg, load_tokenizer_path(str(tiny), "model.path"))
    model = load_value_path(str(trained), "critic.path", torch.float32)
    assert model.get_submodule("score").get_parameter("weight").any()
    assert AutoModelForSequenceClassification.from_pretrained(trained).config.pad_token_id == 0


def test_what_learned_without_a_chat_template_is_saved_without_one(
    groups: dict[str, WorkerGroup], tiny: Path, tmp_path: Path
) -> None:
    cfg = config_of(tiny, zero_stage=0)
    cfg.data.chat_template = False
    started(groups["one"], cfg).group.call("save_weights", str(tmp_path), seconds=100)
    tokenizer = load_tokenizer_path(str(tmp_path), "reward_model.path")
    assert not tokenizer.chat_template
    said = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
    assert conversation_tokens(tokenizer, said) == tokenizer("1+1=2")["input_ids"]


def test_a_score_that_is_not_finite_is_a_status(
    groups: dict[str, WorkerGroup], with_head: Path, tmp_path: Path
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(with_head, dtype=torch.float32)
    with torch.no_grad():
        model.get_submodule("score").get_parameter("weight").fill_(3e38)  # its sums are too large for float32
    model.save_pretrained(tmp_path)
    load_tokenizer_path(str(with_head), "model.path").save_pretrained(tmp_path)
    cfg = config_of(Path("none"))
    cfg.reward_model.path = str(tmp_path)
    groups["one"].call("score_from_now", cfg, seconds=300)
    (outcome,) = scored(RewardModelLane(groups["one"], cfg), conversations()[:1])
    assert (outcome.reward, outcome.status) == (None, "bad_value") and outcome.message.endswith(("nan", "inf"))
