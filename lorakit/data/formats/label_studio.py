"""Label Studio's JSON export of spans in texts, full (JSON) and short (JSON-MIN), and its pre-annotations.

    [{"id": 1, "data": {"text": str}, "annotations": [{"result": [
        {"id", "type": "labels", "from_name", "to_name", "value": {"start", "end", "text", "labels": [label]}}]}]}]
    [{"id": 1, "text": str, "label": [{"start", "end", "text", "labels": [label]}]}]

Of several annotations of a task the one marked as ground truth is used, or else the first that was not cancelled. Tasks
that nobody annotated are left out; predictions are not used. Everything left out is counted. A task may have several
texts: `to_name` is the name that the labeling configuration has for one of them. Label Studio counts Unicode characters
(its first versions: UTF-16 units); the text beside each span tells which.
https://labelstud.io/guide/task_format and https://labelstud.io/guide/predictions
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
ANOTHER = "another annotation of the same task, left out"
OF_ANOTHER = "annotation of another annotator, left out"
NOT_ANNOTATED = "task without annotation, left out"
NOT_TEXTS = ("annotator", "created_at", "updated_at", "sentiment")  # of the short export


def recognise_label_studio(path: Path) -> str | None:
    """The evidence that a file is Label Studio's: its first task has data and annotations, or spans with labels."""
    record = first_record(path)
    if not isinstance(record, dict):
        return None
    if isinstance(record.get("data"), dict):
        key = next((key for key in (*RESULTS, "predictions") if isinstance(record.get(key), list)), None)
        return f"each task has data and {key}" if key else None
    if _short_regions(record) or {"annotation_id", "annotator"} <= record.keys():
        return "each task has a text, and spans with labels (JSON-MIN)"
    return None


def read_label_studio(path: Path, reading: Reading) -> Iterator[Document]:
    """Yield a document for each text of each annotated task of a file.

    Raises:
        ValueError: with the line: invalid JSON, a key that is missing or of another kind, regions that may be of
            several texts, offsets outside of the text or that cover another text than the file has beside them.
    """
    tasks = [(place, task) for place, task in read_objects(path, "a task")]
    done: set[str] = set()
    read = [_task_of(place, task, done) for place, task in tasks]
    keys = _keys_of_names(read)
    for task in read:
        if task.regions is None and not (reading.unannotated and task.may_be_read):
            yield Document((), None, task.place, "", id=task.id, notes=task.notes)
            continue
        notes = task.notes if task.regions is not None else ()
        for key in dict.fromkeys(keys.values()) if keys else [_only_text(task)]:
            if key not in task.texts:
                continue
            text = check_text(task.texts[key], key, task.place)
            regions = [region for region in task.regions or () if keys[region.name] == key]
            spans, found = place_spans(
                text, [r.item for r in regions], [r.covered for r in regions], task.place, reading.offsets
            )
            yield Document((), None, task.place, text, spans=spans, id=task.id, notes=(*notes, *found))
            notes = ()


class _Region(NamedTuple):
    """A label of a span: of which text (`to_name`, or the control's name in the short export), and what it covers."""

    name: str
    item: Annotation
    covered: str | None


class _Task(NamedTuple):
    """A task: its texts and other data, and the regions of the annotation that is used (None if there is none)."""

    place: str
    id: str
    texts: dict[str, Any]
    regions: list[_Region] | None
    notes: tuple[Note, ...]
    may_be_read: bool  # where texts without annotation are asked for


def _task_of(place: str, task: dict[str, Any], done: set[str]) -> _Task:
    name, notes = name_of(task), []
    if "data" in task:
        place = f"{place}, task {name}" if name else place
        chosen = _chosen(task, place, notes)
        regions = None if chosen is None else _labels(chosen, place, notes)
        texts = check_dict(task["data"], "data", place)
        return _Task(place, name_of(texts) or name, texts, regions, tuple(notes), True)
    place = f"{place}, annotation {task['annotation_id']}" if task.get("annotation_id") else place
    chosen = [
        {"value": region, "type": "labels", "to_name": key}
        for key, found in _short_regions(task).items()
        for region in found
    ]
    texts = {key: text for key, text in task.items() if key not in NOT_TEXTS}
    if _is_cancelled(task):
        notes.append(Note("a cancelled annotation, left out", place))
    elif "annotation_id" in task and task["annotation_id"] is None and not chosen:
        notes.append(Note(NOT_ANNOTATED, place))
    elif name and name in done:
        notes.append(Note(ANOTHER, place))
        notes += [Note(OF_ANOTHER, place)] * len(chosen)
    else:
        done.add(name)
        return _Task(place, name, texts, _labels(chosen, place, notes), tuple(notes), True)
    return _Task(place, name, texts, None, tuple(notes), notes[0].kind == NOT_ANNOTATED)


