"""Token classifiers on disk: pretrained bases, models fine-tuned in full, and adapters on their base.

A model fine-tuned in full is saved as transformers does, one fine-tuned with LoRA as an adapter.
"""

import logging
import os
import re
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorakit._files import atomic_folder
from lorakit.adapters.files import not_finite
from lorakit.adapters.storage import CONFIG, OWN, base_and_labels, load_adapter, task_of
from lorakit.data.subwords import misread, word_prefix
from lorakit.nn.weights import whole
from lorakit.training.calibration_file import FILE as CALIBRATION
from lorakit.training.config import check_dropout
from lorakit.training.distributed import is_main
from lorakit.training.loading_report import LoadingReport, check_report
from lorakit.training.output_layer import place_rows
from lorakit.training.quiet import quiet_transformers
from lorakit.training.untrusted import NO_REMOTE_CODE, check_files, explained

MOST_SHOWN = 400  # characters of a loader's own message


def warn(message: str) -> None:
    """Warn the caller of `load_token_classifier`."""
    warnings.warn(message, stacklevel=3)


logger = logging.getLogger(__name__)


def load_token_classifier(
    source: str | os.PathLike[str],
    labels: Sequence[str] | None,
    seed: int = 0,
    dropout: float | None = None,
    attn_implementation: str | None = None,
    note: Callable[[str], None] = warn,
) -> tuple[nn.Module, Any]:
    """Load a base model in fp32 with a new head, or a fine-tuned one with its own, and its tokenizer.

    A fine-tuned checkpoint that is given `labels` keeps the rows of its head by label name: they are reordered where
    the order differs. Labels that it does not know get new rows, and if it knows none of them the head is new.

    Example:
        from lorakit.training.models import load_token_classifier
        model, tokenizer = load_token_classifier("examples/mini", labels=["O", "B-DNA", "I-DNA"])
        model.config.id2label[1]  # 'B-DNA'

    Args:
        source: a folder, or the id of a model on the hub; only an id may use the network.
        labels: the tag of each class; None keeps the checkpoint's head and labels.
        seed: a new head's weights depend on this alone; the global generators are left unchanged.
        dropout: replaces every dropout of the base, 0 to below 1, by whatever name its configuration has it; None keeps
            them.
        attn_implementation: "sdpa" or "eager"; None is "sdpa" where the model's class has it.
        note: is told where a checkpoint's own labels are not `labels`, and what became of its head; a warning unless
            given.

    Returns:
        The model in evaluation mode, as `from_pretrained` leaves it, and a fast tokenizer; lorakit's own functions read
        pre-split words with it as it reads running text (`lorakit.data.subwords`).

    Raises:
        FileNotFoundError: `source` looks like a folder and does not exist.
        ValueError: it cannot be loaded, or weights of the encoder are missing or left over; the message says why.
    """
    name = checked_source(source)
    if dropout is not None:
        check_dropout(dropout)
    import transformers  # heavy, so only when a model is loaded

    def load(**more: Any) -> tuple[nn.Module, LoadingReport]:
        config = transformers.AutoConfig.from_pretrained(name, **NO_REMOTE_CODE, **more)
        if dropout is not None:
            set_dropout(config, dropout)
        model, info = transformers.AutoModelForTokenClassification.from_pretrained(
            name,
            dtype=torch.float32,  # updates below 2^-8 would vanish in a half-precision checkpoint's own dtype
            config=config,
            attn_implementation=attn_implementation or attention_of(config),
            use_safetensors=True,  # never a pickle
            **NO_REMOTE_CODE,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the report names them
        )
        if dropout is not None:
            for module in model.modules():  # some heads have one that is not in the configuration
                if isinstance(module, nn.Dropout):
                    module.p = float(dropout)
        return model, LoadingReport.of(info)

    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            check_files(name)
            tokenizer = _load_tokenizer(transformers, name)
            torch.manual_seed(seed)
            model, told = _load_trained(load) if labels is None else _load_for(labels, transformers, name, load)
    except Exception as error:  # loaders raise many kinds for a broken folder or a missing network
        reason = explained(error)
        where = "the folder" if Path(name).exists() else "the hub id"
        raise ValueError(f"cannot load a model from {where} {name!r}: {reason[:MOST_SHOWN]}") from error
    attention = model.config._attn_implementation
    if attn_implementation is None and attention != "sdpa" and is_main():
        logger.warning("%s has no 'sdpa' attention: it is loaded with %r", type(model).__name__, attention)
    if told:
        note(f"{name}: {told}")
    return model, tokenizer


def set_dropout(config: Any, dropout: float) -> None:
    """Set every dropout that a configuration has, whatever its name.

    Args:
        config: of a transformers model; changed in place.
        dropout: 0 to below 1.

    Raises:
        ValueError: it is out of range, or the configuration has none.
    """
    check_dropout(dropout)
    names = [name for name, value in vars(config).items() if _is_dropout(name, value)]
    if not names:
        raise ValueError(f"{config.model_type} has no dropout to set to {dropout:g}: leave dropout out")
    for name in names:
        setattr(config, name, float(dropout))


