"""`lorakit data`: show what a corpus holds and how it was read; write it in another format."""

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lorakit._counts import counted
from lorakit.cli.corpora import add_reading_flags, add_split_flags, corpus_options
from lorakit.cli.flags import check_writable
from lorakit.cli.parser import Parser, add_command, file_or_folder, folder_or_id, input_errors
from lorakit.cli.wording import in_flags
from lorakit.data.conversion import convert, writable_formats
from lorakit.data.corpus import as_sentences, read_written
from lorakit.data.formats.registry import FORMATS, format_named
from lorakit.data.ner_data import NerData, Sentence
from lorakit.data.partition import SPLITS
from lorakit.data.tags import spans
from lorakit.data.written import Written
from lorakit.report.terminal import COLOURS, marked, shows_colours, visible

MOST_WORDS = 60  # of a sentence that is shown
EXAMPLES = """
lorakit data show path/to/corpus
lorakit data convert path/to/corpus out --format brat
lorakit data formats
"""
SHOW_EXAMPLES = """
lorakit data show path/to/corpus
lorakit data show corpus.tsv --columns word=2,tag=4 --scheme bioes
lorakit data show export.jsonl --split 80/10/10          as train --split divides it
lorakit data show path/to/corpus --model roberta-base    also: which sentences are longer than its window
"""
CONVERT_EXAMPLES = """
lorakit data convert path/to/brat corpus --format conll
lorakit data convert corpus.jsonl corpus.json --format label-studio
lorakit data convert export.jsonl out --format conll --split 80/10/10
lorakit data convert path/to/corpus out --format tokens-jsonl --label-map types.tsv
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `data` to the commands."""
    about = "show what a corpus holds and how it was read, or write it in another format"
    parser = add_command(commands, "data", about, EXAMPLES, run_formats)
    inner = parser.add_subparsers(
        dest="data_command", required=True, metavar="show|convert|formats", parser_class=Parser
    )
    about = "what was recognised and why, counts, notes, the first sentences"
    show = add_command(inner, "show", about, SHOW_EXAMPLES, run_show)
    add = show.add_argument
    add("corpus", type=folder_or_id, metavar="CORPUS", help="a folder, a file or a hub id")
    add("--first", type=int, default=3, metavar="N", help="how many sentences to show (default: %(default)s)")
    add(
        "--model",
        type=folder_or_id,
        metavar="FOLDER_OR_ID",
        help="compare the sentences' lengths with this model's window",
    )
    add_reading_flags(show)
    add_split_flags(show)
    change = add_command(inner, "convert", "write a corpus in another format", CONVERT_EXAMPLES, run_convert)
    add = change.add_argument
    add("corpus", type=folder_or_id, metavar="IN", help="a folder, a file or a hub id")
    add("out", type=file_or_folder, metavar="OUT", help="a new folder, or a new file for a corpus of one split")
    add("--format", required=True, choices=writable_formats(), help="what to write; data formats describes them")
    add_reading_flags(change)
    add_split_flags(change)
    examples = "lorakit data formats\nlorakit data formats conll brat"
    formats = add_command(inner, "formats", "the formats that are read and written", examples, run_formats)
    formats.add_argument("names", nargs="*", metavar="NAME", help="only these formats")


def run_show(arguments: argparse.Namespace) -> int:
    """Print what a corpus holds; returns the exit status."""
    with input_errors(arguments.parser):
        if arguments.first < 0:
            raise ValueError(f"--first is {arguments.first}; it must be at least 0")
        options = corpus_options(arguments)
        [(name, written)] = read_written(arguments.corpus, options)
        data = as_sentences(written, name, options)
        data = replace(data, notes=tuple(in_flags(note, arguments.parser) for note in data.notes))
        window = window_lines(arguments.model, data) if arguments.model else []
    print("\n".join(describe(written, data, arguments.first, shows_colours(), window)))
    return 0


def run_convert(arguments: argparse.Namespace) -> int:
    """Write a corpus in another format; returns the exit status."""
    with input_errors(arguments.parser):
        check_writable(arguments.out.parent, "OUT")
        lines = convert(arguments.corpus, arguments.out, arguments.format, corpus_options(arguments))
    print("\n".join(visible(in_flags(line, arguments.parser)) for line in lines))
    return 0


def run_formats(arguments: argparse.Namespace) -> int:
    """List the formats; returns the exit status."""
    with input_errors(arguments.parser):
        chosen = [format_named(name) for name in arguments.names] or list(FORMATS)
    for form in chosen:
        how = "read, written" if form.write else "read only"
        print(f"{form.name:13} {how:14} {form.about}\n{'':28} {form.specification}")
    return 0


# What `show` prints --------------------------------------------------------------------------------------------------


