"""A table that renames, merges or drops entity types: {"old": "new", "other": null}."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from lorakit.data.formats.json_text import DECODER
from lorakit.data.formats.text import read_lines, read_text


def read_label_map(path: Path) -> dict[str, str | None]:
    """Read a table of entity types: a JSON object, or a line per type with the old name, a tab and the new one.

    Example:
        import tempfile
        from pathlib import Path
        from lorakit.data.label_map import read_label_map
        table = Path(tempfile.mkdtemp()) / "types.tsv"
        _ = table.write_text("protein\\tGENE\\nDNA\\tGENE\\ncell_line\\t\\n")
        read_label_map(table)  # {'protein': 'GENE', 'DNA': 'GENE', 'cell_line': None}

    Args:
        path: a file ending in .json, where null drops a type; or any other, where nothing after the tab drops it.

    Raises:
        ValueError: with the line: the file cannot be read, or holds something else.
    """
    if path.suffix.lower() == ".json":
        text = read_text(path)
        try:
            table = DECODER.decode(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno}: invalid JSON: {error.msg}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if not isinstance(table, dict) or not all(isinstance(name, str | None) for name in table.values()):
            raise ValueError(f'{path}: must map each old type to a new name or null, as in {{"DNA": "GENE"}}')
    else:
        table = {}
        for place, line in read_lines(path):
            old, tab, new = line.partition("\t")
            if not line.strip():
                continue
            if not (tab and old.strip()):
                raise ValueError(f"{place}: broken line {line!r}; a line holds the old type, a tab and the new name")
            old, name = old.strip(), new.strip() or None
            if table.setdefault(old, name) != name:
                raise ValueError(f"{place}: {old!r} is there twice, with different new names; keep one")
    for old, new in table.items():
        if new is not None and (not new or any(character.isspace() for character in new)):
            raise ValueError(f"{path}: {old!r} becomes {new!r}; a type has no space in its name; use an underscore")
    return table


def check_label_map(table: Mapping[str, str | None], types: Collection[str]) -> None:
    """Refuse a table that names types the corpus does not have, which is most likely a typo.

    Raises:
        ValueError: with those names and the corpus' types.
    """
    unknown = sorted(set(table) - set(types))
    if unknown:
        raise ValueError(f"label map: no type {', '.join(unknown)} in the corpus; it has {', '.join(sorted(types))}")
