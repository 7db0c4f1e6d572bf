"""LoRA in a training loop of your own: any nn.Module, any loss, plain PyTorch.

The model is a module that transformers does not know: an encoder with a regression head that learns to count the
entities of a sentence. `apply_lora` changes it in place and finds the head itself; the rest is the loop you already
have.

To use your own: load your encoder instead of examples/mini (`AutoModel.from_pretrained("roberta-base",
dtype=torch.float32)`), replace `batches()`, move model and batches to your GPU, and name your layers in
`target_modules` if lorakit does not know the architecture.
"""

import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from mini.corpus import make_corpus  # the generated corpus, next to the base
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, logging

import lorakit

MINI = Path(__file__).parent / "mini"
logging.set_verbosity_error()  # it would report that the base has no head, as intended
logging.disable_progress_bar()


class EntityCounter(nn.Module):
    """An encoder, the mean of its outputs over the sentence, and a linear layer from there to one number."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(MINI, dtype=torch.float32, add_pooling_layer=False)
        self.head = nn.Linear(self.encoder.config.hidden_size, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask[..., None].to(hidden.dtype)
        return self.head((hidden * weights).sum(1) / weights.sum(1)).squeeze(-1)


def batches(sentences: list, tokenizer, size: int, seed: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """One epoch of padded batches: the model's inputs, and the number of entities in each sentence."""
    order = random.Random(seed).sample(sentences, len(sentences))
    for i in range(0, len(order), size):
        words, tags = zip(*order[i : i + size], strict=True)
        inputs = tokenizer(list(words), is_split_into_words=True, padding=True, return_tensors="pt")
        counts = torch.tensor([float(sum(tag.startswith("B-") for tag in line)) for line in tags])
        yield {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}, counts


@torch.no_grad()
def mean_error(model: nn.Module, sentences: list, tokenizer) -> float:
    """Mean absolute error, in entities per sentence."""
    model.eval()
    errors = [(model(**inputs) - counts).abs() for inputs, counts in batches(sentences, tokenizer, 50, seed=0)]
    return float(torch.cat(errors).mean())


def main() -> int:
    torch.manual_seed(0)
    corpus = make_corpus(train=128, validation=40, test=1)
    tokenizer = AutoTokenizer.from_pretrained(MINI)
    model = EntityCounter()

    lorakit.apply_lora(model, r=8, target_modules="all-linear")  # in place; the head is trained in full
    print(lorakit.count_parameters(model))

    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    print(f"before: off by {mean_error(model, corpus.validation, tokenizer):.2f} entities per sentence")
    with lorakit.EnergyMeter() as meter:  # optional
        for epoch in range(1, 3):
            model.train()
            for inputs, counts in batches(corpus.train, tokenizer, 16, seed=epoch):
                loss = nn.functional.mse_loss(model(**inputs), counts)
                optimizer.zero_grad()
                loss.backward()
                if unreached := lorakit.without_gradient(model):  # layers that the loss does not depend on
                    raise RuntimeError(f"no gradient reaches {', '.join(unreached)}: they would learn nothing")
                optimizer.step()
            print(f"epoch {epoch}: off by {mean_error(model, corpus.validation, tokenizer):.2f}")
    print(f"energy, {meter.reading.cpu.method} for the CPU: {meter.reading}")

    with tempfile.TemporaryDirectory() as folder:  # use a folder that you keep
        lorakit.save_adapter(model, folder)
        size = (Path(folder) / "adapter_model.safetensors").stat().st_size
        again = lorakit.load_adapter(EntityCounter(), folder)  # a fresh base with an untrained head
        print(f"the adapter alone, {size / 1e6:.1f} MB, on a fresh base: off by "
              f"{mean_error(again, corpus.validation, tokenizer):.2f}")  # fmt: skip
    lorakit.merge_lora(model)  # the same outputs at the speed of the base
    print(f"merged: off by {mean_error(model, corpus.validation, tokenizer):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