def describe(written: Written, data: NerData, first: int, colours: bool, window: Sequence[str] = ()) -> list[str]:
    """The lines that `lorakit data show` prints.

    Args:
        written: The corpus as its files have it.
        data: The same as sentences.
        first: How many sentences to show.
        colours: Whether to mark entities by colours.
        window: Lines about a model's window.
    """
    lines = ["files"]
    lines += [
        f"  {file.split:10} {visible(file.path)}: {file.format}, {visible(file.evidence)}" for file in written.files
    ]
    if written.unused:
        lines.append(f"  not used   {visible(', '.join(written.unused[:20]))}{' …' if written.unused[20:] else ''}")
    there = [split for split in SPLITS if getattr(data, split)]
    parts = {split: getattr(data, split) for split in there}
    types = {split: Counter(s.type for sentence in part for s in spans(sentence.tags)) for split, part in parts.items()}
    rows = [
        ("sentences", [len(part) for part in parts.values()]),
        ("words", [sum(len(sentence.words) for sentence in part) for part in parts.values()]),
        ("entities", [found.total() for found in types.values()]),
    ]
    rows += [(f"  {kind}", [found[kind] for found in types.values()]) for kind in sorted(set().union(*types.values()))]
    lines += ["", *table(["", *there], rows), "", *account(written, data), *lengths(parts), *window, *duplicates(parts)]
    lines += ["", "notes", *(f"  {visible(note)}" for note in data.notes)] if data.notes else []
    shown = _worth_showing(data, first)
    if shown:
        kinds = sorted(set().union(*types.values()))
        colour = {kind: COLOURS[i % len(COLOURS)] for i, kind in enumerate(kinds)} if colours else None
        lines += ["", "first sentences", *(f"  {marked(pieces(sentence), colour)}" for sentence in shown)]
    return lines


def table(header: Sequence[str], rows: Iterable[tuple[str, Sequence[int]]]) -> list[str]:
    """Lines of a name and numbers, aligned."""
    cells = [list(header)] + [[visible(name), *(f"{number:,}" for number in numbers)] for name, numbers in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]


def account(written: Written, data: NerData) -> list[str]:
    """How many annotations the files hold and how many became entities."""
    found = sum(
        len(document.spans) if document.tags is None else len(spans(document.tags))
        for documents in written.splits.values()
        for document in documents
    )
    kept = sum(len(spans(sentence.tags)) for split in SPLITS for sentence in getattr(data, split))
    rest = f", {found - kept:,} left out (see the notes)" if found != kept else ""
    return [f"annotations: {found:,} read, {kept:,} kept{rest}"]


def lengths(parts: dict[str, Sequence[Sentence]]) -> list[str]:
    """The mean and the greatest length of the sentences."""
    counts = sorted(len(sentence.words) for part in parts.values() for sentence in part)
    if not counts:
        return []
    return [f"words per sentence: {sum(counts) / len(counts):.1f} on average, {counts[-1]:,} at most"]


def duplicates(parts: dict[str, Sequence[Sentence]]) -> list[str]:
    """How many sentences of the other splits are in train, and what that means."""
    train = {sentence.words for sentence in parts.get("train", ())}
    lines = []
    for split in ("validation", "test"):
        count = sum(sentence.words in train for sentence in parts.get(split, ()))
        if count:
            found = counted(count, f"sentence of {split} is", f"sentences of {split} are")
            lines.append(f"duplicates: {found} in train too, which raises its scores")
    return lines


def window_lines(model: str, data: NerData) -> list[str]:
    """How many sentences are longer than a model can read at once."""
    from transformers import AutoConfig, AutoTokenizer

    from lorakit.training.models import checked_source
    from lorakit.training.quiet import quiet_transformers
    from lorakit.training.untrusted import NO_REMOTE_CODE, explained

    name = checked_source(model)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(name, **NO_REMOTE_CODE)
            config = AutoConfig.from_pretrained(name, **NO_REMOTE_CODE)
    except Exception as error:  # loaders raise many kinds for a broken folder or a missing network
        raise ValueError(f"--model {model} cannot be loaded: {explained(error)[:300]}") from error
    positions = getattr(config, "max_position_embeddings", None)
    window = min(tokenizer.model_max_length, positions or tokenizer.model_max_length)
    texts = [" ".join(sentence.words) for split in SPLITS for sentence in getattr(data, split)]
    counts = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    above = sum(count > window for count in counts)
    longer = counted(above, "sentence is longer, and is", "sentences are longer, and are")
    said = f"{longer} read in overlapping windows" if above else "every sentence fits"
    return [f"window of {model}: {counted(window, 'token')}; the longest sentence has {max(counts):,}: {said}"]


def pieces(sentence: Sentence) -> list[tuple[str, str]]:
    """The sentence as (text, type) pieces; "" is the type outside of entities."""
    found, reached = [], 0
    for kind, start, end in spans(sentence.tags):
        if reached < start:
            found.append((" ".join(sentence.words[reached:start]), ""))
        found.append((" ".join(sentence.words[start:end]), kind))
        reached = end
    rest = sentence.words[reached : max(reached, MOST_WORDS)]
    if rest:
        found.append((" ".join(rest), ""))
    return found + ([("…", "")] if len(sentence.words) > max(reached, MOST_WORDS) else [])


def _worth_showing(data: NerData, count: int) -> list[Sentence]:
    """The first sentences with an entity, or the first of all where none has one."""
    sentences = [sentence for split in SPLITS for sentence in getattr(data, split)]
    with_entities = [sentence for sentence in sentences if any(tag != "O" for tag in sentence.tags)]
    return (with_entities or sentences)[:count]
