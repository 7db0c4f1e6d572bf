"""Folders whose files hold a document each: which files are of it, and names for new ones."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lorakit.data.formats.record import Document


def files_in(folder: Path) -> list[Path]:
    """What is in a folder, in the order of the names, without hidden files such as macOS' `._doc.ann` of `doc.ann`."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def file_names(documents: Sequence[Document]) -> list[str]:
    """A file name without ending for each document: its id if that is a safe name, with its number if not unique."""
    width = len(str(len(documents)))
    counts = Counter(document.id for document in documents)
    names: list[str] = []
    taken: set[str] = set()
    for number, document in enumerate(documents, start=1):
        name, numbered = document.id, f"{number:0{width}}"
        if not re.fullmatch(r"\w[\w.-]{0,80}", name):
            name = numbered
        elif counts[name] > 1 or name.lower() in taken:  # numbered, so that they are read in this order
            name = f"{name}-{numbered}"
        while name.lower() in taken:
            name += "-2"
        taken.add(name.lower())
        names.append(name)
    return names
