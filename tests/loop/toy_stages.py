"""Stages of given texts in the toy world: the real ones, but for what reads a model or starts a process."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf
from safetensors.torch import save_file

from rlcore.compose.stages import STAGES
from rlcore.config import Config
from rlcore.data.answered import AnsweredRows, answer
from rlcore.records import Group, Prompt
from rlcore.train import build
from rlcore.train.build import Finished
from rlcore.train.dpo import DirectPreference
from rlcore.train.supervised import Supervised
from rlcore.workers.actor import Actor
from tests.loop.fakes import LETTERS, PROMPTS, ToyGroup, ToyPolicy, ToyWatch, toy_config


def right(prompt: int) -> int:
    return (prompt * 5) % LETTERS


class ToyWriter(ToyPolicy):
    """A policy whose checkpoint can be exported."""

    def save(self, directory: str) -> None:
        super().save(directory)
        model = Path(directory) / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        save_file({"table": self.table.detach().clone()}, model / "model.safetensors")


class Toys:
    """What the toy stages have instead of a model, its tokenizer and its ranks."""

    cfg: Config
    speaks = False
    whole_groups = False

    def load_tokenizer(self) -> Any:
        return SimpleNamespace(decode=lambda tokens, **how: str(tokens))

    def require_model(self) -> None: ...

    def require_fits(self) -> None: ...

    def read(self, sources: Sequence[str]) -> AnsweredRows:
        groups = [self.group(Prompt(f"toy:{i}", [i], str(right(i)))) for i in range(PROMPTS)]
        return AnsweredRows(sources, groups, "", self.cfg.data, self.cfg.seed)

    def make_model(self, cluster: Any, watch: Any) -> Actor:
        group: Any = ToyGroup("actor", ToyWriter(self.cfg), self.cfg)
        return Actor(group, self.cfg, whole_groups=self.whole_groups)

    def group(self, prompt: Prompt) -> Group:
        raise NotImplementedError


class ToySupervised(Toys, Supervised):
    def group(self, prompt: Prompt) -> Group:
        letter = right(prompt.tokens[0])
        return Group([answer(prompt, [*prompt.tokens, letter], 1, str(letter), 0.0)])


class ToyPreferred(Toys, DirectPreference):
    whole_groups = True

    def group(self, prompt: Prompt) -> Group:
        letters = right(prompt.tokens[0]), (right(prompt.tokens[0]) + 1) % LETTERS
        return Group([answer(prompt, [*prompt.tokens, a], 1, str(a), 1.0 - i) for i, a in enumerate(letters)])


def run(cfg: Config, patch: pytest.MonkeyPatch, made_by: str = "", **unread: Any) -> Finished:
    """The stage of cfg.loss.name, by its toy."""
    stage = next(stage for stage in STAGES.values() if stage.loss == cfg.loss.name)
    made_by = made_by or f"tests.loop.toy_stages.{'ToyPreferred' if stage.command == 'dpo' else 'ToySupervised'}"
    cluster = nullcontext(SimpleNamespace(device="cpu", colocated=True))
    with patch.context() as each:
        each.setattr(build, "Cluster", lambda *args: cluster)
        each.setattr(build, "Watch", ToyWatch)
        return build.whole_run(cfg, OmegaConf.create({}), stage._replace(made_by=made_by), lambda text: None, **unread)


def config(run_dir: Path, loss: str, **changes: object) -> Config:
    cfg = toy_config(run_dir, steps=5, save_every_steps=2, prompts_per_step=4, eval__every_steps=3)
    cfg.loss.name, cfg.data.eval, cfg.actor.learning_rate = loss, ["toys"], 0.1
    if loss == "dpo":
        cfg.loss.aggregation = type(cfg.loss.aggregation)("sequence_sum")
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        setattr(getattr(cfg, section) if section else cfg, name, value)
    return cfg
