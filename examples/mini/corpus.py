"""Write the embedded corpus: made-up sentences of molecular biology with BioNLP2004's 11 labels, for offline runs.

    python examples/mini/corpus.py --output DIR [--seed N] [--sentences N]

The text is invented: it comes from a grammar written for this file (grammar.txt); no sentence is from a real corpus.
Memorising words does not solve the task:
    names       most gene, chemical, cell and cell-line names are composed of syllables when they are needed, partly
                of the same syllables for all kinds, so that validation and test hold names that training never saw
    context     the words around a name decide whether it is a protein or part of a DNA, an RNA or a cell line: IL-2,
                IL-2 gene, IL-2 mRNA, IL-2-dependent cell line; "IL-2 and IL-4" are two proteins, "IL-2 and IL-4
                genes" is one DNA
    distractors chemicals, viruses, diseases and methods look like names but are not entities, nor is "the protein"
    ambiguity   as in the real corpus, some mentions have no context that decides their label, so it is drawn at random
The same seed gives the same corpus on every version of Python: the only source of randomness is
`random.Random.random`, whose stream is guaranteed. Each split has its own stream, so that more training sentences do
not change the other splits.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")

TYPES = ("DNA", "protein", "cell_type", "cell_line", "RNA")
LABELS = ("O", *(f"{prefix}-{kind}" for kind in TYPES for prefix in "BI"))  # the ids of BioNLP2004's label.json

# The number of words aimed at, by share of sentences: BioNLP2004's quantiles minus two, because a sentence may end up a
# few words longer. Very long sentences are more frequent (0.7 %, there 0.1 %) and evenly spread, so that small splits
# have some too.
LENGTHS = ((0.0, 3), (0.01, 6), (0.05, 10), (0.1, 12), (0.25, 16), (0.5, 22.5), (0.75, 31), (0.9, 39), (0.95, 46))
LENGTHS += ((0.99, 61), (1.0, 90))
TAIL = (105, 140)  # words aimed at in one of every TAIL_EVERY sentences
TAIL_EVERY = 150


class Corpus(NamedTuple):
    """Three splits, each a list of (words, tags), with one IOB2 tag of LABELS per word."""

    train: list[tuple[list[str], list[str]]]
    validation: list[tuple[list[str], list[str]]]
    test: list[tuple[list[str], list[str]]]


# Writer makes the names out of syllables, everything else is in grammar.txt. There "= name" begins a rule; each line
# after it is an alternative, with an optional weight in front ("4|"); {name} becomes an alternative of that rule or a
# name that Writer makes; [TYPE ...] marks an entity; spaces separate words.
RULES_TEXT = (Path(__file__).parent / "grammar.txt").read_text(encoding="utf-8")

KNOWN_SYMBOLS = (
    "IL-2 IL-2 IL-2 IL-4 IL-4 IL-6 IL-1 IL-10 IL-12 TNF-alpha TNF-alpha IFN-gamma GM-CSF AP-1 AP-1 NFAT c-fos c-jun "
    "c-myc bcl-2 p53 p50 p65 CD4 CD8 CD28 CD40 STAT1 STAT3 GATA-1 PU.1 Oct-2 Sp1 TCR GR PKC Tax Tat Nef ICAM-1 VCAM-1"
).split() + ["NF-kappa B", "NF-kappa B", "NF-kappaB", "I kappa B alpha"]
KNOWN_LINES = "Jurkat Jurkat HeLa U937 U937 K562 THP-1 HL-60 HL60 COS Raji CEM Namalwa MOLT-4".split()
GREEK = "alpha beta gamma delta epsilon zeta".split()
CONSONANTS, VOWELS = "bcdfgklmnprstvz", "aeiou"
CAPITALS = "ABCDEFGHIKLMNPRSTVXZ"
# Proteins, chemicals and cells share their roots, so that the root alone says nothing about the type.
ROOTS = (
    "thrombo cyto calci neuro myelo lympho granulo erythro fibro osteo kerato hepato chondro adipo astro spleno cardio "
    "entero histio mega gluco lacto cortico tropho vaso angio prota seri colla desmo tropo peri syn endo lipo glyco"
).split()
PROTEIN_ENDS = "modulin globulin statin kinase tensin philin nectin poietin cadherin genin lysin ferrin actin".split()
CHEM_ENDS = "mycin zole dopa nine sterone lactone cillin profen tidine pamide nol toxin".split()
CELL_ENDS = "cytes cytes cytes blasts blasts clasts phages phils cyte blast".split()


def _parse_rules(text: str) -> dict[str, tuple[list[str], list[float]]]:
    """Rule name -> its alternatives and their cumulative shares; "4|" alone is the empty alternative of weight 4."""
    rules: dict[str, tuple[list[str], list[float]]] = {}
    for block in text.removeprefix("= ").removesuffix("\n").split("\n= "):
        name, *lines = block.split("\n")
        pairs = [re.fullmatch(r"(?:(\d+)\|)?(.*)", line).groups() for line in lines]
        weights = [int(weight or 1) for weight, _ in pairs]
        shares = [sum(weights[: i + 1]) / sum(weights) for i in range(len(weights))]
        rules[name] = ([text for _, text in pairs], shares)
    return rules


RULES = _parse_rules(RULES_TEXT)


class Writer:
    """Write one split, sentence by sentence, from its own random stream."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random
        self._used: list[str] = []  # names of the current sentence: they occur again, often as another type
        self._short = ""  # the abbreviation of the last long name
        self._written = 0

    def sentence(self) -> tuple[list[str], list[str]]:
        """(words, tags), with a length near one drawn from LENGTHS or, for some sentences, from TAIL."""
        self._used = []
        self._written += 1
        wanted = self._number(*TAIL) if self._written % TAIL_EVERY == TAIL_EVERY // 2 else self._length()
        if wanted < 12:
            text = self._nearest("{title}", wanted)
        else:
            text = self._nearest("{opener} {clause}", wanted)
        misses, extras = 0, 0
        while misses < 3:
            rule = self._pick(("{joint} {clause}", "{extra}", "{extra}"))
            if wanted > 60:  # very long sentences are lists
                rule = self._pick((rule, "; {clause}", "; {clause}", ", for instance {list}"))
            if rule == "{extra}" and extras == 2:  # at most two after a clause
                rule = "{joint} {clause}"
            longer = f"{text} {self._expand(rule)}"
            if abs(_count(longer) - wanted) < abs(_count(text) - wanted):
                text, misses, extras = longer, 0, extras + 1 if rule == "{extra}" else 0
            else:
                misses += 1
        words, tags = _read_marks(f"{text} .")
        words[0] = words[0][0].upper() + words[0][1:] if tags[0] == "O" else words[0]
        return words, tags

    def _nearest(self, rule: str, wanted: int) -> str:
        """Of three expansions, the one whose number of words is nearest to the wanted one."""
        return min((self._expand(rule) for _ in range(3)), key=lambda text: abs(_count(text) - wanted))

    def _pick(self, choices: Sequence[T]) -> T:
        return choices[int(self._random() * len(choices))]

    def _number(self, low: int, high: int) -> int:
        return low + int(self._random() * (high - low + 1))

    def _length(self) -> int:
        """A number of words, interpolated between the quantiles of LENGTHS."""
        share = self._random()
        for (low, a), (high, b) in zip(LENGTHS, LENGTHS[1:], strict=False):
            if share < high:
                return round(a + (b - a) * (share - low) / (high - low))
        raise AssertionError("random() is below 1, the last quantile")

    def _expand(self, text: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda match: self._fill(match.group(1)), text)

    def _fill(self, name: str) -> str:
        if name not in RULES:
            return getattr(self, f"_make_{name}")()
        alternatives, shares = RULES[name]
        share = self._random()
        return self._expand(next(text for text, top in zip(alternatives, shares, strict=True) if share < top))

    # Names made of syllables; each `_make_x` fills {x} ----------------------------------------------------------------

    def _capitals(self, low: int, high: int) -> str:
        return "".join(self._pick(CAPITALS) for _ in range(self._number(low, high)))

    def _syllable(self) -> str:
        return self._pick(CONSONANTS) + self._pick(VOWELS) + self._pick(CONSONANTS)

    def _make_number(self) -> str:
        return str(self._number(2, 48))

    def _make_greek(self) -> str:
        return self._pick(GREEK)

    def _make_symbol(self) -> str:
        """A gene's name: one that this sentence has already used, a well-known one, or a new one."""
        share = self._random()
        if self._used and share < 0.2:
            return self._pick(self._used)
        name = self._pick(KNOWN_SYMBOLS) if share < 0.68 else self._new_symbol()
        self._used.append(name)
        return name

    def _new_symbol(self) -> str:
        hyphen = self._pick(("", "-"))
        kind = self._number(0, 9)
        if kind <= 2:
            return f"{self._capitals(2, 4)}{hyphen}{self._number(1, 12)}"
        if kind == 3:
            return f"{self._capitals(2, 3)}-{self._pick(GREEK)}"
        if kind == 4:
            return f"{self._pick('cv')}-{self._syllable()}"
        if kind == 5:
            return f"{self._syllable()}-{self._number(1, 9)}"
        if kind == 6:
            return f"{self._syllable().capitalize()}{hyphen}{self._number(1, 9)}"
        if kind == 7:
            return f"p{self._number(15, 180)}"
        if kind == 8:
            return f"{self._pick(('CD', 'IL-', 'HLA-', 'STAT', 'MIP-'))}{self._number(1, 90)}"
        return self._capitals(3, 5)

    def _make_long(self) -> str:
        """A protein's name in words; its abbreviation fills the next {short}."""
        stem = self._pick(ROOTS) + self._pick(PROTEIN_ENDS)
        end = self._pick(("", "", " receptor", " kinase", " binding protein", " -1", " 2", f" {self._pick(GREEK)}"))
        number = self._number(1, 9)
        end = {" -1": f"-{number}", " 2": f" {number}"}.get(end, end)
        initials = (stem[0] + self._pick(stem[2:5]) + self._pick(stem[-4:])).upper()
        tail = {" receptor": "R", " kinase": "K", " binding protein": "BP"}.get(end, end.replace(" ", "-"))
        self._short = initials + tail
        self._used.append(self._short)
        return stem + end

    def _make_short(self) -> str:
        return self._short

    def _make_long_cell(self) -> str:
        """A cell type in several words; its abbreviation fills the next {short}."""
        name = self._expand("{cell_phrase}")
        self._short = "".join(word[0] for word in name.split()).upper()
        return name

    def _make_chem_made(self) -> str:
        return self._pick(("", "", "di", "methyl", "2-deoxy", "oxo")) + self._pick(ROOTS) + self._pick(CHEM_ENDS)

    def _make_chem_short(self) -> str:
        return self._capitals(3, 4)

    def _make_virus_made(self) -> str:
        return self._capitals(2, 3) + self._pick(("V", "V", "V-1", "V-2"))

    def _make_cell_made(self) -> str:
        return self._pick(ROOTS) + self._pick(CELL_ENDS)

    def _make_line(self) -> str:
        kind = self._number(0, 9)
        if kind <= 2:
            return self._pick(KNOWN_LINES)
        if kind <= 6:
            return f"{self._capitals(1, 4)}{self._pick(('', '-'))}{self._number(1, 700)}"
        if kind == 7:
            return f"{self._capitals(2, 3)}-{self._number(1, 9)}.{self._number(1, 9)}"
        return (self._syllable() + self._pick(VOWELS)).capitalize() + self._pick(("", self._pick(CONSONANTS)))


