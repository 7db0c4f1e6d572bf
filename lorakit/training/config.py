"""How to train: every setting of a run, checked, with its default."""

import math
import os
from dataclasses import dataclass

from lorakit.training.trackers import check_loggers

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
STRATEGIES = ("ddp", "fsdp")

# Usual values for a base the size of roberta-base. LoRA's updates start at zero and need a larger rate.
DEFAULT_LEARNING_RATE = {"lora": 1e-3, "full": 5e-5}


@dataclass(frozen=True)
class TrainConfig:
    """How to train. A step sees batch_size × accumulate × (number of processes) sentences.

    Raises:
        ValueError: a value is out of its range. ImportError: what log_to names is not installed.
    """

    epochs: int = 3
    batch_size: int = 32  # sentences a process and micro-batch
    learning_rate: float = DEFAULT_LEARNING_RATE["lora"]
    weight_decay: float = 0.01  # on matrices only
    warmup_ratio: float = 0.06  # share of the steps in which the rate rises; then it falls linearly to 0
    accumulate: int = 1  # micro-batches a step
    max_grad_norm: float = 1.0
    precision: str = "auto"  # bf16 or else fp16 on a GPU, fp32 on the CPU
    output_dir: str | os.PathLike[str] | None = None  # metrics.jsonl and checkpoints/ go there
    seed: int = 0
    resume: bool = False  # go on from output_dir's newest checkpoint, where there is one
    save_every: int | None = None  # steps between checkpoints, besides the one after each epoch
    strategy: str = "ddp"  # of several processes: "ddp" keeps the model on each, "fsdp" a slice of it
    patience: int | None = None  # epochs without a better validation F1 before training stops
    log_every: int = 10  # steps between log lines; the only moments at which the host waits for the device
    packing: bool = True
    cache_prefix: bool = False  # keep the output of the frozen lower layers (prefix.py): memory for operations
    compile: bool = False  # torch.compile the loss, on a GPU into CUDA graphs: minutes at the start, then less a step
    cuda_graphs: bool = False  # record the steps as they are in CUDA graphs, which launch a batch at once
    progress: bool = True
    log_to: tuple[str, ...] = ()  # "tensorboard", "wandb": what metrics.jsonl holds goes there, too

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "log_every", "patience", "save_every"):
            value = getattr(self, name)
            if value is None and name in ("patience", "save_every"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
        for name, low, high in (
            ("learning_rate", 0, math.inf),
            ("weight_decay", 0, math.inf),
            ("warmup_ratio", 0, 1),
            ("max_grad_norm", 0, math.inf),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}; it must be a number from {low} to {high}")
        if not 0 < self.learning_rate < math.inf or self.max_grad_norm == 0:
            raise ValueError(
                f"learning_rate {self.learning_rate} and max_grad_norm {self.max_grad_norm} must be above 0"
                " and the rate finite; max_grad_norm=float('inf') turns clipping off"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; it must be one of {', '.join(PRECISIONS)}")
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy is {self.strategy!r}; it must be one of {', '.join(STRATEGIES)}")
        if self.strategy == "fsdp" and self.precision == "fp16":
            raise ValueError("strategy 'fsdp' does not go with precision 'fp16'; use bf16, or fp32")
        if self.strategy == "fsdp" and self.cache_prefix:
            raise ValueError("strategy 'fsdp' does not go with cache_prefix: a sharded layer cannot be passed over")
        if self.compile and (self.strategy == "fsdp" or self.cache_prefix or not self.packing):
            raise ValueError("compile does not go with strategy 'fsdp', cache_prefix or packing=False")
        if self.cuda_graphs and (self.strategy == "fsdp" or self.compile or not self.packing):
            raise ValueError(
                "cuda_graphs does not go with strategy 'fsdp', packing=False or compile, which makes graphs of its own"
            )
        if self.output_dir is None and (self.resume or self.save_every):
            raise ValueError("resume and save_every need output_dir: checkpoints are kept in its folder checkpoints")
        check_loggers(self.log_to)
        if self.output_dir is None and self.log_to:
            raise ValueError("log_to needs output_dir: what it logs is kept in a folder there")
