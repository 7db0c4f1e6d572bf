"""What a benchmark trains (corpus, model, configuration), and what a step of it costs by arithmetic alone."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from flops import predict_flops
from provenance import ROOT
from torch import nn

import lorakit
from lorakit.data.corpus import NerData, Sentence
from lorakit.data.encoding import encode
from lorakit.data.packing import Layout, Plan, Step, TokenTable, epoch_steps
from lorakit.data.tokenization import Encoded
from lorakit.nn.blocks import blocks_of, blocks_pay
from lorakit.training.layout import in_long_rows, training_layout
from lorakit.training.models import load_token_classifier, set_dropout

sys.path.insert(0, str(ROOT / "examples"))

from mini.corpus import LABELS, make_corpus

MINI = str(ROOT / "examples" / "mini")
MINI_RATES = {"full": 1e-3, "lora": 2e-3}  # found for the embedded base


def sizes(hidden: int, intermediate: int, layers: int, heads: int, vocabulary: int = 8192) -> dict[str, int]:
    return {"vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": intermediate,
            "num_hidden_layers": layers, "num_attention_heads": heads}  # fmt: skip


SHAPES = {
    # roberta-base's 50,265 tokens, although the embedded tokenizer uses only the first 8,192 of them
    "roberta-base": sizes(768, 3072, layers=12, heads=12, vocabulary=50265),
    "minilm": sizes(384, 1536, layers=6, heads=12, vocabulary=30522),  # all-MiniLM-L6-v2's
    "small": sizes(384, 1536, layers=6, heads=6),  # 13.8 M parameters, for scaling.py
    "narrow": sizes(64, 128, layers=2, heads=2),  # a run of about a second, for faults.py
    "tiny": sizes(32, 64, layers=2, heads=2),
    "mini": {},  # the embedded base with its own weights
}


@dataclass(frozen=True)
class Other:
    """A base of another family than RoBERTa's, as transformers' configuration of it is by default.

    Attributes:
        kind: the configuration's model type.
        sizes: what it has of its own, beside the defaults of its type.
        dropout: its own default.
        targets: layers with LoRA, as `target_modules=None` picks them, and PEFT where it knows the type.
        cut: it has only the embedded tokenizer's word embeddings, which changes nothing in LoRA but memory.
    """

    kind: str
    sizes: dict[str, Any]
    dropout: float
    targets: tuple[str, ...]
    cut: bool = False


MARKERS = {"bos_token_id": 0, "cls_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
OTHER_SHAPES = {  # for throughput.py
    # ModernBERT-base is what its configuration is by default
    "modernbert-base": Other("modernbert", MARKERS, 0.0, ("Wqkv",)),
    # without 119,908 of its 128,100 tokens, which the embedded tokenizer does not have
    "deberta-v3-base": Other(
        "deberta-v2",
        sizes(768, 3072, layers=12, heads=12)
        | {"relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True}
        | {"pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0, "pad_token_id": 1},
        0.1,
        ("query_proj", "value_proj"),
        cut=True,
    ),
}


@dataclass(frozen=True)
class Job:
    """What every system is given: corpus, model and settings."""

    train: tuple[Sentence, ...]
    labels: tuple[str, ...]
    shape: str = "roberta-base"
    batch_size: int = 32
    warmup: int = 1  # steps before the clock starts
    steps: int = 6  # timed
    precision: str = "fp32"
    dropout: float = 0.1  # of the base, roberta's own default
    lora_dropout: float = 0.0
    r: int = 16
    lora_alpha: float = 16
    target_modules: tuple[str, ...] = ("query", "value")
    lowest_layer: int = 0  # first layer with LoRA
    rates: dict[str, float] = field(default_factory=lambda: {"full": 5e-5, "lora": 1e-3})
    seed: int = 0
    train_config: dict[str, Any] = field(default_factory=dict)  # more fields of lorakit's TrainConfig

    def sentences(self) -> tuple[Sentence, ...]:
        """As many sentences as the steps need, drawn from the corpus by the seed.

        Raises:
            ValueError: the corpus is too small.
        """
        wanted = self.batch_size * (self.warmup + self.steps)
        if wanted > len(self.train):
            raise ValueError(f"the steps need {wanted} sentences, the corpus has {len(self.train)}; use fewer steps")
        chosen = np.random.default_rng(self.seed).permutation(len(self.train))[:wanted]
        return tuple(self.train[i] for i in chosen)


def read_corpus(dataset: str, sentences: int | None = None) -> NerData:
    """Training and validation set of a folder or of the embedded corpus, with at most so many training sentences."""
    if dataset != "embedded":
        data = lorakit.read_ner(dataset)
        return NerData(data.train[:sentences], data.validation, (), data.labels, dataset)
    corpus = make_corpus(seed=0, train=sentences or 1500)
    train, validation = (tuple(Sentence(*pair) for pair in split) for split in (corpus.train, corpus.validation))
    return NerData(train, validation, (), tuple(LABELS), dataset)


def job_of(options: argparse.Namespace, data: NerData | None = None, **more: Any) -> Job:
    """The job that a benchmark's options ask for, on the data or on the corpus that they name."""
    data = data or read_corpus(options.dataset)
    given = {name: value for name, value in vars(options).items() if name in Job.__dataclass_fields__}
    job = Job(data.train, data.labels, **{**given, **more})
    return replace(job, target_modules=tuple(job.target_modules))


