"""WebAnno TSV 3, which WebAnno and INCEpTION export: a row per token, a column per feature of each layer.

    #FORMAT=WebAnno TSV 3.3
    #T_SP=de.tudarmstadt.ukp.dkpro.core.api.ner.type.NamedEntity|identifier|value

    #Text=Ms. Haag plays
    1-1<tab>0-3<tab>Ms.<tab>*[1]<tab>PER[1]|PERpart[2]<tab>       [1] is one annotation wherever it occurs
    1-2<tab>4-8<tab>Haag<tab>*[1]<tab>PER[1]<tab>
    1-3<tab>9-14<tab>plays<tab>_<tab>_<tab>                       _ is none, * one without a value
    1-3.1<tab>9-13<tab>play<tab>*<tab>OTH<tab>                    part of a token

One layer of spans is read, that of named entities if there is one; the others are noted. Offsets count UTF-16 units.
https://inception-project.github.io/releases/36.0/docs/user-guide.html#sect_webannotsv
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lorakit.data.alignment import sentence_places
from lorakit.data.formats.file_names import file_names, files_in
from lorakit.data.formats.json_records import check_label
from lorakit.data.formats.offsets import place_spans
from lorakit.data.formats.record import Annotation, Document, Note, Reading, about_gaps, as_argument
from lorakit.data.formats.text import read_head, read_lines
from lorakit.data.pretokenizer import Word, split_words
from lorakit.data.split_files import SPLIT_NAMES

MARK = "#FORMAT=WebAnno TSV 3"
NO_VALUE = "annotation without a value (*), left out"
_BUILT_IN = "de.tudarmstadt.ukp.dkpro.core.api."  # parts of speech, lemmas and the like
_ROW = re.compile(r"(\d+)-\d+(\.\d+)?\t(\d+)-(\d+)\t([^\t]*)(?:\t(.*))?", re.DOTALL)
_VALUES = re.compile(r"((?:\\.|[^\\|\[\]])*)(?:\[(\d+)\])?(\||$)")
_WITHOUT_VALUE = re.compile(r"[*_](\[\d+\])?(\|\*(\[\d+\])?)*")
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r"}


_Found = tuple[Annotation | None, str | None]  # an annotation (None: without a value), and what it covers if one row


class _Column(NamedTuple):
    """A feature of a layer; "" where the layer has none."""

    layer: str
    feature: str
    is_span: bool

    @property
    def name(self) -> str:
        return f"{self.layer.rsplit('.', 1)[-1]}{self.feature and '.'}{self.feature}"


def recognise_webanno(path: Path) -> str | None:
    """The evidence that a file is of WebAnno TSV 3, or a folder holds such files and no others for splits."""
    if not path.is_dir():
        head = read_head(path, 200)
        return f"its first line is {head.splitlines()[0]}" if head.startswith(MARK) else None
    files = _files(path)
    names = {name for names in SPLIT_NAMES.values() for name in names}
    if not files or any(file.stem.lower() in names or not recognise_webanno(file) for file in files):
        return None
    return f"the folder has {len(files)} file{'s' * (len(files) > 1)} of WebAnno TSV 3"


def read_webanno(path: Path, reading: Reading) -> Iterator[Document]:
    """Yield the document of a file, or those of a folder in the order of their names.

    Raises:
        ValueError: with the line: a row or cell of another form, offsets that do not cover the token beside them; or it
            is not clear which layer or feature holds the entities.
    """
    for file in _files(path) if path.is_dir() else [path]:
        yield _read(file, reading)


def _files(folder: Path) -> list[Path]:
    return [path for path in files_in(folder) if path.suffix == ".tsv"]


def _read(path: Path, reading: Reading) -> Document:
    columns: list[_Column] = []
    texts: list[tuple[int, list[str]]] = []  # first offset and lines of each sentence
    tokens: list[tuple[int, Annotation, str]] = []  # number of the sentence, place and word
    found: dict[str, _Found] = {}
    used: set[int] = set()  # columns with an annotation in some row
    valued: set[int] = set()  # those where one has a value
    lines: list[str] = []
    chosen, notes = -1, []
    for place, line in read_lines(path):
        if line.startswith(("#T_SP=", "#T_CH=", "#T_RL=")):
            columns += _columns(line)
        elif line.startswith("#Text="):
            lines.append(_plain(line.removeprefix("#Text=")))
        elif line.strip() and not line.startswith("#"):
            chosen = _chosen(columns, reading, path) if chosen < 0 else chosen
            match = _ROW.fullmatch(line)
            cells = match[6].split("\t") if match and match[6] is not None else []
            if match is None or len(cells) < len(columns):
                raise ValueError(
                    f"{place}: {line[:60]!r} is no row of WebAnno TSV 3 with {len(columns)} columns of features; it is"
                    " sentence-token, a tab, begin-end, a tab, the token, and a tab before each feature"
                )
            start, end, word = int(match[3]), int(match[4]), _plain(match[5])
            if lines:
                texts.append((start, lines))
                lines = []
            if not match[2]:
                tokens.append((len(texts), Annotation("token", start, end, f"token {line.split(chr(9))[0]}"), word))
            used |= {i for i, cell in enumerate(cells[: len(columns)]) if cell != "_"}
            valued |= {i for i, cell in enumerate(cells[: len(columns)]) if not _WITHOUT_VALUE.fullmatch(cell)}
            notes += _add(found, cells[chosen], columns[chosen], (start, end, word), place)
    spans = [(item, letters) for item, letters in found.values() if item]
    text = _joined(texts, path)
    items = [item for _, item, _ in tokens] + [item for item, _ in spans]
    covered = [word for _, _, word in tokens] + [letters for _, letters in spans]
    placed, said = place_spans(text, items, covered, str(path), reading.offsets)
    offsets = tuple((item.start, item.end) for item in placed[: len(tokens)])
    numbers = [number for number, _, _ in tokens]
    sentences = tuple(
        (offsets[numbers.index(number)][0], offsets[len(numbers) - 1 - numbers[::-1].index(number)][1])
        for number in dict.fromkeys(numbers)
    )
    layers = dict.fromkeys(columns[i].layer for i in sorted(used) if columns[i].layer != columns[chosen].layer)
    notes += [Note(f"layer {layer.rsplit('.', 1)[-1]}, not used", str(path)) for layer in layers]
    for column in (columns[i] for i in sorted(valued) if i != chosen and not _is_target(columns, i)):
        if column.layer == columns[chosen].layer:
            name = "with roles" if column.feature.startswith("ROLE_") else column.name
            notes.append(Note(f"feature {name}, not used", str(path)))
    words = tuple(text[start:end] for start, end in offsets)
    return Document(words, None, str(path), text, offsets, placed[len(tokens) :], path.stem, sentences, (*notes, *said))


def _add(found: dict[str, _Found], cell: str, column: _Column, row: tuple[int, int, str], place: str) -> list[Note]:
    """Add the annotations of a row's cell to those found, or the row to those that it continues."""
    notes = []
    start, end, word = row
    for value, number in _values(cell, place) if cell != "_" else ():
        key = number or f"{place} {len(found)}"  # without an id it is in this row only
        if key in found:
            item, _ = found[key]
            found[key] = item and item._replace(start=min(item.start, start), end=max(item.end, end)), None
        elif value == "*" and column.feature:
            found[key] = None, None
            notes.append(Note(NO_VALUE, f"{place}, [{number}]" if number else place))
        else:
            label = check_label(_plain(value), place) if column.feature else column.name
            found[key] = Annotation(label, start, end, f"[{number}]" if number else ""), word
    return notes


