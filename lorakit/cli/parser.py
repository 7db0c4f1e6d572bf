"""The parser behind every command: errors in one line, help with examples, and which flags were given."""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

from lorakit.cli.wording import in_flags

MOST_SHOWN = 4000  # characters of an error message
NOT_GIVEN = object()  # the value of a flag while its parser runs, until the command line sets it


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports an error in one line, and once however many processes run.

    What it returns has one more attribute, `given`: the names of the settings that the command line or the --config
    file makes. The values alone cannot tell, because a flag may be given its own default.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})
        self.is_used = False  # whether it has parsed something

    @property
    def _commands(self) -> Any:
        return next((one for one in self._actions if isinstance(one, argparse._SubParsersAction)), None)

    def error(self, message: str) -> NoReturn:
        commands = self._commands
        if unknown := re.match("unrecognized arguments: (-[^ =]+)", message):
            message += self._did_you_mean(unknown[1])
        if commands and message.endswith(f"required: {commands.metavar}"):
            message = f"give a command: {', '.join(commands.choices)}; {self.prog} --help says what each does"
        if os.environ.get("RANK", "0") == "0":
            print(f"{self.prog}: error: {_readable(in_flags(message, self))}", file=sys.stderr)
        sys.exit(2)

    def _did_you_mean(self, flag: str) -> str:
        """The flag of the command in use that an unknown one may be: the nearest, or --learning-rate for --lr."""
        parser = self
        while used := [one for one in (parser._commands.choices.values() if parser._commands else ()) if one.is_used]:
            parser = used[0]
        flags = list(parser._option_string_actions)
        short = [one for one in flags if "".join(re.findall(r"(?<=-)\w", one)) == flag.lstrip("-")]
        near = short or difflib.get_close_matches(flag, flags, n=1, cutoff=0.75)
        return f"; did you mean {near[0]}?" if near else ""

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            error.message += comma_hint(arg_string, action.type or str, several=action.nargs == "+")
            raise

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as argparse does, but fill in the defaults at the end, when --config may have changed them."""
        flags = [action for action in self._actions if action.option_strings and not _is_special(action)]
        namespace = argparse.Namespace() if namespace is None else namespace
        self.is_used = True
        for action in flags:
            setattr(namespace, action.dest, NOT_GIVEN)
        namespace, rest = super().parse_known_args(args, namespace)
        given = {action.dest for action in flags if getattr(namespace, action.dest) is not NOT_GIVEN}
        for action in flags:
            if action.dest not in given:
                setattr(namespace, action.dest, action.default)
        # a subcommand's parser and --config have left their part here
        namespace.given = getattr(namespace, "given", frozenset()) | given
        return namespace, rest


def file_or_folder(text: str) -> Path:
    """The type of a flag that names one: an empty name, as of an unset variable, is not the folder one is in.

    Raises:
        argparse.ArgumentTypeError: The name is empty.
    """
    if not text:
        raise argparse.ArgumentTypeError("the name is empty; give a file or folder (. is the one you are in)")
    return Path(text).expanduser()  # a shell leaves --output-dir=~/runs to us, and a --config file everything


def folder_or_id(text: str) -> str:
    """The type of a flag that names a folder or a hub id."""
    return os.path.expanduser(text)


def _readable(message: str) -> str:
    """The message in one line; of one that quotes half a file the beginning and the end, which says what to do."""
    line = " ".join(message.split())
    return line if len(line) <= MOST_SHOWN else f"{line[: MOST_SHOWN // 2]} … {line[-MOST_SHOWN // 2 :]}"


def _is_special(action: argparse.Action) -> bool:
    """Whether argparse handles the default of a flag itself: --help has none, and "append" adds to it."""
    return action.default is argparse.SUPPRESS or action.nargs is None and isinstance(action.default, list)


def at_least_0(text: str) -> float:
    """A flag's type: a finite number, 0 or more.

    Raises:
        ArgumentTypeError: it is not one.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of 0 or more")
    return value


