"""The kernel's small text files: a file that may not be read is told from one that is empty or missing."""

import errno
import os
import stat
from pathlib import Path

MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.ELOOP)
DENIED = (errno.EACCES, errno.EPERM)


def read_text(path: Path) -> str | None:
    """The file's text, stripped; None if there is no such file.

    Raises:
        PermissionError: this user may not read it; the error names the file.
        OSError: the driver behind it fails.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = b""
            while part := os.read(file, 65536):
                content += part
        finally:
            os.close(file)
    except OSError as error:
        if error.errno in MISSING:
            return None
        if error.errno in DENIED:
            raise PermissionError(error.errno, f"{path} may not be read by this user") from error
        raise OSError(error.errno, f"{path}: {error.strerror}") from error
    return content.decode("ascii", errors="replace").strip()


def read_if_allowed(path: Path) -> str:
    """The file's text, "" if it cannot be read for any reason; for callers to whom the reason makes no difference."""
    try:
        return read_text(path) or ""
    except OSError:
        return ""


def read_count(path: Path) -> int | None:
    """The non-negative integer in a file, None if there is no such file.

    Raises:
        OSError: as `read_text`.
        ValueError: the file holds something else.
    """
    text = read_text(path)
    if text is None:
        return None
    if not (text.isdigit() and text.isascii()):
        raise ValueError(f"{path} holds {text!r}, not a non-negative integer")
    return int(text)


def is_folder(path: Path) -> bool | None:
    """Whether a folder is there, None if this user may not tell; `Path.is_dir` raises or lies, by Python's version."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        return None if error.errno in DENIED else False


def is_missing(path: Path) -> bool:
    """Whether a path leads nowhere; False where this user may not tell."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno in MISSING
    return False


def closed_folder(path: Path) -> Path | None:
    """The first folder on the way to and including `path`, links followed, that this user may not search, else None."""
    real = Path(os.path.realpath(path))
    for folder in [*reversed(real.parents), real]:
        try:
            os.stat(f"{folder}/.")  # needs the right to search the folder itself
        except OSError as error:
            if error.errno in DENIED:
                return folder
    return None
