"""Export an adapter as a PEFT folder whose labels survive: its files, and a config.json that names the labels."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorakit.adapters.files import CALIBRATION, CONFIG, OWN, TENSORS
from lorakit.export.card import Origin, export_card
from lorakit.export.proof import Reference, prove_by_words
from lorakit.export.tokenizer import portable_tokenizer
from lorakit.export.words import LONGER, TO_TAGS, WORDS, in_torch, write_transitions
from lorakit.training.evaluation import label_names
from lorakit.training.untrusted import NO_REMOTE_CODE

USAGE = """
from peft import PeftConfig, PeftModel
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

base = PeftConfig.from_pretrained(".").base_model_name_or_path
config = AutoConfig.from_pretrained(".")  # the base's, with the adapter's labels
model = AutoModelForTokenClassification.from_pretrained(base, config=config)
model = PeftModel.from_pretrained(model, ".").merge_and_unload()
tokenizer = AutoTokenizer.from_pretrained(".")
"""


def write_peft(
    adapter: Path, model: nn.Module, tokenizer: Any, reference: Reference, folder: Path, origin: Origin
) -> list[str]:
    """Write an adapter's folder for PEFT into an empty folder and prove it; see `write_hf` for the arguments.

    Args:
        adapter: its folder.
        model: whose configuration has the adapter's labels.

    Returns:
        Sentences about the proof.

    Raises:
        NotProven: with the first difference.
    """
    for name in (CONFIG, TENSORS, OWN, CALIBRATION):
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, folder / name)
    model.config.save_pretrained(folder)
    shipped = portable_tokenizer(model, tokenizer)
    shipped.save_pretrained(folder)
    labels = label_names(model)
    proof = _prove_peft(folder, model.config._name_or_path, reference)
    write_transitions(reference.decode, labels, folder)
    usage = _usage(folder, model.config._name_or_path) + WORDS + TO_TAGS[reference.decode]
    card = export_card("peft", labels, origin, usage, proof, LONGER.format(window=shipped.model_max_length))
    (folder / "README.md").write_text(card, encoding="utf-8")
    return proof


def _usage(folder: Path, base: str) -> str:
    """The lines of the README: they name the base itself where the adapter's file does not, or names a folder."""
    line = 'base = PeftConfig.from_pretrained(".").base_model_name_or_path'
    named = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if named == base and not Path(base).is_dir():
        return USAGE
    where = "  # a folder: where it is on your machine" if Path(base).is_dir() else ""
    return USAGE.replace(line, f"base = {base!r}{where}").replace("import PeftConfig, ", "import ")


def _prove_peft(folder: Path, base: str, reference: Reference) -> list[str]:
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

    config = AutoConfig.from_pretrained(folder, **NO_REMOTE_CODE)
    plain = AutoModelForTokenClassification.from_pretrained(
        base,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # a head that the base may have is replaced
        **NO_REMOTE_CODE,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks the model for what transformers 6 renames
        model = PeftModel.from_pretrained(plain, folder).eval()
    tokenizer, labels = AutoTokenizer.from_pretrained(folder, **NO_REMOTE_CODE), label_names(plain)
    return prove_by_words(reference, tokenizer, labels, in_torch(model), "PEFT")[1]
