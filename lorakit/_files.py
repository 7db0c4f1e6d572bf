"""Atomic writes: a file or folder that others may read is complete or not there. And JSON lines, read back."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file in the same folder, then rename it to `path`.

    A symbolic link keeps pointing at its file. A device or a pipe, such as /dev/stdout, is written to directly.

    Raises:
        OSError: it cannot be written; `path` is as it was.
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
    """Write text atomically, as UTF-8 whatever the locale, with its line endings unchanged."""
    atomic_write(path, lambda temporary: temporary.write_bytes(text.encode()))


@contextmanager
def atomic_folder(folder: Path, keep_others: bool = False) -> Iterator[Path]:
    """Yield a temporary folder to fill; on success it is flushed to disk and becomes `folder` by one rename.

    Args:
        keep_others: an existing `folder` keeps the files that are not written anew, and the others are replaced one by
            one, in the order of their names. Otherwise the new folder takes the place of the old one.

    Raises:
        OSError: it cannot be written; `folder` is as it was, unless the disk failed between two replacements.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    inside = keep_others and folder.is_dir()
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder if inside else folder.parent))
    try:
        yield temporary
        files = sorted(temporary.iterdir())
        for path in (*files, temporary):
            flush(path)
        os.chmod(temporary, 0o755)  # mkdtemp's is the owner's alone
        if not (inside or _take_place(temporary, folder, keep_others)):
            inside = True  # another process made the folder in the meantime
        if inside:
            for path in files:
                os.replace(temporary / path.name, folder / path.name)
        flush(folder.parent)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def _take_place(temporary: Path, folder: Path, keep_others: bool) -> bool:
    """Rename to `folder`, in place of an old one; False where there is one whose files must be kept."""
    if folder.exists() and not keep_others:
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        os.rename(folder, old)  # onto an empty folder
        try:
            os.rename(temporary, folder)
        except OSError:
            os.rename(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
        return True
    try:
        os.rename(temporary, folder)
    except OSError:
        if not folder.is_dir():
            raise
        return False
    return True


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) for each line of a log; lines that a killed process cut short are skipped.

    Raises:
        OSError: it cannot be read.
    """
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield number, value
