"""A corpus as its source has it, and how to read it: what comes before sentences of words and IOB2 tags."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lorakit.data.formats.offsets import UNITS
from lorakit.data.formats.record import LAYERS, ROLES, Document, Note, as_argument
from lorakit.data.partition import parse_shares
from lorakit.data.schemes import scheme_named


@dataclass(frozen=True)
class CorpusOptions:
    """How to read a corpus, where its files do not tell.

    Attributes:
        scheme: of the tags, one of `schemes.SCHEME_NAMES`; None detects it.
        columns: of column files, tables and JSON objects, such as {"word": "2", "tag": "3"}; None finds them.
        layer: which of nested annotations to keep, "outer" or "inner"; None is outer where that is clear.
        label_map: entity type -> its new name, or None to drop its entities.
        shares: "80/10/10": divide a corpus without splits into train, validation and test.
        seed: for the shuffling of `shares`.
        offsets: how the files count characters, one of `formats.offsets.UNITS`; None finds it out where they tell.
    """

    scheme: str | None = None
    columns: Mapping[str, str] | None = None
    layer: str | None = None
    label_map: Mapping[str, str | None] | None = None
    shares: str | None = None
    seed: int = 0
    offsets: str | None = None

    def __post_init__(self) -> None:
        if self.scheme is not None:
            scheme_named(self.scheme)
        if self.layer not in (None, *LAYERS):
            raise ValueError(f"unknown layer {self.layer!r}; it is {' or '.join(LAYERS)}")
        if self.offsets not in (None, *UNITS):
            raise ValueError(f"unknown unit of offsets {self.offsets!r}; it is one of {', '.join(UNITS)}")
        for role, name in (self.columns or {}).items():
            if role not in ROLES:
                raise ValueError(
                    f"{as_argument({role: name})}: unknown role {role!r}; it is word or tag, as in"
                    f" {as_argument({'word': 1, 'tag': 3})}"
                )
        if self.shares is not None:
            parse_shares(self.shares)


DEFAULTS = CorpusOptions()


def column_names(columns: Mapping[str, str | int] | None) -> dict[str, str] | None:
    """The columns by what files call them: 2 is "2".

    Raises:
        ValueError: they are not a table of roles.
    """
    if columns is None:
        return None
    if not isinstance(columns, Mapping):
        raise ValueError(f"columns is {columns!r}; give a dictionary, as in {as_argument({'word': 1, 'tag': 3})}")
    return {role: str(name) for role, name in columns.items()}


class Read(NamedTuple):
    """A file of a corpus, and how it was read.

    Attributes:
        path: the file, or the hub's id and the split.
        split: which of SPLIT_NAMES it is.
        format: the format's name in the registry.
        evidence: how it was recognised.
    """

    path: str
    split: str
    format: str
    evidence: str


class Written(NamedTuple):
    """A corpus as its source has it; `written_iob2` brings its tags to IOB2.

    Attributes:
        splits: the documents of each split, by its name in NerData.
        labels: in the order of the source's ids and in its own scheme; None where tags are strings.
        notes: what to know about it.
        files: where the splits are from.
        unused: names of files in the folder that were not read.
    """

    splits: dict[str, list[Document]]
    labels: tuple[str, ...] | None
    notes: list[str]
    files: tuple[Read, ...] = ()
    unused: tuple[str, ...] = ()


def lines_of(notes: Sequence[Note]) -> list[str]:
    """A line for each kind of note: how often, and where first."""
    counts = Counter(note.kind for note in notes)
    first: dict[str, str] = {}
    for note in notes:
        first.setdefault(note.kind, note.where)
    return [
        f"{kind}: {count}, the first at {first[kind]}" if count > 1 else f"{kind} ({first[kind]})"
        for kind, count in counts.items()
    ]
