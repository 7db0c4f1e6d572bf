"""LoRA on a text classifier: does a sentence name a cell?

A transformers model with a classification head, and a loop that pads each batch to its longest text. The texts come
from the generated corpus; the label is 1 if a cell type or a cell line is named.

To use your own: replace `texts_and_labels`, choose a base
(`python examples/text_classification.py --model roberta-base --learning-rate 3e-4`), and the learning rate that does
best on your validation set.
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from mini.corpus import make_corpus  # the generated corpus, next to the base
from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging

import lorakit

MINI = Path(__file__).parent / "mini"
logging.set_verbosity_error()  # it would report that the base has no head, as intended
logging.disable_progress_bar()


def texts_and_labels(sentences: list) -> list[tuple[str, int]]:
    return [(" ".join(words), int(any("cell" in tag for tag in tags))) for words, tags in sentences]


def load(base: str) -> torch.nn.Module:
    """The base with a new head of two classes."""
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, dtype=torch.float32)


@torch.no_grad()
def classify(model: torch.nn.Module, tokenizer, texts: Sequence[str], size: int = 50) -> list[int]:
    """The class of each text."""
    model.eval()
    found: list[int] = []
    for i in range(0, len(texts), size):
        batch = tokenizer(list(texts[i : i + size]), padding=True, truncation=True, return_tensors="pt")
        found += model(**batch).logits.argmax(-1).tolist()
    return found


def accuracy(model: torch.nn.Module, tokenizer, rows: list[tuple[str, int]]) -> float:
    texts, labels = zip(*rows, strict=True)
    return sum(a == b for a, b in zip(classify(model, tokenizer, texts), labels, strict=True)) / len(rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MINI), metavar="FOLDER_OR_ID", help="base (default: the embedded one)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, metavar="X", help="default: %(default)s")
    arguments = parser.parse_args(argv)

    torch.manual_seed(0)
    corpus = make_corpus(train=192, validation=60, test=1)
    train, validation = texts_and_labels(corpus.train), texts_and_labels(corpus.validation)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = load(arguments.model)
    lorakit.apply_lora(model, r=8, lora_dropout=0.0, target_modules="all-linear")
    print(lorakit.count_parameters(model))

    larger = max(sum(label for _, label in validation), sum(1 - label for _, label in validation)) / len(validation)
    print(f"always the larger class: accuracy {larger:.3f}")
    print(f"before: accuracy {accuracy(model, tokenizer, validation):.3f}")
    groups = lorakit.lora_plus_groups(model, learning_rate=arguments.learning_rate, ratio=4)  # B learns faster
    optimizer = torch.optim.AdamW(groups)
    for epoch in range(1, 3):
        model.train()
        order = random.Random(epoch).sample(train, len(train))
        for i in range(0, len(order), 16):
            texts, labels = zip(*order[i : i + 16], strict=True)
            batch = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
            loss = model(**batch, labels=torch.tensor(labels)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: accuracy {accuracy(model, tokenizer, validation):.3f}")

    for text in ("Expression of p53 in Jurkat cells was low .", "The p53 gene was transcribed ."):
        print(f"{'names a cell' if classify(model, tokenizer, [text])[0] else 'names none  '} | {text}")

    with tempfile.TemporaryDirectory() as folder:  # a folder of your own keeps it
        lorakit.save_adapter(model, folder)
        fresh = load(arguments.model)  # its head is new; the adapter holds the trained one
        lorakit.load_adapter(fresh, folder)
    texts = [text for text, _ in validation]
    same = classify(fresh, tokenizer, texts) == classify(model, tokenizer, texts)
    print(f"the adapter on a fresh base classifies {len(texts)} texts {'alike' if same else 'DIFFERENTLY'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
