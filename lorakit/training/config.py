"""What a training run is given (`TrainConfig`) and what comes out of it (`TrainResult`); loads nothing heavy."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorakit.data.tags import DECODERS
from lorakit.training.trackers import check_loggers

if TYPE_CHECKING:
    from lorakit.training.scores import Scores

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
STRATEGIES = ("ddp", "fsdp")
ENGINES = ("eager", "compile", "cuda_graphs")
LOSSES = ("auto", "cross_entropy", "model")
PACKING = ("auto", "on", "off")
# The best of those tried on BioNLP2004 with all-MiniLM-L6-v2 (22.6 M parameters, one seed). Larger bases usually need
# smaller rates: published values for roberta-base are about 5e-4 for LoRA and 5e-5 in full.
DEFAULT_LEARNING_RATE = {"lora": 2e-3, "full": 5e-4}
MOST_SEED = 2**31 - 1  # NumPy takes 32 bits, and each rank adds its number
CHOICES = {"precision": PRECISIONS, "strategy": STRATEGIES, "engine": ENGINES, "loss": LOSSES, "decode": DECODERS}
RANGES = {  # what is in it, and how to say so
    "learning_rate": (lambda rate: 0 < rate < math.inf, "a finite number above 0"),
    "weight_decay": (lambda decay: 0 <= decay < math.inf, "a finite number of at least 0"),
    "warmup_ratio": (lambda ratio: 0 <= ratio <= 1, "a number from 0 to 1"),
    "max_grad_norm": (lambda norm: norm > 0, "a number above 0, of which inf turns clipping off"),
}


def packing_choice(packing: bool | str) -> str:
    """ "auto", "on" or "off"; True is "on" and False "off".

    Raises:
        ValueError: it is none of them.
    """
    choice = {True: "on", False: "off"}[packing] if isinstance(packing, bool) else packing
    if choice not in PACKING:
        raise ValueError(f"packing is {packing!r}; it must be one of {', '.join(PACKING)}")
    return choice


def check_dropout(dropout: float) -> None:
    """Check a rate of dropout for a base.

    Raises:
        ValueError: it is no probability below 1.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it must be from 0 to below 1")


