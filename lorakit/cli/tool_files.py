"""Texts from the files of annotation tools, and the entities found in them in files that the tools import.

A document of such a file is tagged sentence by sentence, as models are trained, and its entities are placed in the
whole text.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lorakit.data.alignment import sentence_places
from lorakit.data.formats import field_names
from lorakit.data.formats.json_records import first_record
from lorakit.data.formats.label_studio import write_label_studio
from lorakit.data.formats.record import Annotation, Document, Reading
from lorakit.data.formats.registry import Format, format_named, recognised
from lorakit.data.formats.writing import write_documents

if TYPE_CHECKING:
    from lorakit.training.prediction import Entity

TOOLS = ("brat", "doccano", "label-studio", "pubtator", "spacy")
ENDINGS = {".spacy": "spacy", ".pubtator": "pubtator"}  # those that no other format has
STRUCTURED = (".json", ".jsonl", ".csv", ".tsv", ".conll", ".xml", ".html")  # their lines are no texts
NEED_A_NAME = ("brat", "spacy")  # a folder, and a binary file


class Texts(NamedTuple):
    """The texts to tag, and the documents that they are of.

    Attributes:
        texts: sentences, or lines of a file of no tool.
        documents: the documents; a document of one line for a file of no tool.
        places: for each text, the number of its document and its first character in it.
    """

    texts: list[str]
    documents: list[Document]
    places: list[tuple[int, int]]


def form_of(how: str) -> Format:
    """The format of a tool, which for Label Studio is that of pre-annotations."""
    form = format_named(how)
    return replace(form, write=partial(write_label_studio, predicted=True)) if how == "label-studio" else form


def is_file_of(how: str, path: Path) -> bool:
    """Whether a file or folder is one of the tool; its texts need no annotations yet."""
    if how not in TOOLS:
        return False
    texts_only = how == "brat" and path.is_dir() and any(path.glob("*.txt"))
    return texts_only or format_named(how).recognise(path) is not None or _holds_texts(how, path)


def _holds_texts(how: str, path: Path) -> bool:
    """Whether a file holds JSON objects with texts, as doccano and Label Studio import them."""
    record = first_record(path) if how in ("doccano", "label-studio") and path.is_file() else None
    if not isinstance(record, dict):
        return False
    is_task = how == "label-studio" and isinstance(record.get("data"), dict)
    return is_task or any(isinstance(record.get(name), str) for name in field_names.TEXTS)


def check_lines_of_text(path: Path) -> None:
    """Refuse a file of a format, of JSON objects, or with an ending of either, whose lines are no texts.

    Raises:
        ValueError: with the way to read it.
    """
    if path.is_file() and (found := recognised(path)):
        name = found[0].name
        fix = f"lorakit data convert {path} NEW.jsonl --format doccano, and give --file NEW.jsonl --format doccano"
        raise ValueError(
            f"--file {path} is not one text per line, but {name} ({found[1]}): "
            + (f"say --format {name}" if name in TOOLS else f"write its texts with {fix}")
        )
    if path.is_file() and isinstance(first_record(path), dict):
        raise ValueError(
            f"--file {path} is not one text per line, but JSON: give JSON lines with a text as --documents {path}"
            " (--text-field names the text), or texts of doccano or Label Studio with --format doccano or --format"
            " label-studio"
        )
    if path.suffix.lower() in STRUCTURED:
        other = f"--documents {path} reads its texts, " if path.suffix.lower() == ".jsonl" else ""
        raise ValueError(
            f"--file reads one text per line, and {path} is likely to hold more than texts; {other}a .txt file is"
            f" read as it is, and so are these lines with --file - < {path}"
        )


def sentences_of(how: str, path: Path) -> Texts:
    """The sentences of a tool's file, annotated or not.

    Raises:
        ValueError: the file cannot be read.
    """
    documents = [d for d in format_named(how).read(path, Reading(unannotated=True)) if d.text is not None]
    texts, places = [], []
    for number, document in enumerate(documents):
        for start, end in sentence_places(document):
            texts.append((document.text or "")[start:end])
            places.append((number, start))
    return Texts(texts, documents, places)


def lines_as_documents(lines: list[str]) -> Texts:
    """Texts of no tool, each as a document."""
    documents = [Document((), None, f"text {number}", line) for number, line in enumerate(lines, start=1)]
    return Texts(lines, documents, [(number, 0) for number in range(len(lines))])


def with_entities(texts: Texts, found: Sequence[Sequence["Entity"]]) -> list[Document]:
    """The documents with the entities of their texts instead of the annotations that they had."""
    spans: list[list[Annotation]] = [[] for _ in texts.documents]
    for (number, start), entities in zip(texts.places, found, strict=True):
        spans[number] += [Annotation(e.type, e.start + start, e.end + start, score=e.score) for e in entities]
    return [
        document._replace(spans=tuple(there), notes=()) for document, there in zip(texts.documents, spans, strict=True)
    ]


def check_output(how: str, output: Path | None) -> None:
    """Refuse an output that the format of a tool cannot be written to.

    Raises:
        ValueError: there is no output for a format that is not text, or the folder exists.
    """
    if output is None and how in NEED_A_NAME:
        what = "a new folder" if how == "brat" else "a file, such as found.spacy"
        raise ValueError(f"--format {how} cannot be printed; give --output, {what}")
    if output and output.exists() and format_named(how).is_folder:
        raise ValueError(f"--output {output} exists already; --format {how} writes a new folder: give another name")


def write_tool(how: str, documents: list[Document], output: Path | None) -> tuple[str, list[str]]:
    """Write documents in a tool's format, or return the text to print if there is no output; and what was lost.

    Raises:
        ValueError: the format cannot hold them.
    """
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        return "", write_documents(form_of(how), documents, output)[:-1]
    with tempfile.TemporaryDirectory() as folder:
        lines = write_documents(form_of(how), documents, Path(folder) / "printed")[:-1]
        return (Path(folder) / "printed").read_text(encoding="utf-8"), lines
