"""A model and its rows made ready, before anything of Ray is started: paths become directories, rows prompts."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rlcore.config import Config
from rlcore.data.prompts import Prompts
from rlcore.data.sources import source_names
from rlcore.errors import DataError
from rlcore.plugins import absolute
from rlcore.records import Prompt

if TYPE_CHECKING:
    from rewards.manager import RewardManager

Say = Callable[[str], None]  # tells the user what is being started
_LISTED = 10  # bad rows shown; all are in a file


def with_model(cfg: Config, path: str) -> Config:
    """A copy of `cfg` whose model.path is `path`: what "demo" or a GGUF file became."""
    changed, changed.model = copy.copy(cfg), copy.copy(cfg.model)
    changed.model.path = path
    return changed


def with_directory(cfg: Config, say: Say) -> Config:
    """The config with a directory for an embedded model or a GGUF file, made if it is not cached; else as it is."""
    from rlcore.models.embedded import EMBEDDED

    if cfg.model.path in EMBEDDED:
        from rlcore.train.warm_up import embedded_model

        return with_model(cfg, str(embedded_model(cfg.model.path, cache_dir(cfg), say)))
    if not cfg.model.path.endswith(".gguf"):
        return cfg
    from rlcore.models.load import to_directory

    file = Path(cfg.model.path).expanduser().resolve()
    identity = f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}"
    out = cache_dir(cfg) / f"gguf-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    return with_model(cfg, str(to_directory(cfg.model, out)))


def require_model(cfg: Config, scores: bool = False) -> None:
    """Raise ConfigError for a model whose architecture cannot be trained here. `scores`: it learns as a reward model,
    which reads one token more."""
    from rlcore.models.architecture import require_trainable

    tokens = cfg.data.max_prompt_tokens + cfg.rollout.max_response_tokens
    require_trainable(cfg.model.path, "model.path", tokens + scores, scores)


def require_critic(cfg: Config) -> None:
    """The same for a critic, where there is to be one."""
    from rlcore.models.architecture import require_trainable

    if cfg.critic.ranks > 0:
        key = "model.path" if cfg.critic.path is None else "critic.path"
        tokens = cfg.data.max_prompt_tokens + cfg.rollout.max_response_tokens
        require_trainable(cfg.critic.path or cfg.model.path, key, tokens, scores=True)


def cache_dir(cfg: Config) -> Path:
    """Where made models are kept."""
    return Path(cfg.cache_dir).expanduser()


def with_plugins(cfg: Config) -> Config:
    """A copy of `cfg` in which the advantage and the loss mean the same file in a rank, whose working directory may be
    another. Loads both, so that what is wrong with them is a ConfigError before anything is started."""
    from rlcore.algo.advantage import advantage_fn
    from rlcore.algo.loss import policy_loss

    changed, changed.advantage, changed.loss = copy.copy(cfg), copy.copy(cfg.advantage), copy.copy(cfg.loss)
    changed.advantage.name, changed.loss.name = absolute(cfg.advantage.name), absolute(cfg.loss.name)
    advantage_fn(changed.advantage)
    policy_loss(changed.loss)
    return changed


def read_prompts(cfg: Config, tokenizer: Any, say: Say) -> Prompts:
    """The prompts to train on."""
    prompts = Prompts(cfg.data.train, cfg.data, tokenizer, cfg.seed)
    _say_dropped(prompts, say)
    return prompts


def read_held_out(cfg: Config, tokenizer: Any, say: Say) -> dict[str, Prompts]:
    """The prompts of each held-out source, by its name."""
    in_order = copy.copy(cfg.data)
    in_order.curriculum = None
    held_out = {
        name: Prompts([source], in_order, tokenizer, cfg.seed)
        for name, source in zip(source_names(cfg.data.eval), cfg.data.eval, strict=True)
    }
    for prompts in held_out.values():
        _say_dropped(prompts, say)
    return held_out


def _say_dropped(prompts: Prompts, say: Say) -> None:
    if prompts.dropped:
        say(f"data: left out {prompts.dropped} prompts of {prompts.sources} over data.max_prompt_tokens")


class Scorable(Protocol):
    """Prompts that rewards are to score: `Prompts`, or those of rows that are held out."""

    sources: str

    def __len__(self) -> int: ...
    def all(self) -> list[Prompt]: ...
    def at(self, prompt: Prompt) -> str: ...
    def without(self, ids: Collection[str]) -> None: ...


def require_scorable(everything: Sequence[Scorable], rewards: RewardManager, cfg: Config, say: Say) -> None:
    """Every source in reward.sources must have rows, and the rows gold answers that can be read."""
    rewards.require_sources([prompt for prompts in everything for prompt in prompts.all()])
    for prompts in everything:
        leave_out_unscorable(prompts, rewards, cfg, say)


def leave_out_unscorable(prompts: Scorable, rewards: RewardManager, cfg: Config, say: Say) -> None:
    """Leave out the rows whose gold answers cannot be read, and list them by file and line: nothing they would get
    could be trusted. DataError when they are more than reward.max_failed_fraction."""
    bad = rewards.unscorable(prompts.all(), cfg.deadline.start_seconds)
    if not bad:
        return
    listed = [f"  {prompts.at(prompt)}: {why}" for prompt, why in bad]
    what = f"{len(bad)} of {len(prompts)} rows of {prompts.sources} have a gold answer that cannot be read"
    shown = "\n".join(listed[:_LISTED])
    if len(bad) > cfg.reward.max_failed_fraction * len(prompts):
        raise DataError(
            f"{what}, more than reward.max_failed_fraction {cfg.reward.max_failed_fraction:g}; check reward.fns and "
            f"data.answer_column ({cfg.data.answer_column}). The first:\n{shown}"
        )
    everyone = Path(str(cfg.run_dir)) / "unparseable_gold.txt"
    with everyone.open("a", encoding="utf-8") as file:
        file.write("\n".join(listed) + "\n")
    say(f"data: {what}; left out, all listed in {everyone}. The first:\n{shown}")
    prompts.without({prompt.id for prompt, _ in bad})
