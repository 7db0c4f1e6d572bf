"""Label Studio's JSON export of spans in texts, full (JSON) and short (JSON-MIN), and its pre-annotations.

    [{"id": 1, "data": {"text": str}, "annotations": [{"result": [
        {"id", "type": "labels", "from_name", "to_name", "value": {"start", "end", "text", "labels": [label]}}]}]}]
    [{"id": 1, "text": str, "label": [{"start", "end", "text", "labels": [label]}]}]

Of several annotations of a task the one marked as ground truth is used, or else the first that was not cancelled. Tasks
that nobody annotated are left out; predictions are not used. Everything left out is counted. Label Studio counts
Unicode characters (its first versions: UTF-16 units); the text beside each span tells which.
https://labelstud.io/guide/task_format and https://labelstud.io/guide/predictions
"""

import json
from collections.abc import Iterator, Sequence
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
    read_objects,
    score_of,
)
from lorakit.data.formats.offsets import place_spans
from lorakit.data.formats.record import Annotation, Document, Note, Reading, about_gaps

RESULTS = ("annotations", "completions")  # completions: until version 1.0
NOT_TEXTS = ("annotator", "created_at", "updated_at", "sentiment")  # of the short export


def recognise_label_studio(path: Path) -> str | None:
    """The evidence that a file is Label Studio's: its first task has data and annotations, or spans with labels."""
    record = first_record(path)
    if not isinstance(record, dict):
        return None
    if isinstance(record.get("data"), dict):
        key = next((key for key in (*RESULTS, "predictions") if isinstance(record.get(key), list)), None)
        return f"each task has data and {key}" if key else None
    if _regions(record) or {"annotation_id", "annotator"} <= record.keys():
        return "each task has a text, and spans with labels (JSON-MIN)"
    return None


def read_label_studio(path: Path, reading: Reading) -> Iterator[Document]:
    """Yield a document for each annotated task of a file.

    Raises:
        ValueError: with the line: invalid JSON, a key that is missing or of another kind, several texts in a task,
            offsets outside of the text or that cover another text than the file has beside them.
    """
    done: set[str] = set()
    for place, task in read_objects(path, "a task"):
        name, notes = name_of(task), []
        if "data" in task:
            place_in_file = f"{place}, task {name}" if name else place
            regions = _chosen(task, place_in_file, notes)
            texts = check_dict(task["data"], "data", place_in_file)
            name = name_of(texts) or name
        else:
            place_in_file = f"{place}, annotation {task['annotation_id']}" if task.get("annotation_id") else place
            regions = [{"value": region, "type": "labels"} for region in _regions(task) or []]
            texts = {key: text for key, text in task.items() if key not in NOT_TEXTS}
            if name and name in done:
                notes.append(Note("another annotation of the same task, left out", place_in_file))
                notes += [Note("annotation of another annotator, left out", place_in_file)] * len(regions)
                regions = None
            done.add(name)
        if regions is None and reading.unannotated and "data" in task:
            yield Document((), None, place_in_file, _text(texts, place_in_file)[1], id=name)
            continue
        if regions is None:
            yield Document((), None, place_in_file, "", id=name, notes=tuple(notes))
            continue
        key, text = _text(texts, place_in_file)
        items, covered = _annotations(regions, place_in_file, notes)
        placed, found = place_spans(text, items, covered, place_in_file, reading.offsets)
        notes += found
        yield Document((), None, place_in_file, text, spans=placed, id=name, notes=tuple(notes))


def _regions(task: dict[str, Any]) -> list[Any] | None:
    """The spans of a task in the short export: the key has the name of the project's control."""
    for value in task.values():
        if isinstance(value, list) and value and all(isinstance(r, dict) and "labels" in r for r in value):
            return value
    return None


