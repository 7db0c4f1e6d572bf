"""A token table that was resized for new tokens: its new rows are random numbers, which belong to no checkpoint."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import nn

from lorakit.adapters.names import is_within, named_modules


def input_table(model: nn.Module) -> nn.Module | None:
    """The model's token embeddings; None where it has no table (CANINE), or is not transformers' own."""
    find = getattr(model, "get_input_embeddings", None)
    try:
        return find() if find else None
    except NotImplementedError:  # transformers' answer where a class has none
        return None


def resized_table(
    model: nn.Module, saved: Iterable[str], rows: Mapping[str, Sequence[int]] | None = None
) -> tuple[str, int, int] | None:
    """The name of the model's token table, the base's rows and its own, if it has more that are not all trained.

    The base's rows are read from its folder, or from the hub's cache; where neither has them, nothing is known.

    Args:
        model: a transformers model, or any other, which has no known table.
        saved: full names of the modules trained in full.
        rows: by table, the tokens whose rows are trained.
    """
    tokens, rows = rows or {}, _rows_of_base(getattr(getattr(model, "config", None), "_name_or_path", None))
    table = None if rows is None else input_table(model)
    name = next((name for name, module in named_modules(model) if module is table), None)
    if name is None or any(is_within(name, module) for module in saved):
        return None
    untrained = set(range(rows, len(table.weight))) - set(tokens.get(name, ()))
    return (name, rows, len(table.weight)) if untrained else None


def _rows_of_base(base: str | None) -> int | None:
    if not base:
        return None
    path = Path(base) / "config.json"
    if not path.is_file():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(base, "config.json")
        except HFValidationError:  # a folder that is gone
            return None
        if not isinstance(cached, str):
            return None
        path = Path(cached)
    try:
        rows = json.loads(path.read_text(encoding="utf-8")).get("vocab_size")
    except (OSError, ValueError, AttributeError):
        return None
    return rows if isinstance(rows, int) else None
