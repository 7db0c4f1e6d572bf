"""Writes the embedded corpus: made-up sentences of molecular biology with BioNLP2004's 11 labels, for runs offline.

    python examples/mini/corpus.py --output DIR [--seed N] [--sentences N]

The text is invented: a grammar (RULES) whose words and templates were written for this file, no sentence of any corpus.
What makes it a task and not a look-up:
    names       most gene, chemical, cell and cell-line names are put together from syllables when they are needed,
                partly the same syllables for all, so that validation and test hold names that training never saw
    context     the same name is a protein, or part of a DNA, an RNA or a cell line, by the words around it: IL-2,
                IL-2 gene, IL-2 mRNA, IL-2-dependent cell line; "IL-2 and IL-4" are two proteins, "IL-2 and IL-4
                genes" one DNA
    distractors chemicals, viruses, diseases and methods look like names and are none; nor is "the protein"
    ambiguity   as in the real corpus some mentions have no telling context, and their label is drawn
Same seed, same corpus, on every version of Python: the only source of chance is `random.Random.random`, whose stream is
guaranteed. Each split has a stream of its own, so that asking for more training sentences does not change the others.
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

# The wanted number of words by share of sentences: BioNLP2004's own quantiles less two, because a sentence may end up
# a few words longer, and with a thicker tail, so that 300 sentences already hold one of more than 100 words.
LENGTHS = ((0.0, 3), (0.01, 6), (0.05, 10), (0.1, 12), (0.25, 16), (0.5, 22.5), (0.75, 31), (0.9, 39), (0.95, 46))
LENGTHS += ((0.988, 61), (0.992, 105), (1.0, 140))


class Corpus(NamedTuple):
    """Three splits, each a list of (words, tags); tags are IOB2 strings of LABELS, as many as words."""

    train: list[tuple[list[str], list[str]]]
    validation: list[tuple[list[str], list[str]]]
    test: list[tuple[list[str], list[str]]]


# The grammar. A rule is a list of alternatives, one a line, with an optional weight in front ("4|"). {name} becomes an
# alternative of that rule or a name that `Writer` makes; [TYPE ...] marks an entity. Words are divided by spaces.
RULES_TEXT = """
= clause
9|{P} {acts} {P} {in_cells}
6|{P} {binds} {P}
6|{P} {binds} the {D}
7|{P} {regulates} {transcription_of} {in_cells}
5|{treatment} of {cells} with {agent} {changes} the {level} of {product}
5|{P} is {adverb} {expressed} {in_cells}
4|{agent} {changes} {process} {in_cells}
4|{process} {in_cells} {needs} {P} and {process}
4|{cells} {expressed_active} {P} but not {P}
2|{R} was {detected} in {cells} but not in {cells}
1|{R} {levels} were {changed} after {time} of {treatment} with {agent}
1|the half-life of {R} was {number} h in {cells}
5|the {D} contains {few} {D} for {P}
3|{cells} were transfected with a {D} under the control of the {D}
5|mutation of the {D} {changes} {process} {by_agent}
4|[DNA {symbol}] {maps}
2|{few} point mutations in [DNA {symbol}] were found in patients with {disease}
3|{disease} is associated with {vague_of}
3|{vague} plays {a_role} in {process}
3|{vague} may be involved in {process} {in_cells}
2|{method} showed that {generic} is {expressed} {in_cells}
2|{generic} was {detected} by {method} in {number} of {number} patients with {disease}
3|{virus} infection of {cells} {changes} {process}
3|{virus} {changes} the {level} of {product} {in_cells}
2|{P} encoded by {virus} {acts} {P}
3|{cells} were {cultured} with {agent} for {time}
3|a novel {protein_noun} , {P} , {acts} {P}
3|we have {cloned} a {D} encoding {P}
3|{P} and {P} form {few} complexes with {P}
3|{inducible} {process} was {changed} by {chem} , an inhibitor of {P}
2|{inducible} [protein {protein_noun}] {binds} the {D}
2|antibodies against {P} {changed} {process} {in_cells}
2|{cells} that lack {P} fail to undergo {process}
2|phosphorylation of {P} on tyrosine {needs} {P}
3|{chem} {changes} {process} without any effect on {P}
2|neither {P} nor {P} {acts} {P}
4|{generic} {changes} {process} in a manner that {needs} {process}
4|little is known about the way in which {process} {needs} {process}
3|the mechanism by which {disease} {changes} {process} is not well understood
3|{number} of {number} patients with {disease} showed {changed_level} of {process}
3|the {level} of {generic} was {changed} after {time} of {treatment}
3|{process} was {changed} in all patients with {disease} who were treated with {chem}
3|we measured the {level} of {product} by {method} before and {time} after {treatment}
2|both the {D} and the {D} are {needed} for {process}
2|the {D} , which lies upstream of the {D} , {binds_dna} {P}
2|deletion of the {D} {changes} the activity of the {D}
= changed_level
high levels
low levels
a complete loss
a significant increase
= needed
needed
sufficient
dispensable
= binds_dna
is bound by
is recognized by
does not bind
= opener
6|we show that
4|these results suggest that
3|our data indicate that
3|in contrast ,
3|in addition ,
2|furthermore ,
2|here we report that
2|it is known that
2|using {method} , we found that
2|to understand how {P} {acts} {P} , we asked whether
2|in {cells} ,
1|{time} after {treatment} with {agent} ,
2|on the basis of these and of earlier observations , we propose that
2|although the details of this process are not yet clear ,
2|as has been reported for other systems ,
20|
= joint
5|, and
3|, whereas
3|, but
2|, suggesting that
2|, indicating that
2|; moreover ,
1|because
1|, although
1|, which implies that
= extra
2|in the presence of {agent}
3|under the same experimental conditions
3|at a concentration of {number} ng/ml
2|in a large fraction of the samples that were examined
3|, which may be of clinical relevance
2|, in agreement with previous reports ,
3|in a dose-dependent manner
3|within {time} of {treatment}
2|as shown by {method}
2|( {number} % of control )
2|independently of {P}
2|, as well as {P} ,
2|through activation of {P}
2|by means of {method}
2|in response to {agent}
2|during {process}
2|, including {P} , {P} and {P}
1|when compared with {cells}
1|in patients with {disease}
= title
4|{regulation} of {D} by {P}
4|{regulation} of {P} {in_cells}
3|role of {vague} in {process}
2|{inducible} {process} {in_cells}
2|effect of {chem} on {process} {in_cells}
2|cloning of a {D} for {P}
1|{R} in {disease}
2|{process} in patients with {disease}
2|{chem} and {disease} : a new approach to treatment
2|a model of {process} and {process} in {disease}
= list
{P} , {P} , {P} and {P}
{P} , {chem} , {P} , {P} and {chem}
{C} , {C} and {C}
{D} , {D} and {D}
= acts
interacts with
3|activates
associates with
phosphorylates
2|inhibits
cooperates with
is a substrate of
is activated by
is related to
= binds
binds to
associates with
is recruited to
is a component of the complex with
= regulates
3|regulates
represses
activates
{adverb} controls
= transcription_of
3|transcription of [DNA {symbol}]
3|the {D}
2|transcription of the {D}
expression of the {D}
expression of {vague}
= vague_of
{vague}
deletion of {vague}
overexpression of {vague}
abnormal {vague}
= vague
16|[protein {symbol}]
2|[DNA {symbol}]
= in_cells
6|in {cells}
from {cells}
6|
= cells
7|{C}
4|{L}
= by_agent
by {agent}

