"""Tensors as checkpoints name and shape them. transformers fuses some in memory, as experts into one tensor a layer."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel


def checkpoint_tensors(model: PreTrainedModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`tensors`, under the model's own names -> under those of its checkpoints on disk, which transformers and vLLM
    read. Of the model's kind alone, not of the file it came from: on every rank the same."""
    from transformers.core_model_loading import revert_weight_conversion

    of_its_file = model.__dict__.pop("_weight_conversions", None)
    try:
        return revert_weight_conversion(model, tensors)
    finally:
        if of_its_file is not None:
            model.__dict__["_weight_conversions"] = of_its_file
