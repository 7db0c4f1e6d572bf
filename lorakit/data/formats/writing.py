"""Documents to a file or folder of a format, written atomically."""

from pathlib import Path

from lorakit._counts import counted
from lorakit._files import atomic_folder, atomic_write
from lorakit.data.formats.record import Document
from lorakit.data.formats.registry import Format


def write_documents(form: Format, documents: list[Document], out: Path) -> list[str]:
    """Write documents to a new file, or for a format of folders a new folder; nothing is left of it if it fails.

    Args:
        form: the format.
        documents: as the format takes them.
        out: the file or folder.

    Returns:
        A line for everything that the format cannot hold, and one for the file.

    Raises:
        ValueError: the format cannot hold them.
    """
    lines: list[str] = []
    out.parent.mkdir(parents=True, exist_ok=True)
    if form.is_folder:
        with atomic_folder(out) as folder:
            lines += call_writer(form, documents, folder / "written", out)
            for path in sorted((folder / "written").iterdir()):
                path.rename(folder / path.name)
            (folder / "written").rmdir()
    else:
        atomic_write(out, lambda temporary: lines.extend(call_writer(form, documents, temporary, out)))
    return [*lines, f"{out}: {counted(len(documents), unit(form))}"]


def call_writer(form: Format, documents: list[Document], path: Path, shown: Path) -> list[str]:
    """Write to `path`, which messages call `shown`."""
    assert form.write is not None
    try:
        return form.write(documents, path)
    except (ValueError, ImportError) as error:
        raise ValueError(str(error).replace(str(path), str(shown))) from error


def unit(form: Format) -> str:
    """What a document of a format is called."""
    return "sentence" if form.takes == "tags" else "text"
