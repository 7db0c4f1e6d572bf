"""Annotated texts, and files of them as annotation tools write them: by each format's specification."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from hypothesis import strategies as st

from lorakit.data.formats.record import Document, Reading
from lorakit.data.formats.registry import format_named


class Marked(NamedTuple):
    """A label and the pieces of text that have it."""

    label: str
    pieces: tuple[tuple[int, int], ...]


class Text(NamedTuple):
    """A text and its annotations."""

    text: str
    marked: tuple[Marked, ...] = ()

    def covered(self, marked: Marked) -> str:
        return " ".join(self.text[start:end] for start, end in marked.pieces)


PIECES = [
    "IL-2",
    "gene",
    "a",
    "É",
    "-",
    "(",
    ")",
    ".",
    ". ",
    " ",
    " ",
    "  ",
    "\n",
    "\u00a0",
    "你好",
    "。",
    "😀",
    "?",
    "5'",
    "x",
]
LABELS = ["DNA", "cell_line", "Type-1", "蛋白"]


@st.composite
def texts(draw: st.DrawFn, extra: tuple[str, ...] = (), gaps: bool = True, empty: bool = True, one_line: bool = False):
    """A text of odd characters with annotations anywhere: nested, overlapping, in words, in pieces, empty."""
    pieces = [piece for piece in (*PIECES, *extra) if not one_line or "\n" not in piece]
    text = "".join(draw(st.lists(st.sampled_from(pieces), min_size=1, max_size=14)))
    marked = []
    for _ in range(draw(st.integers(0, 5))):
        count = 2 * draw(st.integers(1, 3)) if gaps else 2
        places = sorted(draw(st.lists(st.integers(0, len(text)), min_size=count, max_size=count)))
        found = tuple(zip(places[::2], places[1::2], strict=True))
        if len(found) > 1:  # pieces are apart and hold something
            separate = all(a < b for a, b in found) and all(
                b < c for (_, b), (c, _) in zip(found, found[1:], strict=False)
            )
            found = found if separate else ((places[0], places[-1]),)
        if empty or all(start < end for start, end in found):
            marked.append(Marked(draw(st.sampled_from(LABELS)), found))
    return Text(text, tuple(marked))


# Files ---------------------------------------------------------------------------------------------------------------


def brat(folder: Path, documents: list[Text]) -> Path:
    folder.mkdir()
    for number, document in enumerate(documents):
        (folder / f"doc-{number:03}.txt").write_bytes(document.text.encode())
        lines = []
        for i, marked in enumerate(document.marked, start=1):
            offsets = ";".join(f"{start} {end}" for start, end in marked.pieces)
            shown = document.covered(marked).replace("\n", " ").replace("\r", " ")
            lines.append(f"T{i}\t{marked.label} {offsets}\t{shown}\n")
        (folder / f"doc-{number:03}.ann").write_bytes("".join(lines).encode())
    return folder


def pubtator(path: Path, documents: list[Text]) -> Path:
    blocks = []
    for number, document in enumerate(documents):
        title, _, abstract = document.text.partition("\n")
        lines = [f"{number}|t|{title}", f"{number}|a|{abstract}"]
        for marked in document.marked:
            (start, end), shown = marked.pieces[0], document.covered(marked).replace("\n", " ")
            lines.append(f"{number}\t{start}\t{end}\t{shown}\t{marked.label}\tD00{number}")
        blocks.append("\n".join(lines) + "\n\n")
    path.write_bytes("".join(blocks).encode())
    return path


def json_lines(path: Path, records: list[object]) -> Path:
    path.write_bytes("".join(json.dumps(record) + "\n" for record in records).encode())
    return path


def spans_of(document: Text, start: str = "start", end: str = "end") -> list[dict]:
    return [{start: m.pieces[0][0], end: m.pieces[-1][1], "label": m.label} for m in document.marked]


def triples(document: Text) -> list[list]:
    return [[m.pieces[0][0], m.pieces[-1][1], m.label] for m in document.marked]


def label_studio(path: Path, documents: list[Text]) -> Path:
    tasks = []
    for number, document in enumerate(documents, start=1):
        result = [
            {
                "value": {"start": start, "end": end, "text": document.text[start:end], "labels": [label]},
                "id": f"r{i}",
                "from_name": "label",
                "to_name": "text",
                "type": "labels",
            }
            for i, (start, end, label) in enumerate(triples(document))
        ]
        annotation = {"id": number, "completed_by": 1, "was_cancelled": False, "ground_truth": False, "result": result}
        tasks.append({"id": number, "annotations": [annotation], "predictions": [], "data": {"text": document.text}})
    path.write_text(json.dumps(tasks), encoding="utf-8")
    return path


def bioc_json(path: Path, documents: list[Text]) -> Path:
    """One passage per line of a text, at its place in the document."""
    found = []
    for number, document in enumerate(documents):
        passages, offset = [], 0
        for line in document.text.split("\n"):
            passages.append(
                {"offset": offset, "infons": {}, "text": line, "sentences": [], "annotations": [], "relations": []}
            )
            offset += len(line) + 1
        annotations = [
            {
                "id": f"A{i}",
                "infons": {"type": m.label},
                "text": document.covered(m),
                "locations": [{"offset": start, "length": end - start} for start, end in m.pieces],
            }
            for i, m in enumerate(document.marked)
        ]
        found.append(
            {"id": str(number), "infons": {}, "passages": passages, "annotations": annotations, "relations": []}
        )
    collection = {"source": "", "date": "", "key": "", "infons": {}, "documents": found}
    path.write_text(json.dumps(collection), encoding="utf-8")
    return path


def bioc_xml(path: Path, documents: list[Text]) -> Path:
    """One passage per document, with its annotations."""
    root = ElementTree.Element("collection")
    for name in ("source", "date", "key"):
        ElementTree.SubElement(root, name).text = "x"
    for number, document in enumerate(documents):
        element = ElementTree.SubElement(root, "document")
        ElementTree.SubElement(element, "id").text = str(number)
        passage = ElementTree.SubElement(element, "passage")
        ElementTree.SubElement(passage, "offset").text = "0"
        ElementTree.SubElement(passage, "text").text = document.text
        for i, marked in enumerate(document.marked):
            annotation = ElementTree.SubElement(passage, "annotation", id=f"A{i}")
            ElementTree.SubElement(annotation, "infon", key="type").text = marked.label
            for start, end in marked.pieces:
                ElementTree.SubElement(annotation, "location", offset=str(start), length=str(end - start))
            ElementTree.SubElement(annotation, "text").text = document.covered(marked)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
    return path


def doccano(path: Path, documents: list[Text]) -> Path:
    return json_lines(path, [{"id": 1, "text": d.text, "label": triples(d), "Comments": []} for d in documents])


def cluener(path: Path, documents: list[Text]) -> Path:
    records = []
    for d in documents:
        label: dict[str, dict[str, list]] = {}
        for marked in d.marked:
            (start, end), surfaces = marked.pieces[0], label.setdefault(marked.label, {})
            surfaces.setdefault(d.text[start:end], []).append([start, end - 1])
        records.append({"text": d.text, "label": label})
    return json_lines(path, records)


def doccano_relations(path: Path, documents: list[Text]) -> Path:
    entities = [[{"id": 7, **span} for span in spans_of(d, "start_offset", "end_offset")] for d in documents]
    records = [{"text": d.text, "entities": e, "relations": []} for d, e in zip(documents, entities, strict=True)]
    return json_lines(path, records)


def spans_jsonl(path: Path, documents: list[Text]) -> Path:
    return json_lines(path, [{"text": d.text, "spans": spans_of(d)} for d in documents])


def doc_to_json(path: Path, documents: list[Text]) -> Path:
    """spaCy's Doc.to_json: tokens without text, here one for each character."""
    records = []
    for d in documents:
        tokens = [{"id": i, "start": i, "end": i + 1, "tag": ""} for i in range(len(d.text))]
        sents = [{"start": 0, "end": len(d.text)}]
        records.append({"text": d.text, "ents": spans_of(d), "sents": sents, "tokens": tokens, "spans": []})
    return json_lines(path, records)