def _count(text: str) -> int:
    """The number of words in marked text, without the marks."""
    return sum(not word.startswith("[") for word in text.split())


def _read_marks(text: str) -> tuple[list[str], list[str]]:
    """Marked text -> words and IOB2 tags: "[DNA IL-2 gene] is" -> IL-2/B-DNA gene/I-DNA is/O."""
    words, tags = [], []
    prefix, kind = "O", ""
    for word in text.split():
        if word.startswith("["):
            prefix, kind = "B", word[1:]
            continue
        words.append(word.removesuffix("]"))
        tags.append("O" if prefix == "O" else f"{prefix}-{kind}")
        prefix = "O" if prefix == "O" or word.endswith("]") else "I"
    return words, tags


def make_corpus(seed: int = 0, train: int = 1500, validation: int = 300, test: int = 300) -> Corpus:
    """Make the corpus of a seed; the same arguments always give the same corpus.

    Args:
        seed: which corpus.
        train: training sentences, at least 1.
        validation: validation sentences, at least 1.
        test: test sentences, at least 1.

    Raises:
        ValueError: a split would have no sentence.
    """
    sizes = {"train": train, "validation": validation, "test": test}
    for split, size in sizes.items():
        if size < 1:
            raise ValueError(f"{split} must have at least 1 sentence, got {size}")
    splits = {}
    for split, size in sizes.items():
        writer = Writer(f"{seed}/{split}")
        splits[split] = [writer.sentence() for _ in range(size)]
    return Corpus(**splits)


