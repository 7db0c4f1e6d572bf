"""The one training loop: full fine-tuning and LoRA, one process and many, fp32, bf16 and fp16.

It trains what requires a gradient and knows nothing of why. The loss of a step is the mean cross-entropy over all the
words of the step, whatever way they lie in rows, micro-batches and ranks: every micro-batch contributes its *sum*,
divided by the words of the whole step.
"""

import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from lorakit import distributed
from lorakit.batching import Batch, Layout, epoch_steps, first_position, layout_for, sorted_batches, steps_per_epoch
from lorakit.encoding import IGNORE, Encoded, check_tokenizer, encode, split_by_sentence
from lorakit.metrics import Scores, score
from lorakit.ner import NerData, Sentence

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
EVALUATION_TOKENS = 4096  # real tokens in an evaluation batch


@dataclass(frozen=True)
class TrainConfig:
    """How to train. A step sees batch_size × accumulate × (number of processes) sentences.

    Raises:
        ValueError: a value is out of its range.
    """

    epochs: int = 3
    batch_size: int = 32  # sentences a process and micro-batch
    learning_rate: float = 1e-3
    weight_decay: float = 0.01  # on matrices only
    warmup_ratio: float = 0.06  # share of the steps in which the rate rises; then it falls linearly to 0
    accumulate: int = 1  # micro-batches a step
    max_grad_norm: float = 1.0
    precision: str = "auto"  # bf16 or else fp16 on a GPU, fp32 on the CPU
    output_dir: str | os.PathLike[str] | None = None  # metrics.jsonl goes there
    seed: int = 0
    resume: bool = False
    patience: int | None = None  # epochs without a better validation F1 before training stops
    log_every: int = 10  # steps between log lines; the only moments at which the host waits for the device
    packing: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "log_every", "patience"):
            value = getattr(self, name)
            if not (isinstance(value, int) and not isinstance(value, bool) and value >= 1) and not (
                name == "patience" and value is None
            ):
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
        if self.resume:
            raise ValueError("resume=True is not available in this version; train from the start with resume=False")


@dataclass(frozen=True)
class TrainResult:
    """What came out of a run: scores with the best epoch's weights, which the model holds afterwards."""

    validation: Scores | None  # None where the corpus has no such split
    test: Scores | None
    best_epoch: int
    epochs: int  # run, fewer than asked for after an early stop
    steps: int
    train_tokens: int  # real tokens trained on, over all epochs and ranks
    computed_tokens: int  # the same with padding
    train_seconds: float  # in training steps alone
    duration_s: float  # evaluation included
    history: tuple[Scores, ...]  # on validation, after each epoch

    @property
    def train_tokens_per_s(self) -> float:
        return self.train_tokens / self.train_seconds


class Tokenizer(Protocol):
    """What is needed of a Hugging Face fast tokenizer."""

    model_max_length: int

    def __call__(self, text: Any, **options: Any) -> Any: ...


def train(
    model: nn.Module,
    tokenizer: Tokenizer,
    data: NerData,
    config: TrainConfig | None = None,
    observe: Callable[[], dict[str, float]] | None = None,
) -> TrainResult:
    """Train a token classifier on `data.train`, keep the epoch that is best on `data.validation`, score that one.

    The model is changed in place: it moves to the process's device and ends with the best epoch's weights. Under
    torchrun every process calls this with the same arguments.

    Args:
        observe: called at every log step; what it returns (say {"power_w": 61.0}) joins the log line and the bar.

    Raises:
        ValueError: the model cannot be trained on this corpus; the message says why.
        FloatingPointError: the loss became infinite or NaN.
    """
    config = config or TrainConfig()
    with distributed.process_group():
        check_tokenizer(tokenizer)
        _check_trainable(model, data)
        _seed_everything(config.seed, distributed.rank())
        model.to(distributed.device())
        layout, window = layout_for(model, config.packing), _window(model, tokenizer)
        encoded = _encode(model, tokenizer, data.train, window)
        with _Log(config) as log:
            return _Run(model, tokenizer, data, config, observe, layout, encoded, log).run()


