"""A toy world for the real `train()`: 8 prompts, one right letter each, a policy that is a table of logits.

Fakes of a few lines stand where processes would be: the ranks' models under DeepSpeed, the engines, the reward pool.
The collector, the driver's handles on the ranks, losses, advantages, tracker, checkpoints and loop are the real ones.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from rlcore.algo.loss import aggregate, policy_loss
from rlcore.algo.objective import objective
from rlcore.algo.shaping import carries_signal
from rlcore.algo.stats import Stats
from rlcore.algo.value import value_loss
from rlcore.cluster.deadlines import Watch, Worker
from rlcore.cluster.turns import Phases
from rlcore.compose.recipe import algorithm_lines
from rlcore.config import Aggregation, Config
from rlcore.data.order import Order
from rlcore.records import Batch, Prompt, Response
from rlcore.runs.checkpoint import Checkpoints
from rlcore.runs.tracker import Tracker
from rlcore.train.agreement import Agreement
from rlcore.train.credit import Rewarded, policy_columns
from rlcore.train.evaluate import Sampled
from rlcore.train.learner import PolicyLearner
from rlcore.train.run import Parts, Run
from rlcore.train.sampling import Sampling
from rlcore.workers.actor import Actor
from rlcore.workers.critic import Critic
from rlcore.workers.packing import Work
from rlcore.workers.reference import Reference
from rollout.collector import Collector, response_text
from rollout.engine import Sample, SampleRequest

PROMPTS, LETTERS = 8, 6


class ToyPrompts:
    def __init__(self, seed: int) -> None:
        self.prompts = [Prompt(f"toy:{i}", [i], str((i * 5) % LETTERS), {"i": i}) for i in range(PROMPTS)]
        self.order = Order("toy", PROMPTS, seed, True)
        self.state, self.restore = self.order.state, self.order.restore

    def take(self, n: int) -> list[Prompt]:
        return [dataclasses.replace(self.prompts[i], id=f"toy:{i}@{epoch}") for i, epoch in self.order.take(n)]

    def all(self, limit: int = 0) -> list[Prompt]:
        return self.prompts[: limit or None]


class ToyRank:
    """A table that Adam trains; a batch's rollouts are [prompt, letter], each."""

    def __init__(self, cfg: Config, *shape: int) -> None:
        self.cfg = cfg
        self.table = torch.zeros(shape, requires_grad=True)
        self.adam = torch.optim.Adam([self.table])

    def start(self) -> dict[str, Any]:
        return {}

    def fields_read(self) -> set[str]:
        return set()

    def _learn(self, minibatches: list[Work], rate: float, *args: float) -> Stats:
        stats = Stats()
        self.adam.param_groups[0]["lr"] = rate
        for work in minibatches:
            if not work.totals.tokens:
                stats.empty += 1
                continue
            self.adam.zero_grad()
            for rollouts in work.microbatches:
                micro = work.batch.select(rollouts)
                per_token, seen, how = self._loss(micro, *args)
                share = aggregate(per_token, micro, work.totals, how, self.cfg.rollout.max_response_tokens)
                share.backward()
                stats.note(share, micro, {name: values.detach() for name, values in seen.items()})
            stats.updates += 1
            assert self.table.grad is not None
            nothing = not self.table.grad.any()
            stats.empty += nothing
            if rate and not nothing:
                self.adam.step()
        return stats

    def _loss(self, micro: Batch, *args: float) -> tuple[Tensor, dict[str, Tensor], Aggregation]:
        raise NotImplementedError

    def save(self, directory: str) -> None:
        self.save_weights(directory, {k: v.tolist() for k, v in self.adam.state[self.table].items()})

    def save_weights(self, directory: str, adam: dict[str, Any] | None = None) -> None:
        Path(directory).mkdir(exist_ok=True)
        (Path(directory) / "toy.json").write_text(json.dumps([self.table.tolist(), adam or {}]))

    def load(self, directory: str) -> None:
        table, state = json.loads((Path(directory) / "toy.json").read_text())
        self.table.data = torch.tensor(table)
        self.adam.state[self.table] = {k: torch.tensor(v) for k, v in state.items()}


