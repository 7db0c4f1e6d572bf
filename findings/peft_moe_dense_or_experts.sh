#!/bin/sh
# PEFT's target_modules for the MLP of a mixture of experts adapt the experts alone in one family, and all but the
# experts in the next.
#
# One would guess: target_modules=["gate_proj", "up_proj", "down_proj"], as every recipe for these models has it, puts
# LoRA on each MLP matrix of that name: those of the dense first layers, of the shared expert and of the routed experts.
#
# Seen with peft 0.21.2 and transformers 5.23.0, where the routed experts are one tensor of all experts: for DeepSeek-V3
# and Qwen3-MoE the three names are turned into the experts' two tensors, and the dense layers and the shared expert,
# whose linear layers have exactly these names, get no LoRA. They cannot be reached: a pattern that names the shared
# expert's layers in full puts LoRA on the routed experts, too. For Qwen2-MoE the names are taken as they are: dense
# layers and the shared expert have LoRA, the routed experts, which hold nearly all parameters, none. No warning says
# what was left out; those that come speak of a rank_pattern that the user never gave.
#
# Who is hurt: whoever moves a LoRA recipe from one family to the other, or compares families: the same four lines train
# disjoint parts of the MLP, and parameter counts are the only trace.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$folder/venv/bin/python" - <<'PYTHON'
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

warnings.simplefilter("ignore")
sizes = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 48, "moe_intermediate_size": 16, "num_experts_per_tok": 2,
}
own = {
    "deepseek_v3": {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1,
                    "topk_group": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8,
                    "qk_nope_head_dim": 8, "v_head_dim": 8},
    "qwen3_moe": {"num_experts": 4, "mlp_only_layers": [0], "head_dim": 8},
    "qwen2_moe": {"num_experts": 4, "mlp_only_layers": [0], "shared_expert_intermediate_size": 16},
}
NAMES = ["gate_proj", "up_proj", "down_proj"]


def parts(kind, targets):
    """By part of the MLP: how many matrices of these names it has, and whether LoRA is on them."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **own[kind]))
    there = {"dense": 0, "shared": 0, "experts": 0}
    for name, module in model.named_modules():
        if name.endswith(tuple(NAMES)) and isinstance(module, torch.nn.Linear):
            there["shared" if "shared" in name else "dense"] += 1
        there["experts"] += name.endswith("mlp.experts")
    model = get_peft_model(model, LoraConfig(r=4, target_modules=targets))
    adapted = [name for name, _ in model.named_parameters() if "lora_A" in name]
    kinds = {"dense": "layers.0.mlp", "shared": "shared_expert", "experts": "mlp.experts"}
    return {part: any(key in name for name in adapted) for part, key in kinds.items() if there[part]}


found = {kind: parts(kind, NAMES) for kind in own}
for kind, adapted in found.items():
    print(f"{kind:12}", {part: "LoRA" if has else "nothing" for part, has in adapted.items()})
of_shared = parts("deepseek_v3", r".*\.shared_experts\.(gate|up|down)_proj")
print("deepseek_v3, only the shared expert named:", {p: "LoRA" if has else "nothing" for p, has in of_shared.items()})
assert found == {
    "deepseek_v3": {"dense": False, "shared": False, "experts": True},
    "qwen3_moe": {"dense": False, "experts": True},
    "qwen2_moe": {"dense": True, "shared": True, "experts": False},
}, "the behaviour has changed"
assert of_shared == {"dense": False, "shared": False, "experts": True}, "the behaviour has changed"
print("as described")
PYTHON
