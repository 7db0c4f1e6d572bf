"""Which scheme the tags of a corpus are in, and the corpus in IOB2.

With `scheme=None` a scheme is accepted only if *every* tag of all splits obeys it: bioes if E-, S-, L- or U- occurs in
the tags or label.json; otherwise iob2 if no entity begins with I-, or else iob1 if no B- is where iob1 needs I-. A
corpus with an entity cannot obey both of the last two. Where the splits obey different schemes (IO in train, IOB2 in
test), each is read by its own, and a note says so. A corpus that obeys none is an error that names the first place. If
the scheme is named, such a corpus is read anyway, as seqeval reads it, and a note says how many tags broke it.
"""

import re
from collections.abc import Mapping, Sequence

from lorakit._counts import counted
from lorakit.data.formats.record import Document
from lorakit.data.spelling import ABOUT, plain_tags, spelling_of
from lorakit.data.tags import SCHEMES, check_tag, irregular, labels_of_types, split_tag, to_iob2

OTHER_NAMES = {"bio": "iob2", "io": "iob1", "iobes": "bioes", "bilou": "bioes", "bmes": "bioes", "bmewo": "bioes"}
SCHEME_NAMES = (*SCHEMES, *OTHER_NAMES)
Splits = dict[str, list[Document]]
_BETWEEN = re.compile(r"[|/,;+&\s]|__")  # two tags in a cell


