"""Tags that a column file does not have in one column: in CoNLL-U's column MISC, or a letter here and a type there."""

import re

from lorakit.data.formats.conll_rows import Table, values_of

_FEATURE = re.compile(r"(?:^|\|)(?:NER?=([^|]+)|name=([BIESLU]-[^|]+|O)(?=\||$))", re.IGNORECASE)
_LETTERS = frozenset("BIESLUMW")
_TYPE = re.compile(r"[^\W\d_][\w./&+-]*")
_NO_TYPE = frozenset(("", *"O _ - * NONE None none NULL null NIL nil NA N/A".split()))


def with_tags_of_features(table: Table) -> Table:
    """CoNLL-U with the tags of its column MISC in place of that column.

    They are NE=B-PER there, Stanza's ner=S-PERSON, or name=B-PER as in DaNE and NorNE.
    """
    if not table.blocks or len(table.blocks[0].columns) != 10 or not table.blocks[0].columns[0][0].isdecimal():
        return table
    found = {cell: _FEATURE.search(cell) for cell in values_of(table.blocks, 9)}
    if not any(found.values()):
        return table
    tags = {cell: (match[1] or match[2]) if match else "O" for cell, match in found.items()}
    blocks = [
        block._replace(columns=(*block.columns[:9], tuple([tags[cell] for cell in block.columns[9]])))
        for block in table.blocks
    ]
    note = ("tags are those named NE, NER or name in column 10", str(table.path))
    return table._replace(blocks=blocks, notes=(*table.notes, note))


def with_types_of_letters(table: Table) -> Table:
    """The table with `B-ORG` in a column of letters (B) where another column has the types (ORG)."""
    width = len(table.blocks[0].columns) if table.blocks and not table.is_conll2012 else 0
    for letter in range(width) if width > 2 else ():
        if values_of(table.blocks[:1], letter) <= _LETTERS | {"O"} and _are_letters(values_of(table.blocks, letter)):
            for kind in range(width):
                if kind != letter and _tell_types(table, letter, kind):
                    return _joined(table, letter, kind)
    return table


def _are_letters(cells: set[str]) -> bool:
    return "O" in cells and len(cells) > 1 and cells <= _LETTERS | {"O"}


def _tell_types(table: Table, letter: int, kind: int) -> bool:
    """Whether a column has a type where another has a letter, and always the same sign for none where that has O."""
    types, none = set(), set()
    for block in table.blocks:
        for one, other in zip(block.columns[letter], block.columns[kind], strict=True):
            (none if one == "O" else types).add(other)
    return (
        len(none) == 1
        and none <= _NO_TYPE
        and not types & none
        and all(_TYPE.fullmatch(cell) and cell[:2] not in {f"{one}-" for one in _LETTERS} for cell in types)
        and len(types) < sum(len(block.lines) for block in table.blocks)
    )


def _joined(table: Table, letter: int, kind: int) -> Table:
    blocks = []
    for block in table.blocks:
        pairs = zip(block.columns[letter], block.columns[kind], strict=True)
        tags = tuple([one if one == "O" else f"{one}-{other}" for one, other in pairs])
        # both become the tags, so that neither is taken for the words
        columns = tuple([tags if i in (letter, kind) else column for i, column in enumerate(block.columns)])
        blocks.append(block._replace(columns=columns))
    note = (f"tags are the letters of column {letter + 1} with the types of column {kind + 1}", str(table.path))
    return table._replace(blocks=blocks, notes=(*table.notes, note))
