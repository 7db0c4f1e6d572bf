"""LoRA on your own CoNLL corpus: train, save the adapter, load it again, tag new text.

Without arguments it reads examples/conll (84 and 28 made-up sentences with drugs and doses; 5 of the 9 drugs in
dev.conll are not in train.conll) and trains the embedded base. A file has one word and its tag per line and a blank
line between sentences; IOB1, IOB2 and BIOES tags are recognised.

For real work, use a folder with train, dev and test files and a larger base:

  python examples/own_ner.py --dataset path/to/conll --model roberta-base --output-dir my-adapter

Choose --learning-rate and --epochs by the validation F1; a large base usually needs a lower rate (1e-4 to 1e-3).
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import lorakit
from lorakit.data.tags import spans
from lorakit.training.models import load_token_classifier

HERE = Path(__file__).parent
TEXTS = (
    "The dose of vancomycin was raised to 500 mg .",
    "She had taken digoxin acetate for 10 years .",
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset", default=str(HERE / "conll"), metavar="FOLDER_OR_ID", help="default: examples/conll"
    )
    parser.add_argument(
        "--model", default=str(HERE / "mini"), metavar="FOLDER_OR_ID", help="default: the embedded base"
    )
    parser.add_argument("--epochs", type=int, default=8, metavar="N", help="default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=4e-3, metavar="X", help="default: %(default)s")
    parser.add_argument("--output-dir", metavar="DIR", help="where the adapter is saved (default: nowhere)")
    arguments = parser.parse_args(argv)

    data = lorakit.read_ner(arguments.dataset)
    print(f"{len(data.train)} + {len(data.validation)} sentences, labels {', '.join(data.labels)}")
    print(*data.notes, sep="\n")
    model, tokenizer = load_token_classifier(arguments.model, data.labels, dropout=0.0)
    lorakit.apply_lora(model, r=16, lora_alpha=32, target_modules="all-linear")
    print(lorakit.count_parameters(model))
    config = lorakit.TrainConfig(
        epochs=arguments.epochs,
        batch_size=8,
        learning_rate=arguments.learning_rate,
        progress=False,  # True shows a progress bar; output_dir="…" keeps metrics and checkpoints
    )
    result = lorakit.train(model, tokenizer, data, config)
    if result.validation:  # scores of the best epoch; the model has its weights now
        print("validation F1 by epoch:", " ".join(f"{scores.f1:.2f}" for scores in result.history))
        for kind, scores in result.validation.by_type.items():
            print(f"  {kind}: F1 {scores.f1:.2f} over {scores.support} entities")

    with tempfile.TemporaryDirectory() as scratch:
        folder = lorakit.save_adapter(
            model, arguments.output_dir or scratch, metrics=result.validation and {"F1": result.validation.f1}
        )
        fresh, _ = load_token_classifier(arguments.model, data.labels)
        lorakit.load_adapter(fresh, folder)
    sentences = [text.split() for text in TEXTS]
    for words, tags in zip(sentences, lorakit.predict(fresh, tokenizer, sentences), strict=True):
        found = [f"{' '.join(words[start:end])} ({kind})" for kind, start, end in spans(tags)]
        print(f"{' '.join(words)} -> {', '.join(found) or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
