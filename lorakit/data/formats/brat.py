"""brat's standoff format: DOC.txt holds the text and DOC.ann its annotations, in a folder.

    T1<tab>Disease 4 10<tab>cancer                  an entity; characters [4, 10)
    T2<tab>Disease 0 5;16 23<tab>North America      one in several pieces
    R1 E1 *  A1 M1  N1  #1                           relations, events, equivalences; attributes; identifiers; notes

Only entities (T) are used; the rest is counted. brat itself splits an entity at a line end, so pieces with nothing but
line ends between them are read as one. brat counts Unicode characters. The BioNLP shared tasks have the same lines in
two files, DOC.a1 and DOC.a2, instead of DOC.ann.
https://brat.nlplab.org/standoff.html
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from lorakit.data.formats.file_names import file_names, files_in
from lorakit.data.formats.offsets import place_spans
from lorakit.data.formats.record import Annotation, Document, Note, Reading
from lorakit.data.formats.text import read_lines, read_text

MAIN = (".ann", ".a1")
ENDINGS = (*MAIN, ".a2")
_ENTITY = re.compile(r"(\S+) (\d+ \d+(?:;\d+ \d+)*)")
_OTHERS = {
    "R": "relation, not used",
    "E": "event, not used",
    "*": "equivalence, not used",
    "A": "attribute, not used",
    "M": "attribute, not used",
    "N": "identifier in a database, not used",
    "#": "comment, not used",
}


def recognise_brat(path: Path) -> str | None:
    """The evidence that a path is brat's: a folder with .ann (or .a1) files, or one of them."""
    if path.is_dir():
        for ending in MAIN:
            count = sum(file.suffix == ending for file in files_in(path))
            if count:
                return f"the folder has {count} {ending} file{'s' * (count > 1)}"
        return None
    return f"its ending is {path.suffix}" if path.suffix in MAIN else None


def read_brat(path: Path, reading: Reading) -> Iterator[Document]:
    """Yield the documents of a folder, in the order of their names, or the one of an .ann file.

    A text without .ann file has no annotations yet: it is left out, and a note says so.

    Raises:
        ValueError: with the file and the line: an .ann file without its .txt, a line of no known kind, two entities of
            one id, a label with a space, offsets outside of the text or that cover another text than the file has
            beside them.
    """
    if not path.is_dir():
        yield _read(path.with_suffix(""), reading)
        return
    there = files_in(path)
    stems = {file.with_suffix("") for file in there if file.suffix in MAIN}
    for file in there:
        if file.is_dir() and recognise_brat(file):
            note = Note("folder inside with annotations, not read; give it as a corpus of its own", str(file))
            yield Document((), None, str(file), "", notes=(note,))
        elif file.suffix == ".txt" and file.with_suffix("") not in stems and reading.unannotated:
            yield Document((), None, str(file), read_text(file), id=file.stem)
        elif file.suffix == ".txt" and file.with_suffix("") not in stems:
            yield Document((), None, str(file), "", notes=(Note("text without an .ann file, left out", str(file)),))
    for stem in sorted(stems):
        yield _read(stem, reading)


def _read(stem: Path, reading: Reading) -> Document:
    """One document, given its path without an ending."""
    files = [file for ending in ENDINGS if (file := stem.with_name(stem.name + ending)).exists()]
    main, source = files[0], stem.with_name(f"{stem.name}.txt")
    if not source.exists():
        raise ValueError(f"{main}: no {source.name} beside it; brat keeps the text of {main.name} there: copy it too")
    text, items, covered, notes = read_text(source), [], [], []
    lines: dict[str, str] = {}  # of each id
    for place, line in (pair for file in files for pair in read_lines(file)):
        if not line.strip():
            continue
        kind = line[0]
        if kind == "T":
            item, letters = _entity(line, place)
            if item.id in lines:
                raise ValueError(
                    f"{place}: the id {item.id} is that of {lines[item.id]} too, and brat's ids are unique; give one of"
                    " them another number, or delete the line that is wrong"
                )
            lines[item.id] = place
            items.append(item)
            covered.append(letters)
        elif kind in _OTHERS:
            notes.append(Note(_OTHERS[kind], f"{place}, {line.split(chr(9))[0]}"))
        else:
            raise ValueError(
                f"{place}: {line[:60]!r} is no annotation of brat; a line begins with T, E, R, A, M, N, * or #"
            )
    placed, found = place_spans(text, items, covered, str(main), reading.offsets)
    spans = tuple(_without_line_ends(item, text) for item in placed)
    return Document((), None, str(main), text, spans=spans, id=stem.name, notes=(*notes, *found))


