"""`lorakit predict --documents`: whole files and folders to JSON lines, which an interrupted command continues."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lorakit._files import flush
from lorakit.data.documents import Document, read_documents, sentences

AT_ONCE = 64  # documents tagged together, and then written
Stream = Callable[[Iterable[Any], Callable[[Any], tuple[Any, Sequence[str]]]], Iterator[tuple[Any, Sequence[Any]]]]
"""Chunks, and what makes texts of one -> the words, tags and entities of its texts, as `find_in_chunks` gives them."""


def part_of(output: Path) -> Path:
    """Where the output is until it is complete."""
    return output.with_name(output.name + ".part")


def finished(output: Path, resume: bool, documents: Iterator[Document]) -> tuple[int, int]:
    """How many documents an interrupted command has written, and their entities; takes them from `documents`.

    What is left of a batch is cut off: it is tagged again as a whole, so that the scores are the same to the last bit.

    Raises:
        ValueError: there is such output and `resume` is False, or it is of other documents.
    """
    part = part_of(output)
    if not part.exists():
        return 0, 0
    if not resume:
        raise ValueError(
            f"{part} is left over from an interrupted command; continue it with --resume-output, or delete it"
        )
    with part.open("rb") as file:
        whole = sum(line.endswith(b"\n") for line in file) // AT_ONCE * AT_ONCE
        file.seek(0)
        entities, length = _skip(islice(file, whole), part, documents)
    os.truncate(part, length)
    return whole, entities


def _skip(lines: Iterable[bytes], part: Path, documents: Iterator[Document]) -> tuple[int, int]:
    """The entities and bytes of lines that are written already; takes their documents."""
    entities = length = 0
    for number, line in enumerate(lines, start=1):
        length += len(line)
        try:
            record = json.loads(line)
            name, entities = record["document"], entities + len(record["entities"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{part}:{number} is damaged; delete the file and start again") from None
        document = next(documents, None)
        if document is None or document.name != name:
            there = "there are no more documents" if document is None else f"the next document is {document.name}"
            raise ValueError(
                f"{part}:{number} is for the document {name}, but now {there}; give the same documents as before, or"
                " delete the file"
            )
    return entities, length


def predict_documents(paths: Sequence[Path], field: str, output: Path, resume: bool, stream: Stream) -> tuple[int, int]:
    """Find the entities of documents and write a line of JSON for each; returns how many documents and entities.

    Positions count characters of the document. The lines are in OUTPUT.part until all are written.

    Raises:
        ValueError: a document cannot be read, or as for `finished`.
    """
    from tqdm import tqdm

    documents = read_documents(paths, field)
    done, entities = finished(output, resume, documents)
    part = part_of(output)
    batches = iter(lambda: list(islice(documents, AT_ONCE)), [])
    first = next(batches, [])  # an error in it leaves no file
    with open(part, "ab") as file, tqdm(unit=" documents", initial=done, disable=None) as bar:
        for (batch, rows), found in stream(chain([first] if first else [], batches), _sentences):
            for document, its in zip(batch, _entities(rows, found), strict=True):
                record = {"document": document.name, "entities": its}
                file.write((json.dumps(record, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))
                entities += len(its)
            file.flush()
            os.fsync(file.fileno())
            done += len(batch)
            bar.update(len(batch))
    os.replace(part, output)
    flush(output.parent)
    return done, entities


def _sentences(documents: Sequence[Document]) -> tuple[Any, list[str]]:
    """The documents with their sentences, and the texts of all sentences."""
    rows = [sentences(document.text) for document in documents]
    return (documents, rows), [text for row in rows for _, text in row]


def _entities(rows: Sequence[Sequence[tuple[int, str]]], found: Iterable[Any]) -> Iterator[list[dict[str, Any]]]:
    """The entities of each document, with positions in its text."""
    found = iter(found)
    for row in rows:
        yield [
            {"type": e.type, "start": start + e.start, "end": start + e.end, "text": e.text, "score": e.score}
            for start, _ in row
            for e in next(found)[2]
        ]