class ToyPolicy(ToyRank):
    """The actor's rank, and the reference's."""

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg, PROMPTS, LETTERS)
        self.published: dict[int, Tensor] = {}
        self.version = -1

    def _logp(self, batch: Batch) -> tuple[Tensor, Tensor]:
        rows = self.table.log_softmax(-1)[batch.tokens[0::2].long()]
        chosen = rows.gather(1, batch.tokens[1::2].long()[:, None])[:, 0]
        entropy = -(rows.exp() * rows).sum(-1)
        return _at_letters(chosen), _at_letters(entropy)

    def logp(self, batch: Batch, microbatches: list[list[int]]) -> Tensor:
        return self._logp(batch)[0].detach() * batch.mask

    def update(self, minibatches: list[Work], rate: float, kl_coef: float) -> Stats:
        return self._learn(minibatches, rate, kl_coef)

    def _loss(self, micro: Batch, *args: float) -> tuple[Tensor, dict[str, Tensor], Aggregation]:
        logp, entropy = self._logp(micro)
        old = micro if micro.old_logp is not None else micro.with_(old_logp=logp.detach())
        per_token, seen = objective(logp, entropy, old, policy_loss(self.cfg.loss), self.cfg, *args)
        return per_token, seen, self.cfg.loss.aggregation

    def publish(self, version: int) -> dict[str, float]:
        self.version, self.published[version] = version, self.table.detach().clone()
        return {"sync/bytes": float(self.table.nbytes)}


class ToyCritic(ToyRank):
    """A value a prompt."""

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg, PROMPTS)

    def _value(self, batch: Batch) -> Tensor:
        return _at_letters(self.table[batch.tokens[0::2].long()])

    def value(self, batch: Batch, microbatches: list[list[int]]) -> Tensor:
        return self._value(batch).detach()

    def update(self, minibatches: list[Work], rate: float) -> Stats:
        return self._learn(minibatches, rate)

    def _loss(self, micro: Batch, *args: float) -> tuple[Tensor, dict[str, Tensor], Aggregation]:
        return *value_loss(self._value(micro), micro, self.cfg.critic.clip), Aggregation.token_mean


def _at_letters(values: Tensor) -> Tensor:
    """(B,) -> (2 B,): 0 on the prompts' tokens."""
    return torch.stack([torch.zeros_like(values), values], -1).flatten()


class ToyGroup:
    """A WorkerGroup of one rank in this process, which answers at once."""

    def __init__(self, role: str, rank: ToyRank, cfg: Config) -> None:
        self.role, self.deadline, self.workers = role, cfg.deadline, [Worker(role, 0, rank)]

    def call(self, method: str, *args: Any, seconds: float, each: list[tuple[Any, ...]] | None = None) -> list[Any]:
        return self.finish(method, self.begin(method, *args, each=each), seconds)

    def begin(self, method: str, *args: Any, each: list[tuple[Any, ...]] | None = None) -> list[Any]:
        return [getattr(self.workers[0].handle, method)(*(each[0] if each else args))]

    def finish(self, method: str, refs: list[Any], seconds: float) -> list[Any]:
        return refs

    def fields_read(self) -> set[str]:
        return self.workers[0].handle.fields_read()


class Done:
    """A Ray call that has been answered."""

    def __init__(self, value: Any) -> None:
        self.value = value


class ToyEngine:
    """Samples letters from the table published last."""

    def __init__(self, policy: ToyPolicy) -> None:
        self.policy, self.queue = policy, list[SampleRequest]()
        self.submit = SimpleNamespace(remote=lambda requests: Done(self.queue.extend(requests)))
        self.advance = SimpleNamespace(remote=lambda seconds: Done(self._all()))

    def _all(self) -> list[Sample]:
        rows = self.policy.published[self.policy.version].log_softmax(-1)
        done, self.queue = [self._one(r, rows[r.tokens[0]]) for r in self.queue], []
        return done

    def _one(self, request: SampleRequest, row: Tensor) -> Sample:
        generator = torch.Generator().manual_seed(request.seed)
        letter = int(row.exp().multinomial(1, generator=generator)) if request.temperature else int(row.argmax())
        return Sample(request.key, [letter], [float(row[letter])], "stop")