def write_corpus(corpus: Corpus, folder: str | os.PathLike[str]) -> None:
    """Write train.json, valid.json, test.json and label.json in the layout of the hub's `tner/bionlp2004`.

    No file appears before all could be written completely. Existing files of these names are replaced.

    Raises:
        OSError: the folder cannot be made or written.
    """
    ids = {label: i for i, label in enumerate(LABELS)}
    files = {"label.json": json.dumps(ids, indent=1)}
    for name, rows in zip(("train.json", "valid.json", "test.json"), corpus, strict=True):
        records = ({"tokens": words, "tags": [ids[tag] for tag in tags]} for words, tags in rows)
        files[name] = "".join(json.dumps(record) + "\n" for record in records)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as new:
        for name, text in files.items():
            (Path(new) / name).write_text(text, encoding="utf-8")
        for name in files:
            os.replace(Path(new) / name, folder / name)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the embedded corpus as a folder that lorakit.read_ner reads.")
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, another corpus (default 0)")
    parser.add_argument(
        "--sentences",
        type=int,
        default=1500,
        metavar="N",
        help="training sentences; validation and test get a fifth of that each (default 1500)",
    )
    chosen = parser.parse_args(arguments)
    if chosen.sentences < 5:
        parser.error(f"--sentences must be at least 5, got {chosen.sentences}")
    corpus = make_corpus(chosen.seed, chosen.sentences, chosen.sentences // 5, chosen.sentences // 5)
    try:
        write_corpus(corpus, chosen.output)
    except OSError as error:
        parser.error(f"cannot write {chosen.output}: {error.strerror}")
    sizes = ", ".join(f"{name} {len(rows)}" for name, rows in zip(Corpus._fields, corpus, strict=True))
    print(f"{chosen.output}: {sizes} sentences")
    return 0


if __name__ == "__main__":
    sys.exit(main())