def _is_dropout(name: str, value: Any) -> bool:
    """Whether a field is a rate of dropout; None, as in classifier_dropout, stands for another field's rate."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and ("dropout" in name or name.endswith(("pdrop", "_drop")))


def attention_of(config: Any) -> str:
    """The attention to load a token classifier with: "sdpa" where its class has it, otherwise "eager"."""
    import transformers

    kind = transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING.get(type(config), None)
    return "sdpa" if getattr(kind, "_supports_sdpa", False) else "eager"


def save_model(model: nn.Module, tokenizer: Any, folder: str | os.PathLike[str]) -> Path:
    """Write a model and its tokenizer for `from_pretrained`, atomically: an earlier folder is replaced at the end.

    Files of other names that are there stay, but for those that belong to the earlier weights.

    Args:
        model: a transformers model; if it is sharded, every rank has to call this, and the main rank writes.
        tokenizer: the model's.
        folder: where to write.

    Raises:
        OSError: the disk is full or not writable; an earlier folder is unchanged.
        FloatingPointError: a weight is NaN or infinite.
    """
    folder = Path(folder)
    state = {name: whole(tensor).cpu() for name, tensor in model.state_dict().items()}
    trained = {name for name, _ in model.named_parameters()}  # a buffer may hold -inf on purpose
    if bad := not_finite({name: tensor for name, tensor in state.items() if name in trained}):
        raise FloatingPointError(
            f"the model is not saved, because {bad} has values that are not finite: training diverged; train again with"
            " a lower learning rate"
        )
    sharded = any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
    if sharded and not is_main():
        return folder
    with atomic_folder(folder) as temporary, quiet_transformers():
        model.save_pretrained(temporary, state_dict=state)
        tokenizer.save_pretrained(temporary)
        _keep_others(folder, temporary)
    return folder


def _keep_others(folder: Path, temporary: Path) -> None:
    """Copy the files of a model's folder that the new one does not have: a user's notes, a model card."""
    written = {path.name for path in temporary.iterdir()}
    for path in folder.iterdir() if folder.is_dir() else ():
        of_weights = path.name == CALIBRATION or re.fullmatch(r"model.*\.safetensors(\.index\.json)?", path.name)
        if path.name in written or of_weights:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, temporary / path.name, symlinks=True)
        else:
            shutil.copy2(path, temporary / path.name, follow_symlinks=False)


def load_tagger(
    adapter: str | None = None,
    model: str | None = None,
    labels: Sequence[str] | None = None,
    check_base: bool = True,
) -> tuple[nn.Module, Any]:
    """Load a fine-tuned tagger and its tokenizer: an adapter on its base, or a model trained in full.

    Args:
        adapter: a folder or hub id; its adapter_config.json names the base, its lorakit.json the labels.
        model: with an adapter, a folder or hub id to load the base from instead; alone, one with a trained head.
        labels: the tag of each class in order, for an adapter whose files do not say; None takes the adapter's own.
        check_base: False accepts another base than the one the adapter was trained on.

    Raises:
        ValueError: it cannot be loaded; the message says why and what to do.
        OSError: a file cannot be read.
    """
    if adapter is None:
        if model is None:
            raise ValueError("give adapter='FOLDER_OR_ID', or model='FOLDER_OR_ID' for a model fine-tuned in full")
        if (Path(model) / CONFIG).is_file():
            raise ValueError(f"model={model!r} is a LoRA adapter: give it as adapter={model!r}")
        if labels is not None:
            raise ValueError(f"labels= is for an adapter; the model {model} has its own: leave it out")
        if not check_base:
            raise ValueError(f"check_base=False is for an adapter, and {model} is a whole model: leave it out")
        return load_token_classifier(model, labels=None)
    labels, base = _labels_and_base(_adapter_folder(adapter), labels, check_base)
    if model is None and base is None:
        raise ValueError(f"{adapter}: {CONFIG} does not name the base (base_model_name_or_path); give it with model=")
    try:
        # what becomes of the base's own head does not matter: the adapter brings one
        loaded, tokenizer = load_token_classifier(model or base, labels, note=lambda message: None)
    except (ValueError, OSError) as error:
        if model is not None:
            raise
        raise ValueError(f"{error}; {CONFIG} names this base: give it with model= if it is elsewhere") from error
    return load_adapter(loaded, adapter, check_base=check_base), tokenizer


def _labels_and_base(adapter: str, given: Sequence[str] | None, check_base: bool) -> tuple[Sequence[str], str | None]:
    """The labels of an adapter's head, its own or those that are given, and its base."""
    base, own = base_and_labels(adapter, check_base)
    task = task_of(adapter)
    if task not in (None, "TOKEN_CLS"):
        raise ValueError(
            f"{adapter}: {CONFIG} says that the adapter was trained for the task {task}, and this command tags words"
            " (TOKEN_CLS); load it in code with lorakit.load_adapter, on the class of model it was trained on"
        )
    if given is None and own is None:
        raise ValueError(
            f"the adapter {adapter} does not say which labels its head has: {OWN} is missing, as in PEFT's adapters, or"
            " no head was trained; give the tag of each class in order, such as labels=['O', 'B-DNA', 'I-DNA']"
        )
    if own is not None and given is not None and list(own) != list(given):
        raise ValueError(f"labels= differs from the adapter's own, which are {' '.join(own)}; leave labels= out")
    return own or given, base


