"""spaCy's JSON of version 2: the training format, and TRAIN_DATA with character offsets.

    [{"id": 0, "paragraphs": [{"raw": text, "sentences": [{"tokens": [{"orth": "Apple", "ner": "U-ORG"}]}]}]}]
    [[text, {"entities": [[start, end, label], ...]}], ...]
    {"classes": [label, ...], "annotations": [[text, {"entities": [[start, end, label], ...]}], ...]}

The last is what the NER annotator of tecoholic.github.io writes. `ner` is a BILUO tag, or "-" for a token that nobody
annotated, which is read as O and counted.
https://v2.spacy.io/api/annotation#json-input and https://v2.spacy.io/usage/training#training-simple-style
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lorakit.data.formats.json_records import (
    check_dict,
    check_label,
    check_list,
    check_offset,
    check_text,
    first_record,
    name_of,
    read_records,
)
from lorakit.data.formats.json_writing import write_array
from lorakit.data.formats.offsets import place_spans
from lorakit.data.formats.record import UNANNOTATED, Annotation, Document, Note, Reading, about_gaps
from lorakit.data.tags import spans, split_tag


def recognise_spacy_json(path: Path) -> str | None:
    """The evidence that a file is spaCy's: its first value has paragraphs, or is a text with its entities."""
    record = first_record(path)
    if isinstance(record, dict) and isinstance(record.get("annotations"), list) and "classes" in record:
        return "it has classes, and annotations of texts with entities"
    if isinstance(record, dict) and isinstance(record.get("paragraphs"), list):
        return "each document has paragraphs"
    if isinstance(record, list) and len(record) == 2 and isinstance(record[0], str) and isinstance(record[1], dict):
        return "each item is a text and its entities"
    return None


def read_spacy_json(path: Path, reading: Reading) -> Iterator[Document]:
    """Yield a document for each paragraph or text of a file.

    Raises:
        ValueError: with the line: invalid JSON, a key that is missing or of another kind, offsets outside of the text,
            tags that do not obey BILUO.
    """
    for place, value in read_records(path):
        if isinstance(value, list):
            yield _example(value, place, reading)
            continue
        record = check_dict(value, "each value", place)
        if "paragraphs" in record:
            for number, paragraph in enumerate(check_list(record["paragraphs"], "paragraphs", place), start=1):
                yield _paragraph(paragraph, name_of(record), f"{place}, paragraph {number}")
            continue
        if "annotations" not in record:
            raise ValueError(f"{place}: no 'paragraphs' or 'annotations'; the keys are {', '.join(record)}")
        for number, item in enumerate(check_list(record["annotations"], "annotations", place), start=1):
            if item is not None:  # a text that nobody opened in the annotator
                yield _example(item, f"{place}, text {number}", reading)
            else:
                note = Note("text without annotation, left out", f"{place}, text {number}")
                yield Document((), None, place, "", notes=(note,))


def _example(value: Any, place: str, reading: Reading) -> Document:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{place}: must be [text, {{'entities': [[start, end, label], …]}}]")
    text, annotations = check_text(value[0], "text", place), check_dict(value[1], "the second item", place)
    entities = annotations.get("entities")
    items = []
    for number, entity in enumerate(check_list(entities, "entities", place), start=1):
        where = f"{place}, entity {number}"
        if not isinstance(entity, list) or len(entity) not in (3, 4):
            raise ValueError(f"{where}: {entity!r} must be [start, end, label]")
        start, end = check_offset(entity[0], "start", where), check_offset(entity[1], "end", where)
        items.append(Annotation(check_label(entity[2], where), start, end))
    placed, found = place_spans(text, items, [None] * len(items), place, reading.offsets)
    found += [
        Note(f"{key} of a text, not used", place) for key in annotations if key != "entities" and annotations[key]
    ]
    return Document((), None, place, text, spans=placed, notes=tuple(found), is_proven=False)


# The training format -------------------------------------------------------------------------------------------------


