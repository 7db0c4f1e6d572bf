"""Export as a model folder for transformers: merged weights, configuration, tokenizer, README.

The proof goes through transformers' own pipeline, on sentences whose words are separated by spaces. The pipeline takes
its aggregation only as an argument: transformers 5 ignores `task_specific_params`, where it is written anyway.

The pipeline does not always find the words of a tokenizer. Of BERT's it takes `IL-2` for three words; of a byte-level
one it takes a token for the start of a word if there is a space before it, so a word that begins with the token of the
space alone (`Ġ`, `umb`, `ilical`) becomes two. No file of the export can change that. Where it matters, the proof reads
the words' first subwords instead, and README.md shows the lines that do so.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lorakit.data.tags import Span
from lorakit.export.card import Origin, export_card
from lorakit.export.proof import NotProven, Reference, compare, prove_by_words
from lorakit.export.tokenizer import portable_tokenizer
from lorakit.export.words import LONGER, TO_TAGS, WORDS, in_torch, write_transitions
from lorakit.training.evaluation import label_names, window_of
from lorakit.training.untrusted import NO_REMOTE_CODE

AGGREGATION = "first"  # the tag of a word is that of its first subword, as in training
PIPELINE = """
from transformers import pipeline

find = pipeline("token-classification", model=".", aggregation_strategy="first")
print(find("The IL-2 gene ( IL2 ) ."))  # words and punctuation separated by spaces, as in training
"""
LONGER_FOR_PIPELINE = """Give it sentences: of a text of more than {window:,} tokens the pipeline reads the beginning \
alone, and does not say so. With `stride=128` it reads all of it, in windows that overlap by so many tokens."""
LOADED = """
from transformers import AutoModelForTokenClassification, AutoTokenizer

model, tokenizer = AutoModelForTokenClassification.from_pretrained("."), AutoTokenizer.from_pretrained(".")
"""


def write_hf(
    model: nn.Module, tokenizer: Any, reference: Reference, folder: Path, origin: Origin, through: str | None = None
) -> list[str]:
    """Write a merged model into an empty folder and prove it.

    Args:
        model: plain and in float32, its LoRA merged.
        tokenizer: the model's.
        reference: what lorakit finds.
        folder: to write into.
        origin: for the README.
        through: "pipeline" proves it through transformers' pipeline; "words" through the model and the tokenizer, word
            by word; None through the pipeline if that finds the same, else word by word.

    Returns:
        Sentences about the proof.

    Raises:
        NotProven: with the first difference.
    """
    save_model_files(model, tokenizer, folder)
    proof, usage, longer, difference = [], PIPELINE, LONGER_FOR_PIPELINE, ""
    if through != "words":
        try:
            proof = _prove_pipeline(folder, reference)
        except NotProven as error:
            if through == "pipeline":
                raise NotProven(
                    f"{error}; the pipeline may split a word of this tokenizer again: leave through= out, and the"
                    " proof reads the words' first subwords instead, as README.md then shows"
                ) from None
            difference = str(error).partition(": ")[2]
    if not proof:
        proof = _prove_model(model, folder, reference)
        usage, longer = LOADED + WORDS + TO_TAGS[reference.decode], LONGER
    if difference:
        proof.append(f"Note that transformers' pipeline is not equal, so README.md shows other lines: {difference}.")
    longer = longer.format(window=window_of(model, tokenizer))
    card = export_card("hf", label_names(model), origin, usage, proof, longer)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return proof


def save_model_files(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write config.json with the labels and the aggregation, model.safetensors and the tokenizer."""
    before = getattr(model.config, "task_specific_params", None)
    model.config.task_specific_params = {"token-classification": {"aggregation_strategy": AGGREGATION}}
    try:
        model.save_pretrained(folder)
    finally:
        model.config.task_specific_params = before
    portable_tokenizer(model, tokenizer).save_pretrained(folder)


def _prove_pipeline(folder: Path, reference: Reference) -> list[str]:
    runtime = "transformers' pipeline"
    compare(reference, _by_pipeline(folder, reference), runtime)
    return [reference.proven(runtime, "greedy"), *reference.price_of_greedy("the pipeline's entities")]


def _by_pipeline(folder: Path, reference: Reference) -> Iterator[list[Span]]:
    import warnings

    from transformers import pipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "using fallback heuristic" for every token of a byte-level tokenizer
        find = pipeline("token-classification", model=str(folder), aggregation_strategy=AGGREGATION, device="cpu")
        for words in reference.sentences:
            yield _by_words(find(" ".join(words)), words) if words else []


def _by_words(found: Sequence[dict[str, Any]], words: Sequence[str]) -> list[Span]:
    """Entities by characters of the joined words, as entities by words; a border inside a word becomes -1."""
    starts, ends, at = {}, {}, 0
    for i, word in enumerate(words):
        starts[at], ends[at + len(word)] = i, i + 1
        starts[at - 1] = i  # some tokenizers count the space before a word to it
        at += len(word) + 1
    return [Span(e["entity_group"], starts.get(e["start"], -1), ends.get(e["end"], -1)) for e in found]


def _prove_model(model: nn.Module, folder: Path, reference: Reference) -> list[str]:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    labels = label_names(model)
    loaded = AutoModelForTokenClassification.from_pretrained(folder, use_safetensors=True, **NO_REMOTE_CODE).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, **NO_REMOTE_CODE)
    write_transitions(reference.decode, labels, folder)
    return prove_by_words(reference, tokenizer, labels, in_torch(loaded), "transformers")[1]