def scheme_named(name: str) -> str:
    """The scheme of SCHEMES that a user calls by one of SCHEME_NAMES.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in SCHEME_NAMES:
        raise ValueError(f"unknown scheme {name!r}; it is one of {', '.join(SCHEME_NAMES)}, or None to detect it")
    return OTHER_NAMES.get(name, name)


def as_iob2(
    splits: Splits, labels: Sequence[str] | None, source: str, scheme: str | None = None
) -> tuple[Splits, tuple[str, ...] | None, list[str]]:
    """Bring the tags of a corpus to IOB2; documents of spans stay as they are.

    Args:
        splits: the documents of each split.
        labels: of label.json, in the order of their ids.
        source: the corpus, for messages.
        scheme: one of SCHEMES; None detects it.

    Returns:
        The splits; the labels in the corpus' own scheme, spelled plainly; and notes.

    Raises:
        ValueError: with the place: something is not a tag or is two, or the tags obey no scheme.
    """
    splits, labels, notes = _plain(splits, labels)
    notes += _about_two(splits)
    schemes = dict.fromkeys(splits, scheme) if scheme else _detect(splits, labels, source)
    broken, changed = 0, dict.fromkeys(schemes.values(), 0)
    for split, documents in splits.items():
        used, done = schemes[split], []
        for document in documents:
            if document.tags is None:
                done.append(document)
                continue
            try:
                wrong = len(irregular(document.tags, used)) if scheme else 0  # one that was detected is obeyed
                if used == "iob2" and not wrong:
                    done.append(document)
                    continue
                tags = to_iob2(document.tags, used)
            except ValueError as error:
                raise ValueError(f"{document.place}: {error}; name another scheme") from error
            broken += wrong
            changed[used] += sum(old != new for old, new in zip(document.tags, tags, strict=True))
            done.append(document._replace(tags=tags))
        splits[split] = done
    for used in changed:
        if used != "iob2":
            notes.append(f"read as {used}: {counted(changed[used], 'tag')} converted to iob2")
    if len(changed) > 1:
        listed = ", ".join(f"{split} {used}" for split, used in schemes.items())
        notes.append(f"the splits are in different schemes, and each was read by its own: {listed}")
    if broken:
        used = next(iter(changed))
        found = counted(broken, f"tag broke scheme {used} and was", f"tags broke scheme {used} and were")
        notes.append(f"repaired: {found} read as seqeval reads them")
    return splits, labels, notes


def iob2_labels(splits: Splits, own: Sequence[str] | None) -> tuple[str, ...]:
    """The labels in the order of their ids, of a corpus in IOB2.

    The source's own order if its labels are IOB2 and hold every tag used; otherwise O and B-X, I-X by type.
    """
    own = tuple(own or ())
    used = used_tags(splits)
    if own and used.issubset(own) and {split_tag(label)[0] for label in own} <= {"O", "B", "I"}:
        return own
    return labels_of_types({split_tag(label)[1] for label in used.union(own)} - {""})


def used_tags(splits: Splits) -> set[str]:
    """Every tag of the documents, each once."""
    return {tag for documents in splits.values() for document in documents for tag in document.tags or ()}


def rename_tags(tags: Sequence[str], table: Mapping[str, str | None]) -> tuple[str, ...]:
    """IOB2 tags with the types of a table renamed, or O where the table has None."""
    renamed = []
    for tag in tags:
        prefix, kind = split_tag(tag)
        new = table.get(kind, kind)
        renamed.append("O" if prefix == "O" or new is None else f"{prefix}-{new}")
    return tuple(renamed)


def _plain(splits: Splits, labels: Sequence[str] | None) -> tuple[Splits, tuple[str, ...] | None, list[str]]:
    """Every tag as a letter, a hyphen and the type; and notes."""
    used = used_tags(splits).union(labels or ())
    spelling = spelling_of(used)
    if spelling is None:
        for documents in splits.values():
            for document in documents:
                for tag in document.tags or ():
                    check_tag(tag, None, document.place)
        listed = ", ".join(labels or ())
        raise ValueError(f"label.json: its labels are spelled in several ways: {listed}; spell all alike, as in B-DNA")
    plain = plain_tags(used, spelling)
    if all(tag == new for tag, new in plain.items()):
        return dict(splits), labels and tuple(labels), []
    rewritten = {
        split: [d if d.tags is None else d._replace(tags=tuple(plain[tag] for tag in d.tags)) for d in documents]
        for split, documents in splits.items()
    }
    return rewritten, labels and tuple(plain[label] for label in labels), [ABOUT[spelling]] if spelling in ABOUT else []


def _about_two(splits: Splits) -> list[str]:
    """A note for each type that may be two: ORG/LOC, where ORG and LOC are types too.

    Raises:
        ValueError: with the place: a tag is two, of nested entities: B-ORG|B-LOC.
    """
    used = used_tags(splits) - {"O"}
    letters = {tag[0] for tag in used} | {"B", "I"}
    parts = {tag: _BETWEEN.split(split_tag(tag)[1])[1:] for tag in used}
    bad = {
        tag
        for tag, later in parts.items()
        if any(part == "O" or part[:1] in letters and part[1:2] in "-_" and part[2:] for part in later)
    }
    for document in (document for documents in splits.values() if bad for document in documents):
        for i, tag in enumerate(document.tags or ()):
            if tag in bad:
                raise ValueError(
                    f"{document.place}: word {i + 1}, {document.words[i]!r}, has two tags, {tag!r}: keep one of them; "
                    "or in a file of columns give each layer of nested entities a column of its own, and choose one "
                    "with layer='outer' or layer='inner'"
                )
    types = {split_tag(tag)[1] for tag in used}
    joined = {kind: there for kind in types if len(there := _BETWEEN.split(kind)) > 1 and types.issuperset(there)}
    return [
        f"{' and '.join(there)} are types, and {kind} is read as a type of its own: if its words are in two entities, "
        "keep one tag each"
        for kind, there in sorted(joined.items())
    ]


def _detect(splits: Splits, labels: Sequence[str] | None, source: str) -> dict[str, str]:
    """The scheme of each split: the one that every tag of all of them obeys, or else each its own.

    Raises:
        ValueError: the tags obey no scheme, nor do those of each split; the message is about all splits.
    """
    try:
        return dict.fromkeys(splits, _scheme_of(splits, labels, source))
    except ValueError:
        if labels is not None:
            raise
        try:
            return {split: _scheme_of({split: documents}, None, source) for split, documents in splits.items()}
        except ValueError:
            pass  # it is about one split; the first one is about the corpus
        raise


def _scheme_of(splits: Splits, labels: Sequence[str] | None, source: str) -> str:
    """The scheme that every tag of these splits obeys (see the top of the file)."""
    tagged = [document for documents in splits.values() for document in documents if document.tags]
    prefixes = {split_tag(tag)[0] for tag in used_tags(splits).union(labels or ())}
    candidates = ("bioes",) if prefixes & {"E", "S"} else ("iob2", "iob1")
    breaks: list[str] = []
    for scheme in candidates:
        places = [(document, i) for document in tagged for i in irregular(document.tags or (), scheme)]
        if not places:
            return scheme
        document, i = places[0]
        breaks.append(
            f"{counted(len(places), 'tag breaks', 'tags break')} {scheme}, the first at {document.place}, word {i + 1}"
            f" of the sentence: {document.words[i]!r} {(document.tags or ())[i]}"
        )
    raise ValueError(
        f"{source}: the tags obey no scheme: {'; '.join(breaks)}. Name the scheme to read them anyway: "
        f"{' or '.join(f'scheme={scheme!r}' for scheme in candidates)}"
    )
