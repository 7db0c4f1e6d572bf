"""Settings from a file: `--config settings.yaml` or `.toml` gives a command's flags other defaults.

    # settings.yaml                 # settings.toml
    learning-rate: 1e-3             learning-rate = 1e-3
    target-modules: [query, value]  target-modules = ["query", "value"]

The keys are the command's flags without the leading hyphens (`learning-rate` or `learning_rate`). A flag on the command
line overrides the file, and `null` leaves a flag at its own default. Paths are relative to where the command runs, as
they are on the command line.
"""

import argparse
import difflib
import sys
from pathlib import Path
from typing import Any

from lorakit.cli.parser import Parser, comma_hint, file_or_folder


def add_config_flag(parser: Parser) -> None:
    """Add --config to a parser; the file may set each of the parser's flags."""
    parser.add_argument(
        "--config",
        type=file_or_folder,
        action=ConfigFile,
        metavar="FILE",
        help="read defaults for these flags from a .yaml, .yml or .toml file",
    )


class ConfigFile(argparse.Action):
    """Give the parser the defaults of a file.

    It acts when argparse reaches --config: what follows `lorakit energy run --` belongs to another command, and only
    the parser knows where that begins. Parser fills in the defaults after that.
    """

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        try:
            settings = read_settings(parser, values)
        except ValueError as error:
            parser.error(str(error))
        setattr(namespace, self.dest, values)
        for action, value in settings.items():
            action.default, action.required = value, False
        namespace.given = frozenset(action.dest for action in settings)


def read_settings(parser: argparse.ArgumentParser, path: Path) -> dict[argparse.Action, Any]:
    """The flags that a file sets, and their values.

    Raises:
        ValueError: The file cannot be read, has a key that is not a flag, or a value that the flag does not accept.
    """
    flags = {
        option[2:]: action
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--") and action.dest not in ("help", "config")
    }
    settings = {}
    for key, value in read_config(path).items():
        action = flags.get(str(key).replace("_", "-"))
        if action is None:
            near = difflib.get_close_matches(str(key).replace("_", "-"), flags, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"the keys are {', '.join(sorted(flags))}"
            raise ValueError(f"{path}: unknown key {key!r}; {hint}")
        if value is None:
            continue
        try:
            settings[action] = _value(action, value)
        except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
            raise ValueError(f"{path}: {str(key).replace('_', '-')}: {error}") from None
    return settings


def read_config(path: Path) -> dict[str, Any]:
    """The file's keys and values.

    Raises:
        ValueError: There is no such file, or it is not YAML or TOML, or it is not a table of keys.
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
        raise ValueError(f"{path}: it holds {found!r} instead of keys; write lines such as epochs: 3")
    return found


def _toml(path: Path, text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError:
            raise ValueError(
                f"{path}: reading TOML needs Python 3.11 or the package tomli (pip install tomli); or use YAML"
            ) from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not TOML: {error}") from None


def _yaml(path: Path, text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a repeated key, of which PyYAML would use the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                raise ValueError(f"{path}: the key {twice!r} appears twice")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)  # a SafeLoader: plain values only
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from None


def _value(action: argparse.Action, value: Any) -> Any:
    """The value that the flag would have on the command line."""
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
        raise ValueError(f"{value!r} is not a single value, which this flag needs")
    convert = action.type or str
    hint = comma_hint(str(value), convert)
    try:
        found = convert(str(value))  # text, as on the command line: YAML, too, reads 1e-3 as text
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error) + hint) from None
    except ValueError:
        raise ValueError(f"invalid {getattr(convert, '__name__', 'value')} value: {value!r}{hint}") from None
    if action.choices is not None and found not in action.choices:
        raise ValueError(f"{value!r} is not one of {', '.join(map(str, action.choices))}")
    return found
