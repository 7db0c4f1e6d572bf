#!/bin/sh
# PEFT's LoRA in torch's own nn.TransformerEncoder is trained, and then left out as soon as the model is in eval mode.
#
# One would guess: after get_peft_model(model, target_modules=["linear1", "linear2"]) and training, model.eval() changes
# dropout and nothing else, so that the trained model can be used; or that the layer, which cannot carry LoRA, is
# refused.
#
# Seen with peft 0.21.2 and torch 2.13.0: in eval mode nn.TransformerEncoderLayer takes its fast path, which hands
# linear1.weight and linear2.weight to one fused operator and never calls the two layers. PEFT's wrapper answers .weight
# with the frozen weight, so the update is passed over without a warning, with gradients enabled, too: the model answers
# to the last bit as if it had never been trained. LoRA learns the task below (accuracy 1.00 in train mode, without any
# dropout), and eval mode has the untrained accuracy. Merging the adapter brings it back, and so does turning the fast
# path off (torch.backends.mha.set_fastpath_enabled(False)): the ways of using one adapter disagree.
#
# Who is hurt: everybody who puts LoRA on a model built of torch's own encoder layers (tabular, speech, vision and
# time-series models are): the training loss is fine, validation never moves, and data or rate get the blame.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$folder/venv/bin/python" - <<'PYTHON'
import warnings

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

torch.manual_seed(0)
warnings.simplefilter("error")


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(32, 2)

    def forward(self, x):
        return self.head(self.encoder(x))


x = torch.randn(16, 8, 32)
gold = (x[..., 0] * x[..., 1] > 0).long()
untrained = Tagger()
model = get_peft_model(untrained, LoraConfig(r=16, lora_alpha=32, target_modules=["linear1", "linear2"]))
model.eval()
before = model(x)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
model.train()
for _ in range(300):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x).flatten(0, 1), gold.flatten()).backward()
    optimizer.step()


def accuracy(scores):
    return (scores.argmax(-1) == gold).float().mean().item()


train_mode = accuracy(model(x))
model.eval()
after = model(x)
with torch.no_grad():
    without_gradients = model(x)
torch.backends.mha.set_fastpath_enabled(False)
slow_path = accuracy(model(x))
torch.backends.mha.set_fastpath_enabled(True)
merged = accuracy(model.merge_and_unload().eval()(x))
print(f"accuracy: train mode {train_mode:.2f}, eval mode {accuracy(after):.2f}, eval mode before training "
      f"{accuracy(before):.2f}, eval mode without the fast path {slow_path:.2f}, merged {merged:.2f}")
assert torch.equal(after, before) and torch.equal(without_gradients, before), "the behaviour has changed"
assert train_mode > 0.95 and slow_path > 0.95 and merged > 0.95 and accuracy(after) < 0.7, "the behaviour has changed"
print("as described")
PYTHON
