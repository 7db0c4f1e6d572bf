"""The folder of a run: one command's results, never mixed with another's or with files that are the user's.

A folder that holds results is refused unless --resume continues them or --overwrite deletes them. Without --output-dir
the default folder gets a number where it is taken: runs/train, runs/train-2, … What lorakit did not write is never
deleted or replaced, in the folders that a run makes neither: a note in RUN/adapter stays there.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from itertools import count
from pathlib import Path

from lorakit.cli.flags import MODES

RECORD = "comparison.json"
SUMMARY = (RECORD, "comparison.md", "comparison.png", "report.html")
SIGNS = (RECORD, "metrics.jsonl", "energy.jsonl", "sentences.json", "checkpoints")
"""Each is written by a run and by nothing else, so one of them tells that a folder is a run's."""
CARD, CALIBRATION = "README.md", "calibration.json"
INSIDE = {
    "checkpoints": ("step-*", ".step-*.????????"),
    "adapter": ("adapter_config.json", "adapter_model.safetensors", "lorakit.json", CARD, CALIBRATION),
    "model": (
        *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", CALIBRATION),
        *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
        *("chat_template.*", "bpe.codes", "emoji_tokenizer.*"),
    ),
    "tensorboard": ("events.out.tfevents.*",),
    "wandb": ("run-*", "offline-run-*", "latest-run", "debug*.log"),
}
"""The folders that a run makes, and what it, and `lorakit calibrate` after it, writes into them."""
WRITTEN = (*SIGNS, *SUMMARY[1:], *INSIDE, "wandb-run-id")
UNCHANGED = "nothing was changed: run the same again"
NOTHING_KEPT = "nothing was kept yet: run the same again"
SEARCH_SIGNS, SEARCH_FOLDERS = ("search.json", "tuning.json"), ("trials", "finalists")  # of `lorakit tune`


def choose_folder(arguments: argparse.Namespace) -> None:
    """Set `arguments.output_dir` to the folder of this command, the same on all ranks; writes nothing.

    Raises:
        ValueError: The folder holds another run's results, or --overwrite would delete what the command reads.
    """
    from lorakit.training.distributed import is_main, of_main

    answer = {}
    if is_main():  # the others may look after this rank has begun to write
        try:
            answer = {"folder": str(_folder_for(arguments))}
        except ValueError as error:
            answer = {"error": str(error)}
    answer = of_main(answer)
    if "error" in answer:
        raise ValueError(answer["error"])
    arguments.output_dir = Path(answer["folder"])


def clear_folder(folder: Path) -> None:
    """Delete the results in a folder, with --overwrite; what lorakit did not write stays, also inside RUN/adapter."""
    for part in [part for part in _parts(folder) if _is_run(part)]:
        for name in WRITTEN:
            if (part / name).is_dir() and not (part / name).is_symlink():
                _clear_inside(part / name, INSIDE.get(name, ()))
            else:
                (part / name).unlink(missing_ok=True)
        if part != folder:
            remove_if_empty(part)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder in which nothing is left, if it is there."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _clear_inside(folder: Path, patterns: Sequence[str]) -> None:
    """Delete what a run wrote into a folder that it made, and the folder if nothing else is there."""
    for path in [path for path in folder.iterdir() if any(fnmatch(path.name, pattern) for pattern in patterns)]:
        if path.name == CARD and _is_edited(path):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    remove_if_empty(folder)


def _is_edited(card: Path) -> bool:
    """Whether a model card has text besides the part that lorakit wrote."""
    from lorakit.adapters.card import text_of_others

    return bool(text_of_others(card.read_text(encoding="utf-8", errors="replace")))


def clear_after_error(part: Path, whole: Path) -> None:
    """Delete what runs wrote that ended in an error before anything was worth keeping.

    Args:
        part: the folder of these runs, such as one seed's; one with a checkpoint or with results stays as it is.
        whole: the command's folder, which is deleted if nothing is left in it.
    """
    if not any(part.rglob("checkpoints/step-*")) and not (part / RECORD).exists():
        clear_folder(part)
    for folder in (part, whole):
        remove_if_empty(folder)


def what_stays(arguments: argparse.Namespace) -> str:
    """What a command that was stopped outside of its steps has left in its folder, and how to go on."""
    parts = list(_parts(arguments.output_dir))
    is_kept = any((part / RECORD).exists() or any(part.glob("checkpoints/step-*")) for part in parts)
    return how_to_continue(arguments) if is_kept else NOTHING_KEPT


def how_to_continue(arguments: argparse.Namespace) -> str:
    """The advice for a stopped command whose folder holds what it has done so far."""
    flag = "" if arguments.resume else f" with {resume_flag(arguments)}"
    return f"what was done is in {arguments.output_dir}: run the same again{flag} to continue"


def resume_flag(arguments: argparse.Namespace) -> str:
    """--resume, and what has to go for it from this command line."""
    return "--resume instead of --overwrite" if arguments.overwrite else "--resume"


def forget_summary(folder: Path) -> None:
    """Delete what sums up a run's results, so that a folder never shows those of a run that has moved on."""
    for name in SUMMARY:
        (folder / name).unlink(missing_ok=True)


def _folder_for(arguments: argparse.Namespace) -> Path:
    folder: Path = arguments.output_dir
    if arguments.overwrite:
        _check_nothing_read(arguments, folder)
    elif "output_dir" not in arguments.given:
        taken = _numbered(folder)
        folder = taken[-2 if arguments.resume and len(taken) > 1 else -1]
    if not (arguments.resume and holds_results(folder)):
        check_own_place(folder)
        _check_nothing_replaced(folder)
    if arguments.overwrite or "output_dir" not in arguments.given:
        return folder
    if not arguments.resume and holds_results(folder):
        raise ValueError(
            f"--output-dir {folder} holds the results of another run{_command_of(folder)}; give another folder, "
            "--overwrite to delete them, or --resume to continue that run"
        )
    return folder


def check_own_place(folder: Path) -> None:
    """Refuse a folder that is inside of what another run or search wrote, and would be deleted with it.

    Raises:
        ValueError: it is.
    """
    place = folder.resolve()
    for outer in reversed(place.parents):
        first = place.relative_to(outer).parts[0]
        is_run = _is_run(outer) and (first in (*WRITTEN, *MODES) or first.startswith("seed-"))
        if is_run or first in SEARCH_FOLDERS and any((outer / name).exists() for name in SEARCH_SIGNS):
            raise ValueError(
                f"--output-dir {folder} is inside the results of another run, in {outer}; give a folder outside of it,"
                f" such as {outer.with_name(f'{outer.name}-2')}"
            )


def _check_nothing_replaced(folder: Path) -> None:
    """Refuse a folder of a search, or one with something of no run under a name that a run's results have."""
    if any((folder / name).exists() for name in SEARCH_SIGNS):
        raise ValueError(
            f"--output-dir {folder} holds a search of lorakit tune; give another folder, such as {folder / 'run'}"
        )
    for part in _parts(folder):
        for name in () if _is_run(part) else WRITTEN:
            if (part / name).exists():
                raise ValueError(
                    f"--output-dir {folder} has {part / name}, which is of no run, and a run would write its own there;"
                    f" give another folder, such as {folder / 'run'}"
                )


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
