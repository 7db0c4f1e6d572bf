"""PubTator's format: abstracts with the places of genes, diseases, chemicals, ...; also `BC5CDR` and `NCBI-disease`.

    354896|t|Lidocaine-induced cardiac asystole.
    354896|a|Intravenous administration of a single 50-mg bolus of lidocaine …
    354896<tab>0<tab>9<tab>Lidocaine<tab>Chemical<tab>D008012
    354896<tab>CID<tab>D008012<tab>D006323                                   a relation
    (a blank line)

The document's text is the title, one character, and the abstract; a line end is used for that character.
https://www.ncbi.nlm.nih.gov/CBBresearch/Lu/Demo/tmTools/Format.html
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lorakit.data.formats.offsets import place_spans
from lorakit.data.formats.record import Annotation, Document, Note, Reading, about_gaps
from lorakit.data.formats.text import read_head, read_lines

_TEXT = re.compile(r"([^|\t]+)\|([A-Za-z])\|(.*)", re.DOTALL)
_LABEL, _CONCEPT = 4, 5  # fields of an annotation


def recognise_pubtator(path: Path) -> str | None:
    """The evidence that a file is PubTator's: its first line is ID|t|TITLE."""
    line = next((line for line in read_head(path).split("\n") if line.strip()), "")
    match = _TEXT.fullmatch(line.removesuffix("\r"))
    return "its first line is ID|t|TITLE" if match and match[2] == "t" else None


def read_pubtator(path: Path, reading: Reading) -> Iterator[Document]:
    """Yield the abstracts of a file.

    Raises:
        ValueError: with the line: one of no known kind, an annotation of another document, offsets outside of the text
            or that cover another text than the file has beside them.
    """
    block: list[tuple[str, str]] = []
    for place, line in read_lines(path):
        begins = (match := _TEXT.fullmatch(line)) and match[2] == "t" and any(_TEXT.fullmatch(x) for _, x in block)
        if (begins or not line.strip()) and block:
            yield _document(block, reading)
            block = []
        if line.strip():
            block.append((place, line))
    if block:
        yield _document(block, reading)


def _document(block: list[tuple[str, str]], reading: Reading) -> Document:
    first_place, first = block[0]
    match = _TEXT.fullmatch(first)
    if match is None:
        raise ValueError(f"{first_place}: {first[:60]!r} must be ID|t|TITLE; a document begins with it")
    name, passages, items, covered, notes = match[1], [], [], [], []
    for place, line in block:
        if match := _TEXT.fullmatch(line):
            own, text = match[1], match[3]
        else:
            own, text = line.split("\t")[0], None
        if own != name:
            raise ValueError(f"{place}: the line is of document {own[:40]!r}, but stands in document {name!r}")
        if text is not None:
            passages.append(text)
            continue
        fields = line.split("\t")
        if len(fields) > 2 and fields[1].isdecimal() and fields[2].isdecimal():
            items.append(_annotation(fields, place))
            covered.append(fields[3])
            if len(fields) > _CONCEPT and fields[_CONCEPT].strip() not in ("", "-", "-1"):
                notes.append(Note("identifier in a database, not used", f"{place}, {fields[_CONCEPT]}"))
        elif len(fields) > 3:
            notes.append(Note("relation, not used", place))
        elif len(fields) > 2:
            notes.append(Note("line that is neither annotation nor relation, not used", place))
        else:
            raise ValueError(f"{place}: {line[:60]!r} is no annotation; it has six fields, with a tab between them")
    text = passages[0] if not any(passages[1:]) else "\n".join(passages)
    placed, found = place_spans(text, items, covered, first_place, reading.offsets)
    spans = tuple(item._replace(id="") for item in placed)  # the line was its name only for messages
    return Document((), None, first_place, text, spans=spans, id=name, notes=(*notes, *found))


def _annotation(fields: list[str], place: str) -> Annotation:
    if len(fields) <= _LABEL or not fields[_LABEL].strip():
        raise ValueError(f"{place}: an annotation without a type; its fields are ID, start, end, text, type, concept")
    return Annotation(fields[_LABEL].strip(), int(fields[1]), int(fields[2]), f"line {place.rpartition(':')[2]}")


def write_pubtator(documents: Sequence[Document], path: Path) -> list[str]:
    """Write the documents, the first line of each as its title.

    Raises:
        ValueError: a label holds a tab or a line end.
    """
    changed, ended, parts, taken = 0, 0, [], set()
    for number, document in enumerate(documents, start=1):
        name = document.id if re.fullmatch(r"[^|\s]+", document.id) and document.id not in taken else str(number)
        while name in taken:
            name += "-2"
        taken.add(name)
        whole = document.text or ""
        text = whole.rstrip("\r\n")
        title, _, rest = text.partition("\n")
        title, abstract = title.replace("\r", " "), re.sub(r"[\r\n]", " ", rest)
        ended += text != whole
        changed += title != text and f"{title}\n{abstract}" != text
        parts.append(f"{name}|t|{title}\n{name}|a|{abstract}\n")
        for item in document.spans:
            if re.search(r"[\t\r\n]", item.label):
                raise ValueError(f"{document.place}: the label {item.label!r} holds a tab or a line end; rename it")
            covered = re.sub(r"[\t\r\n]", " ", (document.text or "")[item.start : item.end])
            parts.append(f"{name}\t{item.start}\t{item.end}\t{covered}\t{item.label}\t-\n")
        parts.append("\n")
    path.write_text("".join(parts), encoding="utf-8", newline="")
    lines = [f"{changed} texts with several line ends: all but the first are written as spaces"] if changed else []
    lines += [f"{ended} texts end in line ends, which are not written"] if ended else []
    return lines + about_gaps(documents)
