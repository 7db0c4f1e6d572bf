#!/bin/sh
# bioc reads a PubTator entity that has no concept number as a relation between two offsets, without a word.
#
# One would guess: a line of document, start, end, mention, type and an empty last field is an entity whose concept is
# unknown, as taggers write it when they could not link a mention. At worst one would expect an error.
#
# Seen with bioc 2.1: the line is stripped, which takes its last tab and with it the empty field. What has five fields
# is read as a relation: the start becomes its type, end and mention its two arguments, and the entity type its flag of
# negation. The document has one entity less. A title that ends in a blank loses that blank, too, so that every
# offset of the abstract points one character further than its mention.
#
# Who is hurt: anybody who counts or trains on entities of files whose mentions are partly not linked.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet bioc==2.1
"$folder/venv/bin/python" - <<'PYTHON'
from bioc import pubtator

title, abstract = "Lidocaine works.", "It numbs the skin."


def read(title, line):
    (document,) = pubtator.loads(f"1|t|{title}\n1|a|{abstract}\n{line}\n")
    return document


linked = read(title, "1\t0\t9\tLidocaine\tChemical\tD008012")
print("with a concept:   ", len(linked.annotations), "entity,", len(linked.relations), "relations")
alone = read(title, "1\t0\t9\tLidocaine\tChemical\t")
print("without a concept:", len(alone.annotations), "entities,", len(alone.relations), "relation:", vars(alone.relations[0]))
assert (len(linked.annotations), len(linked.relations)) == (1, 0), "the behaviour has changed"
assert (len(alone.annotations), len(alone.relations)) == (0, 1), "the behaviour has changed"

start = len(title + " ") + 1 + abstract.index("skin")
blank = read(title + " ", f"1\t{start}\t{start + 4}\tskin\tAnatomy\tD012867")
(found,) = blank.annotations
print("after a title with a blank at its end, 'skin' is at", repr(blank.text[found.start : found.end]))
assert blank.text[found.start : found.end] == "kin.", "the behaviour has changed"
print("as described")
PYTHON
