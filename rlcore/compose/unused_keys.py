"""Keys that nothing reads under this configuration, as far as other keys decide it: known before a run, not at its end.

Only what surely has no effect is in the table; what nothing has read all the same is said when the run is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, NamedTuple

from rlcore.compose.function_names import built_in
from rlcore.compose.stages import stage_of
from rlcore.config import Config, all_keys, value_of


class _Needs(NamedTuple):
    """A key is read only where `test` holds, which is about the value of another one, `key`; `remedy` makes it hold."""

    key: str
    test: Callable[[Config], bool]
    remedy: str


def _one_of(key: str, *names: str) -> _Needs:
    *others, last = names
    choice = f"{', '.join(others)} or {last}" if others else last
    return _Needs(key, lambda cfg: _plain(value_of(cfg, key)) in names, f"choose {choice}")


def _equals(key: str, value: str) -> _Needs:
    return _one_of(key, value)._replace(remedy=f"set {key}={value}")


def _above_0(key: str) -> _Needs:
    return _Needs(key, lambda cfg: value_of(cfg, key) > 0, f"set {key} above 0")


def _not_empty(key: str) -> _Needs:
    return _Needs(key, lambda cfg: bool(value_of(cfg, key)), f"set {key}")


def _listed(key: str, name: str) -> _Needs:
    return _Needs(key, lambda cfg: name in value_of(cfg, key), f"add {name} to {key}")


def _keys(*beginnings: str) -> list[str]:
    return [key for key in all_keys() if key.startswith(beginnings)]


def _table(*rows: tuple[_Needs, Iterable[str]]) -> dict[str, tuple[_Needs, ...]]:
    """What each key needs, in the order of `rows`."""
    table: dict[str, tuple[_Needs, ...]] = {}
    for needs, keys in rows:
        for key in keys:
            table[key] = (*table.get(key, ()), needs)
    return table


_CORRECTIONS = ("truncate_token", "truncate_sequence", "mask_token", "reject_sequence")
_READ_WITH = _table(
    (_one_of("advantage.name", "grpo"), ["advantage.std_normalize", "advantage.epsilon"]),
    (_equals("advantage.std_normalize", "true"), ["advantage.epsilon"]),
    (_one_of("advantage.name", "gae", "reinforce_plus_plus"), ["advantage.gamma"]),
    (_one_of("advantage.name", "gae"), ["advantage.gae_lambda"]),
    (_one_of("loss.name", "ppo_clip", "gspo", "cispo"), ["loss.clip_low", "loss.clip_high"]),
    (_one_of("loss.name", "ppo_clip"), ["loss.dual_clip"]),
    (_one_of("loss.name", "sapo"), ["loss.tau_positive", "loss.tau_negative"]),
    (_one_of("loss.name", "dpo"), ["loss.beta"]),
    (_one_of("loss.aggregation", "constant_length"), ["loss.length_constant"]),
    (_one_of("correction.name", "mask_token", "reject_sequence"), ["correction.low"]),
    (_one_of("correction.name", *_CORRECTIONS), ["correction.high"]),
    (_above_0("kl.coef"), [key for key in _keys("kl.", "reference.") if key != "kl.coef"]),
    (_one_of("kl.place", "loss"), ["kl.unbiased_gradient"]),
    (_not_empty("kl.target"), ["kl.horizon"]),
    (_above_0("reward.overlong_fraction"), ["reward.overlong_penalty"]),
    (_above_0("critic.ranks"), [key for key in _keys("critic.") if key != "critic.ranks"]),
    (_listed("reward.fns", "reward_model"), _keys("reward_model.")),
    (_not_empty("data.eval"), _keys("eval.")),
    (_above_0("eval.temperature"), ["eval.top_p", "eval.top_k"]),
    (_equals("data.chat_template", "true"), ["data.chat_template_args"]),
    (_listed("tracker.sinks", "wandb"), ["tracker.project", "tracker.name"]),
    (_equals("ray.address", "null"), ["ray.object_store_mib"]),
)
# Only one kind of device reads these. A recipe that runs on both may set both.
OF_ONE_DEVICE = {"rollout.kv_cache_gib", "rollout.device_memory_fraction", "actor.offload"}
_READ_BY_A_FUNCTION = ("advantage.name", "loss.name")  # which gets its whole section
DECIDING = {"algorithm"} | {needs.key for all_of in _READ_WITH.values() for needs in all_of}


def idle(cfg: Config, set_by: dict[str, str]) -> dict[str, str]:
    """Of the keys in `set_by` (key -> where it was set) those without effect: key -> the error in words.

    A user's own advantage or loss function may read whatever is in its section.
    """
    stage = stage_of(cfg.loss.name)
    own: list[str] = []
    if stage.loss is None:
        own = [k.partition(".")[0] for k in _READ_BY_A_FUNCTION if value_of(cfg, k) not in built_in(k)]
    errors: dict[str, str] = {}
    for key, origin in set_by.items():
        if (why := stage.why_unread(key, cfg)) is not None:
            errors[key] = f"{key} ({origin}): {why}"
            continue
        for needs in _READ_WITH.get(key, ()) if key.partition(".")[0] not in own else ():
            if not needs.test(cfg):
                shown = _plain(value_of(cfg, needs.key))
                how = f"nothing reads it with {needs.key} {shown}; remove it or {needs.remedy}"
                errors[key] = f"{key} ({origin}): {how}"
                break
    return errors


def _plain(value: Any) -> str:
    """As it is written in a recipe."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value.value if isinstance(value, Enum) else value)