def comma_hint(text: str, convert: Callable[[str], Any], several: bool = False) -> str:
    """What to write instead of a number with a comma, to add to an error; "" where that is not what is wrong.

    Example:
        from lorakit.cli.parser import comma_hint
        comma_hint("38,39", float, several=True)  # '; a number has no comma: write 38.39 or 38 39'

    Args:
        text: what was refused.
        convert: makes the value, or raises ValueError, TypeError or ArgumentTypeError.
        several: whether the flag takes more than one value.
    """

    def is_taken(way: str) -> bool:
        try:
            return [convert(word) for word in way.split()] != []
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            return False

    ways = [text.replace(",", ".")] if text.count(",") == 1 else []
    ways += [text.replace(",", "")] if re.fullmatch(r"\d{1,3}(,\d{3})+", text) else []
    ways += [text.replace(",", " ")] if several else []
    taken = [way for way in ways if "," in text and is_taken(way)]
    return f"; a number has no comma: write {' or '.join(taken)}" if taken else ""


LEAST_G_PER_KWH, MOST_G_PER_KWH = 2.0, 5000.0  # no grid is cleaner or dirtier; figures beyond are of another unit


def _grams_per_kwh(text: str) -> float:
    value = at_least_0(text)
    if value and not LEAST_G_PER_KWH <= value <= MOST_G_PER_KWH:
        raise argparse.ArgumentTypeError(
            f"{text} g/kWh is no grid's; give grams, from {LEAST_G_PER_KWH:g} to {MOST_G_PER_KWH:g} (0.4 kg per kWh is "
            "400), or 0"
        )
    return value


def add_co2_flag(parser: argparse.ArgumentParser, default: str = "there is no default") -> None:
    """The grid's factor, which the user knows and we do not."""
    about = f"your grid's grams of CO2 per kWh, for the CO2 of what is measured; {default}"
    parser.add_argument("--co2", type=_grams_per_kwh, metavar="X", help=about)


def add_sci_flags(parser: argparse.ArgumentParser) -> None:
    """What the SCI needs besides --co2."""
    about = "also give the SCI of ISO 21031 for N units of work; needs --co2 and --embodied"
    parser.add_argument("--sci", type=at_least_0, metavar="N", help=about)
    about = "g of CO2 for this run's share of making the hardware; there is no default"
    parser.add_argument("--embodied", type=at_least_0, metavar="X", help=about)


@contextmanager
def input_errors(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Turn an error in the user's input, raised in this block, into one line and exit status 2."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:  # ImportError: a flag asks for a package that is not installed
        parser.error(in_words(error))


def in_words(error: Exception) -> str:
    """An error's message; of one of the system's the file and the reason, without its number."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


@contextmanager
def processes(arguments: argparse.Namespace) -> Iterator[None]:
    """Join the group that torchrun describes, on the device of --device; leave both at the end."""
    from lorakit.training.distributed import on_device, process_group  # loads torch

    with ExitStack() as stack:
        with input_errors(arguments.parser):
            stack.enter_context(on_device(arguments.device))
        stack.enter_context(process_group())
        yield


def add_command(
    commands: argparse._SubParsersAction, name: str, about: str, examples: str, run: Callable[..., int]
) -> Parser:
    """Add a command to `lorakit`, to one of its commands, or to any parser's subcommands.

    Args:
        about: One line, without a full stop.
        examples: Command lines to show, one per line.
        run: The command's body: takes the parsed arguments, among them `parser`, and returns the exit status.
    """
    epilog = "examples:\n" + "".join(f"  {line}\n" for line in examples.strip().splitlines())
    description = f"{about[0].upper()}{about[1:]}."
    parser = commands.add_parser(name, help=about, description=description, epilog=epilog, allow_abbrev=False)
    parser.set_defaults(run=run, parser=parser)
    return parser
