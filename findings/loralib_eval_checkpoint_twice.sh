#!/bin/sh
# A model with loralib's LoRA that is saved in eval mode holds its update twice when it is loaded.
#
# One would guess: the state_dict of a model is its state, in train and in eval mode alike, so a checkpoint written
# after an evaluation is the model that was evaluated; and a frozen weight stays as it is during training.
#
# Seen with loralib 0.1.2: eval() adds B·A to the frozen weight, and train() takes it off again. Which of the two has
# happened is an attribute of the layer that no state_dict holds. A checkpoint written in eval mode therefore has W + BA
# beside A and B, and a new model adds BA to it again: loading says that all keys match, and the outputs are those of
# twice the update, in train and in eval mode. For the same reason the frozen weight is not frozen: in bfloat16 adding
# and taking off round, and one evaluation leaves some of its values changed.
#
# Who is hurt: whoever evaluates, and saves the best model right after it, as nearly every training loop does, with the
# LoRA of the method's own authors; the saved model is worse than the score that chose it.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy loralib==0.1.2
"$folder/venv/bin/python" - <<'PYTHON'
import loralib
import torch

torch.manual_seed(0)
x = torch.randn(4, 16)


def layer(dtype=torch.float32):
    found = loralib.Linear(16, 16, r=4).to(dtype)
    torch.nn.init.normal_(found.lora_B, std=0.1)
    return found


with torch.no_grad():
    trained = layer()
    base = torch.nn.functional.linear(x, trained.weight, trained.bias)
    update = trained(x) - base
    trained.eval()
    assert torch.allclose(trained(x), base + update, atol=1e-6)
    loaded = layer()
    print(loaded.load_state_dict(trained.state_dict()))
    times = {}
    for mode in (True, False):
        loaded.train(mode)
        times["train" if mode else "eval"] = ((loaded(x) - base) * update).sum() / update.square().sum()
    print("times that the update is in the loaded model:", {mode: f"{value:.3f}" for mode, value in times.items()})

    half = layer(torch.bfloat16)
    before = half.weight.clone()
    half.eval()
    half.train()
    changed = (half.weight != before).float().mean().item()
    largest = ((half.weight - before).abs().max() / before.abs().max()).item()
    print(f"frozen bfloat16 weight after an evaluation: {changed:.0%} changed, by up to {largest:.1%} of the largest")
assert all(abs(value - 2) < 1e-4 for value in times.values()), "the behaviour has changed"
assert changed > 0.01, "the behaviour has changed"
print("as described")
PYTHON
