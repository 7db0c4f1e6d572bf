#!/bin/sh
# nervaluate's "ent_type" score depends on which of two predictions stands first in the sentence.
#
# One would guess: an entity of which most words are found with the right type, and one word with a wrong type, scores the
# same whether that word is the first or the last; the SemEval 2013 scheme that the package follows knows no direction.
# And swapping gold and predicted swaps precision and recall and leaves F1 alone.
#
# Seen with nervaluate 1.2.1: with the wrong word last the entity is correct (precision 0.5, recall 1, F1 0.67); with it
# first nothing is (F1 0): the prediction of the wrong type overlaps the entity, uses it up as "incorrect", and the one
# of the right type is left over as "spurious". With gold and predicted swapped, the second case scores 0.67 as well.
# strict, exact and partial do not have this: their F1 stays the same over 300 random pairs, mirrored or swapped.
#
# Who is hurt: everybody who reports the type score, or chooses models by it: a wrong type at the start of an entity
# costs more than the same mistake at its end.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nervaluate==1.2.1
"$folder/venv/bin/python" - <<'PYTHON'
import random

from nervaluate import Evaluator


def scores(gold, predicted):
    found = Evaluator([tags(gold)], [tags(predicted)], tags=["X", "Y"], loader="list").evaluate()["overall"]
    return {name: round(result.f1, 9) for name, result in found.items()}


def tags(pieces):
    """IOB2 of a sentence given as (type or None, number of words)."""
    found = []
    for kind, words in pieces:
        found += ["O"] * words if kind is None else [f"B-{kind}"] + [f"I-{kind}"] * (words - 1)
    return found


gold, last, first = [("X", 4)], [("X", 3), ("Y", 1)], [("Y", 1), ("X", 3)]
for name, predicted in {"wrong word last": last, "wrong word first": first}.items():
    print(f"{name}: F1 {scores(gold, predicted)['ent_type']:.2f}, swapped {scores(predicted, gold)['ent_type']:.2f}")
assert scores(gold, last)["ent_type"] == scores(last, gold)["ent_type"] == round(2 / 3, 9), "the behaviour has changed"
assert scores(gold, first)["ent_type"] == 0, "the behaviour has changed"
assert scores(first, gold)["ent_type"] == round(2 / 3, 9), "the behaviour has changed"


def sentence(draw):
    pieces, words = [], 0
    while words < 8:
        size = min(draw.randint(1, 4), 8 - words)
        pieces.append((draw.choice(["X", "Y", None]), size))
        words += size
    return pieces


draw, changed = random.Random(0), dict.fromkeys(("strict", "exact", "partial", "ent_type"), 0)
for _ in range(300):
    gold, predicted = sentence(draw), sentence(draw)
    here, mirrored, swapped = scores(gold, predicted), scores(gold[::-1], predicted[::-1]), scores(predicted, gold)
    for name in changed:
        changed[name] += not here[name] == mirrored[name] == swapped[name]
print("of 300 random pairs, F1 differs when mirrored or swapped:", changed)
assert changed["ent_type"] > 0 and not any(changed[name] for name in ("strict", "exact", "partial")), "it has changed"
print("as described")
PYTHON
