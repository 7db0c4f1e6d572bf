"""Entities from spans whose labels are tags, as transformers' pipelines give them without aggregation.

    {"entity": "B-ORG", "word": "Hu", "start": 0, "end": 2}
    {"entity": "I-ORG", "word": "##gging", "start": 2, "end": 7}

The pieces are those of a tokenizer, and are joined as aggregation_strategy="simple" does.
https://huggingface.co/docs/transformers/main_classes/pipelines#transformers.TokenClassificationPipeline
"""

import re
from collections.abc import Sequence
from typing import Any

from lorakit.data.formats import field_names
from lorakit.data.formats.record import Annotation, Note
from lorakit.data.tags import spans

JOINED = "piece with a tag such as B-ORG, joined with the others of its entity"
_TAG = re.compile(r"[BIESLUMW]-.+", re.DOTALL)


def are_tagged_pieces(values: Sequence[dict[str, Any]]) -> bool:
    """Whether spans, as a file has them, are pieces: the key of their types is "entity", and all of these are tags."""
    keys = {next((key for key in field_names.TYPES if key in value), None) for value in values}
    return keys == {"entity"} and all(_TAG.fullmatch(str(value["entity"])) for value in values)


def join_pieces(items: Sequence[Annotation], text: str, place: str) -> tuple[tuple[Annotation, ...], list[Note]]:
    """The entities that pieces are of, and a note for each piece.

    Args:
        items: the pieces, with places in characters of the text.
        text: the document's.
        place: where it is, for messages.
    """
    ordered = sorted(items, key=lambda item: (item.start, item.end))
    tags: list[str] = []
    there: list[Annotation] = []  # an item for each tag
    for item in ordered:
        if there and text[there[-1].end : item.start].strip():
            tags.append("O")  # words between two pieces end an entity
            there.append(item)
        tags.append(item.label)
        there.append(item)
    found = []
    for kind, start, end in spans(tags, "bioes"):
        scores = [item.score for item in there[start:end] if item.score is not None]
        score = sum(scores) / len(scores) if len(scores) == end - start else None
        found.append(Annotation(kind, there[start].start, there[end - 1].end, score=score))
    return tuple(found), [Note(JOINED, f"{place}, {item.name}") for item in ordered]
