#!/bin/sh
# PEFT's LoRA+ optimizer trains every vector, not only lora_B, at the raised rate.
#
# One would guess: create_loraplus_optimizer(lr=1e-3, loraplus_lr_ratio=16) trains the lora_B matrices at 1.6e-2 and
# everything else, such as the task head and LayerNorms in modules_to_save, at 1e-3. The paper raises only B's rate
# (arxiv.org/abs/2402.12354), and the function's docstring speaks of A's and B's rates only.
#
# Seen with peft 0.21.2: whatever has one dimension is in the group of the raised rate. The head's bias trains 16 times
# as fast as its weight, and so do the weights and biases of LayerNorms. Embeddings trained in full (modules_to_save)
# do not get loraplus_lr_embedding, which is for LoRA on embeddings alone.
#
# Who is hurt: anybody who adds a head (always so in token or sequence classification) or LayerNorms to LoRA+, and
# looks for the reason why training became unstable in the matrices.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from peft import LoraConfig, TaskType, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import BertConfig, BertForTokenClassification

sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
model = BertForTokenClassification(BertConfig(vocab_size=50, num_labels=3, **sizes))
trained = ["classifier", "LayerNorm", "word_embeddings"]
model = get_peft_model(
    model, LoraConfig(r=4, target_modules=["query"], modules_to_save=trained, task_type=TaskType.TOKEN_CLS)
)
optimizer = create_loraplus_optimizer(
    model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, loraplus_lr_embedding=1e-6
)
rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
found = {}
for name, parameter in model.named_parameters():
    if parameter.requires_grad:
        kind = next(k for k in ("lora_A", "lora_B", *trained) if k in name)
        found[kind if "lora" in kind else f"{kind}.{name.rsplit('.', 1)[1]}"] = rate[id(parameter)]
for name in sorted(found):
    print(f"{name:24} {found[name]:g}")
wanted = {
    "lora_A": 1e-3, "lora_B": 1.6e-2, "classifier.weight": 1e-3, "word_embeddings.weight": 1e-3,
    "classifier.bias": 1.6e-2, "LayerNorm.weight": 1.6e-2, "LayerNorm.bias": 1.6e-2,
}
assert found == wanted, "the behaviour has changed"
print("as described")
PYTHON
