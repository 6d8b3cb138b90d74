"""A cell of a table as text: one form for every kind of value, docs/data.md; what has none is refused by its row."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

Convert = Callable[[Any], Any]


def as_text(value: Any) -> str:
    """Text as it is, a number without exponent, a whole one without a point (72, 0.5), anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return "0" if value == 0 else format(Decimal(repr(value)), "f").removesuffix(".0")
    return json.dumps(value, ensure_ascii=False, default=str)


def why_no_text(value: Any) -> str | None:
    """Why a cell, or something in its list or record, has no text form; None if it has one."""
    if isinstance(value, float):
        return None if math.isfinite(value) else f"is {value}, no number"
    if value is None or isinstance(value, str | int):
        return None
    if isinstance(value, list):
        return next((why for item in value if (why := why_no_text(item))), None)
    if isinstance(value, dict):
        return next((why for item in value.values() if (why := why_no_text(item))), None)
    return f"holds {type(value).__name__}, which has no text form; write it as text"


def from_arrow(kind: pyarrow.DataType) -> Convert | None:
    """What makes a value of this Arrow type one that JSON has; None where it is one already.

    Bytes, durations and extension types stay what they are: a column that is not used may hold them. None stays None.
    """
    from pyarrow import BaseExtensionType, types

    if isinstance(kind, BaseExtensionType):
        return None
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return from_arrow(kind.value_type)
    if types.is_decimal(kind):
        return _or_none(lambda value: format(value, "f"))
    if types.is_date(kind) or types.is_timestamp(kind) or types.is_time(kind):
        return _or_none(lambda value: value.isoformat())
    if types.is_float16(kind) or types.is_float32(kind):
        return _or_none(_shortest("e" if types.is_float16(kind) else "f"))
    if types.is_map(kind):
        return _or_none(_record(from_arrow(kind.item_type)))
    if types.is_struct(kind):
        fields = {field.name: convert for field in kind.fields if (convert := from_arrow(field.type))}
        if not fields:
            return None
        return _or_none(lambda value: {k: fields[k](v) if k in fields else v for k, v in value.items()})
    if hasattr(kind, "value_type"):  # lists of any kind
        item = from_arrow(kind.value_type)
        return None if item is None else _or_none(lambda value: [item(each) for each in value])
    return None


def _or_none(convert: Convert) -> Convert:
    return lambda value: None if value is None else convert(value)


def _record(item: Convert | None) -> Convert:
    """Of a map's pairs."""
    return lambda pairs: {as_text(key): value if item is None else item(value) for key, value in pairs}


def _shortest(code: str) -> Convert:
    """The shortest decimal that is this number in 16 or 32 bits: 0.1, not 0.10000000149011612."""
    import numpy

    kind = numpy.dtype(code).type
    return lambda value: float(str(kind(value)))
