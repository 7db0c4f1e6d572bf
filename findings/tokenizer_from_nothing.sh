#!/bin/sh
# AutoTokenizer makes a tokenizer without a vocabulary from a folder that holds no tokenizer file.
#
# One would guess: a model folder with config.json and weights, but without tokenizer files (a training script that
# saved the model only, a partial copy), is refused by AutoTokenizer.from_pretrained, as ModernBERT's is.
#
# Seen with transformers 5.23.0, without an error or a warning: for BERT and DistilBERT a tokenizer of 5 entries comes
# back that reads every word as [UNK]; for RoBERTa one that reads every word as nothing at all. A check that each word
# has a token finds nothing for BERT.
#
# Who is hurt: whoever saves a model without its tokenizer, trains or evaluates later, and looks for the low score in
# the data or the learning rate.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
from transformers import AutoConfig, AutoTokenizer

found = {}
for kind in ("bert", "distilbert", "roberta"):
    AutoConfig.for_model(kind).save_pretrained(kind)  # config.json alone
    tokenizer = AutoTokenizer.from_pretrained(kind)
    found[kind] = (len(tokenizer), tokenizer.tokenize("a gene of interest"))
    print(f"{kind:12} {type(tokenizer).__name__}, {found[kind][0]} entries, reads {found[kind][1]}")
assert found == {"bert": (5, ["[UNK]"] * 4), "distilbert": (5, ["[UNK]"] * 4), "roberta": (5, [])}, "it has changed"
AutoConfig.for_model("modernbert").save_pretrained("modernbert")
try:
    AutoTokenizer.from_pretrained("modernbert")
except ValueError:
    print("modernbert   refused")
else:
    raise AssertionError("the behaviour has changed")
print("as described")
PYTHON