= agent
5|{P1}
6|{chem}
{chem} plus {P1}
{P1} and {chem}
= product
6|{P}
2|{R}
2|{vague}
= treatment
treatment
stimulation
incubation
pretreatment
= changes
3|increased
3|inhibited
reduced
2|enhanced
blocked
had no effect on
markedly increased
prevented
= changed
increased
inhibited
reduced
blocked
not affected
= needs
requires
depends on
is mediated by
is independent of
= level
level
amount
production
synthesis
secretion
expression
surface expression
= levels
levels
expression
accumulation
= expressed
expressed
produced
present
found
inactive
= expressed_active
express
produce
secrete
contain
= detected
detected
found
abundant
absent
seen
= adverb
constitutively
rapidly
selectively
transiently
strongly
weakly
= cultured
cultured
incubated
stimulated
grown
= cloned
cloned
isolated
identified
characterized
= a_role
a role
an important role
a central part
no role
= few
two
three
several
multiple
distinct
novel
= time
{number} h
{number} min
{number} days
several hours
= maps
maps to [DNA chromosome {number}]
is located on [DNA chromosome {number}]
has {few} exons
is rearranged in {disease}
= process
3|T cell activation
2|apoptosis
2|cell growth
proliferation
differentiation
signal transduction
gene expression
transcription
calcium influx
protein synthesis
B cell development
the immune response
inflammation
nuclear translocation
DNA binding
cell adhesion
mRNA stability
degranulation
{symbol}-dependent signaling
{symbol} activity
= inducible
2|{symbol}-induced
{symbol}-mediated
{chem_short}-induced
{symbol}-dependent
{virus}-induced
= regulation
regulation
induction
inhibition
activation
structure
expression
= generic
2|the protein
this gene
the receptor
the mRNA
the gene product
the complex
these cells
the antigen
= method
EMSA
RT-PCR
Western blotting
Northern blot analysis
flow cytometry
ELISA
immunoprecipitation
transient transfection
gel shift assays
DNase I footprinting
= disease
asthma
AML
rheumatoid arthritis
B-CLL
multiple sclerosis
leukemia
AIDS
sepsis
lupus
lymphoma
Hodgkin 's disease
= virus
3|HIV-1
2|EBV
HTLV-I
CMV
adenovirus
HSV-1
influenza virus
{virus_made}
= chem
3|{chem_known}
4|{chem_made}
2|{chem_made} ( {chem_short} )
2|{chem_short}
= chem_known
2|PMA
2|LPS
TPA
ionomycin
2|dexamethasone
cyclosporin A
retinoic acid
forskolin
hydrogen peroxide
calcium
cAMP
H-7
genistein
PDTC
1 , 25-dihydroxyvitamin D3
= P
50|[protein {symbol}]
9|[protein {long}]
7|[protein {long}] ( [protein {short}] )
9|[protein {symbol} {protein_noun}]
6|[protein {symbol}] and [protein {symbol}]
3|[protein {symbol}] , [protein {symbol}] and [protein {symbol}]
9|[protein {protein_class}]
4|[protein {protein_modifier} {symbol}]
3|[protein {symbol}/{symbol} complex]
2|[protein anti-{symbol} antibody]
1|[protein {symbol} and {symbol} {protein_nouns}]
2|the [protein {symbol}] {protein_noun_outside}
2|[protein T cell receptor]
= P1
9|[protein {symbol}]
2|[protein {long}]
[protein {protein_modifier} {symbol}]
= protein_noun
3|protein
3|receptor
2|kinase
subunit
complex
homodimer
antigen
transcription factor
= protein_nouns
2|proteins
receptors
heterodimers
subunits
= protein_noun_outside
pathway
signal
cascade
family
= protein_class
3|transcription factors
2|cytokines
transcription factor
tyrosine kinases
adhesion molecules
immunoglobulin
monoclonal antibodies
protein kinase C
G proteins
nuclear factors
glucocorticoid receptor
= protein_modifier
2|recombinant
human
wild-type
soluble
phosphorylated
nuclear
membrane-bound
= D
12|[DNA {symbol} gene]
12|[DNA {symbol} promoter]
5|[DNA {symbol} and {symbol} genes]
4|[DNA {symbol} enhancer]
6|[DNA {symbol} {site}]
3|[DNA {long} ( {short} ) gene]
4|[DNA {long} gene]
3|[DNA {virus} long terminal repeat] ( [DNA LTR] )
3|[DNA {virus} LTR]
2|[DNA 5 ' flanking region]
3|[DNA {symbol} cDNA]
2|[DNA {symbol} locus]
4|[DNA reporter gene]
3|[DNA {cell_word} gene]
2|[DNA T cell receptor {greek} gene]
4|[DNA promoter]
3|[DNA enhancer]
1|[DNA chromatin]
2|[DNA {symbol} promoter/enhancer]
2|[DNA {symbol}]
= site
3|binding site
2|site
response element
motif
sites
= cell_word
cytokine
immunoglobulin
globin
housekeeping
viral
= R
10|[RNA {symbol} mRNA]
3|[RNA {symbol} transcripts]
2|[RNA {symbol} and {symbol} mRNAs]
2|[RNA {long} mRNA]
1|[RNA {long} ( {short} ) mRNA]
2|[RNA {symbol} messenger RNA]
2|[RNA mRNA]
1|mRNA
= C
12|[cell_type {cell}]
5|[cell_type {cell_modifier} {cell}]
3|[cell_type {symbol}+ {cell}]
2|[cell_type {cell_modifier} and {cell_modifier} {cell}]
2|[cell_type {symbol}-expressing {cell}]
1|{symbol}-expressing [cell_type {cell}]
2|{virus}-infected [cell_type {cell}]
2|[cell_type {cell}] and [cell_type {cell}]
3|[cell_type {long_cell}] ( [cell_type {short}] )
1|[cell_type {cell_short}]
2|untreated [cell_type {cell}]
1|stimulated [cell_type {cell}]
= cell_modifier
4|human
2|activated
resting
murine
normal
primary
naive
peripheral
circulating
malignant
= cell
6|T cells
3|B cells
3|monocytes
2|macrophages
3|T lymphocytes
NK cells
neutrophils
eosinophils
2|endothelial cells
dendritic cells
16|{cell_made}
4|{tissue} {tissue_cell} cells
2|peripheral blood {blood_cell}
2|{tissue} {cell_made}
= cell_phrase
2|peripheral blood {blood_cell}
2|cytotoxic T lymphocytes
{tissue} {tissue_cell} cells
{cell_modifier} {tissue_cell} cells
= cell_short
2|PBMC
CTL
NK
DC
= blood_cell
2|mononuclear cells
lymphocytes
leukocytes
= tissue
bone marrow
splenic
thymic
synovial
intestinal
dermal
umbilical vein
alveolar
renal
= tissue_cell
epithelial
endothelial
stromal
progenitor
stem
dendritic
mononuclear
= L
12|[cell_line {line} cells]
5|[cell_line {line}]
3|[cell_line {lineage} cell line] [cell_line {line}]
3|[cell_line {lineage} cell line] ( [cell_line {line}] )
3|[cell_line {lineage} cell lines]
3|[cell_line {symbol}-dependent cell line]
3|[cell_line {line} {lineage} cells]
2|[cell_line {line} and {line} cells]
2|[cell_line {symbol}-transfected {line} cells]
2|the [cell_line {line}] clone
2|{chem_short}-treated [cell_line {line} cells]
= lineage
3|T
2|B
monocytic
human T
erythroid
myeloid
murine pre-B
promyelocytic
lymphoma
leukemia
"""

KNOWN_SYMBOLS = (
    "IL-2 IL-2 IL-2 IL-4 IL-4 IL-6 IL-1 IL-10 IL-12 TNF-alpha TNF-alpha IFN-gamma GM-CSF AP-1 AP-1 NFAT c-fos c-jun "
    "c-myc bcl-2 p53 p50 p65 CD4 CD8 CD28 CD40 STAT1 STAT3 GATA-1 PU.1 Oct-2 Sp1 TCR GR PKC Tax Tat Nef ICAM-1 VCAM-1"
).split() + ["NF-kappa B", "NF-kappa B", "NF-kappaB", "I kappa B alpha"]
KNOWN_LINES = "Jurkat Jurkat HeLa U937 U937 K562 THP-1 HL-60 HL60 COS Raji CEM Namalwa MOLT-4".split()
GREEK = "alpha beta gamma delta epsilon zeta".split()
CONSONANTS, VOWELS = "bcdfgklmnprstvz", "aeiou"
CAPITALS = "ABCDEFGHIKLMNPRSTVXZ"
# One stock of roots for proteins, chemicals and cells, so that the root alone tells nothing.
ROOTS = (
    "thrombo cyto calci neuro myelo lympho granulo erythro fibro osteo kerato hepato chondro adipo astro spleno cardio "
    "entero histio mega gluco lacto cortico tropho vaso angio prota seri colla desmo tropo peri syn endo lipo glyco"
).split()
PROTEIN_ENDS = "modulin globulin statin kinase tensin philin nectin poietin cadherin genin lysin ferrin actin".split()
CHEM_ENDS = "mycin zole dopa nine sterone lactone cillin profen tidine pamide nol toxin".split()
CELL_ENDS = "cytes cytes cytes blasts blasts clasts phages phils cyte blast".split()


def _parse_rules(text: str) -> dict[str, tuple[list[str], list[float]]]:
    """Rule name -> its alternatives and their cumulative shares; an empty line is the empty alternative of weight 1."""
    rules: dict[str, tuple[list[str], list[float]]] = {}
    for block in text.removeprefix("\n= ").removesuffix("\n").split("\n= "):
        name, *lines = block.split("\n")
        pairs = [re.fullmatch(r"(?:(\d+)\|)?(.*)", line).groups() for line in lines]
        weights = [int(weight or 1) for weight, _ in pairs]
        shares = [sum(weights[: i + 1]) / sum(weights) for i in range(len(weights))]
        rules[name] = ([text for _, text in pairs], shares)
    return rules


RULES = _parse_rules(RULES_TEXT)


class Writer:
    """Writes one split, sentence by sentence, from its own stream of chance."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random
        self._used: list[str] = []  # names of the sentence at hand: they come back, often as something else
        self._short = ""  # the abbreviation of the last long name

    def sentence(self) -> tuple[list[str], list[str]]:
        """(words, tags) of about the length that is drawn from LENGTHS."""
        self._used = []
        wanted = self._length()
        if wanted < 12:
            text = self._nearest("{title}", wanted)
        else:
            text = self._nearest("{opener} {clause}", wanted)
        misses, extras = 0, 0
        while misses < 3:
            rule = self._pick(("{joint} {clause}", "{extra}", "{extra}"))
            if wanted > 60:  # very long sentences enumerate
                rule = self._pick((rule, "; {clause}", ", for instance {list}"))
            if rule == "{extra}" and extras == 2:  # two at most after a clause
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
        """Of three expansions the one whose number of words is nearest to the wanted."""
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

    # Names out of syllables; each `_make_x` fills {x} ----------------------------------------------------------------

    def _capitals(self, low: int, high: int) -> str:
        return "".join(self._pick(CAPITALS) for _ in range(self._number(low, high)))

    def _syllable(self) -> str:
        return self._pick(CONSONANTS) + self._pick(VOWELS) + self._pick(CONSONANTS)

    def _make_number(self) -> str:
        return str(self._number(2, 48))

    def _make_greek(self) -> str:
        return self._pick(GREEK)

    def _make_symbol(self) -> str:
        """A gene's name: one of this sentence again, a famous one, or a new one."""
        share = self._random()
        if self._used and share < 0.2:
            return self._pick(self._used)
        name = self._pick(KNOWN_SYMBOLS) if share < 0.5 else self._new_symbol()
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
    """Words in marked text, without the marks."""
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
    """The corpus of a seed, with the given numbers of sentences; always the same for the same arguments.

    Raises:
        ValueError: a split without sentences.
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
    """Writes train.json, valid.json, test.json and label.json as the hub's `tner/bionlp2004` has them.

    Each file appears whole or not at all, and none before all could be written; files of these names are replaced.

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
