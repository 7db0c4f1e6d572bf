"""`lorakit predict --documents`: whole files and folders to JSON lines, which an interrupted command continues."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from lorakit._files import flush
from lorakit.data.documents import Document, read_documents, sentences

AT_ONCE = 64  # documents tagged together, and then written
SAME_SCORE = 1e-3  # rounding, also in bf16, is below it; another temperature is not
Stream = Callable[[Iterable[Any], Callable[[Any], tuple[Any, Sequence[str]]]], Iterator[tuple[Any, Sequence[Any]]]]
"""Chunks, and what makes texts of one -> the words, tags and entities of its texts, as `find_in_chunks` gives them."""


def part_of(output: Path) -> Path:
    """Where the output is until it is complete."""
    return output.with_name(output.name + ".part")


def what_stays(output: Path | None) -> str:
    """What a stopped command has left, and how to go on."""
    if output is None or not part_of(output).exists():
        return "nothing was written: run the same again"
    return f"what was found is in {part_of(output)}: run the same again with --resume-output to continue"


class Finished(NamedTuple):
    """What an interrupted command has written, in whole batches.

    Attributes:
        documents: whose lines need no more work.
        entities: in them.
        last: the lines of the last batch. It is tagged again, to see that the command is the same.
        its_documents: the documents of `last`.
    """

    documents: int
    entities: int
    last: list[dict[str, Any]]
    its_documents: list[Document]


def finished(output: Path, resume: bool, documents: Iterator[Document]) -> Finished:
    """What an interrupted command has written; takes its documents from `documents`.

    What is left of a batch is cut off: it is tagged again as a whole, so that the scores are the same to the last bit.

    Raises:
        ValueError: there is such output and `resume` is False, or it is of other documents.
    """
    part = part_of(output)
    if not part.exists():
        return Finished(0, 0, [], [])
    if not resume:
        raise ValueError(
            f"{part} is left over from an interrupted command; continue it with --resume-output, or delete it"
        )
    with part.open("rb") as file:
        whole = sum(line.endswith(b"\n") for line in file) // AT_ONCE * AT_ONCE
        file.seek(0)
        before = max(whole - AT_ONCE, 0)
        entities = sum(len(record["entities"]) for record, _ in _matched(islice(file, before), part, 1, documents))
        last = list(_matched(islice(file, whole - before), part, before + 1, documents))
        length = file.tell()
    os.truncate(part, length)
    return Finished(before, entities, [record for record, _ in last], [document for _, document in last])


def _matched(
    lines: Iterable[bytes], part: Path, first: int, documents: Iterator[Document]
) -> Iterator[tuple[dict[str, Any], Document]]:
    """The lines that are written already, from line `first` on, each with its document."""
    for number, line in enumerate(lines, start=first):
        try:
            record = json.loads(line)
            name = record["document"]
            pieces = [(e["start"], e["end"], e["text"], e["type"], e["score"]) for e in record["entities"]]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{part}:{number} is damaged; delete the file and start again") from None
        document = next(documents, None)
        if document is None or document.name != name:
            there = "there are no more documents" if document is None else f"the next document is {document.name}"
            raise ValueError(
                f"{part}:{number} is for the document {name}, but now {there}; give the same documents as before, or"
                " delete the file"
            )
        if any(document.text[start:end] != text for start, end, text, *_ in pieces):
            raise ValueError(
                f"{part}:{number} is for another text of {name} than there is now; give the documents as they were, or"
                " delete the file"
            )
        yield record, document


def _check_same(part: Path, first: int, written: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> None:
    """Refuse to continue lines that this command would not write.

    Scores may differ by what another number of threads makes of them.

    Raises:
        ValueError: with the first difference.
    """
    for number, (before, now) in enumerate(zip(written, found, strict=True), start=first):
        sides = [[(e["type"], e["start"], e["end"]) for e in record["entities"]] for record in (before, now)]
        scores = zip(before["entities"], now["entities"], strict=False)
        if sides[0] != sides[1] or any(abs(one["score"] - other["score"]) > SAME_SCORE for one, other in scores):
            raise ValueError(
                f"{part}:{number} is not what this command finds in {now['document']}: it was written with another"
                " model, calibration, text or flags; continue with the same ones, or delete the file"
            )


def predict_documents(paths: Sequence[Path], field: str, output: Path, resume: bool, stream: Stream) -> tuple[int, int]:
    """Find the entities of documents and write a line of JSON for each; returns how many documents and entities.

    Positions count characters of the document. The lines are in OUTPUT.part until all are written.

    Raises:
        ValueError: a document cannot be read, or as for `finished`, or what is written already is not what this
            command finds.
    """
    from tqdm import tqdm

    documents = read_documents(paths, field)
    done, entities, last, its_documents = finished(output, resume, documents)
    part = part_of(output)
    documents = chain(its_documents, documents)
    batches = iter(lambda: list(islice(documents, AT_ONCE)), [])
    first = next(batches, [])  # an error in it leaves no file
    with open(part, "ab") as file, tqdm(unit=" documents", initial=done, disable=None) as bar:
        for (batch, rows), found in stream(chain([first] if first else [], batches), _sentences):
            records = [
                {"document": document.name, "entities": its}
                for document, its in zip(batch, _entities(rows, found), strict=True)
            ]
            if last:
                _check_same(part, done + 1, last, records)
            else:
                lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
                file.write("".join(lines).encode(errors="backslashreplace"))
                file.flush()
                os.fsync(file.fileno())
            last = []
            entities += sum(len(record["entities"]) for record in records)
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