@dataclass(frozen=True)
class TrainConfig:
    """The settings of `train`. A step sees batch_size × accumulate × (number of processes) sentences.

    Example:
        import lorakit
        config = lorakit.TrainConfig(epochs=5, batch_size=16, learning_rate=2e-3)
        config.precision  # 'auto'

    Args:
        epochs: passes over the training split, at least 1.
        batch_size: sentences per process and micro-batch, at least 1.
        learning_rate: AdamW's highest rate, above 0; 2e-3 suits LoRA, and `lorakit train --mode full` uses 5e-4.
        weight_decay: AdamW's, at least 0; on matrices only, not on biases and norms.
        warmup_ratio: share of the steps, 0 to 1, in which the rate rises; then it falls linearly to 0.
        accumulate: micro-batches per step, at least 1.
        max_grad_norm: gradients are scaled down to this norm, above 0; `float("inf")` turns clipping off.
        precision: "auto", "fp32", "bf16" or "fp16"; "auto" is fp32 on a CPU, on a GPU bf16 or else fp16.
        output_dir: folder for metrics.jsonl and checkpoints/; None writes nothing.
        seed: of the order of sentences and of dropout, 0 to 2³¹ − 1.
        resume: continue from output_dir's newest checkpoint, if there is one.
        overwrite: delete the checkpoints and the log of an earlier run in output_dir, which is refused otherwise.
        save_every: steps between checkpoints, besides the one after each epoch; None for no others.
        strategy: with several processes, "ddp" keeps the model on each, "fsdp" a slice of it.
        patience: stop after this many epochs without a better validation F1, or at equal F1 a lower validation loss;
            None never stops early.
        log_every: steps between log lines, the only moments at which the host waits for the device.
        packing: "auto" puts several sentences in a row where that is proven to change nothing, and else uses plain rows
            and says so; "on" (or True) refuses then; "off" (or False) gives each sentence a row of its own.
        cache_prefix: keep the output of the frozen lower layers instead of computing it in every epoch.
        engine: how steps run: "eager"; "compile" (torch.compile, on a GPU into CUDA graphs: minutes at the start, then
            less time per step); "cuda_graphs" (record the eager kernels and launch a batch at once, on one GPU).
        progress: show progress bars and evaluation lines on stderr.
        loss: "auto" is cross-entropy, and refuses a model that computes another loss from `labels`, such as a CRF's;
            "cross_entropy" leaves that out; "model" trains on it, if it is a mean or a sum over words or sentences.
        class_weights: of the classes' words in the cross-entropy, each above 0: numbers in the order of the labels, or
            a dictionary by label (others have 1), also NumPy's or torch's; "balanced" gives all classes that occur the
            same weight in sum. The loss of scores has none.
        loraplus_lr_ratio: LoRA+: the rate of B (and of vectors) over `learning_rate`, at least 1; None for the same.
        log_to: other places for the lines of metrics.jsonl: "tensorboard", "wandb".
        module_learning_rates: other highest rates, by module name as in {"word_embeddings": 5e-4, "lora_B": 8e-3}:
            modules trained in full usually need a smaller rate than LoRA. A name matches whole parts of a parameter's
            name, and the longest match decides. None: the same rate for all.
        decode: how scores are computed, and with them the best epoch found: "viterbi" or "greedy", as in `predict`;
            "auto" is viterbi for entity tags. The model and its adapter remember it.

    Raises:
        ValueError: a value is out of range, or two settings do not work together.
        ImportError: what log_to names is not installed.
    """

    epochs: int = 3
    batch_size: int = 16
    learning_rate: float = DEFAULT_LEARNING_RATE["lora"]
    weight_decay: float = 0.01
    warmup_ratio: float = 0.06
    accumulate: int = 1
    max_grad_norm: float = 1.0
    precision: str = "auto"
    output_dir: str | os.PathLike[str] | None = None
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    save_every: int | None = None
    strategy: str = "ddp"
    patience: int | None = None
    log_every: int = 10
    packing: bool | str = "auto"
    cache_prefix: bool = False
    engine: str = "eager"
    progress: bool = True
    loss: str = "auto"
    class_weights: str | Sequence[float] | Mapping[str, float] | None = None
    loraplus_lr_ratio: float | None = None
    log_to: tuple[str, ...] = ()
    module_learning_rates: Mapping[str, float] | None = None
    decode: str = "auto"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "log_every", "patience", "save_every"):
            value = getattr(self, name)
            if value is None and name in ("patience", "save_every"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least 1")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed <= MOST_SEED:
            raise ValueError(f"seed is {self.seed!r}; it must be an integer from 0 to {MOST_SEED}")
        for name, (inside, allowed) in RANGES.items():
            value = getattr(self, name)
            if not _is_number(value) or not inside(value):
                raise ValueError(f"{name} is {value!r}; it must be {allowed}")
        for name, value in (self.module_learning_rates or {}).items():
            if not _is_number(value) or not 0 < value < math.inf:
                raise ValueError(f"module_learning_rates[{name!r}] is {value!r}; it must be a finite number above 0")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        object.__setattr__(self, "class_weights", _plain_numbers(self.class_weights))
        _check_class_weights(self.class_weights)
        ratio = self.loraplus_lr_ratio
        if ratio is not None and (not _is_number(ratio) or not 1 <= ratio < math.inf):
            raise ValueError(
                f"loraplus_lr_ratio is {ratio!r}; it must be a number of at least 1, such as 16, or left out"
            )
        object.__setattr__(self, "packing", packing_choice(self.packing))
        self._check_combinations()

    def _check_combinations(self) -> None:
        sharded = self.strategy == "fsdp"
        if sharded and self.precision == "fp16":
            raise ValueError("strategy 'fsdp' does not work with precision 'fp16'; use bf16 or fp32")
        if sharded and self.cache_prefix:
            raise ValueError("strategy 'fsdp' does not work with cache_prefix: a sharded layer cannot be skipped")
        if self.engine == "compile" and (sharded or self.cache_prefix or self.packing == "off"):
            raise ValueError(
                "engine 'compile' does not work with strategy 'fsdp', cache_prefix or packing 'off'; use engine 'eager'"
            )
        if self.engine == "cuda_graphs" and (sharded or self.packing == "off"):
            raise ValueError(
                "engine 'cuda_graphs' does not work with strategy 'fsdp' or packing 'off'; use engine 'eager'"
            )
        if self.loss == "model" and self.class_weights is not None:
            raise ValueError("class_weights are of the cross-entropy, and loss is 'model'; leave one of them out")
        if self.output_dir is None and (self.resume or self.save_every):
            raise ValueError("resume and save_every need output_dir: checkpoints are kept in its folder checkpoints")
        if self.resume and self.overwrite:
            raise ValueError("resume continues the run in output_dir and overwrite deletes it; give one of them")
        check_loggers(self.log_to)
        if self.output_dir is None and self.log_to:
            raise ValueError("log_to needs output_dir: the loggers' files are kept in a folder there")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain_numbers(weights: Any) -> Any:
    """Class weights as Python numbers, where they came from NumPy (scikit-learn's) or torch."""
    if isinstance(weights, Mapping):
        return {name: value.item() if hasattr(value, "item") else value for name, value in weights.items()}
    return weights.tolist() if hasattr(weights, "tolist") else weights


def _check_class_weights(weights: Any) -> None:
    """Refuse what are no weights; whether they fit the labels is found out when the model is known."""
    if weights is None or weights == "balanced":
        return
    values = weights.values() if isinstance(weights, Mapping) else weights
    numbers = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else []
    if not numbers or not all(_is_number(w) and 0 < w < math.inf for w in numbers):
        raise ValueError(
            f"class_weights is {weights!r}; it must be 'balanced', a number above 0 for each label in their order, or"
            " such numbers by label, as in class_weights={'B-DNA': 5.0}"
        )


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a run: scores of the best epoch's weights, which the model holds afterwards.

    Args:
        validation: scores of the best epoch; None where the corpus has no such split.
        test: scores with the same weights; None where the corpus has no such split.
        best_epoch: the epoch with the highest validation F1, of equal ones that with the lowest loss, from 1.
        epochs: epochs run, fewer than asked for after an early stop.
        steps: optimizer steps, skipped ones included.
        skipped_steps: steps skipped because a gradient was not finite.
        train_tokens: real tokens trained on, over all epochs and ranks.
        computed_tokens: the same with padding.
        train_seconds: time spent in training steps, s.
        compile_seconds: time spent compiling or recording them on this process, s; not part of train_seconds.
        duration_s: time of the whole run since its start or resume, s, evaluation included.
        history: scores on validation after each epoch; empty where the corpus has no such split.
        diverged: `train_many` ended it alone, because its loss or gradients were no longer finite; it was not tested,
            and its adapter not saved. (`train` raises FloatingPointError.)
    """

    validation: "Scores | None"
    test: "Scores | None"
    best_epoch: int
    epochs: int
    steps: int
    skipped_steps: int
    train_tokens: int
    computed_tokens: int
    train_seconds: float
    compile_seconds: float
    duration_s: float
    history: "tuple[Scores, ...]"
    diverged: bool = False

    @property
    def train_tokens_per_s(self) -> float:
        """Real tokens per second of training steps."""
        return self.train_tokens / self.train_seconds
