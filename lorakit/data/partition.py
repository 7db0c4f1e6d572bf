"""A corpus without splits divided into train, validation and test, document by document."""

import random
import re

from lorakit._counts import counted
from lorakit.data.formats.record import Document

SHARES = "80/10/10"
SPLITS = ("train", "validation", "test")


def parse_shares(text: str) -> tuple[int, int, int]:
    """The shares of train, validation and test, in percent.

    Example:
        from lorakit.data.partition import parse_shares
        parse_shares("80/10/10")  # (80, 10, 10)

    Raises:
        ValueError: they are not three integers that add up to 100, the first above 0.
    """
    if re.fullmatch(r"\d+/\d+/\d+", text):
        train, validation, test = map(int, text.split("/"))
        if train and train + validation + test == 100:
            return train, validation, test
    raise ValueError(f"{text!r} does not divide a corpus; give three percentages that add up to 100, such as {SHARES}")


def partition(
    splits: dict[str, list[Document]], shares: tuple[int, int, int], seed: int, source: str
) -> tuple[dict[str, list[Document]], str]:
    """Divide the training split; documents are shuffled and never cut, unless there is one only.

    Sentences keep their order within a part.

    Args:
        splits: of the corpus; only "train" may be there.
        shares: of train, validation and test, in percent of the sentences.
        seed: of the shuffling.
        source: the corpus, for messages.

    Returns:
        The splits, without those that get no share, and a note on what was done.

    Raises:
        ValueError: the corpus has other splits, or too few documents for a share.
    """
    others = [split for split in splits if split != "train"]
    if others:
        raise ValueError(
            f"{source}: has a {others[0]} split already, so it is not divided; leave shares= (--split) out"
        )
    sentences = splits["train"]
    groups: dict[str, list[int]] = {}
    for i, sentence in enumerate(sentences):
        groups.setdefault(sentence.id or f"\0{i}", []).append(i)
    order = list(groups.values())
    is_one = len(order) == 1 < len(sentences)  # such as a file whose only -DOCSTART- is its first line
    if is_one:
        order = [[i] for i in order[0]]
    random.Random(seed).shuffle(order)
    names = [name for name, share in zip(SPLITS, shares, strict=True) if share]
    wanted = {name: len(sentences) * share / 100 for name, share in zip(SPLITS, shares, strict=True)}
    if len(order) < len(names):
        raise ValueError(
            f"{source}: {counted(len(order), 'document')} cannot be divided into {counted(len(names), 'split')};"
            " set a share to 0, as in 80/20/0"
        )
    parts: dict[str, list[int]] = {name: [] for name in names}
    for left, group in zip(range(len(order), 0, -1), order, strict=True):
        empty = [name for name in names if not parts[name]]
        choices = empty if left <= len(empty) else names
        parts[max(choices, key=lambda name: wanted[name] - len(parts[name]))] += group
    counts = ", ".join(f"{len(parts[name]):,} {name}" for name in names)
    grouped = f" of {counted(len(order), 'document')}, none of them divided" if len(order) < len(sentences) else ""
    grouped = " of one document, which was divided" if is_one else grouped
    noun = "sentence" if len(sentences) == 1 else "sentences"
    note = f"divided {'/'.join(map(str, shares))} with seed {seed}: {counts} {noun}{grouped}"
    return {name: [sentences[i] for i in sorted(parts[name])] for name in names}, note