def _chosen(task: dict[str, Any], place: str, notes: list[Note]) -> list[Any] | None:
    """The regions of the annotation that is used; None if there is none."""
    key = next((key for key in RESULTS if key in task), "annotations")
    annotations = [check_dict(a, "an annotation", place) for a in check_list(task.get(key) or [], key, place)]
    done = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
    if task.get("predictions"):
        notes.append(Note("predictions of a model, not used", place))
    if not done:
        notes.append(Note("task without annotation, left out", place))
        return None
    chosen = next((annotation for annotation in done if annotation.get("ground_truth")), done[0])
    for annotation in annotations:
        if annotation is not chosen:
            kind = "another" if annotation in done else "a cancelled"
            notes.append(Note(f"{kind} annotation of the same task, left out", f"{place}, id {annotation.get('id')}"))
    return check_list(chosen.get("result"), "result", place)


def _text(texts: dict[str, Any], place: str) -> tuple[str, str]:
    keys = ["text"] if "text" in texts else [key for key, value in texts.items() if isinstance(value, str)]
    if len(keys) != 1:
        listed = ", ".join(keys) or "none"
        raise ValueError(f"{place}: which key is the text? Its strings are {listed}; call the right one 'text'")
    return keys[0], check_text(texts[keys[0]], keys[0], place)


def _annotations(regions: list[Any], place: str, notes: list[Note]) -> tuple[list[Annotation], list[str | None]]:
    """An annotation for each label of each region, and the text that the file has beside it."""
    items: list[Annotation] = []
    covered: list[str | None] = []
    for number, value in enumerate(regions, start=1):
        region = check_dict(value, "a region", place)
        name = name_of(region) or f"region {number}"
        where = f"{place}, {name}"
        content = region.get("value")
        if region.get("type") != "labels" or not isinstance(content, dict) or "start" not in content:
            notes.append(Note(f"region of type {region.get('type')!r}, not used", where))
            continue
        start, end = (check_offset(content.get(key), key, where) for key in ("start", "end"))
        labels = check_list(content.get("labels") or [], "labels", where)
        if not labels:
            notes.append(Note("region without a label, left out", where))
        score = content.get("score", region.get("score"))
        for label in labels:
            items.append(Annotation(check_label(label, where), start, end, name_of(region), score=score_of(score)))
            covered.append(content["text"] if isinstance(content.get("text"), str) else None)
    return items, covered


# Writing -------------------------------------------------------------------------------------------------------------


def write_label_studio(documents: Sequence[Document], path: Path, predicted: bool = False) -> list[str]:
    """Write tasks that Label Studio imports.

    They are for a labeling configuration with `<Labels name="label" toName="text">` and `<Text name="text"
    value="$text">`.

    Args:
        documents: with texts and spans in characters.
        path: the file.
        predicted: write pre-annotations, which an annotator accepts or corrects, instead of annotations.
    """
    tasks = [_task(number, document, predicted) for number, document in enumerate(documents, start=1)]
    path.write_text(json.dumps(tasks, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", newline="")
    return about_gaps(documents)


def _task(number: int, document: Document, predicted: bool) -> dict[str, Any]:
    text, names, result = document.text or "", set(), []
    for i, item in enumerate(document.spans, start=1):
        name = item.id if item.id and item.id not in names else f"{number}-{i}"  # one id is one region
        names.add(name)
        value: dict[str, Any] = {"start": item.start, "end": item.end, "text": text[item.start : item.end]}
        value |= {"labels": [item.label]} | ({"score": item.score} if item.score is not None else {})
        result.append({"id": name, "from_name": "label", "to_name": "text", "type": "labels", "value": value})
    data = {"text": text} | ({"id": document.id} if document.id else {})
    if not predicted:
        return {"id": number, "data": data, "annotations": [{"result": result}]}
    scores = [item.score for item in document.spans if item.score is not None]
    prediction = {"model_version": "lorakit", "result": result} | ({"score": min(scores)} if scores else {})
    return {"id": number, "data": data, "predictions": [prediction]}
