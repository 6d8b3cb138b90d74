"""Known before Ray starts, without reading a weight: every model of a run is whole and goes with its tokenizer, and
what the run will have learned can be saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards import REWARD_MODEL
from rlcore.config import Config, uncounted
from rlcore.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def require_directory(cfg: Config) -> None:
    """Raise ConfigError naming what is wrong with model.path as a whole: said before what follows from it."""
    from rlcore.models.checkpoint_files import directory_of, require_usable

    require_usable(directory_of(cfg.model.path, "model.path"), "model.path")


def require_policy(cfg: Config, tokenizer: Any, sampled: bool) -> PreTrainedModel:
    """The model of model.path, without memory. Raises ConfigError where the run could not train, sample or save it."""
    from rlcore.models.architecture import require_trainable
    from rlcore.models.checkpoint_files import require_engine_reads
    from rlcore.models.load import proved

    require_trainable(cfg.model.path, "model.path", _longest(cfg))
    model = proved(cfg.model.path, "model.path")
    _require_own(cfg, tokenizer, model)
    if sampled:
        require_engine_reads(model.config.architectures, type(model).__name__, cfg.model.path, "model.path")
    return model


def require_scoring(cfg: Config, tokenizer: Any) -> PreTrainedModel:
    """`require_policy`, of a model that learns to score, which reads one token more."""
    from rlcore.models.architecture import require_trainable
    from rlcore.models.load import proved_value

    require_trainable(cfg.model.path, "model.path", _longest(cfg) + 1, scores=True)
    model = proved_value(cfg.model.path, "model.path")
    _require_own(cfg, tokenizer, model)
    return model


def _require_own(cfg: Config, tokenizer: Any, model: PreTrainedModel) -> None:
    """What model.path and its tokenizer need, whatever is learned."""
    from rlcore.models.checkpoint_files import directory_of
    from rlcore.models.save import prove_saved
    from rlcore.models.tokens import require_own_tokens, require_rows

    key, path = ("model.tokenizer", cfg.model.tokenizer) if cfg.model.tokenizer else ("model.path", cfg.model.path)
    require_own_tokens(cfg.model, tokenizer)
    require_rows(tokenizer, f"{key} {path}", model, f"model.path {cfg.model.path}")
    prove_saved(model, directory_of(cfg.model.path, "model.path"), tokenizer, Path(str(cfg.run_dir)))


def require_critic(cfg: Config, tokenizer: Any) -> PreTrainedModel:
    """The model of critic.path, or the critic made of model.path. Raises ConfigError where it could not read the
    policy's tokens, or be trained and saved."""
    from rlcore.models.architecture import require_trainable
    from rlcore.models.checkpoint_files import directory_of, has_vocabulary
    from rlcore.models.load import load_tokenizer_path, proved_value
    from rlcore.models.save import prove_saved
    from rlcore.models.tokens import require_rows, require_same_tokens

    key, path = ("critic.path", cfg.critic.path) if cfg.critic.path else ("model.path", cfg.model.path)
    require_trainable(path, key, _longest(cfg), scores=True)
    model, directory = proved_value(path, key), directory_of(path, key)
    if cfg.critic.path:
        if has_vocabulary(directory):
            theirs = load_tokenizer_path(path, key)
            require_same_tokens(tokenizer, f"model.path {cfg.model.path}", theirs, f"{key}: {path}")
        require_rows(tokenizer, f"model.path {cfg.model.path}", model, f"{key} {path}")
    prove_saved(model, directory, tokenizer, Path(str(cfg.run_dir)))
    return model


def require_reward_model(cfg: Config) -> None:
    """Where reward.fns has one, raise ConfigError when reward_model.path cannot score what its tokenizer reads."""
    if REWARD_MODEL not in cfg.reward.fns:
        return
    from rlcore.models.architecture import require_trainable
    from rlcore.models.load import load_tokenizer_path, proved_value
    from rlcore.models.tokens import require_rows

    key, path = "reward_model.path", str(cfg.reward_model.path)
    require_trainable(path, key, 0, scores=True, new_head=False)
    model = proved_value(path, key, new_head=False)
    require_rows(load_tokenizer_path(path, key), f"{key} {path}", model, f"{key} {path}")


def require_context(path: str, key: str, tokens: int) -> None:
    """Raise ConfigError (`key`) when the model at `path` was made for fewer tokens than the longest text of the run."""
    from transformers import AutoConfig

    from rlcore.models.architecture import context_tokens

    limit = context_tokens(AutoConfig.from_pretrained(path).get_text_config())
    if limit is not None and tokens > limit:
        raise ConfigError(
            f"{key}: {path} was made for {limit} tokens, and the longest text of this run has {tokens}; set "
            f"data.max_prompt_tokens and rollout.max_response_tokens to at most {limit} together"
        )


def _longest(cfg: Config) -> int:
    """Tokens of the longest rollout that the run may have."""
    return cfg.data.max_prompt_tokens + cfg.rollout.max_response_tokens


def require_room(cfg: Config, exported: PreTrainedModel, critic: PreTrainedModel | None = None) -> None:
    """Raise ConfigError when the disk has no room for the checkpoints that this run will have at a time, less those
    that it has already, and its export."""
    from rlcore.models.save import parameters_of, require_space

    policy = parameters_of(exported)
    learned = policy + (0 if critic is None else parameters_of(critic))
    with uncounted():  # what has no effect in this run is reported all the same
        run_dir, every = Path(str(cfg.run_dir)), cfg.save_every_steps
        saves = 1 + (max(0, cfg.steps - 1) // every if every else 0) + (cfg.steps if cfg.keep_best else 0)
        # One more than are kept exists while it is written, and the best may be an old one.
        at_a_time = min(saves, cfg.keep_checkpoints + 1 + bool(cfg.keep_best))
        follows = cfg.kl.coef > 0 and cfg.reference.refresh_steps > 0
        why = f"save_every_steps {every}, keep_checkpoints {cfg.keep_checkpoints}; {learned:,} parameters that learn"
    there = len(list(run_dir.glob("checkpoints/step_*")))
    # In float32: the weight, Adam's two numbers, and the weight of a reference that follows.
    checkpoint = 12 * learned + (4 * policy if follows else 0)
    require_space(run_dir, checkpoint, 4 * policy, max(1, at_a_time - there), why)
