"""LoRA under transformers' Trainer: the model keeps its class and its signature, so Trainer needs no special case.

With your own base and corpus:

  python examples/trainer.py --model roberta-base --dataset path/to/conll --learning-rate 5e-4 --output-dir my-adapter

Larger bases usually need smaller learning rates: try some, and take the one that does best on your validation set.
Trainer's own checkpoints hold the whole model. `save_adapter` writes only what was trained, and PEFT can read it.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mini.corpus import LABELS, make_corpus  # the generated corpus, next to the base
from transformers import DataCollatorForTokenClassification, Trainer, TrainingArguments

import lorakit
from lorakit.training.metrics import score
from lorakit.training.models import load_token_classifier

MINI = Path(__file__).parent / "mini"


def encode(sentences: Sequence, labels: Sequence[str], tokenizer) -> list[dict[str, list[int]]]:
    """Trainer's rows: a word's label is at its first subword; every other position holds -100."""
    classes = {label: number for number, label in enumerate(labels)}
    rows = []
    for words, tags in sentences:
        row = tokenizer(list(words), is_split_into_words=True, truncation=True)
        numbers = row.word_ids()
        first = [word is not None and (i == 0 or word != numbers[i - 1]) for i, word in enumerate(numbers)]
        row["labels"] = [classes[tags[w]] if new else -100 for w, new in zip(numbers, first, strict=True)]
        rows.append(dict(row))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MINI), metavar="FOLDER_OR_ID", help="base (default: the embedded one)")
    parser.add_argument("--dataset", metavar="FOLDER_OR_ID", help="corpus (default: a small generated one)")
    parser.add_argument("--epochs", type=int, default=2, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--learning-rate", type=float, default=4e-3, metavar="X", help="default: %(default)s, for the embedded base"
    )
    parser.add_argument("--output-dir", metavar="DIR", help="keep the adapter here (default: do not keep it)")
    arguments = parser.parse_args(argv)

    if arguments.dataset:
        data = lorakit.read_ner(arguments.dataset)
        train, validation, labels = data.train, data.validation, data.labels
    else:
        (train, validation, _), labels = make_corpus(train=128, validation=30, test=1), LABELS
    dropout = 0.0 if arguments.model == str(MINI) else None
    model, tokenizer = load_token_classifier(arguments.model, labels, dropout=dropout)
    lorakit.apply_lora(model, r=16, lora_alpha=32, target_modules="all-linear", bias="all")
    print(lorakit.count_parameters(model))

    def entity_scores(outputs) -> dict[str, float]:
        classes = np.argmax(outputs.predictions, axis=-1)
        pairs = [
            (gold[gold != -100], found[gold != -100]) for gold, found in zip(outputs.label_ids, classes, strict=True)
        ]
        gold, found = ([[labels[i] for i in line] for line in side] for side in zip(*pairs, strict=True))
        return {"f1": score(gold, found).f1}

    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model,
            TrainingArguments(
                scratch,
                num_train_epochs=arguments.epochs,
                per_device_train_batch_size=16,
                per_device_eval_batch_size=32,
                learning_rate=arguments.learning_rate,
                save_strategy="no",  # save_adapter below saves what was trained
                report_to=[],
                disable_tqdm=True,
                dataloader_pin_memory=torch.cuda.is_available(),
            ),
            train_dataset=encode(train, labels, tokenizer),
            eval_dataset=encode(validation, labels, tokenizer),
            data_collator=DataCollatorForTokenClassification(tokenizer),
            compute_metrics=entity_scores,
        )
        before = trainer.evaluate()
        trainer.train()
        after = trainer.evaluate()
        print(f"validation loss {before['eval_loss']:.3f} -> {after['eval_loss']:.3f}, F1 {after['eval_f1']:.3f}")

        folder = lorakit.save_adapter(
            model, arguments.output_dir or f"{scratch}/adapter", metrics={"F1": after["eval_f1"]}
        )
        fresh, _ = load_token_classifier(arguments.model, labels, dropout=dropout)
        lorakit.load_adapter(fresh, folder)
        sentences = [words for words, _ in validation]
        same = lorakit.predict(fresh, tokenizer, sentences) == lorakit.predict(model, tokenizer, sentences)
    print(f"the adapter on a fresh base tags {len(sentences)} sentences {'alike' if same else 'DIFFERENTLY'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
