"""`lorakit export`: a trained tagger as other programs load it, proven equal before it is kept."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorakit._files import atomic_folder, read_bounded
from lorakit.cli.config import add_config_flag
from lorakit.cli.corpora import add_corpus_flags, read_again, read_corpus
from lorakit.cli.flags import check_utf8, check_writable, tag_names
from lorakit.cli.parser import add_command, file_or_folder, folder_or_id, input_errors
from lorakit.export.packages import TARGETS, check_packages

RECORD, MOST_RECORD_BYTES = "comparison.json", 1 << 26
PARTS = ("adapter", "model", "lora/adapter", "full/model")  # of a run, where a trained model may be
MOST_SENTENCES = 1000
EXAMPLES = """
lorakit export runs/mine for-transformers --to hf
lorakit export runs/mine for-onnxruntime --to onnx --int8
lorakit export runs/mine for-spacy --to spacy
lorakit export runs/mine for-peft --to peft
lorakit export runs/mine/adapter other-corpus --to hf --dataset path/to/corpus
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `export` to the commands."""
    about = "write a trained model for another program, proven to find the same entities there"
    parser = add_command(commands, "export", about, EXAMPLES, run)
    add_config_flag(parser)
    add = parser.add_argument
    add(
        "source",
        type=folder_or_id,
        metavar="RUN_OR_ADAPTER",
        help="a run's folder, an adapter, or a model fine-tuned in full",
    )
    add("output", type=file_or_folder, metavar="OUT", help="a new folder")
    about = (
        "hf: a model folder for transformers; onnx: a graph for onnxruntime; spacy: a pipeline for spacy.load; peft: "
    )
    add("--to", choices=TARGETS, required=True, help=about + "an adapter folder that keeps its labels")
    about = "the proof's corpus, of which the validation set is taken (default: the run's own)"
    add_corpus_flags(parser, about)
    add("--model", type=folder_or_id, metavar="FOLDER_OR_ID", help="where the adapter's base is, if not where it says")
    about = "the tag of each class in order, for an adapter whose files do not say: made by PEFT"
    add("--labels", nargs="+", metavar="TAG", help=about)
    about = "take the adapter although the base is not the one it was trained on"
    add("--no-check-base", action="store_true", help=about)
    add("--int8", action="store_true", help="with --to onnx: also write int8 weights, and say what they cost in F1")
    about = (
        "with --to hf: prove it through transformers' pipeline, or word by word through the model (default: through "
    )
    about += "the pipeline, and word by word where that splits words again)"
    add("--through", choices=("pipeline", "words"), help=about)


def run(arguments: argparse.Namespace) -> int:
    """Export, prove, and say what was proven; returns the exit status."""
    with input_errors(arguments.parser):
        _check_flags(arguments)
        check_packages(arguments.to)
        check_utf8(arguments.output, "OUT")
        check_writable(arguments.output.parent, "OUT")
        source, is_adapter = find_trained(arguments.source)
        if arguments.to == "peft" and not is_adapter:
            raise ValueError(f"{source} was fine-tuned in full and has no adapter for PEFT; export it --to hf")
        record = read_record(source, is_adapter)
        split, sentences = proof_sentences(arguments, record)
        proof = write_export(arguments, source, is_adapter, split, sentences, record)
    print(f"{arguments.output}: {' '.join(proof)}")
    return 0


def _check_flags(arguments: argparse.Namespace) -> None:
    if arguments.int8 and arguments.to != "onnx":
        raise ValueError("--int8 is only for --to onnx; leave it out")
    if arguments.through and arguments.to != "hf":
        raise ValueError("--through is only for --to hf; leave it out")
    if arguments.output.exists() and (not arguments.output.is_dir() or any(arguments.output.iterdir())):
        raise ValueError(f"OUT {arguments.output} exists and is not empty; give a new folder")


def find_trained(source: str) -> tuple[str, bool]:
    """The folder or hub id of the trained model that the user means, and whether it is an adapter.

    Raises:
        ValueError: a run holds none or several.
        FileNotFoundError: there is no such folder, and the hub has no such adapter.
    """
    folder = Path(source)
    if not folder.is_dir():
        from lorakit.adapters.files import find_folder  # loads torch

        find_folder(source)
        return source, True  # an adapter's hub id
    if (folder / "adapter_config.json").is_file():
        return source, True
    if (folder / "config.json").is_file():
        return source, False
    found = [folder / part for part in PARTS if (folder / part).is_dir()]
    if len(found) > 1:
        raise ValueError(f"{source} holds {' and '.join(map(str, found))}; give one of them")
    if not found:
        raise ValueError(
            f"{source} holds no trained model ({', '.join(PARTS)}); give a run's folder, an adapter or a model"
        )
    return str(found[0]), found[0].name == "adapter"


def read_record(source: str, is_adapter: bool) -> dict[str, Any]:
    """What the run's comparison.json says about this model; empty where there is none."""
    for folder in list(Path(source).resolve().parents)[:2] if Path(source).is_dir() else ():
        if (folder / RECORD).is_file():
            try:
                record = json.loads(read_bounded(folder / RECORD, MOST_RECORD_BYTES))
                mode = record["modes"]["lora" if is_adapter else "full"]
                return {**{key: record.get(key) for key in ("command", "model", "dataset", "reading")}, "mode": mode}
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{folder / RECORD} is damaged ({error!r}); move it away to export without it"
                ) from None
    return {}


