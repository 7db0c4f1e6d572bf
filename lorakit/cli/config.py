"""Settings from a file: `--config settings.yaml` or `.toml` gives a command's flags other defaults.

    # settings.yaml                 # settings.toml
    learning-rate: 1e-3             learning-rate = 1e-3
    target-modules: [query, value]  target-modules = ["query", "value"]

Keys are the command's flags without their hyphens in front (`learning-rate` or `learning_rate`). A flag on the command
line overrules the file; `null` leaves a flag's own default. Paths are as on the command line: from where it runs.
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def add_config_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="defaults for these flags, from a .yaml, .yml or .toml file"
    )


def apply_config(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Give `parser` the defaults of the file that --config names in `argv`, if it does.

    Raises:
        ValueError: as `set_defaults`.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config", type=Path)
    try:
        path = first.parse_known_args(argv)[0].config
    except argparse.ArgumentError:
        return  # --config without a value: the command's own parser says so
    if path is not None:
        set_defaults(parser, path)


def set_defaults(parser: argparse.ArgumentParser, path: Path) -> None:
    """Give `parser` the defaults of a file.

    Raises:
        ValueError: the file cannot be read, has a key that is no flag, or a value that the flag does not take.
    """
    flags = {
        option[2:]: action
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--") and action.dest not in ("help", "config")
    }
    for key, value in read_config(path).items():
        action = flags.get(str(key).replace("_", "-"))
        if action is None:
            near = difflib.get_close_matches(str(key).replace("_", "-"), flags, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"the keys are {', '.join(sorted(flags))}"
            raise ValueError(f"{path}: unknown key {key!r}; {hint}")
        if value is None:
            continue
        try:
            action.default = _value(action, value)
        except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
            raise ValueError(f"{path}: {key}: {error}") from None
        action.required = False


def parse_with_config(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse; where the command that was called has a --config and got one, once more with the file's defaults.

    For commands that run another command, whose own --config is none of ours: only the parser knows where it begins.
    """
    arguments = parser.parse_args(argv)
    if getattr(arguments, "config", None) is None:
        return arguments
    try:
        set_defaults(arguments.parser, arguments.config)
    except ValueError as error:
        arguments.parser.error(str(error))
    return parser.parse_args(argv)


def read_config(path: Path) -> dict[str, Any]:
    """The file's keys and values.

    Raises:
        ValueError: there is no such file, or it is neither YAML nor TOML, or not a table of keys.
    """
    if path.suffix not in (".yaml", ".yml", ".toml"):
        raise ValueError(f"--config {path}: give a .yaml, .yml or .toml file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"--config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--config {path}: not UTF-8") from error
    found = _toml(path, text) if path.suffix == ".toml" else _yaml(path, text)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"{path}: it holds no keys but {found!r}; write lines such as epochs: 3")
    return found


def _toml(path: Path, text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError:
            raise ValueError(
                f"{path}: reading TOML needs Python 3.11 or the package tomli (pip install tomli); or write it as YAML"
            ) from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not TOML: {error}") from None


def _yaml(path: Path, text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that stands twice, of which PyYAML would take the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                raise ValueError(f"{path}: the key {twice!r} stands twice")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)  # a SafeLoader: plain values only
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from None


def _value(action: argparse.Action, value: Any) -> Any:
    """A file's value as the flag would have read it from the command line."""
    if action.nargs == 0:  # a switch
        if not isinstance(value, bool):
            raise ValueError(f"{value!r} is not true or false")
        return value
    if action.nargs == "+":
        values = value if isinstance(value, list) else [value]
        if not values:
            raise ValueError("the list is empty")
        return [_single(action, part) for part in values]
    return _single(action, value)


def _single(action: argparse.Action, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{value!r} is not a single value of this flag")
    convert = action.type or str
    try:
        found = convert(str(value))  # a string, as from the command line: YAML reads 1e-3 as text, too
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from None
    except ValueError:
        raise ValueError(f"invalid {getattr(convert, '__name__', 'value')} value: {value!r}") from None
    if action.choices is not None and found not in action.choices:
        raise ValueError(f"{value!r} is not one of {', '.join(map(str, action.choices))}")
    return found