def config_of(job: Job) -> Any:
    """The model's configuration: the embedded base's, or one of SHAPES or OTHER_SHAPES."""
    from transformers import AutoConfig, RobertaConfig

    options = {
        "id2label": dict(enumerate(job.labels)),
        "label2id": {label: number for number, label in enumerate(job.labels)},
    }
    if job.shape in OTHER_SHAPES:
        other = OTHER_SHAPES[job.shape]
        config = AutoConfig.for_model(other.kind, **other.sizes, **options)
        set_dropout(config, job.dropout)
        return config
    options |= {"hidden_dropout_prob": job.dropout, "attention_probs_dropout_prob": job.dropout}
    if job.shape == "mini":
        return AutoConfig.from_pretrained(MINI, **options)
    positions = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    return RobertaConfig(**SHAPES[job.shape], **positions, **options)


def tokenizer_of(job: Job) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MINI)


def make_model(job: Job) -> nn.Module:
    """The base model; the same weights for every system."""
    if job.shape == "mini":
        return load_token_classifier(MINI, job.labels, seed=job.seed, dropout=job.dropout)[0]
    from transformers import AutoModelForTokenClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        return AutoModelForTokenClassification.from_config(config_of(job))


def lora_of(job: Job) -> dict[str, Any]:
    """The arguments that `apply_lora` and PEFT's LoraConfig share."""
    layers = list(range(job.lowest_layer, config_of(job).num_hidden_layers)) if job.lowest_layer else None
    return {
        "r": job.r,
        "lora_alpha": job.lora_alpha,
        "lora_dropout": job.lora_dropout,
        "target_modules": list(job.target_modules),
        "layers_to_transform": layers,
    }


def own_model(job: Job, mode: str) -> nn.Module:
    """The model lorakit trains, in mode "lora" with adapters."""
    model = make_model(job)
    if mode == "lora":
        lorakit.apply_lora(model, **lora_of(job), seed=job.seed)
    return model


def own_config(job: Job, mode: str, epochs: int = 1, **more: Any) -> lorakit.TrainConfig:
    """lorakit's configuration of a job; `more` are further fields of it."""
    return lorakit.TrainConfig(
        epochs=epochs,
        batch_size=job.batch_size,
        learning_rate=job.rates[mode],
        seed=job.seed,
        progress=False,
        **{"precision": job.precision, **job.train_config},
        **more,
    )


# Predictions ---------------------------------------------------------------------------------------------------------

