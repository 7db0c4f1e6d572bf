"""Guards for what a stranger's adapter_config.json asks for: types, ranks, and regular expressions that never end.

Python cannot interrupt a regular expression. One with nested repeats may take longer than the age of the universe on a
name of 40 letters, so patterns with several repeats are first tried in a process that can be ended.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

TRY_S = 5.0  # a pattern that needs longer for the names of one model is refused
TRY = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for text in (pattern, rf"(.*\\.)?({pattern})$", rf".*\\.[^.]*{pattern}\\.(\\d+)\\."):
        try:
            found = re.compile(text)
        except (re.error, OverflowError, RecursionError):
            continue
        for name in names:
            found.fullmatch(name), found.match(name)
"""
LISTS = (str, list, type(None))
KINDS: dict[str, tuple[type, ...]] = {
    "r": (int,),
    "lora_alpha": (int, float),
    "lora_dropout": (int, float, type(None)),
    "target_modules": LISTS,
    "exclude_modules": LISTS,
    "modules_to_save": (list, type(None)),
    "layers_pattern": LISTS,
    "rank_pattern": (dict, type(None)),
    "alpha_pattern": (dict, type(None)),
    "base_model_name_or_path": (str, type(None)),
    "task_type": (str, type(None)),
}


def check_kinds(config: Mapping[str, Any], place: str) -> None:
    """Refuse values of the wrong type.

    Args:
        config: of adapter_config.json.
        place: where it was read from, for the message.

    Raises:
        ValueError: with the key and its value.
    """
    for key, kinds in KINDS.items():
        value = config.get(key)
        wrong = key in config and (not isinstance(value, kinds) or isinstance(value, bool))
        if wrong or isinstance(value, list) and not all(isinstance(part, str) for part in value):
            raise ValueError(
                f"{place}: {key} is {str(value)[:80]!r}, which is of no type that PEFT writes there; correct it"
            )


def check_ranks_fit(config: Mapping[str, Any], tensors: Mapping[str, Tensor], place: str) -> None:
    """Refuse a rank that no tensor of the file has room for, before memory is taken for it.

    Raises:
        ValueError: with the rank.
    """
    largest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    for rank in (config["r"], *(config.get("rank_pattern") or {}).values()):
        if isinstance(rank, int) and rank > max(largest, 1):
            raise ValueError(f"{place}: rank {rank} is larger than every tensor of the adapter ({largest}); correct it")


def check_patterns(config: Mapping[str, Any], names: Iterable[str], place: str) -> None:
    """Refuse a regular expression that takes too long for the names of this model.

    Args:
        config: of adapter_config.json.
        names: of the model's modules.
        place: where it was read from, for the message.

    Raises:
        ValueError: with the patterns.
    """
    costly = [pattern for pattern in _patterns(config) if sum(map(pattern.count, "*+{")) > 1]
    if not costly:
        return
    given = json.dumps([costly, list(names)])
    command = [sys.executable, "-I", "-S", "-c", TRY]
    try:
        subprocess.run(command, input=given, text=True, timeout=TRY_S, check=False, capture_output=True)
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"{place}: a pattern takes more than {TRY_S:g} s on the names of this model"
            f" ({', '.join(repr(p[:80]) for p in costly)}); name the layers in a list instead"
        ) from None


def _patterns(config: Mapping[str, Any]) -> Sequence[str]:
    texts = [config.get(key) for key in ("target_modules", "exclude_modules")]
    for key in ("rank_pattern", "alpha_pattern", "layers_pattern"):
        value = config.get(key) or ()
        texts += [value] if isinstance(value, str) else list(value)
    return [text for text in texts if isinstance(text, str)]
