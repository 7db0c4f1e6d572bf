"""Which file of a folder is which split, by the names that corpora use.

`train.tsv`, `dev.json`, `devel.tsv`, `valid.jsonl`, `test.conll` and the same without an ending; or else files whose
name mentions one split: `eng.train`, `eng.testa` (validation), `eng.testb` (test), `wnut17train.conll`,
`emerging.dev.conll`, `emerging.test.annotated`, `NER-de-train.tsv`, `train-00000-of-00002.parquet`. Files whose names
differ in a number that counts, `train1.json` and `train2.json`, are parts of one split.
"""

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from lorakit._counts import counted

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("valid", "validation", "dev", "devel", "val", "testa"),
    "test": ("test", "testb"),
}
_ENDS = {"train": "train", "testa": "validation", "testb": "test", "test": "test"}  # of a word of the file's name
_WORDS = ("latest", "contest", "attest", "pretest", "greatest")  # that end so and name no split
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_NO_CORPUS = (".md", ".py", ".sh", ".log", ".html", ".pdf", ".png", ".zip", ".gz", ".yaml", ".yml", ".cfg", ".ini")


class SplitFiles(NamedTuple):
    """The files of a folder.

    Attributes:
        splits: the files (or folders) of each split, in order of their names.
        unused: the names of all others, sorted.
        notes: what to know about the choice.
    """

    splits: dict[str, list[Path]]
    unused: tuple[str, ...]
    notes: tuple[str, ...]


def split_files(folder: Path, endings: Collection[str], is_corpus: Callable[[Path], bool]) -> SplitFiles:
    """Find the files of each split.

    Args:
        folder: where they are.
        endings: those of corpus files, lower case; a file with another ending has to hold a corpus.
        is_corpus: whether a file or folder holds one, by its content.

    Raises:
        ValueError: several files are the same split.
    """
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    found, notes = _by_name(folder, paths, endings, is_corpus), ()
    if "train" not in found:
        mentioned, notes = _by_mention(folder, paths, endings, is_corpus)
        found = found if found and "train" not in mentioned else mentioned | found
    used = {path for files in found.values() for path in files}
    unused = tuple(path.name for path in paths if path not in used and path.name != "label.json")
    notes += _about_unused([path for path in paths if path not in used], found, notes, is_corpus)
    return SplitFiles({split: found[split] for split in SPLIT_NAMES if split in found}, unused, notes)


def _by_name(
    folder: Path, paths: list[Path], endings: Collection[str], is_corpus: Callable[[Path], bool]
) -> dict[str, list[Path]]:
    found = {}
    for split, names in SPLIT_NAMES.items():
        files = [
            path
            for path in paths
            if path.stem.lower() in names and path.suffix.lower() in endings
            or path.name.lower() in names and is_corpus(path)
        ]  # fmt: skip
        if files:
            found[split] = [_only(folder, split, files)]
    return found


def _by_mention(
    folder: Path, paths: list[Path], endings: Collection[str], is_corpus: Callable[[Path], bool]
) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    candidates: dict[str, list[Path]] = {}
    doubtful: dict[str, list[Path]] = {}  # reading them tells what is wrong with them, or what has to be chosen
    for path in paths:
        if split := _mentioned(path):
            if is_corpus(path):
                candidates.setdefault(split, []).append(path)
            elif path.suffix.lower() in endings:
                doubtful.setdefault(split, []).append(path)
    candidates = {split: files for split, files in doubtful.items() if len(files) == 1} | candidates
    notes = []
    for split, files in candidates.items():
        gold = [path for path in files if path.suffix == ".annotated"]  # WNUT17 has its test set without gold tags too
        if len(files) > 1 and len(gold) == 1:
            others = ", ".join(path.name for path in files if path not in gold)
            notes.append(f"{gold[0].name} is the {split} split; not read: {others}")
            candidates[split] = gold
        elif _are_parts([path.name for path in files]):
            files.sort(key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)])
            notes.append(f"the {split} split has {counted(len(files), 'part')}: {', '.join(p.name for p in files)}")
        elif not all(_SHARD.search(path.stem) for path in files):
            candidates[split] = [_only(folder, split, files)]
    return candidates, tuple(notes)


def _about_unused(
    paths: list[Path], found: Collection[str], said: tuple[str, ...], is_corpus: Callable[[Path], bool]
) -> tuple[str, ...]:
    """A note for each split that files mention which are not read."""
    mentioned: dict[str, list[str]] = {}
    for path in paths:
        if (split := _mentioned(path)) and is_corpus(path):
            mentioned.setdefault(split, []).append(path.name)
    notes = []
    for split, names in mentioned.items():
        listed = ", ".join(names)
        if not any(listed in note for note in said):
            one = f"{split}{Path(names[0]).suffix}"
            about = f"parts are read if all are named {split}-1, {split}-2" if split in found else f"{one} would be"
            notes.append(f"not read, though named as {split}: {listed}; {about}")
    return tuple(notes)


def _mentioned(path: Path) -> str | None:
    """The split that a file's name mentions; None for none or several, and for what is no corpus by its ending."""
    splits = set()
    for word in re.findall("[a-z]+", path.name.lower()):
        splits |= {split for split, names in SPLIT_NAMES.items() if word in names}
        end = next((end for end in _ENDS if word.endswith(end)), None)
        if end and word not in _WORDS:
            splits.add(_ENDS[end])
    may_be = len(splits) == 1 and path.is_file() and path.suffix.lower() not in _NO_CORPUS
    return splits.pop() if may_be else None


def _are_parts(names: list[str]) -> bool:
    """Whether names differ in one number only, which counts from 0 or 1 and is no version: train1.json, train2.json."""
    pieces = [re.split(r"(\d+)", name) for name in names]
    if len(names) < 2 or len({len(parts) for parts in pieces}) > 1:
        return False
    differ = [i for i, column in enumerate(zip(*pieces, strict=True)) if len(set(column)) > 1]
    if len(differ) != 1 or differ[0] % 2 == 0 or re.search(r"v(ersion)?[._-]?$", pieces[0][differ[0] - 1].lower()):
        return False
    numbers = sorted(int(parts[differ[0]]) for parts in pieces)
    return numbers in (list(range(len(names))), list(range(1, len(names) + 1)))


def _only(folder: Path, split: str, files: list[Path]) -> Path:
    if len(files) > 1:
        listed = " and ".join(path.name for path in files)
        more = ""
        if all(path.is_file() for path in files) and len({path.suffix for path in files}) == 1:
            parts = " and ".join(f"{split}-{number}{path.suffix}" for number, path in enumerate(files, start=1))
            more = f", or if all are parts of the split, name them {parts}, which are read one after the other"
        raise ValueError(f"{folder}: {listed} are all {split} files; keep one in the folder{more}")
    return files[0]
