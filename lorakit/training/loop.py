"""The one training loop: full fine-tuning and LoRA, one process and many, fp32, bf16 and fp16.

It trains what requires a gradient and knows nothing of why. The loss of a step is the mean cross-entropy over all the
words of the step, whatever way they lie in rows, micro-batches and ranks: every micro-batch contributes its *sum*,
divided by the words of the whole step.

Everything that changes in a run is in `_Progress`, the optimiser and the random generators. A checkpoint holds these
three and the trained weights, so a resumed run goes on bit for bit (on a CPU; GPU kernels may add in another order).
"""

import hashlib
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.data.corpus import NerData
from lorakit.data.packing import (
    Batch,
    Layout,
    Plan,
    Step,
    TokenTable,
    epoch_steps,
    layout_for,
    plan_batch,
    steps_per_epoch,
    training_layout,
)
from lorakit.data.tokenization import Encoded, check_tokenizer
from lorakit.nn.attention import faster_attention
from lorakit.nn.kernels import faster_dropout, faster_products
from lorakit.nn.weights import like, whole
from lorakit.training.checkpoint import Checkpoint, delete_checkpoints, load_checkpoint, save_checkpoint
from lorakit.training.distributed import all_sum, device, gather_bytes, is_main, process_group, rank, world_size
from lorakit.training.evaluation import (
    EncodedSplit,
    Tokenizer,
    encode_split,
    encode_tagged,
    evaluate,
    evaluate_split,
    label_names,
    precision_of,
)
from lorakit.training.frozen_layer_cache import FrozenPrefix
from lorakit.training.graphs import StepGraphs
from lorakit.training.logger import SinceLog, TrainingLog
from lorakit.training.loss import LossSum, Rehearsals
from lorakit.training.metrics import Scores
from lorakit.training.optimizer import build_optimizer, rate_of
from lorakit.training.parallel import STRATEGIES, spread, sync_if
from lorakit.training.precision import frozen_in_half
from lorakit.training.prediction import predict
from lorakit.training.preemption import Meetings, Preempted, StopRequest
from lorakit.training.progress import Progress
from lorakit.training.random_state import random_state, seed_everything, set_random_state
from lorakit.training.trackers import check_loggers
from lorakit.training.warmup import make_kernels

__all__ = ["Preempted", "TrainConfig", "TrainResult", "evaluate", "predict", "train"]

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
SHAPES_FROM = 256  # steps whose shapes of batches are looked at before training
GIVE_UP_AFTER = 20  # steps in a row without a finite gradient; fp16 needs up to about 16 to find its scale


@dataclass(frozen=True)
class TrainConfig:
    """How to train. A step sees batch_size × accumulate × (number of processes) sentences.

    Raises:
        ValueError: a value is out of its range. ImportError: what log_to names is not installed.
    """

    epochs: int = 3
    batch_size: int = 32  # sentences a process and micro-batch
    learning_rate: float = 1e-3
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


@dataclass(frozen=True)
class TrainResult:
    """What came out of a run: scores with the best epoch's weights, which the model holds afterwards."""

    validation: Scores | None  # None where the corpus has no such split
    test: Scores | None
    best_epoch: int
    epochs: int  # run, fewer than asked for after an early stop
    steps: int
    skipped_steps: int  # of these, without a finite gradient
    train_tokens: int  # real tokens trained on, over all epochs and ranks
    computed_tokens: int  # the same with padding
    train_seconds: float  # in training steps alone
    compile_seconds: float  # in compiling or recording them on this process, which is no part of train_seconds
    duration_s: float  # evaluation included, since the start or the resume
    history: tuple[Scores, ...]  # on validation, after each epoch

    @property
    def train_tokens_per_s(self) -> float:
        return self.train_tokens / self.train_seconds


