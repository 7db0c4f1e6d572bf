"""Documents to tag: text files, folders of them, and JSON lines with a text field; and their sentences.

Models are trained on sentences, so a document is tagged sentence by sentence. A sentence ends at a blank line, and at a
full stop, question or exclamation mark that is a word of its own (so not in "i.e." or "0.05") before white space and a
word that does not begin with a lowercase letter. The text is not changed, so positions are those of the original.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lorakit.data.formats.json_records import first_record
from lorakit.data.formats.json_text import DECODER
from lorakit.data.formats.text import decode, decoded_lines
from lorakit.data.pretokenizer import check_text, split_words

ENDINGS = (".txt", ".jsonl")
MOST_SHOWN = 40  # characters of a value, in a message


class Document(NamedTuple):
    """A text and the name that says where it is from: a file's path, with `:LINE` for a line of JSON lines."""

    name: str
    text: str


def sentences(text: str) -> list[tuple[int, str]]:
    """Cut a text into sentences: (first character, text of the sentence), which leave out only white space.

    Example:
        from lorakit.data.documents import sentences
        sentences("IL-2 binds, i.e. p50.\\nT cells do not.")  # [(0, 'IL-2 binds, i.e. p50.'), (22, 'T cells do not.')]

    Args:
        text: any text.

    Raises:
        ValueError: the text holds half a surrogate pair.
    """
    words = split_words(text)
    found, first = [], 0
    for i, word in enumerate(words):
        last = i + 1 == len(words)
        gap = "" if last else text[word.end : words[i + 1].start]
        ends = word.text in (".", "?", "!") and gap and not words[i + 1].text[0].islower()
        if last or ends or gap.count("\n") > 1:
            start = words[first].start
            found.append((start, text[start : word.end]))
            first = i + 1
    return found


def read_documents(paths: Sequence[Path], text_field: str = "text") -> Iterator[Document]:
    """Read the documents of files and folders, in the order given and inside a folder by name.

    Args:
        paths: text files (each a document), JSON lines (each line an object with a text), or folders of both; other
            files in a folder are ignored, and so are hidden files and folders.
        text_field: the name of the text in JSON lines.

    Raises:
        ValueError: a file is not UTF-8, a line has no such text, a file that is not called .jsonl holds JSON, or a
            folder holds no document.
        OSError: a file cannot be read.
    """
    for path in paths:
        if not path.is_dir():
            yield from _read(path, text_field)
            continue
        inside = sorted(part for part in path.rglob("*") if part.suffix.lower() in ENDINGS and part.is_file())
        # macOS' ._doc.txt of doc.txt, and what is in a folder such as .ipynb_checkpoints
        inside = [part for part in inside if not any(name.startswith(".") for name in part.relative_to(path).parts)]
        if not inside:
            raise ValueError(f"{path} holds no file that ends in {' or '.join(ENDINGS)}; give the files by name")
        for part in inside:
            yield from _read(part, text_field)


def _read(path: Path, field: str) -> Iterator[Document]:
    if path.suffix.lower() != ".jsonl":
        if isinstance(first_record(path), dict):
            raise ValueError(
                f"{path} holds JSON, which is read from .jsonl files: write an object per line, and call it"
                f" {path.with_suffix('.jsonl').name}"
            )
        yield Document(str(path), decode(path.read_bytes(), path))
        return
    with path.open("rb") as file:  # a line at a time: such a file may be larger than memory
        yield from _records(decoded_lines(file, path), path, field)


def _records(lines: Iterator[str], path: Path, field: str) -> Iterator[Document]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = DECODER.decode(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error})") from None
        if isinstance(record, dict) and field in record and not isinstance(record[field], str):
            raise ValueError(
                f"{path}:{number}: {field!r} is {json.dumps(record[field])[:MOST_SHOWN]}, not a text; leave the line"
                " out, or name another field with text_field="
            )
        if not isinstance(record, dict) or field not in record:
            names = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
            raise ValueError(f"{path}:{number}: no text in {field!r}; it has {names}: name the field with text_field=")
        try:
            check_text(record[field])
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        yield Document(f"{path}:{number}", record[field])
