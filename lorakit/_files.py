"""Files that appear whole or not at all: what is written beside the target takes its place when it is complete."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """`write` fills another file of the same folder, which then takes the place of `path`.

    A link goes on pointing at its file. A device or a pipe, such as /dev/stdout, takes the content as it comes.
    """
    if path.exists() and not path.is_file():
        write(path)
        return
    path = path.resolve()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A text as UTF-8 whatever the locale, with the line ends that it has."""
    write_whole(path, lambda temporary: temporary.write_bytes(text.encode()))
