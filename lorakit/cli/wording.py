"""Messages on a command line: the package writes them for Python, and here the arguments become the flags they are.

`learning_rate is 0`, `overwrite=True`, `packing='off'`, `engine 'eager'` and `columns={'word': 1, 'tag': 3}` become
`--learning-rate is 0`, `--overwrite`, `--packing off`, `--engine eager` and `--columns word=1,tag=3`, and `labels= out`
becomes `--labels out`, for the flags of the command in use. What has no flag stays.
"""

import argparse
import ast
import re
import shlex
from collections.abc import Mapping
from typing import Any

PLAIN = r"(?<![\w.\-/'\"\\=])"  # not before: a part of a path, of a quoted name or of a flag
VALUE = r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\{[^}]*\}|[\w+\-]+(?:\.\d+)?"
OTHER_NAMES = {  # arguments whose flags have other names
    "shares": "--split",
    "idle_w": "--idle",
    "load_w": "--load",
    "meter_error": "--error",
    "grams_per_kwh": "--co2",
    "embodied_g": "--embodied",
    "units": "--sci",
    "target": "--to",
}


def in_flags(message: str, parser: argparse.ArgumentParser) -> str:
    """The message with a flag wherever it names the setting that the flag makes."""
    flags = _flags_of(parser)
    message = re.sub(r"\b(?:TrainConfig|apply_lora)\((?:\.\.\., )?(\w+=(?:" + VALUE + r"))\)", r"\1", message)

    def assigned(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        if value == "False" and f"no_{name}" in flags:
            return _flag(f"no_{name}")
        return _with_value(flags[name], _flag(name), value) if name in flags and value != "[]" else found[0]

    def chosen(found: re.Match[str]) -> str:
        name, values = found[1], re.findall(r"'([\w-]+)'", found[2])
        choices = flags[name].choices if name in flags else None
        return f"{_flag(name)} {' or '.join(values)}" if choices and set(values) <= set(choices) else found[0]

    def bare(found: re.Match[str]) -> str:
        return _flag(found[1]) if found[1] in flags else found[0]

    message = re.sub(rf"{PLAIN}([a-z]\w*)=({VALUE})", assigned, message)
    message = re.sub(rf"{PLAIN}([a-z]\w*)=(?=[\s,;:.)]|$)", bare, message)
    message = re.sub(rf"{PLAIN}([a-z]\w*) ('[\w-]+'(?: or '[\w-]+')*)", chosen, message)
    first = re.match(r"\w+(?= is | must | has | names |\[)", message)
    if first and first[0] in flags:
        message = _flag(first[0]) + message[first.end() :]
    return re.sub(
        rf"{PLAIN}[a-z]+_\w+(?![\w/(=.'\"])", lambda found: _flag(found[0]) if found[0] in flags else found[0], message
    )


def _flags_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The name of an argument in Python -> the flag that makes it."""
    there = {action.dest: action for action in parser._actions if _flag(action.dest) in action.option_strings}
    made = parser._option_string_actions
    return there | {name: made[flag] for name, flag in OTHER_NAMES.items() if flag in made}


def _flag(name: str) -> str:
    return OTHER_NAMES.get(name) or f"--{name.replace('_', '-')}"


def _with_value(action: argparse.Action, flag: str, text: str) -> str:
    """A flag as a shell takes it, for an argument with a value as Python writes it."""
    try:
        value: Any = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(value, bool):
        return flag if value else f"no {flag}"
    if isinstance(value, int | float):
        return f"{flag} {text}"  # as it was written
    if isinstance(value, Mapping):
        words = [f"{key}={part:g}" if isinstance(part, float) else f"{key}={part}" for key, part in value.items()]
        words = words if action.nargs else [",".join(words)]
    else:
        words = (
            [str(word) for word in value]
            if isinstance(value, list | tuple)
            else [text if value == text else str(value)]
        )
    return " ".join([flag, *map(shlex.quote, words)])
