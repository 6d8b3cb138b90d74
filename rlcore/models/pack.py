"""What makes a model packable: attention that keeps rollouts apart, output layers that never make all logits."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from rlcore.errors import ConfigError
from rlcore.models import attention
from rlcore.models.heads import LogpHead, ValueHead
from rlcore.models.rope import longest_rollout

SCORE = "score"  # transformers' name of the layer of one output in every decoder's sequence classification form
_PACKABLE_LAYERS = {"full_attention", "sliding_attention"}


def pack(model: PreTrainedModel) -> PreTrainedModel:
    """Make `model`, in place, one that `token_logp` can run: packed attention, the chunked head, no dropout.

    Parameters keep their names. Raises ConfigError (key model.path) for architectures in which a token could see
    another rollout, or whose logits are not understood.
    """
    head = model.get_output_embeddings()
    _require_packable(model, head, "model.path")
    assert isinstance(head, nn.Linear)
    model.set_output_embeddings(LogpHead(head, model.config.get_text_config()))
    return _pack_backbone(model)


def pack_value(model: PreTrainedModel, key: str) -> PreTrainedModel:
    """`pack` for `token_value`: of the layer `SCORE`. Raises ConfigError naming the config's `key`."""
    head = getattr(model, SCORE, None)
    _require_packable(model, head, key)
    assert isinstance(head, nn.Linear)
    setattr(model, SCORE, ValueHead(head))
    return _pack_backbone(model)


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


def _pack_backbone(model: PreTrainedModel) -> PreTrainedModel:
    model.set_attn_implementation(attention.NAME)
    model.config.use_cache = False
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model
