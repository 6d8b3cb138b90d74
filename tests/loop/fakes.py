"""A toy world for the real `train()`: 8 prompts, one right letter each, a policy that is a table of logits.

The actor, the engine and the reference are fakes of a few lines; the losses, advantages, metrics, tracker, checkpoints
and the loop are the real ones.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from rlcore.algo.advantage import advantage_fn
from rlcore.algo.loss import aggregate, policy_loss
from rlcore.algo.stats import Totals
from rlcore.build import Parts
from rlcore.checkpoint import Checkpoints
from rlcore.config import Config
from rlcore.data import Order
from rlcore.placement import Phases
from rlcore.records import Batch, Group, Prompt, Rollout
from rlcore.tracker import Tracker
from rlcore.waits import Watch

PROMPTS, LETTERS = 8, 6


class ToyPrompts:
    def __init__(self, seed: int) -> None:
        self.prompts = [Prompt(f"toy:{i}", [i], str((i * 5) % LETTERS), {"i": i}) for i in range(PROMPTS)]
        self.order = Order("toy", PROMPTS, seed, True)
        self.state, self.restore = self.order.state, self.order.restore

    def take(self, n: int) -> list[Prompt]:
        return [self.prompts[i] for i, _ in self.order.take(n)]

    def all(self, limit: int = 0) -> list[Prompt]:
        return self.prompts[: limit or None]


class ToyActor:
    """Adam on a (PROMPTS, LETTERS) table of logits."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.table = torch.zeros(PROMPTS, LETTERS, requires_grad=True)
        self.adam = torch.optim.Adam([self.table], lr=cfg.actor.learning_rate)
        self.published: dict[int, torch.Tensor] = {}

    def _logp(self, batch: Batch) -> torch.Tensor:
        prompt, letter = batch.tokens[0::2].long(), batch.tokens[1::2].long()
        chosen = self.table.log_softmax(-1)[prompt, letter]
        return torch.stack([torch.zeros_like(chosen), chosen], -1).flatten()

    def logp(self, batch: Batch) -> torch.Tensor:
        return self._logp(batch).detach() * batch.mask

    def update(self, batch: Batch, step: int) -> dict[str, float]:
        logp = self._logp(batch)
        difference = (logp.detach() - batch.rollout_logp)[batch.mask].abs()
        old = batch if batch.old_logp is not None else batch.with_(old_logp=logp.detach())
        per_token, _ = policy_loss(self.cfg.loss)(logp, old, self.cfg.loss)
        loss = aggregate(per_token, batch, Totals.of(batch), self.cfg.loss.aggregation)
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        return {"actor/loss": loss.item(), "sync/logp_diff_max": float(difference.max()) if len(difference) else 0.0}

    def publish(self, version: int) -> dict[str, float]:
        self.published[version] = self.table.detach().clone()
        return {"sync/bytes": float(self.table.nbytes)}

    def save(self, directory: Path) -> None:
        state = {k: v.tolist() for k, v in self.adam.state[self.table].items()}
        (directory / "toy.json").write_text(json.dumps([self.table.tolist(), state]))

    def load(self, directory: Path) -> None:
        table, state = json.loads((directory / "toy.json").read_text())
        self.table.data = torch.tensor(table)
        self.adam.state[self.table] = {k: torch.tensor(v) for k, v in state.items()}


class ToyRollouts:
    """Samples letters from the published table; a sample's seed comes from what it is, as in the real collector."""

    def __init__(self, cfg: Config, actor: ToyActor, prompts: ToyPrompts) -> None:
        self.cfg, self.actor, self.prompts = cfg, actor, prompts
        self.version = -1
        self.unscored: set[int] = set()  # sample indices whose reward "fails"

    def collect(self, prompts: int) -> list[Group]:
        return self.sample(self.prompts.take(prompts), self.cfg.rollouts_per_prompt, self.cfg.rollout.temperature)

    def sample(self, prompts: list[Prompt], samples: int, temperature: float) -> list[Group]:
        table = self.actor.published[self.version].log_softmax(-1)
        return [Group([self._one(p, s, table, temperature) for s in range(samples)]) for p in prompts]

    def _one(self, prompt: Prompt, sample: int, table: torch.Tensor, temperature: float) -> Rollout:
        row = table[prompt.tokens[0]]
        digest = hashlib.blake2b(
            f"{self.cfg.seed} {prompt.id} {sample} {self.version}".encode(), digest_size=4
        ).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        letter = int(row.exp().multinomial(1, generator=generator)) if temperature else int(row.argmax())
        reward = None if temperature and sample in self.unscored else float(str(letter) == prompt.answer)
        return Rollout(
            prompt, [prompt.tokens[0], letter], [0.0, float(row[letter])], [False, True], "stop", self.version,
            str(letter), reward, {"right": reward or 0.0}, {} if reward is not None else {"right": "error"},
        )  # fmt: skip


def toy_config(run_dir: Path, **changes: object) -> Config:
    cfg = Config(run_dir=str(run_dir), steps=20, prompts_per_step=8, rollouts_per_prompt=8)
    cfg.actor.learning_rate = 0.3
    cfg.kl.coef = 0.0
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        setattr(getattr(cfg, section) if section else cfg, name, value)
    return cfg


def toy_parts(cfg: Config) -> Parts:
    run_dir, watch, prompts, actor = Path(str(cfg.run_dir)), Watch(), ToyPrompts(cfg.seed), ToyActor(cfg)
    run_dir.mkdir(parents=True, exist_ok=True)
    return Parts(
        cfg=cfg, watch=watch, phases=Phases(watch, lambda phase: None), prompts=prompts,  # type: ignore[arg-type]
        evals={"toy": prompts.all()}, rollouts=ToyRollouts(cfg, actor, prompts), actor=actor,  # type: ignore[arg-type]
        reference=None, advantage=advantage_fn(cfg.advantage), checkpoints=Checkpoints(run_dir, cfg.keep_checkpoints),
        tracker=Tracker(run_dir, cfg.tracker, {"toy": True}, cfg.steps), reward_names=["right"], dtype="float32",
        max_logp_diff=1e-3, needs_old_logp=cfg.actor.epochs_per_step * cfg.actor.minibatches_per_step > 1,
    )  # fmt: skip
