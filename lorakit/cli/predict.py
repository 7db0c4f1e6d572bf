"""`lorakit predict`: the entities of texts from the command line, a file or standard input."""

import argparse
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lorakit._counts import counted
from lorakit._files import atomic_write, check_not_read
from lorakit.cli.config import add_config_flag
from lorakit.cli.flags import (
    add_decode_flag,
    add_device_flag,
    add_packing_flag,
    add_precision_flag,
    add_saved_flags,
    check_writable,
    tag_names,
)
from lorakit.cli.notes import Notes
from lorakit.cli.parser import add_command, comma_hint, file_or_folder, folder_or_id, input_errors, processes
from lorakit.cli.stopping import advice_if_stopped
from lorakit.cli.tool_files import ENDINGS as TOOL_ENDINGS
from lorakit.cli.tool_files import (
    TOOLS,
    check_lines_of_text,
    check_output,
    is_file_of,
    lines_as_documents,
    sentences_of,
    with_entities,
    write_tool,
)
from lorakit.data.formats.json_text import is_object
from lorakit.data.formats.text import decoded_lines
from lorakit.data.tags import types_of_labels
from lorakit.report.terminal import shows_colours

if TYPE_CHECKING:
    from lorakit.report.entities import Tagging

STREAMED = ("jsonl", "csv", "conll")  # written as they are found; the others need all texts first
VIEWS = ("table", "jsonl", "csv", "conll", "terminal", "html")  # `as_table`, … in report/entities.py
ENDINGS = {".txt": "table", ".jsonl": "jsonl", ".csv": "csv", ".conll": "conll", ".html": "html", **TOOL_ENDINGS}
EXAMPLES = """
lorakit predict --adapter runs/mine/adapter "IL-2 gene expression requires NF-kappa B."
lorakit predict --adapter runs/mine/adapter --file sentences.txt --output entities.jsonl
cat sentences.txt | lorakit predict --model runs/mine/model --format conll
lorakit predict --adapter runs/mine/adapter --documents articles/ --output entities.jsonl
lorakit predict --adapter runs/mine/adapter --file path/to/brat --format brat --output found
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `predict` to the commands."""
    parser = add_command(commands, "predict", "find the named entities in texts", EXAMPLES, run)
    add_config_flag(parser)
    add_saved_flags(parser)
    add = parser.add_argument
    add("texts", nargs="*", metavar="TEXT", help="best one sentence each; without any: --file, or standard input")
    about = "one text per line, UTF-8; - is standard input; with the --format of a tool, also a file or folder of it"
    add("--file", type=file_or_folder, help=about)
    about = f"{', '.join(TOOLS)}: files that these tools import; default: by the ending of --output "
    about += f"({', '.join(ENDINGS)}); without --output, terminal where colours show (NO_COLOR turns them off), else "
    about += "table"
    add("--format", choices=(*VIEWS, *TOOLS), help=about)
    add("--output", type=file_or_folder, metavar="FILE", help="write to FILE (brat: a new folder) instead of printing")
    about = "tag whole text files, folders of them, or .jsonl with a text field, sentence by sentence; --output gets a "
    about += "line of JSON per document, with positions in its text"
    add("--documents", nargs="+", type=file_or_folder, metavar="PATH", help=about)
    add("--text-field", default="text", metavar="NAME", help="with --documents: of .jsonl (default: %(default)s)")
    about = "with --documents: continue the output of an interrupted command"
    add("--resume-output", action="store_true", help=about)
    about = "also find what these adapters find, each trained for other types, on one base in memory: an entity that "
    about += "overlaps one of --adapter or of an adapter named earlier is left out, so nothing found before changes"
    add("--more-adapters", nargs="+", type=folder_or_id, metavar="FOLDER_OR_ID", help=about)
    about = "leave out entities with a lower score: X for all types, TYPE=X for one"
    add("--min-score", nargs="+", metavar="TYPE=X", help=about)
    about = "leave out entities so that those of a type are right with this probability; needs lorakit calibrate"
    add("--min-precision", nargs="+", metavar="TYPE=X", help=about)
    add_precision_flag(parser)
    add_device_flag(parser)
    add_packing_flag(parser)
    add_decode_flag(parser)