class ToyRewards:
    """1 for the right letter."""

    def __init__(self, watch: Watch) -> None:
        self.watch, self.done = watch, list[Any]()
        self.unscored: set[int] = set()  # sample indices whose reward "fails", in training

    def submit(self, key: tuple[int, int], prompt: Prompt, response: Response) -> None:
        reward = float(response.text == prompt.answer)
        scored = SimpleNamespace(reward=reward, parts={"right": reward}, status={}, why={})
        if self.watch.phase == "rollout" and key[1] in self.unscored:
            scored = SimpleNamespace(reward=None, parts={}, status={"right": "error"}, why={"right": "ValueError: no"})
        self.done.append((key, scored))

    def poll(self, wait_seconds: float) -> list[Any]:
        done, self.done = self.done, []
        return done


class ToyWatch(Watch):
    def any(self, refs: Any, seconds: float) -> list[Any]:
        return list(refs)

    def get(self, ref: Any, worker: Worker) -> Any:
        return ref.value

    def gather(self, workers: Any, refs: Any, what: str, seconds: float) -> list[Any]:
        return list(refs)


def toy_config(run_dir: Path, **changes: object) -> Config:
    """`changes`: `section__key=value`, or `key=value`; `algorithm=NAME` is below the others."""
    cfg = Config(run_dir=str(run_dir), steps=20, prompts_per_step=8, rollouts_per_prompt=8)
    cfg.model.path, cfg.data.train = "toy", ["toy"]
    node = OmegaConf.structured(cfg)
    for key, value in algorithm_lines(changes.pop("algorithm", None)).items():  # type: ignore[arg-type]
        OmegaConf.update(node, key, value)
    cfg = OmegaConf.to_object(node)
    cfg.actor.learning_rate = cfg.critic.learning_rate = 0.3
    cfg.rollout.max_response_tokens = 8
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        node = getattr(cfg, section) if section else cfg
        assert hasattr(node, name), key
        setattr(node, name, value)
    return cfg


@dataclass
class Toy:
    """A run over toys, and the parts of it that tests look into or spoil."""

    run: Run
    prompts: ToyPrompts
    rewards: ToyRewards
    actor: Actor
    reference: Reference | None
    critic: Critic | None
    rollouts: Collector
    credit: Rewarded

    @property
    def policy(self) -> ToyPolicy:
        return self.actor.group.workers[0].handle


class ToySampling:
    """`Sampling` without processes."""

    def __init__(self, actor: Actor, rollouts: Collector) -> None:
        self.actor, self.rollouts = actor, rollouts

    publish = Sampling.publish


def toy_run(cfg: Config) -> Toy:
    run_dir, watch, prompts = Path(str(cfg.run_dir)), ToyWatch(), ToyPrompts(cfg.seed)
    run_dir.mkdir(parents=True, exist_ok=True)
    group: Any = lambda role, rank: ToyGroup(role, rank, cfg)  # noqa: E731
    actor = Actor(group("actor", ToyPolicy(cfg)), cfg)
    reference = Reference(group("reference", ToyPolicy(cfg)), cfg) if cfg.kl.coef else None
    critic = Critic(group("critic", ToyCritic(cfg)), cfg) if cfg.critic.ranks else None
    rewards = ToyRewards(watch)
    engines = [Worker("rollout", i, ToyEngine(actor.group.workers[0].handle)) for i in range(2)]
    text, teaches = response_text(lambda tokens: str(tokens[0]), []), functools.partial(carries_signal, cfg=cfg.rollout)
    rollouts = Collector(engines, prompts, rewards, watch, cfg, text, teaches)
    tracker = Tracker(run_dir, cfg.tracker, {"toy": True}, cfg.steps)
    credit = Rewarded(cfg, policy_columns(cfg, actor, reference, critic), tracker)
    sampling: Any = ToySampling(actor, rollouts)
    parts = Parts(
        source=rollouts,
        columns=credit,
        learner=PolicyLearner(actor, sampling, cfg, critic, reference),
        evaluations=[Sampled(cfg, rollouts, {"toy": prompts.all()}, ["right"], tracker)],
        agreement=Agreement(cfg, "float32", actor, rollouts, prompts.all()),
    )
    checkpoints = Checkpoints(run_dir, cfg.keep_checkpoints, cfg.keep_best)
    run = Run(cfg, Phases(watch, lambda phase: None), tracker, checkpoints, parts, "cpu")
    run.start = checkpoints.latest()
    return Toy(run, prompts, rewards, actor, reference, critic, rollouts, credit)
