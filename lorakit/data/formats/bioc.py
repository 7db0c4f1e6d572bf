"""BioC, in XML and JSON: PubMed abstracts and articles in passages, as PubTator, BioRED and many corpora have them.

The files are read and written by the package `bioc` (`pip install lorakit[bioc]`). A document's text is that of its
passages, each in a line of its own at its offset. Offsets count from the document's beginning; some programs count
UTF-16 units or bytes, which the text beside each annotation tells.
https://bioc.sourceforge.net/ and https://doi.org/10.1093/database/bat064
"""

import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from lorakit.data.formats.json_records import read_objects
from lorakit.data.formats.offsets import place_spans
from lorakit.data.formats.record import Annotation, Document, Note, Reading
from lorakit.data.formats.text import read_head


class Part(NamedTuple):
    """A passage or, where passages have no text, a sentence.

    Attributes:
        offset: its first character in the document, as the file counts.
        text: its text.
        start: its first character in the text of the `record.Document`.
    """

    offset: int
    text: str
    start: int


def recognise_bioc_xml(path: Path) -> str | None:
    """The evidence that a file is BioC XML: its root is <collection>, with a <document>."""
    head = read_head(path)
    found = head.lstrip().startswith("<") and "<collection" in head and "<source>" in head
    return "its root is <collection>" if found else None


def recognise_bioc_json(path: Path) -> str | None:
    """The evidence that a file is BioC JSON: it has documents and passages."""
    head = read_head(path)
    if head.lstrip()[:1] in ("{", "[") and '"passages"' in head:
        return "it has documents with passages"
    return None


def read_bioc_xml(path: Path, reading: Reading) -> Iterator[Document]:
    """Yield the documents of a file.

    Raises:
        ValueError: with the file: it is not XML, or no BioC; with the annotation: no type, offsets outside of its
            passage or that cover another text than the file has beside them. Or the package `bioc` is missing.
    """
    head = re.sub(r"<!--.*?-->", "", read_head(path), flags=re.DOTALL)
    if head and "<collection" not in head:  # said before the package is asked for, which would not help
        root = re.search(r"<([^\s<>!?/]+)", head)
        raise ValueError(
            f"{path}: {f'its root is <{root[1]}>' if root else 'it has no root'}, and of XML only BioC is read, whose"
            " root is <collection>; write the texts and the places of their entities as brat's files, or as JSON lines:"
            ' {"text": "EU ran", "spans": [{"start": 0, "end": 2, "label": "ORG"}]}'
        )
    bioc = _package(path)
    try:
        data = path.read_bytes()  # not text: the file itself declares its encoding
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    if b"<!ENTITY" in data:  # could read other files, or grow without end
        raise ValueError(f"{path}: it declares XML entities, which BioC does not need; remove the <!ENTITY …> lines")
    try:
        collection = bioc.biocxml.load(io.BytesIO(data))
    except SyntaxError as error:  # lxml's XMLSyntaxError is one
        raise ValueError(
            f"{path}:{error.lineno}: invalid XML: {error.msg}; if it is truncated, get it again"
        ) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no BioC: an element or attribute is missing or of another kind: {error}") from error
    yield from _documents(collection, str(path), reading)


