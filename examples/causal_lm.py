"""LoRA on a small decoder: a base that counts the days forwards learns to count them backwards, and can still do both.

The base is a byte-level Llama with 0.1 M parameters, trained here in a few seconds so that nothing is downloaded. Then
the adapter is trained on frozen weights: perplexity on the new text falls, the generated text changes, and inside
`disable_lora` the base answers as before.

To use your own: `AutoModelForCausalLM.from_pretrained("your/model", dtype=torch.float32)` and its tokenizer instead of
`make_base` and bytes; your tokenized texts instead of `rows`. After apply_lora a large base can be kept in fewer bits:
`lorakit.shrink_base(model, torch.bfloat16)` under autocast to the same type, or "nf4" with torchao.
"""

import math
import sys

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import lorakit

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
WIDTH = 48  # bytes per row


def rows(step: int) -> Tensor:
    """The days of the week from each day on, forwards (step 1) or backwards (step -1), as bytes: (7, WIDTH)."""
    texts = [" ".join(DAYS[(first + step * i) % 7] for i in range(WIDTH // 4)) + " " for first in range(7)]
    return torch.tensor([list(text.encode()) for text in texts])


def train(model: nn.Module, ids: Tensor, steps: int, learning_rate: float) -> None:
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=learning_rate)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()  # the model shifts the labels itself
        optimizer.step()
    model.eval()


@torch.no_grad()
def perplexity(model: nn.Module, ids: Tensor) -> float:
    return math.exp(model(input_ids=ids, labels=ids).loss)


def continue_text(model: nn.Module, prompt: str, length: int = 20) -> str:
    ids = torch.tensor([list(prompt.encode())])
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False, pad_token_id=0
    )
    return bytes(found[0].tolist()).decode(errors="replace")


def make_base() -> LlamaForCausalLM:
    """A tiny Llama that has learned to count the days forwards."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    train(model, rows(step=1), steps=120, learning_rate=3e-3)
    return model


def main() -> int:
    model, forwards, backwards = make_base(), rows(step=1), rows(step=-1)
    print(
        f"the base: perplexity {perplexity(model, forwards):.2f} forwards, {perplexity(model, backwards):.2f} backwards"
    )
    print("  ", continue_text(model, "Wed "))

    lorakit.apply_lora(model, r=8, target_modules="all-linear")  # every linear layer except the output embeddings
    print(lorakit.count_parameters(model))
    train(model, backwards, steps=120, learning_rate=1e-2)
    print(f"with LoRA: perplexity {perplexity(model, backwards):.2f} backwards")
    print("  ", continue_text(model, "Wed "))
    with lorakit.disable_lora(model):
        print(f"LoRA off: perplexity {perplexity(model, forwards):.2f} forwards")
        print("  ", continue_text(model, "Wed "))

    lorakit.remove_lora(model, merge=True)  # a plain Llama again, with the update in its weights
    print(f"merged: perplexity {perplexity(model, backwards):.2f} backwards")
    return 0


if __name__ == "__main__":
    sys.exit(main())
