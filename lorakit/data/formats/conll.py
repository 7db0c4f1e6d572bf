"""Column files: one word per line, first the word, last its tag, and a blank line after each sentence.

Tabs separate the columns, or spaces in a line without tabs. `-DOCSTART-` (CoNLL-2003) and `###MEDLINE:` (BioNLP2004)
lines also end a sentence.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lorakit.data.formats.text import Row, read_lines
from lorakit.data.tags import check_tag


def read_conll(path: Path, labels: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the sentences of a column file.

    Args:
        path: the file.
        labels: the allowed tags; None allows every tag of a known form.

    Raises:
        ValueError: with the line: one column only, another number of columns than before, or an unknown tag.
    """
    words: list[str] = []
    tags: list[str] = []
    first_place, columns = "", 0
    for place, line in read_lines(path):
        if not line.strip(" \t") or line.startswith(("-DOCSTART-", "###MEDLINE:")):
            if words:
                yield Row(tuple(words), tuple(tags), first_place)
                words, tags = [], []
            continue
        # only tabs and spaces separate columns: a no-break space may be part of a word
        fields = line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))
        if len(fields) < 2:
            raise ValueError(f"{place}: broken line {line!r}: one column; a line holds a word, then its tag")
        columns = columns or len(fields)
        if len(fields) != columns:
            raise ValueError(f"{place}: broken line {line!r}: {len(fields)} columns, the lines before have {columns}")
        tag = fields[-1].strip(" ")
        check_tag(tag, labels, place)
        first_place = first_place if words else place
        words.append(fields[0])
        tags.append(tag)
    if words:
        yield Row(tuple(words), tuple(tags), first_place)