def read_bioc_json(path: Path, reading: Reading) -> Iterator[Document]:
    """Yield the documents of a file: a collection, a list of them (PubMed Central), or documents (PubTator 3).

    Raises:
        ValueError: as `read_bioc_xml`.
    """
    bioc = _package(path)
    for place, record in read_objects(path):
        if "documents" not in record:
            lists = [record] if "passages" in record else next((v for v in record.values() if isinstance(v, list)), [])
            record = {"documents": lists}
        try:
            collection = bioc.biocjson.loads(json.dumps(_completed(record)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{place}: no BioC: a key is missing or of another kind: {error}") from error
        yield from _documents(collection, place, reading)


def _completed(value: dict[str, Any], kind: str = "collection") -> dict[str, Any]:
    """The object with the empty parts that some programs leave out and the package `bioc` needs."""
    parts = {
        "collection": {"documents": "document"},
        "document": {"passages": "passage", "annotations": "annotation", "relations": ""},
        "passage": {"sentences": "sentence", "annotations": "annotation", "relations": ""},
        "sentence": {"annotations": "annotation", "relations": ""},
        "annotation": {"locations": ""},
    }[kind]
    given = {key: item for key, item in value.items() if item is not None}
    needed = {"source": "", "date": "", "key": ""} if kind == "collection" else {}
    completed = {"infons": {}, **needed, **dict.fromkeys(parts, []), **given}
    if kind in ("document", "annotation"):
        completed["id"] = str(completed.get("id", ""))
    if kind == "annotation":
        completed.setdefault("text", None)
    for name, part in parts.items():
        if part:
            completed[name] = [_completed(item, part) for item in completed[name]]
    return completed


def _package(path: Path) -> ModuleType:
    try:
        import bioc
        import bioc.biocjson
        import bioc.biocxml
    except ImportError as error:
        raise ValueError(f"{path}: BioC needs the package bioc: pip install 'lorakit[bioc]'") from error
    return bioc


# One document --------------------------------------------------------------------------------------------------------


def _documents(collection: Any, place: str, reading: Reading) -> Iterator[Document]:
    for number, document in enumerate(collection.documents, start=1):
        yield _document(document, f"{place}, document {document.id or number}", reading)


def _document(document: Any, place: str, reading: Reading) -> Document:
    notes = [Note("relation, not used", place)] * len(document.relations)
    text, last, spans, sentences = "", None, [], []
    for passage in document.passages:
        relations = [*passage.relations, *(r for sentence in passage.sentences for r in sentence.relations)]
        notes += [Note("relation, not used", place)] * len(relations)
        parts: list[Part] = []
        in_sentences = not passage.text and bool(passage.sentences)
        for source in passage.sentences if in_sentences else [passage]:
            if last is not None:
                text += "\n" if not parts else " " * (source.offset > last.offset + len(last.text))
            last = Part(source.offset, source.text or "", len(text))
            parts.append(last)
            text += last.text
            if in_sentences:
                sentences.append((last.start, len(text)))
        whole = Part(parts[0].offset, text[parts[0].start :], parts[0].start) if parts else Part(0, "", 0)
        for number, sentence in enumerate(passage.sentences):
            part = parts[number] if in_sentences else whole
            spans += _annotations(sentence.annotations, part, place, reading, notes)
            if not in_sentences:
                first = whole.start + sentence.offset - passage.offset
                sentences.append((first, first + len(sentence.text or "")))
        spans += _annotations(passage.annotations, whole, place, reading, notes)
    first = document.passages[0].offset if document.passages else 0
    spans += _annotations(document.annotations, Part(first, text, 0), place, reading, notes)
    if sentences and not all(text[a:b].strip() and b <= len(text) for a, b in sentences):
        sentences = []  # the sentences are not counted as the text is
    kept = tuple(sorted(sentences))
    return Document((), None, place, text, spans=tuple(spans), id=document.id or "", sentences=kept, notes=tuple(notes))


def _annotations(found: Sequence[Any], part: Part, place: str, reading: Reading, notes: list[Note]) -> list[Annotation]:
    """The annotations of a part, in characters of the document's text."""
    items, covered = [], []
    for annotation in found:
        where = f"{place}, {annotation.id}"
        if not annotation.locations:
            notes.append(Note("annotation without a place in the text, left out", where))
            continue
        label = annotation.infons.get("type")
        if not label:
            keys = ", ".join(annotation.infons) or "none"
            raise ValueError(f"{where}: no infon 'type', which is the entity's; its infons are {keys}")
        pieces = tuple(sorted((spot.offset, spot.end) for spot in annotation.locations))
        others = annotation.infons.keys() - {"type", "score"}
        notes += [Note(f"infon {key!r} of annotations, not used", where) for key in sorted(others)]
        item = Annotation(label, pieces[0][0], pieces[-1][1], annotation.id, pieces if len(pieces) > 1 else ())
        items.append(item._replace(score=_score(annotation.infons.get("score"))))
        covered.append(annotation.text)
    placed, about = place_spans(part.text, items, covered, place, reading.offsets, part.offset)
    notes += about

    def move(pieces: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        return tuple((start + part.start, end + part.start) for start, end in pieces)

    return [
        item._replace(start=item.start + part.start, end=item.end + part.start, fragments=move(item.fragments))
        for item in placed
    ]


def _score(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return None


# Writing -------------------------------------------------------------------------------------------------------------


def write_bioc_xml(documents: Sequence[Document], path: Path) -> list[str]:
    """Write a collection with one passage per document.

    Raises:
        ValueError: a text holds a character that XML cannot hold, or the package `bioc` is missing.
    """
    bioc = _package(path)
    try:
        text = bioc.biocxml.dumps(_collection(bioc, documents))
    except ValueError as error:
        raise ValueError(f"{path}: XML cannot hold a control character of a text: {error}; write bioc-json") from error
    path.write_text(text, encoding="utf-8", newline="")
    return []


def write_bioc_json(documents: Sequence[Document], path: Path) -> list[str]:
    """Write a collection with one passage per document.

    Raises:
        ValueError: the package `bioc` is missing.
    """
    bioc = _package(path)
    text = bioc.biocjson.dumps(_collection(bioc, documents), ensure_ascii=False, indent=1)
    path.write_text(text + "\n", encoding="utf-8", newline="")
    return []


def _collection(bioc: ModuleType, documents: Sequence[Document]) -> Any:
    collection = bioc.BioCCollection()
    collection.source, collection.date, collection.key = "lorakit", "", "lorakit.key"
    collection.encoding, collection.standalone, collection.version = "utf-8", True, "1.0"
    for number, document in enumerate(documents, start=1):
        text, record, passage = document.text or "", bioc.BioCDocument(), bioc.BioCPassage()
        record.id, passage.offset, passage.text = document.id or str(number), 0, text
        for start, end in document.sentences:
            sentence = bioc.BioCSentence()
            sentence.offset, sentence.text = start, text[start:end]
            passage.add_sentence(sentence)
        for i, item in enumerate(document.spans, start=1):
            annotation = bioc.BioCAnnotation()
            annotation.id, annotation.infons["type"] = item.id or f"T{i}", item.label
            if item.score is not None:
                annotation.infons["score"] = f"{item.score:.6f}"
            annotation.text = " ".join(text[start:end] for start, end in item.pieces)
            for start, end in item.pieces:
                annotation.add_location(bioc.BioCLocation(start, end - start))
            passage.add_annotation(annotation)
        record.add_passage(passage)
        collection.add_document(record)
    return collection
