"""mkdocs hooks: add the benchmarks' results to the site, and every command's help to the command line page."""

import argparse
import os
import re
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


def on_files(files: Any, config: Any) -> Any:
    """Publish benchmarks/results as the site's results/."""
    from mkdocs.structure.files import File, InclusionLevel

    for path in sorted(RESULTS.iterdir()):
        added = File.generated(config, f"results/{path.name}", abs_src_path=str(path))
        added.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(added)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Insert the help of every command into the command line page."""
    if page.file.src_uri == "cli.md":
        return with_help(markdown)
    return markdown


def with_help(markdown: str) -> str:
    """Replace `<!-- help: lorakit energy run -->` with what `lorakit energy run --help` prints, 100 columns wide."""

    def help_of(found: re.Match[str]) -> str:
        return f"```\n{command(found[1].split()[1:]).format_help().rstrip()}\n```"

    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"  # argparse has no other way to set the width
    try:
        return re.sub(r"^<!-- help: (lorakit[\w -]*) -->$", help_of, markdown, flags=re.MULTILINE)
    finally:
        os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)


def command(path: list[str]) -> argparse.ArgumentParser:
    """The parser of a subcommand, given its path of names; [] is `lorakit` itself."""
    found = root_parser()
    for name in path:
        found = subcommands(found)[name]
    return found


def command_paths() -> list[list[str]]:
    """The paths of all commands, each before its subcommands, in the order of the help."""
    paths: list[list[str]] = []

    def walk(parser: argparse.ArgumentParser, path: list[str]) -> None:
        paths.append(path)
        for name, child in subcommands(parser).items():
            walk(child, [*path, name])

    walk(root_parser(), [])
    return paths


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(actions[0].choices) if actions else {}


def root_parser() -> argparse.ArgumentParser:
    """The parser of `lorakit`, with all commands."""
    from lorakit.cli.__main__ import build_parser

    return build_parser()
