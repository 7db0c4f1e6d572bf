"""`lorakit predict`: the entities of texts from the command line, a file or standard input."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit._files import write_text
from lorakit.cli.config import add_config_flag
from lorakit.cli.flags import add_precision_flag, add_saved_flags, check_writable
from lorakit.cli.parser import add_command, input_errors

if TYPE_CHECKING:
    from lorakit.report.entities import Tagging

AT_ONCE = 4096  # texts tagged together: enough to pack them well, few enough for memory
FORMATS = ("table", "jsonl", "conll", "terminal", "html")  # `as_table`, … in report/entities.py
EXAMPLES = """
lorakit predict --adapter runs/mine/adapter "IL-2 gene expression requires NF-kappa B."
lorakit predict --adapter runs/mine/adapter --file sentences.txt --output entities.jsonl
cat sentences.txt | lorakit predict --model runs/mine/model --format conll
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `predict` to the commands."""
    parser = add_command(commands, "predict", "find the named entities in texts", EXAMPLES, run)
    add_config_flag(parser)
    add_saved_flags(parser)
    add = parser.add_argument
    add("texts", nargs="*", metavar="TEXT", help="best one sentence each; without any: --file, or standard input")
    add("--file", type=Path, help="one text per line, UTF-8; - is standard input")
    about = "default: by the ending of --output, else terminal where colours show (NO_COLOR turns them off), else table"
    add("--format", choices=FORMATS, help=about)
    add("--output", type=Path, metavar="FILE", help="write to FILE instead of printing")
    add_precision_flag(parser)


def run(arguments: argparse.Namespace) -> int:
    """Find the entities and show them; returns the exit status."""
    from lorakit.report.entities import Tagging
    from lorakit.training.distributed import device, is_main, process_group
    from lorakit.training.models import load_tagger
    from lorakit.training.prediction import find_entities

    with process_group():
        with input_errors(arguments.parser):
            if arguments.output:
                check_writable(arguments.output.parent, "--output")
                if arguments.output.is_dir():
                    raise ValueError(f"--output {arguments.output} is a folder; give a file")
            texts = read_texts(arguments)
            model, tokenizer = load_tagger(arguments.adapter, arguments.model)
            model.to(device())
            found = []
            for start in range(0, len(texts), AT_ONCE):
                part = texts[start : start + AT_ONCE]
                results = find_entities(model, tokenizer, part, arguments.precision)
                found += [Tagging(text, *result) for text, result in zip(part, results, strict=True)]
        if is_main():
            write(show(found, arguments.format or _default_format(arguments)), arguments.output)
            if not any(tagging.entities for tagging in found):
                print(f"{arguments.parser.prog}: no entity in {len(found)} texts", file=sys.stderr)
    return 0


def read_texts(arguments: argparse.Namespace) -> list[str]:
    """The texts: the arguments, or the lines of a file or of standard input.

    Raises:
        ValueError: Both arguments and a file are given, or the text is not UTF-8.
        OSError: The file cannot be read.
    """
    if arguments.texts and arguments.file:
        raise ValueError(f"both texts and --file {arguments.file} are given; give one of them")
    if arguments.texts:
        return arguments.texts
    source = arguments.file if arguments.file and str(arguments.file) != "-" else None
    if source is None and sys.stdin.isatty():
        print("reading texts from the terminal, one per line; end with Ctrl-D", file=sys.stderr)
    data = source.read_bytes() if source else sys.stdin.buffer.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{source or 'standard input'}:{line}: not UTF-8 ({error.reason})") from error
    lines = text.split("\n")  # not splitlines, which also splits at form feeds
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def show(found: "list[Tagging]", how: str) -> str:
    """The entities in one of FORMATS."""
    from lorakit.report.entities import as_conll, as_html, as_jsonl, as_table, as_terminal

    views = {"table": as_table, "jsonl": as_jsonl, "conll": as_conll, "terminal": as_terminal, "html": as_html}
    return views[how](found)


def write(text: str, path: Path | None) -> None:
    """Print a text, or write it to a file atomically."""
    if path is None:
        sys.stdout.buffer.write(text.encode())  # UTF-8 whatever the locale
        sys.stdout.flush()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def _default_format(arguments: argparse.Namespace) -> str:
    """By the ending of --output; else colours on a terminal that wants them (https://no-color.org); else the table."""
    if arguments.output:
        return {".jsonl": "jsonl", ".html": "html", ".conll": "conll"}.get(arguments.output.suffix, "table")
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return "terminal" if coloured else "table"
