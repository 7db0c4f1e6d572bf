"""What a training run is given (`TrainConfig`) and what comes out of it (`TrainResult`); loads nothing heavy."""

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorakit.training.trackers import check_loggers

if TYPE_CHECKING:
    from lorakit.training.metrics import Scores

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
STRATEGIES = ("ddp", "fsdp")
ENGINES = ("eager", "compile", "cuda_graphs")
# The best of those tried on BioNLP2004 with all-MiniLM-L6-v2 (22.6 M parameters, one seed). Larger bases usually need
# smaller rates: published values for roberta-base are about 5e-4 for LoRA and 5e-5 in full.
DEFAULT_LEARNING_RATE = {"lora": 2e-3, "full": 5e-4}
CHOICES = {"precision": PRECISIONS, "strategy": STRATEGIES, "engine": ENGINES}


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
        learning_rate: AdamW's highest rate, above 0.
        weight_decay: AdamW's, at least 0; on matrices only, not on biases and norms.
        warmup_ratio: share of the steps, 0 to 1, in which the rate rises; then it falls linearly to 0.
        accumulate: micro-batches per step, at least 1.
        max_grad_norm: gradients are scaled down to this norm, above 0; `float("inf")` turns clipping off.
        precision: "auto", "fp32", "bf16" or "fp16"; "auto" is fp32 on a CPU, on a GPU bf16 or else fp16.
        output_dir: folder for metrics.jsonl and checkpoints/; None writes nothing.
        seed: of the order of sentences and of dropout.
        resume: continue from output_dir's newest checkpoint, if there is one.
        save_every: steps between checkpoints, besides the one after each epoch; None for no others.
        strategy: with several processes, "ddp" keeps the model on each, "fsdp" a slice of it.
        patience: stop after this many epochs without a better validation F1; None never stops early.
        log_every: steps between log lines, the only moments at which the host waits for the device.
        packing: put several sentences in a row; False pads each to the longest.
        cache_prefix: keep the output of the frozen lower layers instead of computing it in every epoch.
        engine: how steps run: "eager"; "compile" (torch.compile, on a GPU into CUDA graphs: minutes at the start, then
            less time per step); "cuda_graphs" (record the eager kernels and launch a batch at once, on one GPU).
        progress: show progress bars and evaluation lines on stderr.
        log_to: other places for the lines of metrics.jsonl: "tensorboard", "wandb".

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
    save_every: int | None = None
    strategy: str = "ddp"
    patience: int | None = None
    log_every: int = 10
    packing: bool = True
    cache_prefix: bool = False
    engine: str = "eager"
    progress: bool = True
    log_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "log_every", "patience", "save_every"):
            value = getattr(self, name)
            if value is None and name in ("patience", "save_every"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least 1")
        for name, highest in (
            ("learning_rate", math.inf),
            ("weight_decay", math.inf),
            ("warmup_ratio", 1),
            ("max_grad_norm", math.inf),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= highest:
                raise ValueError(f"{name} is {value!r}; it must be a number from 0 to {highest}")
        if not 0 < self.learning_rate < math.inf or self.max_grad_norm == 0:
            raise ValueError(
                f"learning_rate {self.learning_rate} and max_grad_norm {self.max_grad_norm} must be above 0"
                " and the rate finite; max_grad_norm=float('inf') turns clipping off"
            )
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        self._check_combinations()

    def _check_combinations(self) -> None:
        sharded = self.strategy == "fsdp"
        if sharded and self.precision == "fp16":
            raise ValueError("strategy 'fsdp' does not work with precision 'fp16'; use bf16 or fp32")
        if sharded and self.cache_prefix:
            raise ValueError("strategy 'fsdp' does not work with cache_prefix: a sharded layer cannot be skipped")
        if self.engine == "compile" and (sharded or self.cache_prefix or not self.packing):
            raise ValueError(
                "engine 'compile' does not work with strategy 'fsdp', cache_prefix or packing=False; use engine 'eager'"
            )
        if self.engine == "cuda_graphs" and (sharded or not self.packing):
            raise ValueError(
                "engine 'cuda_graphs' does not work with strategy 'fsdp' or packing=False; use engine 'eager'"
            )
        if self.output_dir is None and (self.resume or self.save_every):
            raise ValueError("resume and save_every need output_dir: checkpoints are kept in its folder checkpoints")
        check_loggers(self.log_to)
        if self.output_dir is None and self.log_to:
            raise ValueError("log_to needs output_dir: the loggers' files are kept in a folder there")


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a run: scores of the best epoch's weights, which the model holds afterwards.

    Attributes:
        validation: scores of the best epoch; None where the corpus has no such split.
        test: scores with the same weights; None where the corpus has no such split.
        best_epoch: the epoch with the highest validation F1, from 1.
        epochs: epochs run, fewer than asked for after an early stop.
        steps: optimizer steps, skipped ones included.
        skipped_steps: steps skipped because a gradient was not finite.
        train_tokens: real tokens trained on, over all epochs and ranks.
        computed_tokens: the same with padding.
        train_seconds: time spent in training steps.
        compile_seconds: time spent compiling or recording them on this process; not part of train_seconds.
        duration_s: time of the whole run since its start or resume, evaluation included.
        history: scores on validation after each epoch.
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

    @property
    def train_tokens_per_s(self) -> float:
        """Real tokens per second of training steps."""
        return self.train_tokens / self.train_seconds