def _paragraph(value: Any, name: str, place: str) -> Document:
    paragraph = check_dict(value, "a paragraph", place)
    words: list[str] = []
    tags: list[str] = []
    sentences, notes = [], []
    for sentence in check_list(paragraph.get("sentences"), "sentences", place):
        first = len(words)
        for token in check_list(check_dict(sentence, "a sentence", place).get("tokens"), "tokens", place):
            where = f"{place}, token {len(words) + 1}"
            words.append(check_text(check_dict(token, "a token", where).get("orth"), "orth", where))
            tags.append(_tag(token.get("ner", "-"), where, notes))
        sentences.append((first, len(words)))
    found = tuple(Annotation(kind, start, end) for kind, start, end in spans(tags, "bioes"))
    for key in ("cats", "spans", "entities"):
        notes += [Note(f"{key} of a paragraph, not used", place)] if paragraph.get(key) else []
    document = Document(tuple(words), None, place, None, (), found, name, tuple(sentences), tuple(notes))
    raw = paragraph.get("raw")
    return document if raw is None else _in_text(document, check_text(raw, "raw", place))


def _tag(tag: Any, place: str, notes: list[Note]) -> str:
    if tag in ("-", None, ""):
        notes.append(Note(UNANNOTATED, place))
        return "O"
    try:
        split_tag(tag)
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f"{place}: 'ner' must be a BILUO tag, O or -, got {tag!r}") from None
    return tag


def _in_text(document: Document, text: str) -> Document:
    """The document with the places of its words in the raw text, or as it is where they are not those of the text."""
    offsets, reached = [], 0
    for word in document.words:
        start = text.find(word, reached)
        if start < 0 or text[reached:start].strip():
            note = Note("tokens are not those of the raw text, which is not used", document.place)
            return document._replace(notes=(*document.notes, note))
        reached = start + len(word)
        offsets.append((start, reached))

    def place(start: int, end: int) -> tuple[int, int]:
        return offsets[start][0], offsets[end - 1][1]

    moved = []
    for item in document.spans:
        start, end = place(item.start, item.end)
        moved.append(item._replace(start=start, end=end))
    sentences = tuple(place(*sentence) for sentence in document.sentences if sentence[0] < sentence[1])
    black = [(word, offset) for word, offset in zip(document.words, offsets, strict=True) if word.strip()]
    return document._replace(
        words=tuple(word for word, _ in black),
        text=text,
        offsets=tuple(offset for _, offset in black),
        spans=tuple(moved),
        sentences=sentences,
    )


# Writing --------------------------------------------------------------------------------------------------------------


def write_spacy_json(documents: Sequence[Document], path: Path) -> list[str]:
    """Write the training format, which holds words and sentences, where every document has them and one flat layer.

    Otherwise, write TRAIN_DATA, [text, {"entities": [[start, end, label], ...]}], one item per line of an array.
    """
    trained = [_training(document) for document in documents]
    if documents and all(trained):
        write_array(path, trained)
        return []
    items = ([d.text, {"entities": [[item.start, item.end, item.label] for item in d.spans]}] for d in documents)
    write_array(path, items)
    return about_gaps(documents)


def _training(document: Document) -> dict[str, Any] | None:
    """The document in the training format; None where it has no words, or annotations that no tags can hold."""
    text, offsets = document.text or "", document.offsets
    starts = {start: i for i, (start, _) in enumerate(offsets)}
    ends = {end: i + 1 for i, (_, end) in enumerate(offsets)}
    if not offsets or "".join(text[start:end] for start, end in offsets) != "".join(text.split()):
        return None
    if any(item.fragments or item.start not in starts or item.end not in ends for item in document.spans):
        return None
    found = sorted((starts[item.start], ends[item.end], item.label) for item in document.spans)
    if any(after[0] < before[1] for before, after in pairwise(found)) or any(end <= start for start, end, _ in found):
        return None
    tags = ["O"] * len(offsets)
    for start, end, label in found:
        inside = [f"I-{label}"] * (end - start - 2)
        tags[start:end] = [f"U-{label}"] if end - start == 1 else [f"B-{label}", *inside, f"L-{label}"]
    borders = sorted({start for start, _ in document.sentences} | {end for _, end in document.sentences} | {len(text)})
    sentences: list[list[dict[str, Any]]] = [[] for _ in range(len(borders) + 1)]
    for i, ((start, end), tag) in enumerate(zip(offsets, tags, strict=True)):
        sentences[bisect_right(borders, start)].append({"id": i, "orth": text[start:end], "ner": tag})
    paragraph = {"raw": text, "sentences": [{"tokens": tokens, "brackets": []} for tokens in sentences if tokens]}
    return ({"id": document.id} if document.id else {}) | {"paragraphs": [paragraph]}
