"""Exports of a LoRA, a full and a DoRA run on the real corpus, each proven on up to 1,000 validation sentences.

  python benchmarks/exports.py --sentences 2000 --epochs 1

Trains each on the first --sentences of the corpus, then calls `lorakit export` for every target that fits. A cell holds
what the command says: what was compared through the target's own runtime, or why it refused. Trained models stay in
--models, and a second call takes those that are there, so an interrupted one continues. Needs
pip install 'lorakit[onnx,spacy,peft]'.
"""

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from provenance import BIONLP, BenchmarkParser, write_results
from tables import table

from lorakit._files import write_text
from lorakit.cli.__main__ import main as lorakit
from lorakit.data.corpus import read_ner
from lorakit.lora import apply_lora, save_adapter
from lorakit.training.config import DEFAULT_LEARNING_RATE, TrainConfig
from lorakit.training.loop import train
from lorakit.training.models import load_token_classifier, save_model

RUNS = ("lora", "dora", "full")
TARGETS: dict[str, tuple[str, ...]] = {
    "hf": ("--to", "hf"),
    "hf, words": ("--to", "hf", "--through", "words"),
    "onnx, int8": ("--to", "onnx", "--int8"),
    "spacy": ("--to", "spacy"),
    "peft": ("--to", "peft"),
}


def main(arguments: list[str] | None = None) -> int:
    parser = BenchmarkParser(prog="exports.py", description=__doc__)
    parser.add_common(dataset=BIONLP, sentences=2000)
    parser.add_argument("--model", default="examples/mini")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--models", type=Path, default=Path("runs/exports"), help="where trained models stay")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    options = parser.parse_args(arguments)
    rows = [row for run in options.runs for row in exports_of(run, options)]
    settings = {"model": options.model, "sentences": options.sentences, "epochs": options.epochs}
    write_results(options, {"schema": 1, **settings, "rows": rows}, report)
    return 0


def exports_of(run: str, options: Any) -> Iterator[dict[str, Any]]:
    """A row per target of a run."""
    folder = trained(run, options)
    for target, flags in TARGETS.items():
        if target == "peft" and run == "full":
            continue  # it has no adapter
        done = folder.with_name(f"{run}-{target.replace(', ', '-')}.json")
        if not done.is_file():
            row = {"run": run, "target": target, **export(folder, flags, options.dataset)}
            write_text(done, json.dumps(row) + "\n")
        yield json.loads(done.read_text(encoding="utf-8"))


def trained(run: str, options: Any) -> Path:
    """The folder of a run's model or adapter, trained unless it is there."""
    folder = options.models / run
    if folder.is_dir():
        return folder
    data = read_ner(options.dataset)
    model, tokenizer = load_token_classifier(options.model, data.labels, seed=0)
    if run != "full":
        apply_lora(model, use_dora=run == "dora")
    rate = DEFAULT_LEARNING_RATE["full" if run == "full" else "lora"]
    config = TrainConfig(epochs=options.epochs, learning_rate=rate, progress=False)
    short = replace(data, train=data.train[: options.sentences], validation=data.validation[:1000], test=())
    scores = train(model, tokenizer, short, config).validation
    print(f"{run}: F1 {scores.f1:.4f} on {len(short.validation):,} validation sentences", file=sys.stderr)
    return save_model(model, tokenizer, folder) if run == "full" else save_adapter(model, folder)


def export(folder: Path, flags: tuple[str, ...], dataset: str) -> dict[str, Any]:
    """Export one model; what the command said, and what is in the folder it wrote."""
    out, said, refused = folder.with_name(f"{folder.name}-out"), io.StringIO(), io.StringIO()
    shutil.rmtree(out, ignore_errors=True)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(refused):
        try:
            status = lorakit(["export", str(folder), str(out), "--dataset", dataset, *flags])
        except SystemExit as error:
            status = error.code
    found = {
        "status": status,
        "said": (said if status == 0 else refused).getvalue().strip().removeprefix(f"{out}: "),
        "mib": sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 2**20 if status == 0 else None,
    }
    shutil.rmtree(out, ignore_errors=True)
    return found


def report(found: dict[str, Any]) -> list[str]:
    """A row per run and target."""
    return [
        "# Exports and their proofs",
        "",
        f"`{found['model']}`, trained on {found['sentences']:,} sentences, epochs: {found['epochs']}.",
        "",
        table(
            found["rows"],
            ("run", "run", "{}"),
            ("target", "target", "{}"),
            ("status", "status", "{}"),
            ("MiB", "mib", "{:.0f}"),
            ("what the command said", "said", "{}"),
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
