"""Which rows of which token tables an adapter trains: `trainable_token_indices`, checked against the model."""

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.config import LoRAConfig
from lorakit.adapters.names import is_within, name_matches, named_modules, submodule, unmatched
from lorakit.adapters.ties import closed_under_ties
from lorakit.adapters.token_table import input_table
from lorakit.nn.token_rows import has_rows


def rows_trained(model: nn.Module, config: LoRAConfig, trained: Sequence[str] = ()) -> dict[str, tuple[int, ...]]:
    """By full name of a token table, the tokens whose rows `config` asks to train.

    Args:
        model: the base.
        config: the settings.
        trained: full names of the modules that are adapted or trained in full.

    Raises:
        ValueError: there is no such table or token, or its rows cannot be trained by themselves.
    """
    asked = config.trainable_token_indices or {}
    if not isinstance(asked, Mapping):
        found = next((name for name, module in named_modules(model) if module is input_table(model)), None)
        if found is None:
            raise ValueError(
                f"trainable_token_indices: this {type(model).__name__} does not say which its token table is; name it:"
                f" {{'word_embeddings': {list(asked)}}}"
            )
        asked = {found: asked}
    rows: dict[str, tuple[int, ...]] = {}
    for wanted, tokens in asked.items():
        names = [name for name, _ in named_modules(model) if name_matches(name, wanted)]
        tables = [name for name in names if isinstance(submodule(model, name), nn.Embedding)]
        if not tables:
            every = (n.rpartition(".")[2] for n, m in named_modules(model) if isinstance(m, nn.Embedding))
            raise unmatched("trainable_token_indices", wanted, every)
        rows |= dict.fromkeys(tables, tuple(tokens))
    for name, tokens in rows.items():
        _check_rows(model, name, tokens, trained)
    return {name: tokens for name, tokens in rows.items() if tokens}


def _check_rows(model: nn.Module, name: str, tokens: Sequence[int], trained: Sequence[str]) -> None:
    table = submodule(model, name)
    if any(is_within(name, module) for module in trained):
        raise ValueError(
            f"trainable_token_indices: {name!r} is adapted or trained in full already; leave it out of target_modules"
            " and modules_to_save, or leave out trainable_token_indices"
        )
    if type(table) is not nn.Embedding and not has_rows(table):
        raise ValueError(
            f"trainable_token_indices: {name!r} is a {type(table).__name__}, of which single rows cannot be trained;"
            f" train all of it with modules_to_save=[{name!r}]"
        )
    if len(both := owners_of(model, name)) > 1:
        raise ValueError(
            f"trainable_token_indices: {name!r} shares its table with {', '.join(map(repr, both[1:]))}, whose rows"
            f" would stay as they are; train the table in full with modules_to_save={list(both)}"
        )
    rows = len(table.weight)
    if tokens and max(tokens) >= rows:
        raise ValueError(
            f"trainable_token_indices has {max(tokens)}, and {name!r} has {rows} rows, the last of which is"
            f" {rows - 1}; call model.resize_token_embeddings({max(tokens) + 1}) first"
        )


def owners_of(model: nn.Module, name: str) -> tuple[str, ...]:
    """The module of this name, and other modules that share a parameter with it."""
    table = submodule(model, name)
    others = [other for other in closed_under_ties(model, [name]) if submodule(model, other) is not table]
    return (name, *others)


def common_rows(adapters: Iterable[Adapter]) -> dict[str, Sequence[int]]:
    """The trained rows of all these adapters.

    Raises:
        ValueError: two of them train rows of other tokens in one table.
    """
    found: dict[str, Sequence[int]] = {}
    for adapter in adapters:
        for table, tokens in adapter.rows.items():
            if found.setdefault(table, tokens) != tokens:
                raise ValueError(
                    f"the adapters train rows of other tokens in {table!r}, which cannot be added; train both with the"
                    " same trainable_token_indices, or combine others"
                )
    return found
