"""What makes a model packable: attention that keeps rollouts apart, output layers that never make all logits."""

from __future__ import annotations

import inspect
from collections import defaultdict
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from rlcore.errors import ConfigError
from rlcore.models import attention
from rlcore.models.heads import LogpHead, ValueHead
from rlcore.models.rope import longest_rollout

SCORE = "score"  # transformers' name of the layer of one output in every decoder's sequence classification form
_PACKABLE_LAYERS = {"full_attention", "sliding_attention"}
_ONLY_MOVES = {"slice", "view", "_unsafe_view", "alias", "detach", "_to_copy", "select", "index", "expand", "t"}


def pack(model: PreTrainedModel) -> PreTrainedModel:
    """Make `model`, in place, one that `token_logp` can run: packed attention, the chunked head, no dropout.

    Parameters keep their names. Raises ConfigError (key model.path) for architectures in which a token could see
    another rollout, or whose logits are not understood.
    """
    head = model.get_output_embeddings()
    _require_packable(model, head, "model.path")
    assert isinstance(head, nn.Linear)
    packed = LogpHead(head, model.config.get_text_config())
    _pack_backbone(model)
    if head.weight.is_meta:
        computed = _tried(model, model, head)
        _require_known_logits(model, computed["between"] + ([] if packed.changes_logits else computed["after"]))
    model.set_output_embeddings(packed)
    return model


def pack_value(model: PreTrainedModel, key: str) -> PreTrainedModel:
    """`pack` for `token_value`: of the layer `SCORE`. Raises ConfigError naming the config's `key`."""
    head = getattr(model, SCORE, None)
    _require_packable(model, head, key)
    assert isinstance(head, nn.Linear)
    setattr(model, SCORE, ValueHead(head))
    _pack_backbone(model)
    if head.weight.is_meta:
        _tried(model, model.base_model, head)
    return model


def _require_packable(model: PreTrainedModel, head: Any, key: str) -> None:
    text = model.config.get_text_config()
    longest_rollout(text, key)
    reason = None
    if not model._can_set_attn_implementation():
        reason = "has attention that cannot be replaced"
    elif unknown := sorted(set(getattr(text, "layer_types", None) or ()) - _PACKABLE_LAYERS):
        reason = f"has layers of type {', '.join(unknown)}"
    elif any(isinstance(m, nn.Conv1d) for m in model.base_model.modules()):
        reason = "mixes tokens by convolution"
    elif "position_ids" not in (takes := inspect.signature(model.base_model.forward).parameters):
        reason = "does not take position_ids"
    elif not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values()):
        reason = "does not pass arguments on to its attention"
    elif not isinstance(head, nn.Linear):
        reason = f"has a {type(head).__name__} for output layer, not a linear one"
    if reason:
        raise ConfigError(f"{key}: {type(model).__name__} {reason}; rlcore trains softmax-attention decoders only")


class _Computed(TorchDispatchMode):
    """Names of the operations that compute something, in the part of a forward that `part` says."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.seen = "", defaultdict[str, list[str]](list)

    def enter(self, part: str) -> None:
        self.part = part

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name not in _ONLY_MOVES:
            self.seen[self.part].append(name)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def _tried(model: PreTrainedModel, called: nn.Module, head: nn.Linear) -> dict[str, list[str]]:
    """What is computed "between" backbone and head and "after" it, by a forward of two tokens without memory.

    Raises ConfigError for what its attention asks for that is not computed here. Where a model needs numbers to go on,
    as some rotary embeddings do, what comes later is not seen.
    """
    computed = _Computed()
    hooks = [
        model.base_model.register_forward_hook(lambda *_: computed.enter("between")),
        head.register_forward_pre_hook(lambda *_: computed.enter("head")),
        head.register_forward_hook(lambda *_: computed.enter("after")),
    ]
    ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
    segments = attention.Segments([2], torch.tensor([0, 2], dtype=torch.int32, device="meta"), 2)
    try:
        with computed:
            called(input_ids=ids, position_ids=ids, use_cache=False, segments=segments)
    except ConfigError:
        raise
    except Exception:
        pass  # there are no numbers here
    finally:
        for hook in hooks:
            hook.remove()
    return computed.seen


def _require_known_logits(model: PreTrainedModel, computed: list[str]) -> None:
    if computed:
        raise ConfigError(
            f"model.path: {type(model).__name__} makes more of its logits ({', '.join(sorted(set(computed)))}) than an "
            "output layer of its last hidden states, and that is not known here"
        )


def _pack_backbone(model: PreTrainedModel) -> None:
    model.set_attn_implementation(attention.NAME)
    model.config.use_cache = False
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