def _entity(line: str, place: str) -> tuple[Annotation, str | None]:
    name, *fields = line.split("\t", 2)
    match = _ENTITY.fullmatch(fields[0].strip(" ")) if fields else None
    if match is None:
        if fields and re.fullmatch(r"\S+(?: \S+)+ \d+ \d+(?:;\d+ \d+)*", fields[0].strip(" ")):
            label = re.sub(r" \d+ \d+(?:;\d+ \d+)*$", "", fields[0].strip(" "))
            raise ValueError(
                f"{place}, {name}: the label {label!r} holds a space, which brat does not allow; write"
                f" {label.replace(' ', '_')!r}"
            )
        raise ValueError(
            f"{place}, {name}: {line[:60]!r} is no entity; it is an id, a tab, a label, a space, start and end, a tab"
            " and the text"
        )
    pairs = (piece.split(" ") for piece in match[2].split(";"))
    pieces = tuple((int(start), int(end)) for start, end in pairs)
    item = Annotation(match[1], pieces[0][0], pieces[-1][1], name, pieces if len(pieces) > 1 else ())
    return item, fields[1] if len(fields) > 1 else None


def _without_line_ends(item: Annotation, text: str) -> Annotation:
    """The annotation with its pieces in order, joined where nothing but line ends is between them."""
    if not item.fragments:
        return item
    ordered = sorted(item.fragments)
    pieces = ordered[:1]
    for before, after in pairwise(ordered):
        gap = text[before[1] : after[0]]
        if gap and not gap.strip("\r\n"):
            pieces[-1] = (pieces[-1][0], after[1])
        else:
            pieces.append(after)
    end = max(end for _, end in pieces)
    return item._replace(start=pieces[0][0], end=end, fragments=tuple(pieces) if len(pieces) > 1 else ())


# Writing -------------------------------------------------------------------------------------------------------------


def write_brat(documents: Sequence[Document], path: Path) -> list[str]:
    """Write a folder with a .txt and an .ann file per document, named by its id or else numbered.

    Scores are written as comments.

    Raises:
        ValueError: a label holds white space, which brat does not allow.
    """
    for document in documents:
        for item in document.spans:
            if re.search(r"\s", item.label):
                better = "_".join(item.label.split())
                raise ValueError(
                    f"{document.place}: the label {item.label!r} holds white space, which brat does not allow; rename"
                    f" it to {better!r}, in a corpus with a label map (label_map)"
                )
    path.mkdir(parents=True)
    for document, name in zip(documents, file_names(documents), strict=True):
        text = document.text or ""
        encoding = "utf-8-sig" if text.startswith("\ufeff") else "utf-8"  # a reader takes the first mark off
        (path / f"{name}.txt").write_bytes(text.encode(encoding))
        (path / f"{name}.ann").write_text("".join(_lines(document)), encoding="utf-8", newline="")
    return []


def _lines(document: Document) -> Iterator[str]:
    text, names = document.text or "", [item.id for item in document.spans]
    usable = len(set(names)) == len(names) and all(re.fullmatch(r"T\d+", name) for name in names)
    comments = []
    for number, item in enumerate(document.spans, start=1):
        name = item.id if usable else f"T{number}"
        pieces = [part for piece in item.pieces for part in _one_line(text, *piece)]
        offsets = ";".join(f"{start} {end}" for start, end in pieces)
        covered = " ".join(re.sub(r"[\t\r\n]", " ", text[start:end]) for start, end in pieces)
        yield f"{name}\t{item.label} {offsets}\t{covered}\n"
        if item.score is not None:
            comments.append(f"AnnotatorNotes {name}\tscore {item.score:.4f}\n")
    yield from (f"#{number}\t{comment}" for number, comment in enumerate(comments, start=1))


def _one_line(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """The pieces of text[start:end] between line ends, as brat splits it; line ends at its borders stay."""
    pieces = [(start + m.start(), start + m.end()) for m in re.finditer(r"[^\r\n]+", text[start:end])]
    borders = [start, *[border for piece in pieces for border in piece][1:-1], end] if pieces else [start, end]
    return list(zip(borders[::2], borders[1::2], strict=True))
