"""A corpus without splits divided into train, validation and test, document by document."""

import random
import re
from collections.abc import Callable, Sequence

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
    raise ValueError(
        f"shares is {text!r}, which divides no corpus; give three percentages that add up to 100, such as {SHARES}"
    )


def partition(
    splits: dict[str, list[Document]],
    shares: tuple[int, int, int],
    seed: int,
    source: str,
    in_sentences: Callable[[Document], list[Document]] = lambda document: [document],
) -> tuple[dict[str, list[Document]], str]:
    """Divide the training split; documents are shuffled and never cut, unless there is one only.

    Documents keep their order within a part.

    Args:
        splits: of the corpus; only "train" may be there.
        shares: of train, validation and test, in percent of the sentences.
        seed: of the shuffling.
        source: the corpus, for messages.
        in_sentences: the sentences of a document; by default it is one. Documents of one id belong together.

    Returns:
        The splits, without those that get no share, and a note on what was done.

    Raises:
        ValueError: the corpus has other splits, or too few documents for a share.
    """
    others = [split for split in splits if split != "train"]
    if others:
        raise ValueError(f"{source}: has a {others[0]} split already, so it is not divided; leave shares= out")
    documents = splits["train"]
    sizes = [len(in_sentences(document)) for document in documents]
    without = [i for i, size in enumerate(sizes) if not size]  # texts that were left out, with the notes on why
    groups = _groups(documents, sizes)
    is_one = len(groups) == 1 < sum(sizes)  # such as a file whose only -DOCSTART- is its first line
    if is_one:
        documents = [sentence for document in documents for sentence in in_sentences(document) or [document]]
        sizes, without = [1] * len(documents), []
        groups = [[i] for i in range(len(documents))]
    order, total = list(groups), sum(sizes)
    random.Random(seed).shuffle(order)
    names = [name for name, share in zip(SPLITS, shares, strict=True) if share]
    wanted = {name: total * share / 100 for name, share in zip(SPLITS, shares, strict=True)}
    if len(order) < len(names):
        raise ValueError(
            f"{source}: {counted(len(order), 'document')} cannot be divided into {counted(len(names), 'split')};"
            " set a share to 0, as in 80/20/0"
        )
    parts: dict[str, list[int]] = {name: [] for name in names}
    filled = dict.fromkeys(names, 0)  # with sentences
    for left, group in zip(range(len(order), 0, -1), order, strict=True):
        empty = [name for name in names if not parts[name]]
        choices = empty if left <= len(empty) else names
        chosen = max(choices, key=lambda name: wanted[name] - filled[name])
        parts[chosen] += group
        filled[chosen] += sum(sizes[i] for i in group)
    parts[names[0]] += without
    counts = ", ".join(f"{filled[name]:,} {name}" for name in names)
    grouped = f" of {counted(len(order), 'document')}, none of them divided" if len(order) < total else ""
    grouped = " of one document, which was divided" if is_one else grouped
    noun = "sentence" if total == 1 else "sentences"
    note = f"divided {'/'.join(map(str, shares))} with seed {seed}: {counts} {noun}{grouped}"
    return {name: [documents[i] for i in sorted(parts[name])] for name in names}, note


def _groups(documents: Sequence[Document], sizes: Sequence[int]) -> list[list[int]]:
    """The numbers of the documents that have sentences; those of one id together."""
    groups: dict[str, list[int]] = {}
    for i, document in enumerate(documents):
        if sizes[i]:
            groups.setdefault(document.id or f"\0{i}", []).append(i)
    return list(groups.values())