class _Run:
    """The state of one training run."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        data: NerData,
        config: TrainConfig,
        observe: Callable[[], dict[str, float]] | None,
        layout: Layout,
        encoded: Encoded,
        log: "_Log",
    ) -> None:
        self.model, self.tokenizer, self.data, self.config = model, tokenizer, data, config
        self.observe, self.layout, self.encoded, self.log = observe, layout, encoded, log
        self.device = next(model.parameters()).device
        self.rank, self.world = distributed.rank(), distributed.world_size()
        self.steps_per_epoch = steps_per_epoch(len(encoded), config.batch_size, config.accumulate, self.world)
        self.autocast, scaled = precision_of(config.precision, self.device)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(model, config)
        self.scheduler = build_scheduler(self.optimizer, config, self.steps_per_epoch * config.epochs)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.forward = wrap_for_ranks(model)
        self.step = self.train_tokens = self.computed_tokens = 0
        self.train_seconds = 0.0

    def run(self) -> TrainResult:
        config, began = self.config, time.perf_counter()
        best, best_weights, best_epoch, epoch = None, None, 0, 0
        history: list[Scores] = []
        with tqdm(total=self.steps_per_epoch * config.epochs, unit="step", disable=self.log.quiet or None) as bar:
            for epoch in range(1, config.epochs + 1):
                self.train_epoch(epoch, bar)
                if not self.data.validation:
                    best_epoch = epoch
                    continue
                scores = evaluate(self.model, self.tokenizer, self.data.validation, config.precision, config.packing)
                self.log.evaluation("validation", epoch, self.step, scores)
                history.append(scores)
                if best is None or scores.f1 > best.f1:
                    best, best_epoch = scores, epoch
                    best_weights = [p.detach().clone() for p in self.trained] if epoch < config.epochs else None
                elif config.patience and epoch - best_epoch >= config.patience:
                    break
        if best_weights is not None and best_epoch != epoch:
            with torch.no_grad():
                for parameter, weights in zip(self.trained, best_weights, strict=True):
                    parameter.copy_(weights)
        test = None
        if self.data.test:
            test = evaluate(self.model, self.tokenizer, self.data.test, config.precision, config.packing)
            self.log.evaluation("test", best_epoch, self.step, test)
        tokens = distributed.all_sum(
            torch.tensor([self.train_tokens, self.computed_tokens], device=self.device)
        ).tolist()
        return TrainResult(
            validation=best,
            test=test,
            best_epoch=best_epoch,
            epochs=epoch,
            steps=self.step,
            train_tokens=tokens[0],
            computed_tokens=tokens[1],
            train_seconds=self.train_seconds,
            duration_s=time.perf_counter() - began,
            history=tuple(history),
        )

    def train_epoch(self, epoch: int, bar: tqdm) -> None:
        config = self.config
        self.model.train()
        bar.set_description(f"epoch {epoch}/{config.epochs}")
        began = logged = time.perf_counter()
        losses, tokens, steps = torch.zeros((), device=self.device), 0, 0
        for step in epoch_steps(
            self.encoded, self.layout, config.batch_size, config.accumulate, config.seed, epoch, self.rank, self.world
        ):
            for i, micro in enumerate(step.micros, start=1):
                batch = micro.to(self.device)
                with sync_if(self.forward, last=i == len(step.micros)):  # DDP averages gradients once a step
                    with self.autocast():
                        loss = loss_sum(self.forward, self.layout, batch) / step.targets
                    # DDP takes the mean of the ranks' gradients; the sum is meant
                    self.scaler.scale(loss * self.world).backward()
                losses += loss.detach()
                tokens += micro.tokens
                self.computed_tokens += micro.computed_tokens
            self.scaler.unscale_(self.optimizer)  # clip true gradients, not scaled ones
            grad_norm = nn.utils.clip_grad_norm_(self.trained, config.max_grad_norm)
            rate = self.optimizer.param_groups[0]["lr"]
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.scheduler.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step, steps = self.step + 1, steps + 1
            bar.update()
            if steps == config.log_every or self.step % self.steps_per_epoch == 0:
                mean = float(distributed.all_sum(losses)) / steps
                if not math.isfinite(mean):
                    raise FloatingPointError(
                        f"the loss is {mean} after step {self.step} of epoch {epoch} (learning rate {rate:.2g},"
                        f" precision {config.precision}); try a lower learning rate or precision='fp32'"
                    )
                now = time.perf_counter()
                self.log.step(
                    bar,
                    epoch=epoch,
                    step=self.step,
                    loss=mean,
                    learning_rate=rate,
                    grad_norm=float(grad_norm),
                    tokens_per_s=tokens * self.world / (now - logged),
                    **(self.observe() if self.observe else {}),
                )
                self.train_tokens += tokens
                losses, tokens, steps, logged = torch.zeros((), device=self.device), 0, 0, now
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.train_seconds += time.perf_counter() - began


def evaluate(
    model: nn.Module,
    tokenizer: Tokenizer,
    sentences: Sequence[Sentence],
    precision: str = "auto",
    packing: bool = True,
) -> Scores:
    """Score a token classifier on tagged sentences; under torchrun the ranks share the work and all get the result.

    Raises:
        ValueError: there is no sentence, or a tag that the model does not know.
    """
    if not sentences:
        raise ValueError("there is no sentence to evaluate on")
    words, tags = [s[0] for s in sentences], [s[1] for s in sentences]
    predicted, loss = _tag(model, tokenizer, words, precision, packing, tags)
    return score(tags, predicted, loss)


def predict(
    model: nn.Module,
    tokenizer: Tokenizer,
    sentences: Sequence[Sequence[str]],
    precision: str = "auto",
    packing: bool = True,
) -> list[list[str]]:
    """Tag pre-split sentences: one tag for every word."""
    if any(isinstance(words, str) for words in sentences):
        raise ValueError("predict takes sentences split into words, such as [['IL-2', 'gene']]; this one is a string")
    return _tag(model, tokenizer, sentences, precision, packing)[0]


def loss_sum(forward: Callable[..., Any], layout: Layout, batch: Batch) -> Tensor:
    """The cross-entropy of a batch, summed over its words, in fp32."""
    logits = forward(**layout.inputs(batch))[0]
    return F.cross_entropy(logits.flatten(0, 1).float(), batch.labels.flatten(), ignore_index=IGNORE, reduction="sum")


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over what requires a gradient: matrices decay, biases and norms (one dimension) do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, fused=True)


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear rise over the first `warmup_ratio` of the steps, then linear fall to 0 at the end."""
    warmup = math.ceil(config.warmup_ratio * steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return max(0.0, (steps - step) / max(1, steps - warmup))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def precision_of(precision: str, device: torch.device) -> tuple[Callable[[], AbstractContextManager[Any]], bool]:
    """The autocast context of a precision on a device, and whether gradients need scaling."""
    if precision == "auto":
        if device.type != "cuda":
            precision = "fp32"
        else:
            precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if precision == "fp32":
        return nullcontext, False
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return lambda: torch.autocast(device.type, dtype), precision == "fp16"


def wrap_for_ranks(model: nn.Module) -> nn.Module:
    """DDP when there are several processes, the model itself when alone."""
    if distributed.world_size() == 1:
        return model
    # RoBERTa's two int64 buffers are constants; by default they would be broadcast in every forward
    return DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)