def run(arguments: argparse.Namespace) -> int:
    """Find the entities and show them; returns the exit status."""
    with input_errors(arguments.parser):  # before torch is loaded
        for flag in ("min_score", "min_precision"):
            numbers_by_type(getattr(arguments, flag), f"--{flag.replace('_', '-')}")

    from lorakit.training.distributed import is_main

    if arguments.documents:
        return run_documents(arguments)
    with processes(arguments):
        with input_errors(arguments.parser):
            for flag in ("text_field", "resume_output"):
                if flag in arguments.given:
                    raise ValueError(f"--{flag.replace('_', '-')} is only for --documents; leave it out")
            if arguments.output:
                check_writable(arguments.output.parent, "--output")
                if arguments.output.is_dir() and arguments.format != "brat":
                    raise ValueError(f"--output {arguments.output} is a folder; give a file")
                check_not_read(arguments.output, [arguments.file] if arguments.file else [], "--output")
            how = arguments.format or default_format(arguments.output)
            if how in TOOLS:
                check_output(how, arguments.output)
            of_tool = arguments.file and not arguments.texts and is_file_of(how, arguments.file)
            if arguments.file and not arguments.texts and not of_tool:
                check_lines_of_text(arguments.file)
            source = sentences_of(how, arguments.file) if of_tool else None
            texts = source.texts if source else read_texts(arguments)
            if how in TOOLS and source is None:
                source = lines_as_documents(texts := list(texts))
            find = finder(arguments, *load(arguments))
        seen = Counter()
        parts = found_in(arguments, find, texts, seen)
        if how in STREAMED:
            pieces = (show(part, how, "", first) for part, first in parts)
            write_pieces(pieces, arguments.output) if is_main() else deque(pieces, maxlen=0)
        else:
            found = [tagging for part, _ in parts for tagging in part]
            if is_main() and how in TOOLS:
                with input_errors(arguments.parser):
                    documents = with_entities(source, [tagging.entities for tagging in found])
                    printed, lines = write_tool(how, documents, arguments.output)
                write_pieces([printed], None)
                print("".join(f"{arguments.parser.prog}: {line}\n" for line in lines), end="", file=sys.stderr)
            elif is_main():
                write_pieces([show(found, how, arguments.adapter or arguments.model)], arguments.output)
        if is_main() and not seen["entities"]:
            print(f"{arguments.parser.prog}: no entity in {counted(seen['texts'], 'text')}", file=sys.stderr)
    return 0


def found_in(
    arguments: argparse.Namespace, find: "Finder | Finders", texts: Iterable[str], seen: "Counter[str]"
) -> "Iterator[tuple[list[Tagging], int]]":
    """What is found in the texts, part by part, with the number of the part's first text; `seen` counts both."""
    from lorakit.report.entities import Tagging
    from lorakit.training.prediction import are_many, in_chunks

    with input_errors(arguments.parser):
        chunks = in_chunks(texts, len)
        head = list(islice(chunks, 1))
        with find.opened(ready=any(map(are_many, head))):
            for part, results in find.stream(chain(head, chunks)):
                found = [Tagging(text, *result) for text, result in zip(part, results, strict=True)]
                first = seen["texts"] + 1
                seen.update(texts=len(found), entities=sum(len(tagging.entities) for tagging in found))
                yield found, first
        if not seen["texts"]:
            yield [], 1  # a header may be due


