"""The rows of a table whose columns commas or semicolons separate, as spreadsheets write them (RFC 4180).

A blank row ends a sentence; so does a new value in a column that the header calls `sentence`.
https://www.rfc-editor.org/rfc/rfc4180
"""

import csv
import io
from pathlib import Path

from lorakit.data.formats.conll_rows import Block, Table

DELIMITERS = ",;"


def parse_csv(text: str, path: Path) -> Table:
    """The rows of a table's text; `path` is for messages.

    Raises:
        ValueError: with the line: another number of columns than in those before, or a quotation mark that is not
            closed; or neither commas nor semicolons separate columns.
    """
    first = next((line for line in text.splitlines() if line.strip(f" {DELIMITERS}")), "")
    delimiter = max(DELIMITERS, key=first.count)
    if delimiter not in first:
        raise ValueError(
            f"{path}: neither commas nor semicolons separate columns in the first line, {first[:60]!r}; write a word "
            "and its tag with a comma between them"
        )
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    blocks: list[Block] = []
    rows: list[list[str]] = []
    numbers: list[int] = []
    width = 0
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{path}:{line}: {error}: write a quotation mark inside a cell twice") from error
        if row is not None and any(cell.strip() for cell in row):
            width = width or len(row)
            if len(row) != width:
                raise ValueError(
                    f"{path}:{line}: {len(row)} columns, the rows before have {width}: {row!r:.80}; write as many, and "
                    f"a cell with {delimiter!r} in quotation marks"
                )
            rows.append([cell.strip(" ") or cell for cell in row])
            numbers.append(line)
        elif rows:
            blocks.append(Block(tuple(zip(*rows, strict=True)), numbers, 0))
            rows, numbers = [], []
        if row is None:
            return Table(path, blocks, (), False, ())
