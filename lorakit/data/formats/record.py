"""What every reader gives and every writer takes: one record for all formats of annotated text.

A format with a column or a list of tags gives `words` and `tags`. A format that marks pieces of a text gives `text` and
`spans`, in characters. A format that marks words gives `words` and `spans`, in words. Nothing else is converted by a
reader: `lorakit.data.corpus` turns a document into tagged sentences and accounts for what does not fit.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

LAYERS = ("outer", "inner")  # of nested annotations
ROLES = ("word", "tag")  # of columns that a user may name
UNANNOTATED = "token that nobody annotated, read as O"


class Annotation(NamedTuple):
    """A marked entity.

    Attributes:
        label: its type, as the file has it.
        start: its first character in the document's text, counted from 0; its first word if the document has no text.
        end: the character (or word) after its last.
        id: its name in the file, for messages: "T3"; "" where the format has none.
        fragments: every piece (start, end) of an entity with gaps, ascending; () for one without.
        score: how sure a model is of it, 0 to 1; None for an annotation that a person made.
    """

    label: str
    start: int
    end: int
    id: str = ""
    fragments: tuple[tuple[int, int], ...] = ()
    score: float | None = None

    @property
    def name(self) -> str:
        """What messages call it: its id, or its label and its place."""
        return self.id or f"{self.label} {self.start}-{self.end}"

    @property
    def pieces(self) -> tuple[tuple[int, int], ...]:
        """Every piece (start, end) of it; one where it has no gaps."""
        return self.fragments or ((self.start, self.end),)


class Note(NamedTuple):
    """Something that a reader found out about a document. Notes of one kind are counted and shown as one line.

    Attributes:
        kind: what happened, without names or numbers: "rejected by the annotator, left out".
        where: the first place to look at: "train.ann:3, T3".
    """

    kind: str
    where: str


class Document(NamedTuple):
    """One annotated text, as its source has it: a sentence, or a text of several.

    Attributes:
        words: the words; () where the format has only a text.
        tags: one per word, in the source's own scheme; None where the annotations are `spans`.
        place: where it is, for messages: "train.tsv:17".
        text: the text; None where the format has only words.
        offsets: (start, end) of each word in characters of `text`; () where the format does not say.
        spans: the annotations, in the order of the file: characters of `text`, or words where there is no text.
        id: its name in the corpus; "" where the format has none. Sentences of one text share it.
        sentences: (start, end) of each sentence, in the units of `spans`; () where the format does not say.
        notes: what to know about it.
        is_proven: whether the file has the text beside each annotation, which proves the places of `spans`.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...] | None
    place: str
    text: str | None = None
    offsets: tuple[tuple[int, int], ...] = ()
    spans: tuple[Annotation, ...] = ()
    id: str = ""
    sentences: tuple[tuple[int, int], ...] = ()
    notes: tuple[Note, ...] = ()
    is_proven: bool = True


class Reading(NamedTuple):
    """How to read a file, as the user says it; every reader takes it and uses what concerns its format.

    Attributes:
        labels: the allowed tags in the order of their ids, from `label.json`; None allows every tag of a known form.
        columns: column of a table -> its number from 1 or its name, such as {"word": "2", "tag": "3"}, or of records ->
            the name of the field; None finds them.
        layer: which of nested annotations to keep, one of LAYERS; None if the user does not say: outer, except where a
            format cannot tell whether there are layers.
        agreed: what a reader finds out about the first file of a corpus (the training split) and has to read the others
            by; each reader has its own keys. None for a file of its own.
        offsets: how the file counts, one of `offsets.UNITS`; None finds it out where the file tells.
        unannotated: also read texts that nobody annotated, or whose annotations were rejected, without annotations.
    """

    labels: Sequence[str] | None = None
    columns: Mapping[str, str] | None = None
    layer: str | None = None
    agreed: dict[str, Any] | None = None
    offsets: str | None = None
    unannotated: bool = False


def as_argument(columns: Mapping[str, str | int]) -> str:
    """What names these columns to `read_ner`; messages have it, and a command line shows --columns in its place.

    Example:
        from lorakit.data.formats.record import as_argument
        as_argument({"word": "1", "tag": "ner"})  # "columns={'word': 1, 'tag': 'ner'}"

    Args:
        columns: role -> a number from 1, or a name.
    """
    named = {role: int(name) if re.fullmatch("[1-9][0-9]*", str(name)) else name for role, name in columns.items()}
    return f"columns={named}"


def about_gaps(documents: Sequence[Document], unit: str = "character") -> list[str]:
    """What a writer says whose format marks only one piece, from the first to the last character of an annotation."""
    gaps = sum(bool(item.fragments) for document in documents for item in document.spans)
    return [f"annotations with gaps, written from their first to their last {unit}: {gaps:,}"] if gaps else []


def about_texts(documents: Sequence[Document]) -> list[str]:
    """What a writer says whose format has words only."""
    texts = sum(document.text is not None for document in documents)
    return [f"texts written without the white space between their words: {texts:,}"] if texts else []