def run_documents(arguments: argparse.Namespace) -> int:
    """Find the entities of whole documents; returns the exit status."""
    from lorakit.cli.documents import predict_documents, what_stays
    from lorakit.training.distributed import world_size

    with advice_if_stopped(lambda: what_stays(arguments.output)), processes(arguments), input_errors(arguments.parser):
        if arguments.texts or arguments.file or arguments.format not in (None, "jsonl"):
            raise ValueError("--documents writes JSON lines of its own texts; leave out TEXT, --file and --format")
        if world_size() > 1:
            raise ValueError(
                "--documents runs in one process; leave torchrun out, and give each machine different files"
            )
        if arguments.output is None or arguments.output.is_dir():
            raise ValueError("--documents needs a file to write: --output FILE.jsonl")
        if arguments.output.suffix.lower() != ".jsonl":
            better = arguments.output.with_suffix(".jsonl")
            raise ValueError(f"--documents writes JSON lines, not {arguments.output}; give --output {better}")
        for path in arguments.documents:
            if not path.exists():
                raise ValueError(f"--documents {path} does not exist; give files or folders")
        check_writable(arguments.output.parent, "--output")
        check_not_read(arguments.output, arguments.documents, "--output")
        # always: an interrupted command continues with another chunk, and has to give the same bits
        with finder(arguments, *load(arguments)).opened(ready=True) as find:
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            documents, entities = predict_documents(
                arguments.documents,
                arguments.text_field,
                arguments.output,
                arguments.resume_output,
                find.stream,
            )
    found = f"{counted(entities, 'entity', 'entities')} in {counted(documents, 'document')}"
    print(f"{arguments.output}: {found}", file=sys.stderr)
    return 0


def load(arguments: argparse.Namespace, before_moving: Callable[[Any], object] = lambda model: None) -> tuple[Any, Any]:
    """The model and tokenizer of the command line, on this process's device.

    Args:
        arguments: the flags.
        before_moving: is called with the model while it is still on the CPU.
    """
    from lorakit.training.distributed import device
    from lorakit.training.models import load_tagger

    labels, check_base = tag_names(arguments.labels), not arguments.no_check_base
    model, tokenizer = load_tagger(arguments.adapter, arguments.model, labels, check_base)
    before_moving(model)
    return model.to(device()), tokenizer