def prodigy(path: Path, documents: list[Text]) -> Path:
    records = []
    for d in documents:
        tokens = [{"text": c, "start": i, "end": i + 1, "id": i, "ws": False} for i, c in enumerate(d.text)]
        records.append({"text": d.text, "_input_hash": 1, "tokens": tokens, "spans": spans_of(d), "answer": "accept"})
    return json_lines(path, records)


def spacy_json(path: Path, documents: list[Text]) -> Path:
    return json_lines(path, [[d.text, {"entities": triples(d)}] for d in documents])


# format -> the tool's own files, their name, and what the format can hold
TOOLS: dict[str, tuple[Callable, str, st.SearchStrategy]] = {
    "brat": (brat, "folder", texts(extra=("\r\n", "\t"))),
    "pubtator": (pubtator, "in.txt", texts(one_line=True, gaps=False)),
    "bioc-json": (bioc_json, "in.json", texts()),
    "bioc-xml": (bioc_xml, "in.xml", texts(extra=("&", "<", "\t"))),
    "doccano": (doccano, "in.jsonl", texts(extra=("\r\n", "\x00"), gaps=False)),
    "doccano, with relations": (doccano_relations, "in.jsonl", texts(gaps=False)),
    "cluener": (cluener, "in.json", texts(extra=("\r\n",), gaps=False, empty=False)),
    "spans-jsonl": (spans_jsonl, "in.jsonl", texts(extra=("\r\n",), gaps=False)),
    "spans-jsonl, Doc.to_json": (doc_to_json, "in.jsonl", texts(gaps=False)),
    "prodigy": (prodigy, "in.jsonl", texts(extra=("\r\n",), gaps=False)),
    "label-studio": (label_studio, "in.json", texts(extra=("\r\n",), gaps=False)),
    "spacy-json": (spacy_json, "in.json", texts(extra=("\r\n",), gaps=False)),
}


def read(name: str, path: Path) -> list[Document]:
    """The documents of a file of one of TOOLS."""
    return list(format_named(name.split(",")[0]).read(path, Reading()))


def content(documents: list[Document]) -> list[tuple]:
    """What a file says: the texts and the places of their labels."""
    return [(d.text, sorted((i.label, i.pieces) for i in d.spans)) for d in documents]


def merged_at_line_ends(text: str, pieces: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    found = [pieces[0]]
    for start, end in pieces[1:]:
        gap = text[found[-1][1] : start]
        found[-1:] = [(found[-1][0], end)] if not gap.strip("\r\n") else [found[-1], (start, end)]
    return tuple(found)


def said(name: str, documents: list[Text]) -> list[tuple]:
    """What a file of one of TOOLS says by its tool's rules: brat has no pieces on both sides of a line end."""
    join = merged_at_line_ends if name == "brat" else lambda text, pieces: pieces
    return [(d.text, sorted((m.label, join(d.text, m.pieces)) for m in d.marked)) for d in documents]
