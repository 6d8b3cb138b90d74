"""A model and its rows made ready, before anything of Ray is started: paths become directories, rows prompts."""

from __future__ import annotations

import copy
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rlcore.config import Config, uncounted
from rlcore.data.prompts import Prompts
from rlcore.data.sources import source_names
from rlcore.errors import ConfigError, DataError
from rlcore.plugins import absolute
from rlcore.records import Prompt
from rlcore.screen import shown

if TYPE_CHECKING:
    from rewards.manager import RewardManager
    from rlcore.data.endings import Endings

Say = Callable[[str], None]  # tells the user what is being started
_LISTED = 10  # bad rows shown; all are in a file


def with_model(cfg: Config, path: str) -> Config:
    """A copy of `cfg` whose model.path is `path`: what "demo" or a GGUF file became."""
    changed, changed.model = copy.copy(cfg), copy.copy(cfg.model)
    changed.model.path = path
    return changed


def with_directory(cfg: Config, say: Say) -> Config:
    """The config with a directory for an embedded model or a GGUF file, made if it is not cached; else as it is, but
    for a ~ before a path, which no library knows."""
    from rlcore.models.embedded import EMBEDDED

    cfg = _with_home(cfg)
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


def _with_home(cfg: Config) -> Config:
    changed = copy.copy(cfg)
    changed.model, changed.critic = copy.copy(cfg.model), copy.copy(cfg.critic)
    changed.reward_model = copy.copy(cfg.reward_model)
    sections = ((changed.model, "path"), (changed.model, "tokenizer"), (changed.critic, "path"))
    with uncounted():
        for section, name in (*sections, (changed.reward_model, "path")):
            if (getattr(section, name) or "").startswith("~"):
                setattr(section, name, str(Path(getattr(section, name)).expanduser()))
    return changed


def cache_dir(cfg: Config) -> Path:
    """Where made models are kept. ConfigError where none is and none can be: a container's home may be read-only."""
    try:
        path = Path(cfg.cache_dir).expanduser()
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK) and not any(path.iterdir()):
            raise PermissionError(f"{path} cannot be written to")
    except (OSError, RuntimeError) as e:
        raise ConfigError(f"cache_dir: no model can be kept in {cfg.cache_dir}: {e}; set cache_dir=DIR") from e
    return path


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
    say_taken(prompts.notes, say)
    _say_dropped(prompts, say)
    _say_openings(prompts, say)
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
        say_taken(prompts.notes, say)
        _say_dropped(prompts, say)
        _say_openings(prompts, say)
    return held_out


def say_taken(notes: Sequence[str], say: Say) -> None:
    """Which columns of each source were taken for what."""
    for note in notes:
        say(f"data: {note}")


def require_same_held_out(saved: Mapping[str, str], now: Mapping[str, str], sources: Sequence[str]) -> None:
    """DataError for a held-out source whose rows are not those of a checkpoint's numbers. New ones may be added."""
    for name, source in zip(now, sources, strict=True):
        if saved.get(name, now[name]) != now[name]:
            raise DataError(
                f"{source}: not the rows that eval/{name}/... was of when the run began, so its numbers cannot be "
                "compared with those before; give it the same rows, or a file of another name"
            )


def find_endings(cfg: Config, tokenizer: Any, say: Say) -> Endings:
    """The tokens that end a response of this run."""
    from rlcore.models.endings import model_endings

    ends = model_endings(cfg, tokenizer)
    say(f"endings: {ends.shown()}")
    return ends


def openings(prompts: Sequence[Prompt]) -> dict[str, int]:
    """How many prompts end with something open, such as `<think>\n`, by what it is."""
    return dict(Counter(prompt.opened for prompt in prompts if prompt.opened).most_common(_LISTED))


def _say_openings(prompts: Prompts, say: Say) -> None:
    for opened, many in openings(prompts.all()).items():
        of = f"{many} of {len(prompts)} prompts of {prompts.sources}"
        say(f"data: {of} end with {opened[:80]!r}, which rewards read before the response")


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
    first = "\n".join(listed[:_LISTED])
    if len(bad) > cfg.reward.max_failed_fraction * len(prompts):
        raise DataError(
            f"{what}, more than reward.max_failed_fraction {cfg.reward.max_failed_fraction:g}; check reward.fns and "
            f"data.answer_column ({cfg.data.answer_column}). The first:\n{first}"
        )
    everyone = Path(str(cfg.run_dir)) / "unparseable_gold.txt"
    with everyone.open("a", encoding="utf-8") as file:
        file.write(shown("\n".join(listed)) + "\n")
    say(f"data: {what}; left out, all listed in {everyone}. The first:\n{first}")
    prompts.without({prompt.id for prompt, _ in bad})
