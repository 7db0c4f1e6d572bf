"""A corpus written in another format, with a line for everything that the format cannot hold."""

import json
from collections.abc import Sequence
from pathlib import Path

from lorakit._counts import counted
from lorakit._files import atomic_folder
from lorakit.data.alignment import tag_documents, with_text, with_words
from lorakit.data.corpus import check_types, divide, read_written
from lorakit.data.formats.record import Document
from lorakit.data.formats.registry import FORMATS, Format, format_named
from lorakit.data.formats.writing import call_writer, unit, write_documents
from lorakit.data.read_back import differences
from lorakit.data.schemes import iob2_labels
from lorakit.data.written import CorpusOptions, Written, lines_of

FILE_NAMES = {"train": "train", "validation": "dev", "test": "test"}


def writable_formats() -> tuple[str, ...]:
    """The names of the formats that can be written."""
    return tuple(format.name for format in FORMATS if format.write)


def convert(source: str, out: Path, name: str, options: CorpusOptions) -> list[str]:
    """Write a corpus in another format; nothing is left of it if it fails.

    Args:
        source: as for `read_ner`.
        out: what to write, which must not exist: a folder with a file (or folder) per split; or one file if the corpus
            has one split and the format is of files.
        name: the format's, one of `writable_formats`.
        options: how to read the corpus.

    Returns:
        A line for each file written, and for everything that was changed or left out.

    Raises:
        ValueError: the corpus cannot be read, the format cannot be written or not hold it, or `out` exists.
    """
    form = format_named(name)
    if form.write is None:
        raise ValueError(f"{name} is only read; formats that can be written are {', '.join(writable_formats())}")
    if out.exists():
        raise ValueError(f"{out}: exists already; give a new file or folder, or delete it first")
    corpus, divided = divide(read_written(source, options)[0][1], source, options)
    if form.takes == "tags":
        check_types(corpus)
    lines = [*corpus.notes, *divided]
    written = {}
    for split, documents in corpus.splits.items():
        written[split], notes = _as_taken(documents, form, options)
        lines += [f"{split}: {note}" for note in notes]
    if len(written) == 1 and (form.is_folder or out.suffix):
        lines += write_documents(form, next(iter(written.values())), out)
    else:
        lines += _write_folder(form, written, corpus, out)
    return lines + _read_back(out, corpus, options)


def _read_back(out: Path, corpus: Written, options: CorpusOptions) -> list[str]:
    """A line for everything that differs when the converted corpus is read back."""
    how = CorpusOptions(layer=options.layer)
    try:
        back = read_written(out, how)[0][1].splits
    except ValueError as error:
        return [f"it cannot be read back: {error}"]
    lines = []
    for split, documents in corpus.splits.items():
        before, after = (
            [tag_documents([document], options.layer)[0] for document in there]
            for there in (documents, back.get(split, []))
        )
        lines += [f"{split}: {line}" for line in differences(before, after)]
    return lines


def _as_taken(documents: Sequence[Document], form: Format, options: CorpusOptions) -> tuple[list[Document], list[str]]:
    """The documents as the format takes them, and what was changed or left out for that."""
    if form.takes == "tags":
        taken, notes = tag_documents(documents, options.layer)
        return taken, lines_of(notes)
    change = with_text if form.takes == "text" else with_words
    changed = [change(document) for document in documents]
    said = lines_of([note for document in changed for note in document.notes])
    # a document of notes only stands for a text that was left out
    taken = [document for document in changed if document.words or document.text or not document.notes]
    joined = sum(document.text is None for document in documents)
    if form.takes == "text" and joined:
        said.append(f"{counted(joined, 'sentence has', 'sentences have')} words only, which are joined by spaces")
    return taken, said


def _write_folder(form: Format, splits: dict[str, list[Document]], corpus: Written, out: Path) -> list[str]:
    lines: list[str] = []
    with atomic_folder(out) as folder:
        for split, documents in splits.items():
            name = FILE_NAMES[split] + ("" if form.is_folder else form.endings[0])
            lines += [f"{split}: {line}" for line in call_writer(form, documents, folder / name, out / name)]
            lines.append(f"{out / name}: {counted(len(documents), unit(form))}")
        if corpus.labels is not None and form.takes == "tags":  # keeps the order of the ids
            ids = {label: i for i, label in enumerate(iob2_labels(splits, corpus.labels))}
            (folder / "label.json").write_text(json.dumps(ids, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return lines
