#!/bin/sh
# One short input turns BigBird's sparse attention off for good, and later outputs depend on what was run before.
#
# One would guess: attention_type="block_sparse" in the configuration decides, for every input that is long enough; an
# input that is too short is computed with full attention, and the next long one sparsely again.
#
# Seen with transformers 5.23.0 and torch 2.13.0 on a CPU: a forward of 32 tokens sets the model's attention_type to
# "original_full" and leaves it there, while config.attention_type still says "block_sparse". The same 512 tokens give
# another output afterwards than before, in evaluation mode and with the same seed. One warning is logged, once.
#
# Who is hurt: whoever evaluates or serves documents of mixed lengths. A score depends on the order of the corpus, memory
# grows with the square of the length after the first short document, and a saved model reports the other attention.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers import BigBirdConfig, BigBirdModel

torch.manual_seed(0)
sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
config = BigBirdConfig(**sizes, intermediate_size=64, max_position_embeddings=1024, block_size=16,
                       num_random_blocks=1, attention_type="block_sparse")
model = BigBirdModel(config).eval()
long, short = torch.randint(5, 100, (1, 512)), torch.randint(5, 100, (1, 32))


@torch.no_grad()
def output():
    return model(long).last_hidden_state


first = output()
assert torch.equal(first, output()), "the same input gives the same output, so far"
print("after two long inputs:  ", model.attention_type)
with torch.no_grad():
    model(short)
print("after one short input:  ", model.attention_type, "| configuration:", model.config.attention_type)
difference = float((output() - first).abs().max())
print(f"the same long input now differs by {difference:.4f}")
assert (model.attention_type, model.config.attention_type) == ("original_full", "block_sparse"), "it has changed"
assert difference > 1e-4, "it has changed"
print("as described")
PYTHON