def datasets_of(record: dict[str, Any]) -> list[str]:
    """The corpora that a run was trained on; empty where no file says."""
    named = record.get("dataset")
    if not named:
        return []
    return [named] if Path(named).exists() else named.split(" + ")  # as `read_ner` names several


def proof_sentences(arguments: argparse.Namespace, record: dict[str, Any]) -> tuple[str, Sequence[tuple[Any, Any]]]:
    """The split and the sentences of the proof: of the validation set, else of the test or the training set.

    The split is "" where the corpus is a file.

    Raises:
        ValueError: there is no corpus.
    """
    datasets = arguments.dataset or datasets_of(record)
    if arguments.dataset:
        data = read_corpus(arguments)
    elif not datasets:
        raise ValueError(
            f"{arguments.source} does not say which corpus it was trained on, and an export is proven on sentences;"
            " give a corpus with --dataset"
        )
    else:
        try:
            data = read_again(datasets, record.get("reading") or {}, arguments)
        except (ValueError, OSError) as error:
            if arguments.sentences is not None and arguments.sentences < 1:
                raise
            raise ValueError(
                f"the run's own corpus cannot be read ({error}); give one with --dataset, and the flags with which"
                " training read it, if any"
            ) from error
    split = next(name for name in ("validation", "test", "train") if getattr(data, name))
    if split == "train" and all(Path(name).is_file() for name in datasets):
        return "", data.train[:MOST_SENTENCES]  # a file has no splits, so nobody knows which it is
    return {"train": "training"}.get(split, split), getattr(data, split)[:MOST_SENTENCES]


def write_export(
    arguments: argparse.Namespace,
    source: str,
    is_adapter: bool,
    split: str,
    sentences: Sequence[tuple[Any, Any]],
    record: dict[str, Any],
) -> list[str]:
    """Load the model, write the export beside OUT, prove it, and move it to OUT; returns what was proven.

    Raises:
        ValueError: it cannot be loaded or exported, or it does not find what lorakit finds.
    """
    from lorakit.export.card import Origin
    from lorakit.export.proof import find_reference
    from lorakit.lora import remove_lora
    from lorakit.training.models import load_tagger
    from lorakit.training.quiet import quiet_transformers

    adapter, full = (source, arguments.model) if is_adapter else (None, source)
    if not is_adapter and arguments.model:
        raise ValueError(f"--model is for an adapter's base, and {source} is a whole model; leave it out")
    model, tokenizer = load_tagger(adapter, full, tag_names(arguments.labels), not arguments.no_check_base)
    reference = find_reference(model, tokenizer, sentences, arguments.to == "spacy", split)
    mode = record.get("mode") or {}
    base = record.get("model") or (model.config._name_or_path if is_adapter else None)
    scores = {split: mode[split] for split in ("validation", "test") if mode.get(split)}
    origin = Origin(source, base, record.get("dataset"), record.get("command"), scores, mode.get("energy") or {})
    if is_adapter and arguments.to != "peft":
        remove_lora(model, merge=True)
    with quiet_transformers(), atomic_folder(arguments.output) as folder:
        if arguments.to == "peft":
            from lorakit.adapters.files import find_folder
            from lorakit.export.peft_folder import write_peft

            return write_peft(find_folder(source), model, tokenizer, reference, folder, origin)
        if arguments.to == "onnx":
            from lorakit.export.onnx_graph import write_onnx

            return write_onnx(model, tokenizer, reference, folder, origin, arguments.int8)
        if arguments.to == "spacy":
            from lorakit.export.spacy_pipeline import write_spacy

            return write_spacy(model, tokenizer, reference, folder, origin)
        from lorakit.export.hf import write_hf

        return write_hf(model, tokenizer, reference, folder, origin, arguments.through)