# Rows and width of a batch, and its token pairs where lorakit's attention computes fewer than all pairs of each row
Shape = tuple[int, int] | tuple[int, int, int]


def encode_job(job: Job, sentences: Sequence[Sentence]) -> Encoded:
    return encode(tokenizer_of(job), [s.words for s in sentences], 512, [s.tags for s in sentences], job.labels)


def in_blocks(job: Job) -> bool:
    """Whether lorakit uses its own attention, which computes only pairs within a sentence."""
    return not (torch.cuda.is_available() or job.precision == "fp16" or job.train_config.get("engine") == "compile")


def own_steps(job: Job, encoded: Encoded, whole: bool = False) -> list[Step]:
    """lorakit's steps of an epoch, which depend on the seed and, on a CPU, on the number of threads.

    Args:
        whole: do not compute a batch in parts.
    """
    layout = in_long_rows(Layout(2, 1), config_of(job).hidden_size) if in_blocks(job) else Layout(2, 1)
    layout = training_layout(layout, encoded, job.batch_size, job.train_config.get("engine", "eager"), whole)
    return list(epoch_steps(encoded, layout, job.batch_size, 1, job.seed, 1))


def own_shapes(job: Job, encoded: Encoded, steps: Sequence[Step]) -> list[list[Shape]]:
    """Shapes of the batches of lorakit's steps, with the token pairs where it uses its own attention.

    The pairs are left out where nothing is predicted from them.
    """
    layout = Layout(2, 1)
    table = TokenTable(encoded, layout)

    def shape(plan: Plan) -> Shape:
        rows, width = plan.source.shape
        if in_blocks(job) and job.shape not in OTHER_SHAPES:
            blocks = blocks_of(layout.inputs(table.batch(plan))["attention_mask"], rows, 1, width)
            if blocks_pay(blocks, job.dropout):
                return (rows, width, blocks.scores)
        return (rows, width)

    return [[shape(plan) for plan in step.micros] for step in steps]


def shapes_of(job: Job, system: str) -> tuple[list[list[Shape]], int]:
    """Shapes of the steps of an epoch over at most 4,096 sentences of the corpus, and their real tokens."""
    chosen = np.random.default_rng(job.seed + 1).permutation(len(job.train))[:4096]
    encoded = encode_job(job, [job.train[i] for i in chosen])
    if system.startswith("lorakit"):
        steps = own_shapes(job, encoded, own_steps(job, encoded))
    else:
        chunks = np.split(encoded.lengths, range(job.batch_size, len(encoded), job.batch_size))
        multiple = 1 if job.precision == "fp32" else 8
        steps = [[(len(chunk), -(-int(chunk.max()) // multiple) * multiple)] for chunk in chunks]
    return steps, int(encoded.lengths.sum())


def flops_of(job: Job, system: str, shapes: Sequence[Shape]) -> int | None:
    """FLOPs of steps on batches of these shapes, predicted by flops.py; None outside RoBERTa's family."""
    if job.shape in OTHER_SHAPES:
        return None
    return sum(
        predict_flops(
            config_of(job),
            rows,
            width,
            pairs=pairs[0] if pairs else None,
            targets=None if system.endswith("full") else job.target_modules,
            r=job.r,
            lowest_layer=job.lowest_layer,
            may_merge=system.startswith("lorakit") and job.precision == "fp32" and not job.lora_dropout,
            one_attention_operator=not job.dropout,
        )
        for rows, width, *pairs in shapes
    )


def predict_cost(job: Job, system: str) -> dict[str, float | None]:
    """FLOPs per step and the padding factor, from the shapes alone."""
    steps, real = shapes_of(job, system)
    shapes = [shape for step in steps for shape in step]
    tokens = sum(rows * width for rows, width, *_ in shapes)
    flops = flops_of(job, system, shapes)
    return {
        "flops": None if flops is None else flops / len(steps),
        "padding": tokens / real,
        "real": real / len(steps),
        "parts": len(shapes) / len(steps),
    }