def train(
    model: nn.Module,
    tokenizer: Tokenizer,
    data: NerData,
    config: TrainConfig | None = None,
    observe: Callable[[], dict[str, float | None]] | None = None,
) -> TrainResult:
    """Train a token classifier on `data.train`, keep the epoch that is best on `data.validation`, score that one.

    The model is changed in place: it moves to the process's device and ends with the best epoch's weights. Under
    torchrun every process calls this with the same arguments. With an output_dir, SIGTERM and SIGINT save a checkpoint
    and end the process (`Preempted`, status 143 or 130); the same call with resume=True goes on from there.

    Args:
        observe: called at every log step; what it returns (say {"power_w": 61.0}) joins the log line and the bar.

    Raises:
        ValueError: the model cannot be trained on this corpus, or the checkpoint is of another run.
        FloatingPointError: no step had a finite gradient for a while.
        MemoryError: a batch does not fit; the message names it and what to change.
        Preempted: a signal asked to stop.
    """
    config = config or TrainConfig()
    with process_group():
        check_tokenizer(tokenizer)
        _check_trainable(model, data)
        seed_everything(config.seed, rank())
        model.to(device())
        layout = layout_for(model, config.packing, config.precision)
        encoded = encode_tagged(model, tokenizer, data.train)
        stopping = StopRequest(active=config.output_dir is not None)
        with faster_products(model), faster_dropout(model), faster_attention(model), stopping as stop:
            return _Run(model, tokenizer, data, config, observe, layout, encoded, stop).run()


@dataclass
class _Progress:
    """How far a run is: all that is neither a tensor nor in the configuration."""

    epoch: int = 1  # the one under way
    epoch_step: int = 0  # steps done in it
    step: int = 0
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)  # validation scores, as JSON
    train_tokens: int = 0  # these three on this rank
    computed_tokens: int = 0
    train_seconds: float = 0.0
    compile_seconds: float = 0.0
    skipped: int = 0
    log_bytes: int = 0  # length of metrics.jsonl