def checked_source(source: str | os.PathLike[str]) -> str:
    """The name to load from; raises where it cannot be a model's."""
    name = os.fspath(source)
    if not name:
        raise ValueError("the name of the model is empty; give a folder with config.json, or a hub id")
    looks_local = name.startswith((".", "/", "~")) or os.sep != "/" and os.sep in name or name.count("/") > 1
    if not Path(name).exists() and looks_local:
        raise FileNotFoundError(f"there is no model folder {name!r}; give a folder with config.json, or a hub id")
    if (Path(name) / CONFIG).is_file():
        raise ValueError(
            f"{name!r} is a LoRA adapter, not a model: lorakit evaluate and predict take it as --adapter, and in Python"
            " load_tagger loads it; to train on, write a model with what it learned:"
            " remove_lora(load_adapter(base, adapter), merge=True).save_pretrained(folder)"
        )
    if Path(name).is_dir() and not (Path(name) / "config.json").exists():
        raise ValueError(f"the folder {name!r} has no config.json, so it is no model; {_inside(Path(name))}")
    if (Path(name) / "model.onnx").is_file() and not any(Path(name).glob("*.safetensors")):
        raise ValueError(
            f"the folder {name!r} holds a graph for onnxruntime and no model: its README.md shows how to use it; give"
            " the adapter or model that it was exported from"
        )
    if Path(name).is_file():
        raise ValueError(f"{name!r} is a file; give the model's folder, with config.json and model.safetensors")
    return name


def _inside(folder: Path) -> str:
    """What to give instead of a folder that is no model, such as a run's."""
    for model in (folder / "model", folder / "full" / "model", folder / "lorakit_ner"):  # the last of --to spacy
        if (model / "config.json").is_file():
            return f"did you mean {model}?"
    for adapter in (folder / "adapter", folder / "lora" / "adapter"):
        if (adapter / CONFIG).is_file():
            return f"did you mean adapter={str(adapter)!r}?"
    return "give a folder with config.json, or a hub id"


def _load_trained(load: Callable[..., tuple[nn.Module, LoadingReport]]) -> tuple[nn.Module, None]:
    """A fine-tuned checkpoint with its own labels."""
    model, report = load()
    check_report(model, report)
    if report.missing:
        missing = ", ".join(sorted(report.missing)[:3])
        raise ValueError(f"it is a base without a trained head ({missing} is missing): fine-tune it first")
    return model, None


def _load_for(
    labels: Sequence[str], transformers: Any, name: str, load: Callable[..., tuple[nn.Module, LoadingReport]]
) -> tuple[nn.Module, str | None]:
    """A checkpoint with these labels, and what became of a head that was trained for others."""
    names = dict(enumerate(labels))
    own = transformers.AutoConfig.from_pretrained(name, **NO_REMOTE_CODE).id2label
    model, report = load(num_labels=len(names), id2label=names, label2id={label: i for i, label in names.items()})
    check_report(model, report)
    return model, place_rows(model, report, [own[i] for i in sorted(own)], labels, lambda: load()[0])


def _load_tokenizer(transformers: Any, name: str) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, **NO_REMOTE_CODE)
    if word_prefix(tokenizer):  # a byte-level tokenizer as roberta-base ships it
        spaced = transformers.AutoTokenizer.from_pretrained(name, add_prefix_space=True, **NO_REMOTE_CODE)
        if not misread(spaced, "", tokenizer):
            return spaced  # so it takes pre-split words outside lorakit, too
    return tokenizer


def _adapter_folder(adapter: str) -> str:
    """Return it unchanged; raise where it holds none, and the run that it is, or is in, has one elsewhere."""
    if not adapter:
        raise ValueError("the name of the adapter is empty; give an adapter's folder, or a hub id")
    folder = Path(adapter)
    if not (folder / CONFIG).is_file():
        for near in (folder / "adapter", folder / "lora" / "adapter", folder.parent / "lora" / "adapter"):
            if (near / CONFIG).is_file():
                raise ValueError(f"no adapter in {folder}: {CONFIG} is not there; did you mean {near}?")
    return adapter
