"""spaCy's `.spacy` files (DocBin), which `spacy convert` and `spacy train` use.

The entities of `doc.ents` are read or, where a document has none annotated, the spans of `doc.spans`. A DocBin is
zlib-compressed msgpack: nothing in it is unpickled, and `user_data`, which may hold any object, is left packed. Reading
and writing need spaCy (`pip install lorakit[spacy]`), but no model.
https://spacy.io/api/docbin and https://spacy.io/api/data-formats#binary-training
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from lorakit.data.formats.record import UNANNOTATED, Annotation, Document, Note, Reading, about_gaps
from lorakit.data.pretokenizer import Word, split_at, split_words

SPANS_KEY = "sc"  # where spaCy's span categorizer looks for overlapping spans


def recognise_docbin(path: Path) -> str | None:
    """The evidence that a file is a DocBin: its ending and its first byte, which is zlib's."""
    try:
        with path.open("rb") as file:
            first = file.read(1)
    except OSError:
        return None
    return "its ending is .spacy, and it is compressed" if path.suffix == ".spacy" and first == b"x" else None


def read_docbin(path: Path, reading: Reading) -> Iterator[Document]:
    """Yield the documents of a file with their tokens, and sentences where they are marked.

    Raises:
        ValueError: with the file: it is not a DocBin, or spaCy is missing.
    """
    spacy = _package(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        bin_ = spacy.tokens.DocBin().from_bytes(data)
        packed = sum(item is not None for item in bin_.user_data)
        bin_.user_data = [None] * len(bin_)
        docs = list(bin_.get_docs(spacy.vocab.Vocab()))
    except Exception as error:  # a foreign border: zlib, msgpack, numpy and spaCy share no other base class
        about = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: no DocBin of spaCy, or a truncated one: {about}") from error
    for number, doc in enumerate(docs, start=1):
        notes = [Note("user_data, not used", str(path))] if packed and number == 1 else []
        yield _document(doc, f"{path}, document {number}", notes)


def _document(doc: Any, place: str, notes: list[Note]) -> Document:
    groups = {key: list(group) for key, group in doc.spans.items()}
    from_ents = doc.has_annotation("ENT_IOB") or not groups
    found = doc.ents if from_ents else [span for group in groups.values() for span in group]
    if from_ents:
        for key, group in groups.items():
            notes += [Note(f"span of doc.spans[{key!r}], not used", place)] * len(group)
        unset = sum(token.ent_iob == 0 for token in doc) if doc.has_annotation("ENT_IOB") else 0
        notes += [Note(UNANNOTATED, place)] * unset
    notes += [Note("categories (doc.cats), not used", place)] if doc.cats else []
    for span in found:
        if not span.label_:
            raise ValueError(f"{place}: the entity at characters {span.start_char}-{span.end_char} has no label")
    tokens = [token for token in doc if token.text.strip()]
    return Document(
        words=tuple(token.text for token in tokens),
        tags=None,
        place=place,
        text=doc.text,
        offsets=tuple((token.idx, token.idx + len(token.text)) for token in tokens),
        spans=tuple(Annotation(span.label_, span.start_char, span.end_char, span.id_) for span in found),
        sentences=_sentences(doc),
        notes=tuple(notes),
    )


def _sentences(doc: Any) -> tuple[tuple[int, int], ...]:
    if not doc.has_annotation("SENT_START"):
        return ()
    return tuple((sentence.start_char, sentence.end_char) for sentence in doc.sents)


def _package(path: Path) -> ModuleType:
    try:
        import spacy
        import spacy.tokens
        import spacy.vocab
    except ImportError as error:
        raise ValueError(f"{path}: a .spacy file needs spaCy: pip install 'lorakit[spacy]'") from error
    return spacy


# Writing -------------------------------------------------------------------------------------------------------------


def write_docbin(documents: Sequence[Document], path: Path) -> list[str]:
    """Write a DocBin with tokens that begin and end where the annotations do.

    `doc.ents` holds one flat layer. If the annotations of any document overlap, all of the file's are written to
    `doc.spans["sc"]` instead, which spaCy's span categorizer trains on.
    """
    spacy = _package(path)
    vocab, lines = spacy.vocab.Vocab(), []
    overlap = any(_overlap(document.spans) for document in documents)
    if overlap:
        lines.append("annotations overlap: written to doc.spans['sc'], for spaCy's span categorizer, not to doc.ents")
    empty = sum(item.start == item.end for document in documents for item in document.spans)
    lines += about_gaps(documents)
    lines += [f"{empty} annotations that cover no character: left out, spaCy has none"] if empty else []
    bin_ = spacy.tokens.DocBin(attrs=["ENT_IOB", "ENT_TYPE", "ENT_ID", "SENT_START"], store_user_data=False)
    for document in documents:
        bin_.add(_doc(spacy, vocab, document, overlap))
    path.write_bytes(bin_.to_bytes())
    return lines


def _overlap(spans: Sequence[Annotation]) -> bool:
    ordered = sorted((item.start, item.end) for item in spans if item.start < item.end)
    return any(after[0] < before[1] for before, after in zip(ordered, ordered[1:], strict=False))


def _doc(spacy: ModuleType, vocab: Any, document: Document, overlap: bool) -> Any:
    text, marked = document.text or "", [item for item in document.spans if item.start < item.end]
    given = [Word(text[start:end], start, end) for start, end in document.offsets] or split_words(text)
    begins = {start for start, _ in document.sentences}
    words, spaces = _tokens(text, given, begins | {item.start for item in marked}, {item.end for item in marked})
    doc = spacy.tokens.Doc(vocab, words=words, spaces=spaces)
    starts = {token.idx: token.i for token in doc}
    ends = {token.idx + len(token.text): token.i + 1 for token in doc}
    spans = [
        spacy.tokens.Span(doc, starts[item.start], ends[item.end], label=item.label, span_id=item.id) for item in marked
    ]
    if document.sentences:
        for token in doc:
            token.is_sent_start = token.idx in begins
    if overlap:
        doc.spans[SPANS_KEY] = spans
    else:
        doc.set_ents(spans, default="outside")
    return doc


def _tokens(text: str, words: Sequence[Word], starts: set[int], ends: set[int]) -> tuple[list[str], list[bool]]:
    """spaCy's tokens of a text: words, each with whether a space follows; other white space is tokens of its own."""
    pieces, reached, borders = [], 0, starts | ends
    for word in [*split_at(words, borders), Word("", len(text), len(text))]:
        if reached < word.start:
            gap = Word(text[reached : word.start], reached, word.start)
            if pieces and gap.text[0] == " " and gap.start not in starts and gap.start + 1 not in ends:
                gap = Word(gap.text[1:], gap.start + 1, gap.end)
            pieces += split_at([gap], borders) if gap.text else []
        pieces += [word] if word.text else []
        reached = word.end
    following = [*(piece.start for piece in pieces[1:]), len(text)]
    return [p.text for p in pieces], [p.end < start for p, start in zip(pieces, following, strict=True)]
