#!/bin/sh
# "spacy convert" reads BIOES and BMES files, and cuts the last word off every entity of two words or more.
#
# One would guess: a converter that reads the tags of IOB and BILUO either reads BIOES, the third usual spelling of the
# same entities, or refuses the letters that it does not know.
#
# Seen with spaCy 3.8.18: it ends with status 0 and a green tick, without a word about the scheme. S- counts as an entity
# of one word, which is right; but E- is taken for the first word of another entity, so "John van Dyk" becomes the two
# entities "John van" and "Dyk". In BMES (B, M, E, S) each word becomes an entity of its own. IOB2 and BILUO of the same
# sentence are read rightly.
#
# Who is hurt: everybody who trains spaCy on a corpus in BIOES (NCRF++ and Stanza use it): all long entities of
# training and test are wrong in the same way, so the scores look sound.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet spacy==3.8.18
cd "$folder"

write() { # name, then the tags of the words
    name=$1
    shift
    for word in John van Dyk visits Paris .; do
        printf '%s\t%s\n' "$word" "$1"
        shift
    done > "$name.conll"
    echo >> "$name.conll"
    venv/bin/python -m spacy convert "$name.conll" . --converter conll > "$name.log" 2>&1
    grep -qi "scheme\|unknown" "$name.log" && echo "the behaviour has changed: $name" && exit 1
    return 0
}
write iob2 B-PER I-PER I-PER O B-LOC O
write biluo B-PER I-PER L-PER O U-LOC O
write bioes B-PER I-PER E-PER O S-LOC O
write bmes B-PER M-PER E-PER O S-LOC O

venv/bin/python - <<'PYTHON'
import spacy
from spacy.tokens import DocBin

found = {}
for name in ("iob2", "biluo", "bioes", "bmes"):
    docs = DocBin().from_disk(f"{name}.spacy").get_docs(spacy.blank("en").vocab)
    found[name] = [(entity.text, entity.label_) for doc in docs for entity in doc.ents]
    print(f"{name:5s} {found[name]}")
right = [("John van Dyk", "PER"), ("Paris", "LOC")]
assert found["iob2"] == found["biluo"] == right, "the behaviour has changed"
assert found["bioes"] == [("John van", "PER"), ("Dyk", "PER"), ("Paris", "LOC")], "the behaviour has changed"
assert found["bmes"] == [(word, "PER") for word in ("John", "van", "Dyk")] + [("Paris", "LOC")], "the behaviour has changed"
PYTHON