class _Run:
    """One training run."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        data: NerData,
        config: TrainConfig,
        observe: Callable[[], dict[str, float | None]] | None,
        layout: Layout,
        encoded: Encoded,
        stop: StopRequest,
    ) -> None:
        self.model, self.tokenizer, self.data, self.config = model, tokenizer, data, config
        self.observe, self.layout, self.encoded, self.stop = observe, layout, encoded, stop
        self.device = next(model.parameters()).device
        self.table = TokenTable(encoded, layout, self.device)
        self.rank, self.world = rank(), world_size()
        self.steps_per_epoch = steps_per_epoch(len(encoded), config.batch_size, config.accumulate, self.world)
        self.autocast, scaled = precision_of(config.precision, self.device)
        self.batch_layout = training_layout(
            layout,
            encoded,
            config.batch_size,
            compiled=config.compile,
            recorded=config.cuda_graphs,
            whole=config.strategy == "fsdp",  # which gathers the weights anew for every part
        )
        # DDP exchanges the gradients of the module it holds and copies rank 0's weights to the others
        loss = LossSum(model, layout)
        self.rehearsals = Rehearsals(loss, self.autocast) if config.compile else None
        self.spread = spread(model if config.strategy == "fsdp" else loss, config.strategy)
        self.loss = loss if config.strategy == "fsdp" else self.spread
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}  # FSDP makes new ones
        self.step_loss = torch.zeros((), device=self.device)
        self.graphs: StepGraphs | None = None
        if config.cuda_graphs:
            if self.world > 1:
                raise ValueError("cuda_graphs is for one process; train in one, or with compile")
            self.graphs = StepGraphs(model, self.table, self.contribute, self.step_loss, self.trained.values())
        self.optimizer = build_optimizer(model, config.learning_rate, config.weight_decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.best_weights: dict[str, Tensor] = {}
        self.progress = _Progress()
        self.checkpoints = Path(config.output_dir) / "checkpoints" if config.output_dir else None
        self.identity = self.find_identity() if self.checkpoints else {}
        self.log = TrainingLog({item.name: getattr(config, item.name) for item in fields(config)})
        self.since_log, self.logged_at = SinceLog(self.device), 0.0
        self.prefix: FrozenPrefix | None = None
        self.kernels_due = layout.row_length is not None and not config.compile and config.strategy != "fsdp"
        self.splits: dict[str, EncodedSplit] = {}  # what is evaluated on, encoded when first needed
        self.training_since: float | None = None  # while training time runs
        self.meetings, self.stop_agreed = Meetings(), False

    def run(self) -> TrainResult:
        config, progress, began = self.config, self.progress, time.perf_counter()
        sharded = config.strategy == "fsdp"  # into groups of one type
        if config.resume:
            self.restore()
        elif self.checkpoints and is_main():
            delete_checkpoints(self.checkpoints)
        with (
            frozen_in_half(self.model, nullcontext if sharded else self.autocast, self.use_once),
            self.log.open(progress.log_bytes, progress.step),
            Progress(config.epochs, self.steps_per_epoch, progress.step, self.log.quiet) as bar,
        ):
            while progress.epoch <= config.epochs and not self.out_of_patience():
                self.train_epoch(bar)
                if self.data.validation:
                    self.validate(bar)
                else:
                    progress.best_epoch = progress.epoch
                progress.epoch, progress.epoch_step = progress.epoch + 1, 0
                self.save()
            with torch.no_grad():
                for name, weights in self.best_weights.items():
                    self.trained[name].copy_(weights)
            test = None
            if self.data.test:
                test = self.evaluate(bar, "test")
                self.log.evaluation("test", progress.best_epoch, progress.step, test)
        counts = torch.tensor([progress.train_tokens, progress.computed_tokens], device=self.device)
        train_tokens, computed_tokens = all_sum(counts).tolist()
        history = tuple(Scores.from_json(scores) for scores in progress.history)
        return TrainResult(
            validation=history[progress.best_epoch - 1] if history else None,
            test=test,
            best_epoch=progress.best_epoch,
            epochs=progress.epoch - 1,
            steps=progress.step,
            skipped_steps=progress.skipped,
            train_tokens=train_tokens,
            computed_tokens=computed_tokens,
            train_seconds=progress.train_seconds,
            compile_seconds=progress.compile_seconds,
            duration_s=time.perf_counter() - began,
            history=history,
        )

    def train_epoch(self, bar: Progress) -> None:
        config, progress = self.config, self.progress
        self.model.train()
        if config.cache_prefix and self.prefix is None:
            self.keep_prefix()
        bar.start_epoch(progress.epoch, progress.epoch_step)
        self.training_since = self.logged_at = time.perf_counter()
        self.meetings.resume(progress.step)
        if self.kernels_due:
            first = islice(self.steps(), SHAPES_FROM)  # nearly all shapes are among them
            make_kernels(self.model, (tuple(plan.source.shape) for step in first for plan in step.micros))
            self.kernels_due = False
        for step in self.steps():
            steps = self.steps_per_epoch * config.epochs
            rate = rate_of(progress.step, steps, config.learning_rate, config.warmup_ratio)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.step_loss.zero_()
            for i, micro in enumerate(step.micros, start=1):
                with self.memory_errors_explained(micro):
                    if self.graphs:
                        self.count_compiling(micro, self.graphs.record(micro, step.targets))
                        self.graphs.replay(micro, step.targets)
                        continue
                    batch = self.table.batch(micro)
                    if self.rehearsals:
                        self.count_compiling(micro, self.rehearsals.rehearse(batch, self.trained.values()))
                    with sync_if(self.spread, last=i == len(step.micros)):  # DDP averages gradients once a step
                        self.step_loss += self.contribute(batch, step.targets)
            self.scaler.unscale_(self.optimizer)  # clip true gradients, not scaled ones
            grad_norm = whole(nn.utils.clip_grad_norm_(self.trained.values(), config.max_grad_norm))
            # of the reduced gradients, so all ranks decide alike; on the device, so nobody waits for it
            bad = ~torch.isfinite(grad_norm)
            self.optimizer.found_inf = bad.float()  # the fused optimiser leaves everything as it is where this is 1
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=not (config.compile or config.cuda_graphs))
            self.since_log.add(self.step_loss, bad, sum(micro.tokens for micro in step.micros))
            progress.train_tokens += sum(micro.tokens for micro in step.micros)
            progress.computed_tokens += sum(micro.computed_tokens for micro in step.micros)
            progress.step, progress.epoch_step = progress.step + 1, progress.epoch_step + 1
            bar.update()
            due = self.since_log.steps == config.log_every or progress.epoch_step == self.steps_per_epoch
            if due:
                self.write_log(bar, rate, grad_norm)
            elif self.world > 1 and progress.step == self.meetings.next_step:
                self.meet(torch.zeros((), device=self.device))
            if self.stop.number if self.world == 1 else self.stop_agreed:
                self.leave()
            if config.save_every and progress.step % config.save_every == 0:
                self.save()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self._count_time()
        self.training_since = None

    def contribute(self, batch: Batch, targets: int | Tensor) -> Tensor:
        """A batch's share of the loss of a step with so many words; its gradients are added to those of the step."""
        with self.autocast(), self.prefix.skipped(batch) if self.prefix else nullcontext():
            loss = self.loss(batch) / targets
        # DDP takes the mean of the ranks' gradients; the sum is meant
        self.scaler.scale(loss * self.world).backward()
        return loss.detach()

    def steps(self) -> Iterator[Step]:
        """This rank's part of the epoch's steps that are still to be done."""
        config, progress = self.config, self.progress
        return epoch_steps(
            self.encoded,
            self.batch_layout,
            config.batch_size,
            config.accumulate,
            config.seed,
            progress.epoch,
            self.rank,
            self.world,
            first_step=progress.epoch_step,
        )

    def keep_prefix(self) -> None:
        """Compute the frozen layers' output for the corpus, once; the time counts as training time."""
        began = time.perf_counter()
        self.prefix = FrozenPrefix(self.model, self.encoded, self.layout, self.autocast)
        seconds = time.perf_counter() - began
        self.progress.train_seconds += seconds
        self.log.prefix(layers=self.prefix.depth, bytes=self.prefix.nbytes, seconds=seconds)

    def use_once(self) -> None:
        self.model(**self.layout.inputs(self.table.batch(plan_batch(self.encoded, [0], self.layout))))

    def count_compiling(self, plan: Plan, seconds: float | None) -> None:
        """Count the time that compiling or recording took, where a shape was new, apart from that of training."""
        if seconds is None:
            return
        self.progress.compile_seconds += seconds
        self.training_since, self.logged_at = self.training_since + seconds, self.logged_at + seconds
        rows, width = plan.source.shape
        self.log.compiled(rows=rows, width=width, seconds=seconds)

    def meet(self, loss: Tensor) -> float:
        """Sum a loss over the ranks, and in the same exchange agree whether to stop and when to meet again."""
        asked, elapsed_s = torch.tensor([self.stop.number, self.meetings.elapsed_s()], device=self.device)
        total, stop, elapsed_s = all_sum(torch.stack([loss, asked, elapsed_s])).tolist()
        self.stop_agreed = stop > 0
        self.meetings.met(self.progress.step, elapsed_s / self.world)
        return total

    def write_log(self, bar: Progress, rate: float, grad_norm: Tensor) -> None:
        """One line for the steps since the last: a moment at which host and ranks wait for each other."""
        progress, since = self.progress, self.since_log
        loss = self.meet(since.loss)
        skipped, in_a_row = int(since.skipped), int(since.in_a_row)
        progress.skipped += skipped
        now, good = time.perf_counter(), since.steps - skipped
        self.log.step(
            bar,
            epoch=progress.epoch,
            step=progress.step,
            loss=loss / good if good else None,
            learning_rate=rate,
            grad_norm=float(grad_norm) if math.isfinite(float(grad_norm)) else None,
            skipped=progress.skipped,
            tokens_per_s=since.tokens * self.world / (now - self.logged_at),
            **(self.observe() if self.observe else {}),
        )
        self._restart_log()
        if in_a_row >= GIVE_UP_AFTER:
            kept = f"; the state before them is in {self.checkpoints}" if self.checkpoints and self.save() else ""
            raise FloatingPointError(
                f"the last {in_a_row} steps up to step {progress.step} had no finite gradient and were skipped"
                f" (learning rate {rate:.2g}, precision {self.config.precision}); try a lower learning rate or"
                f" precision='fp32'{kept}"
            )

    def validate(self, bar: Progress) -> None:
        progress = self.progress
        scores = self.evaluate(bar, "validation")
        self.log.evaluation("validation", progress.epoch, progress.step, scores)
        progress.history.append(scores.to_json())
        if progress.best_epoch == 0 or scores.f1 > progress.history[progress.best_epoch - 1]["f1"]:
            progress.best_epoch = progress.epoch
            self.best_weights = {name: p.detach().clone() for name, p in self.trained.items()}

    def evaluate(self, bar: Progress, split: str) -> Scores:
        def leave_if_asked(done: int, total: int) -> None:
            show(done, total)
            if self.world == 1:
                asked = bool(self.stop.number)
            else:
                asked = bool(all_sum(torch.tensor(float(self.stop.number), device=self.device)) > 0)
            if asked:
                self.leave()

        if split not in self.splits:
            self.splits[split] = encode_split(self.model, self.tokenizer, getattr(self.data, split), self.layout)
        with bar.evaluation(split) as show:
            return evaluate_split(self.model, self.splits[split], self.config.precision, leave_if_asked)

    def out_of_patience(self) -> bool:
        progress, patience = self.progress, self.config.patience
        return bool(patience) and progress.epoch - 1 - progress.best_epoch >= patience

    def leave(self) -> None:
        raise Preempted(self.stop.number or signal.SIGTERM, self.checkpoints, self.save())

    def save(self) -> bool:
        """Write a checkpoint; a disk that does not take it is reported, with False, and does not end the training.

        All ranks return together and alike: one that left while the main rank writes would make torchrun kill that.
        """
        if self.checkpoints is None:
            return True
        self._count_time()
        progress = self.progress
        mine = {"progress": asdict(progress), "since_log": self.since_log.to_json(), "random": random_state()}
        ranks = gather_bytes(json.dumps(mine).encode())
        tensors = {f"model/{name}": whole(p.detach()) for name, p in self.trained.items()}
        tensors |= {f"best/{name}": whole(weights) for name, weights in self.best_weights.items()}
        for name, parameter in self.trained.items():
            state = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer/{name}/{key}": whole(value) for key, value in state.items()}
        failed = torch.zeros((), device=self.device)
        if is_main():
            progress.log_bytes = self.log.length()
            state = {
                "run": self.identity,
                "progress": asdict(progress),
                "ranks": [json.loads(part) for part in ranks],
                "scaler": self.scaler.state_dict(),
            }
            try:
                save_checkpoint(self.checkpoints, progress.step, Checkpoint(tensors, state))
            except OSError as error:
                failed += 1
                step = progress.step
                self.log.problem(f"the checkpoint of step {step} could not be written ({error}); training goes on")
        return not all_sum(failed)

    def restore(self) -> None:
        """Go on from the newest whole checkpoint; nothing to do where there is none.

        Raises:
            ValueError: it belongs to another run.
        """
        assert self.checkpoints is not None, "TrainConfig refuses resume without output_dir"
        found = load_checkpoint(self.checkpoints)
        steps = [int(step) for step in gather_bytes(str(found.state["step"] if found else -1).encode())]
        if len(set(steps)) > 1:
            raise ValueError(
                f"the processes find checkpoints of different steps in {self.checkpoints}: {steps}; output_dir must be"
                " on a disk that all nodes share"
            )
        if found is None:
            return
        for name, value in self.identity.items():
            former = found.state["run"].get(name, False)  # from before there was such a setting, which then was off
            if former != value:
                raise ValueError(
                    f"the checkpoint in {self.checkpoints} was written with {name} = {former!r}, now"
                    f" it is {value!r}; resume with the former value, or train anew without resume"
                )
        ranks = found.state["ranks"]
        for item in fields(_Progress):
            setattr(self.progress, item.name, found.state["progress"][item.name])
        same_ranks = len(ranks) == self.world
        if same_ranks:
            for name in ("train_tokens", "computed_tokens"):
                setattr(self.progress, name, ranks[self.rank]["progress"][name])
        else:  # what the other ranks did is counted once; dropout draws other numbers, order and weights stay
            for name in ("train_tokens", "computed_tokens"):
                total = sum(part["progress"][name] for part in ranks)
                setattr(self.progress, name, total if self.rank == 0 else 0)
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(like(found.tensors[f"model/{name}"], parameter))
                kept = {
                    key.rsplit("/", 1)[1]: value
                    for key, value in found.tensors.items()
                    if key.startswith(f"optimizer/{name}/")
                }
                if kept:
                    self.optimizer.state[parameter] = {key: like(value, parameter) for key, value in kept.items()}
        self.best_weights = {
            name: like(found.tensors[f"best/{name}"], parameter)
            for name, parameter in self.trained.items()
            if f"best/{name}" in found.tensors
        }
        self.scaler.load_state_dict(found.state["scaler"])
        if same_ranks:
            self.since_log.from_json(ranks[self.rank]["since_log"])
            set_random_state(ranks[self.rank]["random"])

    def find_identity(self) -> dict[str, Any]:
        """What must be the same for a run to be continued; a sharded model needs every rank for it."""
        config = self.config
        kept = (
            "epochs",
            "learning_rate",
            "weight_decay",
            "warmup_ratio",
            "max_grad_norm",
            "precision",
            "seed",
            "packing",
            "cache_prefix",
            "compile",
            "cuda_graphs",
        )
        corpus = hashlib.sha256()
        for part in (self.encoded.ids, self.encoded.labels, self.encoded.offsets):
            corpus.update(part.tobytes())
        frozen = [p for p in self.model.parameters() if not p.requires_grad]
        return {
            **{name: getattr(config, name) for name in kept},
            "sentences a step (batch_size × accumulate × processes)": config.batch_size
            * config.accumulate
            * self.world,
            "training corpus (hash)": corpus.hexdigest()[:16],
            "trained parameters": {name: list(p.shape) for name, p in self.trained.items()},
            "frozen weights (sum)": sum(float(whole(p.detach().double().sum())) for p in frozen),
        }

    @contextmanager
    def memory_errors_explained(self, plan: Plan) -> Iterator[None]:
        """Say which batch did not fit and what to change; alone, save first (other ranks would wait for this one)."""
        try:
            yield
        except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator has no class of its own
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            if self.world == 1:
                self.save()
            rows, width = plan.source.shape
            where = f" on rank {self.rank}" if self.world > 1 else ""
            step = self.progress.step + 1
            if self.batch_layout.parts > 1:
                raise MemoryError(
                    f"out of memory{where} in step {step} with {rows} rows of {width} tokens; a smaller batch would not"
                    " help, for it is computed in parts; train fewer parameters, as LoRA does"
                ) from error
            raise MemoryError(
                f"out of memory{where} in step {step} with {rows} rows of {width} tokens; halve batch_size"
                f" ({self.config.batch_size}) and double accumulate ({self.config.accumulate}): the steps stay the"
                " same, and resume goes on from the newest checkpoint"
            ) from error

    def _restart_log(self) -> None:
        self.since_log, self.logged_at = SinceLog(self.device, self.since_log.in_a_row), time.perf_counter()

    def _count_time(self) -> None:
        if self.training_since is not None:
            now = time.perf_counter()
            self.progress.train_seconds += now - self.training_since
            self.training_since = now


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