def _values(cell: str, place: str) -> list[tuple[str, str]]:
    """(value, disambiguation id or "") of each annotation in a cell; values are still escaped."""
    values, at = [], 0
    while True:
        match = _VALUES.match(cell, at)
        if match is None or not match[1]:
            raise ValueError(
                f"{place}: {cell[:60]!r} is no value such as PER, PER[1] or PER[1]|LOC[2]; export it again"
            )
        values.append((match[1], match[2] or ""))
        at = match.end()
        if not match[3]:
            return values


def _columns(line: str) -> list[_Column]:
    kind, _, declared = line.removeprefix("#").partition("=")
    layer, *features = declared.split("|")
    return [_Column(layer, feature, kind == "T_SP") for feature in features or [""]]


def _chosen(columns: Sequence[_Column], reading: Reading, path: Path) -> int:
    """The column of the entities' types.

    Raises:
        ValueError: there is none, or several, or the user names one that does not exist.
    """
    spans = [i for i, column in enumerate(columns) if column.is_span]
    spans = [i for i in spans if not columns[i].feature.startswith("ROLE_") and not _is_target(columns, i)]
    listed = ", ".join(f"{i + 4} ({columns[i].name})" for i in spans) or "none"
    if reading.columns:
        named = str(reading.columns.get("tag", ""))
        wanted = [i for i in spans if named in (str(i + 4), columns[i].name, columns[i].feature)]
        if len(wanted) != 1 or "word" in reading.columns:
            raise ValueError(
                f"{as_argument(reading.columns)}: {path} has its words in column 3; name the one column of types, such"
                f" as {as_argument({'tag': spans[0] + 4 if spans else 4})}, of {listed}"
            )
        return wanted[0]
    named_entities = [i for i in spans if columns[i].layer.endswith(".NamedEntity")]
    own = named_entities or [i for i in spans if not columns[i].layer.startswith(_BUILT_IN)]
    values = [i for i in own if columns[i].feature == "value"] if len({columns[i].layer for i in own}) == 1 else []
    own = values or own
    if len(own) != 1:
        raise ValueError(
            f"{path}: which column holds the types of the entities? There are {listed}; name it, such as"
            f" {as_argument({'tag': own[0] + 4 if own else 4})}"
        )
    return own[0]