class Finder:
    """A `Predictor` with the flags of a command line, the temperature beside the weights, and the scores to keep.

    Args:
        arguments: the flags; `adapter` or `model` says where the weights are.
        model: loaded from there.
        tokenizer: the model's.
        scores: the least score of each of the model's types that has one.
        precisions: the promised precision of each of the model's types that has one.

    Raises:
        ValueError: the validation set cannot promise a precision.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        model: Any,
        tokenizer: Any,
        scores: Mapping[str, float],
        precisions: Mapping[str, float],
    ) -> None:
        from lorakit.data.decoding import decoder_of
        from lorakit.training.calibration_file import folder_of, load_calibration

        self.model, self.tokenizer = model, tokenizer
        decoder = decoder_of(model, arguments.decode)
        folder = folder_of(arguments.adapter, arguments.model)
        calibration = load_calibration(folder)
        self.options = {
            "precision": arguments.precision,
            "packing": arguments.packing,
            "decode": decoder,
            "temperature": calibration.temperature if calibration else 1.0,
        }
        self.least = dict(scores)
        if precisions and calibration is None:
            where = f"--{'adapter' if arguments.adapter else 'model'} {folder}"
            raise ValueError(f"--min-precision needs {folder}/calibration.json: run lorakit calibrate {where} first")
        if precisions and calibration.decode != decoder:
            raise ValueError(
                f"--min-precision: {folder}/calibration.json is for --decode {calibration.decode}, not"
                f" {decoder}; predict with --decode {calibration.decode}, or run lorakit calibrate again with"
                f" --decode {decoder}"
            )
        if calibration and calibration.decode != decoder:
            Notes(arguments.parser)(
                f"the scores were calibrated for --decode {calibration.decode}, not {decoder}; lorakit"
                f" calibrate --decode {decoder} fits them again",
            )
        for kind, precision in precisions.items():
            self.least[kind] = max(self.least.get(kind, 0.0), calibration.threshold(kind, precision))

    @contextmanager
    def opened(self, ready: bool) -> "Iterator[Finder]":
        """While active, it can find; `ready` merges weights and casts them once."""
        from lorakit.training.prediction import Predictor

        with Predictor(self.model, self.tokenizer, **self.options, ready=ready) as self.predictor:
            yield self

    def stream(
        self,
        chunks: Iterable[Any],
        texts_of: Callable[[Any], tuple[Any, Sequence[str]]] = lambda chunk: (chunk, chunk),
    ) -> Iterator[tuple[Any, list[Any]]]:
        """The words, tags and entities of the texts of each chunk; see `find_in_chunks`."""
        from lorakit.training.calibration_file import keep_above
        from lorakit.training.prediction import find_in_chunks

        for kept, found in find_in_chunks(self.predictor, chunks, texts_of):
            if self.least:
                found = [(words, tags, keep_above(entities, self.least)) for words, tags, entities in found]
            yield kept, found


class Finders:
    """Several taggers on one base, whose entities are merged; the base's weights are shared, so none is merged or cast.

    Args:
        finders: an earlier one's entities count before a later one's.
    """

    def __init__(self, finders: Sequence[Finder]) -> None:
        self.finders = finders

    @contextmanager
    def opened(self, ready: bool) -> "Iterator[Finders]":
        """While active, they can find; nothing is made ready."""
        with ExitStack() as opened:
            for each in self.finders:
                opened.enter_context(each.opened(ready=False))
            yield self

    def stream(
        self,
        chunks: Iterable[Any],
        texts_of: Callable[[Any], tuple[Any, Sequence[str]]] = lambda chunk: (chunk, chunk),
    ) -> Iterator[tuple[Any, list[Any]]]:
        """The words and tags of the first tagger, and the entities of all; see `Finder.stream`."""
        from lorakit.training.prediction import merge_entities

        for chunk in chunks:
            kept, texts = texts_of(chunk)
            answers = [[row for _, found in each.stream([texts]) for row in found] for each in self.finders]
            yield (
                kept,
                [
                    (rows[0][0], rows[0][1], merge_entities([entities for _, _, entities in rows]))
                    for rows in zip(*answers, strict=True)
                ],
            )


def finder(arguments: argparse.Namespace, model: Any, tokenizer: Any) -> Finder | Finders:
    """The `Finder` of a command line, or with --more-adapters several on one base, whose entities are merged.

    Raises:
        ValueError: an adapter cannot be loaded, or a flag needs a single one or names no type of any.
    """
    from lorakit.training.evaluation import label_names
    from lorakit.training.shared_base import share_base

    if arguments.more_adapters and arguments.adapter is None:
        raise ValueError("--more-adapters go with --adapter, whose base they share; give one")
    if arguments.more_adapters and arguments.format == "conll":
        raise ValueError("--more-adapters find entities, not tags of one model: give another --format than conll")
    loaded = [(arguments, model, tokenizer)]
    for adapter in arguments.more_adapters or ():
        flags = argparse.Namespace(**{**vars(arguments), "adapter": adapter, "labels": None})
        shared: list[int] = []
        other, its_tokenizer = load(flags, lambda new, shared=shared: shared.append(share_base(model, new)))
        if 2 * shared[0] < sum(tensor.nbytes for tensor in other.parameters()):
            Notes(arguments.parser)(
                f"{adapter} is on another base than {arguments.adapter}, so memory holds both bases"
            )
        loaded.append((flags, other, its_tokenizer))
    kinds = [set(types_of_labels(label_names(tagger))) for _, tagger, _ in loaded]
    scores = by_type(arguments.min_score, "--min-score", set().union(*kinds))
    precisions = by_type(arguments.min_precision, "--min-precision", set().union(*kinds))
    finders = [
        Finder(*each, *({kind: x for kind, x in given.items() if kind in own} for given in (scores, precisions)))
        for each, own in zip(loaded, kinds, strict=True)
    ]
    return finders[0] if len(finders) == 1 else Finders(finders)


def by_type(given: Sequence[str] | None, flag: str, kinds: set[str]) -> dict[str, float]:
    """The numbers of TYPE=X …, where X alone is for all types.

    Raises:
        ValueError: an X is no number from 0 to 1, or the model has no such type.
    """
    found: dict[str, float] = {}
    for kind, value in numbers_by_type(given, flag):
        if kind is not None and kind not in kinds:
            raise ValueError(
                f"{flag} {kind}={value:g}: the model has no type {kind!r}; it has {', '.join(sorted(kinds))}"
            )
        found |= {name: value for name in sorted(kinds) if name not in found} if kind is None else {kind: value}
    return found


def numbers_by_type(given: Sequence[str] | None, flag: str) -> list[tuple[str | None, float]]:
    """The (TYPE, X) pairs of TYPE=X …; an X alone has no type.

    Raises:
        ValueError: an X is no number from 0 to 1.
    """
    found = []
    for text in given or ():
        kind, equals, number = str(text).rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1:
            raise ValueError(
                f"{flag} {text}: give X or TYPE=X with X from 0 to 1, such as 0.8 or DNA=0.8; texts come first"
                f"{comma_hint(number, float)}"
            )
        found.append((kind if equals else None, value))
    return found


def read_texts(arguments: argparse.Namespace) -> Iterable[str]:
    """The texts: the arguments, or the lines of a file or of standard input, read as they are needed.

    A file is read through once before, so that one that is not UTF-8 is refused before anything is written.

    Raises:
        ValueError: Both arguments and a file are given, the file cannot be read, or the text is not UTF-8.
    """
    if arguments.texts and arguments.file:
        raise ValueError(f"both texts and --file {arguments.file} are given; give one of them")
    if arguments.texts:
        for text in filter(os.path.isfile, arguments.texts):
            about = (
                f"{arguments.parser.prog}: note: {text} is tagged as a text; --file {text} tags the lines of that file"
            )
            print(about, file=sys.stderr)
        return arguments.texts
    source = arguments.file if arguments.file and str(arguments.file) != "-" else None
    if source is None:
        if sys.stdin.isatty():
            print("reading texts from the terminal, one per line; end with Ctrl-D", file=sys.stderr)
        return doubting_json(decoded_lines(sys.stdin.buffer, "standard input"), arguments.parser)
    try:
        if source.is_file():  # not a pipe, which can be read only once
            deque(lines_of(source.open("rb"), source), maxlen=0)
        return lines_of(source.open("rb"), source)
    except OSError as error:
        raise ValueError(
            f"--file {source} cannot be read: {error.strerror}; give a UTF-8 file, or - for stdin"
        ) from error


def doubting_json(lines: Iterator[str], parser: argparse.ArgumentParser) -> Iterator[str]:
    """The lines, with a note before the first one if that is a JSON object: more likely a record than a text."""
    for line in islice(lines, 1):
        if is_object(line):
            Notes(parser)(
                "line 1 of standard input is a JSON object, tagged as a text; --documents FILE.jsonl finds the text in"
                " each object of a file"
            )
        yield line
    yield from lines


def lines_of(file: BinaryIO, source: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, which is closed after the last."""
    with file:
        yield from decoded_lines(file, source)


