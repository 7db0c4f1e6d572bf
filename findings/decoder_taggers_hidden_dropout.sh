#!/bin/sh
# Token classifiers on decoders have dropout of 0.1 before the head, which no field of their configuration shows or sets.
#
# One would guess: with every field whose name has "dropout" set to 0, a Llama, Qwen3, Mistral or Gemma 2 token
# classifier is deterministic in training mode, as a BERT one is. Only attention_dropout is there, and it is 0 already.
#
# Seen with transformers 5.23.0: all four classes hold nn.Dropout(0.1) in front of `score`. Two forwards of the same
# input in training mode differ. (A field classifier_dropout set by hand on the configuration object
# does reach it, but these configurations do not list it.)
#
# Who is hurt: whoever switches dropout off for a reproducible or cached run (features of frozen layers, knowledge
# distillation, gradient checks), or compares the loss of two implementations step by step.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers import AutoConfig, AutoModelForTokenClassification

sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
for kind in ("llama", "qwen3", "mistral", "gemma2"):
    config = AutoConfig.for_model(kind, **sizes, num_attention_heads=2, num_key_value_heads=2, num_labels=3)
    shown = [name for name, value in config.to_dict().items() if "drop" in name]
    for name in shown:
        setattr(config, name, 0.0)
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_config(config).train()
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    ids = torch.arange(5, 15)[None]
    differ = not torch.equal(model(ids).logits, model(ids).logits)
    print(f"{kind:8} fields: {shown}, dropout modules: {rates}, two forwards differ: {differ}")
    assert shown == ["attention_dropout"] and rates == {"dropout": 0.1} and differ, "the behaviour has changed"
    config.classifier_dropout = 0.0
    model = AutoModelForTokenClassification.from_config(config).train()
    assert model.dropout.p == 0.0, "the behaviour has changed: a field set by hand no longer reaches it"
print("as described")
PYTHON