def _is_target(columns: Sequence[_Column], i: int) -> bool:
    """Whether a column holds the tokens that the slots of the one before it point to."""
    return i > 0 and columns[i - 1].layer == columns[i].layer and columns[i - 1].feature.startswith("ROLE_")


def _joined(texts: Sequence[tuple[int, list[str]]], path: Path) -> str:
    """The text of the document, with a line end or spaces where sentences are apart."""
    text, length = "", 0
    for start, lines in texts:
        if start < length:
            raise ValueError(f"{path}: the sentence at offset {start} begins before the last one ends, at {length}")
        sentence = "\n".join(lines)
        text += "\n" * (start - length) + sentence
        length = start + len(sentence.encode("utf-16-le")) // 2
    return text


def _plain(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: _CONTROLS.get(match[1], match[1]), text)


# Writing --------------------------------------------------------------------------------------------------------------


def write_webanno(documents: Sequence[Document], path: Path) -> list[str]:
    """Write a folder with a file per document, named by its id or else numbered, with one layer, of named entities.

    An annotation with gaps is written from its first to its last word; one that covers no word is left out.
    """
    path.mkdir(parents=True)
    splits = {name for names in SPLIT_NAMES.values() for name in names}
    empty = 0
    for document, name in zip(documents, file_names(documents), strict=True):
        name = f"document-{name}" if name.lower() in splits else name  # a folder of such files would be one of splits
        empty += sum(not (document.text or "")[item.start : item.end].strip() for item in document.spans)
        text = "".join(f"{line}\n" for line in _lines(document))
        (path / f"{name}.tsv").write_text(text, encoding="utf-8", newline="")
    return about_gaps(documents, "word") + ([f"annotations that cover no word, left out: {empty:,}"] if empty else [])


def _lines(document: Document) -> Iterator[str]:
    text = document.text or ""
    yield from (f"{MARK}.3", "#T_SP=de.tudarmstadt.ukp.dkpro.core.api.ner.type.NamedEntity|value", "")
    words = [Word(text[start:end], start, end) for start, end in document.offsets if text[start:end].strip()]
    for number, (start, end) in enumerate(sentence_places(document, whole=document.spans), start=1):
        inside = [word for word in words if start <= word.start < end]
        inside = inside or [Word(w.text, w.start + start, w.end + start) for w in split_words(text[start:end])]
        yield from ("", f"#Text={_escaped(text[start:end])}")
        for i, word in enumerate(inside, start=1):
            parts: dict[tuple[int, int], list[str]] = {(word.start, word.end): []}  # the word, and parts of it
            for key, item in enumerate(document.spans, start=1):
                first, last = max(item.start, word.start), min(item.end, word.end)
                if first < last and text[first:last].strip():
                    parts.setdefault((first, last), []).append(f"{_escaped(item.label)}[{key}]")
            for part, ((first, last), values) in enumerate(parts.items()):
                units = "-".join(str(len(text[:place].encode("utf-16-le")) // 2) for place in (first, last))
                row = f"{number}-{i}{f'.{part}' if part else ''}\t{units}\t{_escaped(text[first:last])}"
                yield f"{row}\t{'|'.join(values) or '_'}\t"


def _escaped(text: str) -> str:
    controls = {character: f"\\{letter}" for letter, character in _CONTROLS.items()}
    return re.sub(r"[\\\[\]|_*;\t\n\r]|->", lambda match: controls.get(match[0], f"\\{match[0]}"), text)