def sync_if(model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Let DDP exchange gradients only in a step's last micro-batch."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()


def _tag(
    model: nn.Module,
    tokenizer: Tokenizer,
    sentences: Sequence[Sequence[str]],
    precision: str,
    packing: bool,
    tags: Sequence[Sequence[str]] | None = None,
) -> tuple[list[list[str]], float | None]:
    """Predicted tags of every sentence and, where gold tags are given, the mean loss a word."""
    check_tokenizer(tokenizer)
    labels, device = label_names(model), next(model.parameters()).device
    layout = layout_for(model, packing)
    encoded = encode(tokenizer, sentences, _window(model, tokenizer), tags, labels)
    autocast, _ = precision_of(precision, device)
    classes = torch.zeros(int(encoded.sentence_lengths.sum()), dtype=torch.long, device=device)
    loss = torch.zeros((), device=device, dtype=torch.float64 if device.type == "cpu" else torch.float32)
    with _eval_mode(model), torch.inference_mode(), autocast():
        for batch in sorted_batches(encoded, layout, EVALUATION_TOKENS, distributed.rank(), distributed.world_size()):
            here = batch.to(device)
            logits = model(**layout.inputs(here))[0].float()
            starts = here.words >= 0
            classes[here.words[starts]] = logits[starts].argmax(-1)
            loss += F.cross_entropy(logits[starts], here.labels[starts], ignore_index=IGNORE, reduction="sum")
    distributed.all_sum(classes)  # a word is tagged by one rank, the others hold 0
    distributed.all_sum(loss)
    names = [labels[c] for c in classes.tolist()]
    return split_by_sentence(names, encoded), float(loss) / max(1, len(names)) if tags is not None else None


def label_names(model: nn.Module) -> list[str]:
    """The model's tags in the order of its classes."""
    return [model.config.id2label[i] for i in range(model.config.num_labels)]


def _encode(model: nn.Module, tokenizer: Tokenizer, sentences: Sequence[Sentence], window: int) -> Encoded:
    return encode(tokenizer, [s[0] for s in sentences], window, [s[1] for s in sentences], label_names(model))


def _window(model: nn.Module, tokenizer: Tokenizer) -> int:
    """Tokens the model can read at once, special ones included."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or positions <= 0:
        return min(tokenizer.model_max_length, 512)
    return min(tokenizer.model_max_length, positions - first_position(model))


def _check_trainable(model: nn.Module, data: NerData) -> None:
    names = label_names(model)
    if list(data.labels) != names:
        raise ValueError(
            f"the model's labels are {names}, the corpus' {list(data.labels)}; load the model with"
            " num_labels=len(data.labels), id2label=dict(enumerate(data.labels))"
        )
    if not data.train:
        raise ValueError("the corpus has no training sentence")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("no parameter requires a gradient: there is nothing to train")
    for name, parameter in trained.items():
        if parameter.dtype != torch.float32:
            raise ValueError(
                f"{name} is {parameter.dtype}, in which small updates vanish; load the model with dtype=torch.float32"
            )


def _seed_everything(seed: int, rank: int) -> None:
    random.seed(seed + rank)
    np.random.seed(seed + rank)
    torch.manual_seed(seed + rank)  # ranks draw different dropout; the order of sentences has its own generator


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class _Log:
    """metrics.jsonl and the progress bar, on the main rank only."""

    def __init__(self, config: TrainConfig) -> None:
        self.quiet = not config.progress or not distributed.is_main()
        self.path = Path(config.output_dir) / "metrics.jsonl" if config.output_dir and distributed.is_main() else None
        self.file = None

    def __enter__(self) -> "_Log":
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("w", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self.file:
            self.file.close()

    def step(self, bar: tqdm, **values: float) -> None:
        self._write({"event": "step", **values})
        shown = {"loss": f"{values['loss']:.3f}", "tokens/s": f"{values['tokens_per_s']:,.0f}"}
        if values.get("power_w") is not None:
            shown["W"] = f"{values['power_w']:.0f}"
        bar.set_postfix(shown)

    def evaluation(self, split: str, epoch: int, step: int, scores: Scores) -> None:
        self._write({"event": "evaluation", "split": split, "epoch": epoch, "step": step, **scores.to_json()})
        if not self.quiet:
            tqdm.write(f"epoch {epoch}: {split} loss {scores.loss:.4f}, F1 {scores.f1:.4f}", file=sys.stderr)

    def _write(self, line: dict[str, Any]) -> None:
        if self.file:
            print(json.dumps(line), file=self.file, flush=True)