def _short_regions(task: dict[str, Any]) -> dict[str, list[Any]]:
    """Name of a control -> its spans, in the short export: lists of objects with labels."""
    return {
        key: value
        for key, value in task.items()
        if isinstance(value, list) and value and all(isinstance(r, dict) and "labels" in r for r in value)
    }


def _is_cancelled(annotation: dict[str, Any]) -> bool:
    return bool(annotation.get("was_cancelled") or annotation.get("skipped"))  # skipped: until version 1.0


def _chosen(task: dict[str, Any], place: str, notes: list[Note]) -> list[Any] | None:
    """The regions of the annotation that is used; None if there is none."""
    key = next((key for key in RESULTS if key in task), "annotations")
    annotations = [check_dict(a, "an annotation", place) for a in check_list(task.get(key) or [], key, place)]
    done = [annotation for annotation in annotations if not _is_cancelled(annotation)]
    if task.get("predictions"):
        notes.append(Note("predictions of a model, not used", place))
    if not done:
        notes.append(Note(NOT_ANNOTATED, place))
        return None
    chosen = next((annotation for annotation in done if annotation.get("ground_truth")), done[0])
    for annotation in annotations:
        where = f"{place}, id {annotation.get('id')}"
        if annotation not in done:
            notes.append(Note("a cancelled annotation of the same task, left out", where))
        elif annotation is not chosen:
            notes.append(Note(ANOTHER, where))
            notes += [Note(OF_ANOTHER, where)] * len(_labels(annotation.get("result") or [], where, []))
    return check_list(chosen.get("result"), "result", place)


# Which text ----------------------------------------------------------------------------------------------------------


def _keys_of_names(tasks: Sequence[_Task]) -> dict[str, str]:
    """Name that regions have for their text -> the key of that text in the tasks' data.

    The file does not say which: it is in the project's labeling configuration. The key has the same name, or is the
    only one whose texts hold the texts of all these regions; "text" is preferred.

    Raises:
        ValueError: with the task: several keys are possible, or none.
    """
    of_name: dict[str, list[tuple[_Task, _Region]]] = {}
    for task in tasks:
        for region in task.regions or ():
            of_name.setdefault(region.name, []).append((task, region))
    keys = {}
    for name, found in of_name.items():
        texts = [key for key in found[0][0].texts if all(isinstance(task.texts.get(key), str) for task, _ in found)]
        possible = [key for key in texts if all(_may_cover(region, task.texts[key]) for task, region in found)] or texts
        told = all(region.covered is not None for _, region in found)
        if name in texts:
            keys[name] = name
        elif len(possible) == 1:
            keys[name] = possible[0]
        elif "text" in possible and (told or len(of_name) == 1):
            keys[name] = "text"
        else:
            listed = ", ".join(possible) or "none"
            raise ValueError(
                f"{found[0][0].place}: which key is the text of the regions of {name!r}? Its strings are {listed}; call"
                f" the right one {name!r}"
            )
    return keys


def _may_cover(region: _Region, text: str) -> bool:
    return region.covered is None or "".join(region.covered.split()) in "".join(text.split())


def _only_text(task: _Task) -> str:
    """The key of a task's text where no region tells."""
    if "text" in task.texts:
        return "text"
    keys = [key for key, value in task.texts.items() if isinstance(value, str)]
    if len(keys) != 1:
        listed = ", ".join(keys) or "none"
        raise ValueError(f"{task.place}: which key is the text? Its strings are {listed}; call the right one 'text'")
    return keys[0]


def _labels(regions: list[Any], place: str, notes: list[Note]) -> list[_Region]:
    """Each label of each region."""
    found = []
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
        score = score_of(content.get("score", region.get("score")))
        covered = content["text"] if isinstance(content.get("text"), str) else None
        for label in labels:
            item = Annotation(check_label(label, where), start, end, name_of(region), score=score)
            found.append(_Region(str(region.get("to_name") or ""), item, covered))
    return found


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
