"""The folder of a run: one command's results, never mixed with another's.

A folder that holds results is refused unless --resume continues them or --overwrite deletes them. Without --output-dir
the default folder gets a number where it is taken: runs/train, runs/train-2, …
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from lorakit.cli.flags import MODES

RECORD = "comparison.json"
SUMMARY = (RECORD, "comparison.md", "comparison.png", "report.html")
SIGNS = (RECORD, "metrics.jsonl", "energy.jsonl", "sentences.json", "checkpoints")
"""Each is written by a run and by nothing else, so one of them tells that a folder is a run's."""
WRITTEN = (*SIGNS, *SUMMARY[1:], "adapter", "model", "tensorboard", "wandb", "wandb-run-id")


def choose_folder(arguments: argparse.Namespace) -> None:
    """Set `arguments.output_dir` to the folder of this command, the same on all ranks; writes nothing.

    Raises:
        ValueError: The folder holds another run's results, or --overwrite would delete what the command reads.
    """
    from lorakit.training.distributed import gather_bytes, is_main

    answer = {}
    if is_main():  # the others may look after this rank has begun to write
        try:
            answer = {"folder": str(_folder_for(arguments))}
        except ValueError as error:
            answer = {"error": str(error)}
    answer = json.loads(gather_bytes(json.dumps(answer).encode())[0])
    if "error" in answer:
        raise ValueError(answer["error"])
    arguments.output_dir = Path(answer["folder"])


def clear_folder(folder: Path) -> None:
    """Delete the results in a folder, with --overwrite; files of other names stay."""
    for part in [part for part in _parts(folder) if _is_run(part)]:
        for name in WRITTEN:
            if (part / name).is_dir() and not (part / name).is_symlink():
                shutil.rmtree(part / name)
            else:
                (part / name).unlink(missing_ok=True)
        if part != folder and not any(part.iterdir()):
            part.rmdir()


def clear_after_error(part: Path, whole: Path) -> None:
    """Delete what runs wrote that ended in an error before anything was worth keeping.

    Args:
        part: the folder of these runs, such as one seed's; one with a checkpoint or with results stays as it is.
        whole: the command's folder, which is deleted if nothing is left in it.
    """
    if not any(part.rglob("checkpoints/step-*")) and not (part / RECORD).exists():
        clear_folder(part)
    for folder in (part, whole):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def forget_summary(folder: Path) -> None:
    """Delete what sums up a run's results, so that a folder never shows those of a run that has moved on."""
    for name in SUMMARY:
        (folder / name).unlink(missing_ok=True)


def _folder_for(arguments: argparse.Namespace) -> Path:
    if arguments.resume and arguments.overwrite:
        raise ValueError("--resume continues the run in the folder and --overwrite deletes it; give one of them")
    folder: Path = arguments.output_dir
    if arguments.overwrite:
        _check_nothing_read(arguments, folder)
        return folder
    if "output_dir" not in arguments.given:
        taken = _numbered(folder)
        return taken[-2 if arguments.resume and len(taken) > 1 else -1]
    if not arguments.resume and holds_results(folder):
        raise ValueError(
            f"--output-dir {folder} holds the results of another run{_command_of(folder)}; give another folder, "
            "--overwrite to delete them, or --resume to continue that run"
        )
    return folder


def holds_results(folder: Path) -> bool:
    """Whether a run, finished or not, has written into a folder."""
    return any(map(_is_run, _parts(folder)))


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in SIGNS)


def _numbered(folder: Path) -> list[Path]:
    """The default folders that hold results, in order, and then the first that does not."""
    names = []
    for number in count(1):
        names.append(folder if number == 1 else folder.with_name(f"{folder.name}-{number}"))
        if not holds_results(names[-1]):
            return names
    raise AssertionError("count() has no end")


def _parts(folder: Path) -> Iterator[Path]:
    """The folders in which runs of this folder write: of seeds and modes, the deepest first."""
    if not folder.is_dir():
        return
    for seed in sorted(folder.glob("seed-*")):
        yield from _parts(seed)
    yield from (folder / mode for mode in MODES if (folder / mode).is_dir())
    yield folder


def _check_nothing_read(arguments: argparse.Namespace, folder: Path) -> None:
    """Refuse to delete the base or the corpus of this command."""
    read = [("model", arguments.model), *(("dataset", corpus) for corpus in arguments.dataset or ())]
    for flag, source in read:
        given = Path(source or "")
        if source is None or not given.exists():
            continue
        for part in filter(_is_run, _parts(folder)):
            for deleted in ((part / name).resolve() for name in WRITTEN if (part / name).exists()):
                if given.resolve().is_relative_to(deleted):
                    raise ValueError(f"--overwrite would delete --{flag} {given}; give another --output-dir")


def _command_of(folder: Path) -> str:
    """The command that made the results, if they are complete."""
    try:
        command = json.loads((folder / RECORD).read_text(encoding="utf-8"))["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" ({command if len(command) <= 120 else command[:119] + '…'})"