def show(found: "list[Tagging]", how: str, model: str, first: int = 1) -> str:
    """The entities in one of VIEWS.

    Args:
        found: the texts and their entities.
        how: the view.
        model: its name for the HTML page.
        first: the number of the first text.
    """
    from lorakit.report.entities import as_conll, as_csv, as_html, as_jsonl, as_table, as_terminal

    if how == "html":
        return as_html(found, model)
    if how == "csv":
        return as_csv(found, first)
    views = {"table": as_table, "jsonl": as_jsonl, "conll": as_conll, "terminal": as_terminal}
    return views[how](found)


def write_pieces(pieces: Iterable[str], path: Path | None) -> None:
    """Print the pieces of a text as they come, or write them to a file that appears when it is complete."""
    if path is None:
        for piece in pieces:
            sys.stdout.buffer.write(piece.encode())  # UTF-8 whatever the locale
            sys.stdout.flush()
        return

    pieces = iter(pieces)
    head = list(islice(pieces, 1))  # an error in it leaves no folder

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            for piece in chain(head, pieces):
                file.write(piece.encode(errors="backslashreplace"))

    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, fill)


def default_format(output: Path | None) -> str:
    """By the ending of --output; else colours on a terminal that wants them (https://no-color.org); else the table.

    Raises:
        ValueError: The ending names no format.
    """
    if output:
        if output.suffix.lower() not in ENDINGS:
            ending = f"ending {output.suffix!r}" if output.suffix else "no ending"
            known = ", ".join(ENDINGS)
            raise ValueError(
                f"--output {output} has {ending}, from which no format follows; use {known}, or give --format"
            )
        return ENDINGS[output.suffix.lower()]
    return "terminal" if shows_colours() else "table"
