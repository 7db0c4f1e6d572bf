"""The training loop: one for full fine-tuning and LoRA, one process and many, fp32, bf16 and fp16.

It trains the parameters that require a gradient, and does not know why they do. The loss of a step is the mean
cross-entropy over all its words, however they are packed into rows, micro-batches and ranks: every micro-batch
contributes its *sum*, divided by the words of the whole step. (`loss` has the other losses.)

What surrounds a step is in `session`, what a checkpoint holds in `state`, how a batch runs in `engine` and `graphs`.
"""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from lorakit._counts import counted
from lorakit.data.decoding import decoder_for, remember_decoder
from lorakit.data.habits import learn_habits, remember_habits
from lorakit.data.ner_data import NerData
from lorakit.data.packing import Layout, Plan, Step, TokenTable, epoch_steps, plan_batch, steps_per_epoch
from lorakit.data.subwords import check_tokenizer
from lorakit.data.tokenization import Encoded
from lorakit.nn.kernels import faster_dropout, faster_products
from lorakit.nn.weights import whole
from lorakit.training.checkpoint import Checkpointer, run_lock
from lorakit.training.config import TrainConfig, TrainResult
from lorakit.training.distributed import all_sum, device, process_group, rank, world_size
from lorakit.training.engine import EagerEngine, ForwardBackward, StepEngine
from lorakit.training.evaluation import (
    EncodedSplit,
    Tokenizer,
    check_table,
    encode_split,
    encode_tagged,
    label_names,
    score_split,
)
from lorakit.training.frozen_layer_cache import FrozenLayerCache
from lorakit.training.gradients import check_gradients
from lorakit.training.graphs import CompiledEngine, CudaGraphEngine
from lorakit.training.identity import digest_of
from lorakit.training.interleaving import steps_per_turn
from lorakit.training.layout import layout_for, packed_attention, training_layout
from lorakit.training.loss import layout_of_loss, objective_for
from lorakit.training.metrics import Scores, SentenceCounts
from lorakit.training.optimizer import build_optimizer, rate_of, set_rate
from lorakit.training.precision import autocast_for, frozen_in_half
from lorakit.training.preemption import StopRequest
from lorakit.training.same_run import check_ranks, run_identity
from lorakit.training.sentences import NAME as SENTENCES
from lorakit.training.sentences import SplitSentences
from lorakit.training.session import Observe, Session
from lorakit.training.state import Counters, TrainState, random_state, seed_everything, set_random_state
from lorakit.training.warmup import make_kernels

SHAPES_FROM = 256  # steps whose batch shapes are looked at before training
SEEN_WITHOUT_VALIDATION = 8  # training sentences whose loss must be finite after an epoch


def train(
    model: nn.Module,
    tokenizer: Tokenizer,
    data: NerData,
    config: TrainConfig | None = None,
    observe: Observe | None = None,
) -> TrainResult:
    """Train a token classifier on `data.train`, keep the epoch that is best on `data.validation`, and score it.

    Under torchrun every process calls this with the same arguments. With an output_dir, SIGTERM and SIGINT save a
    checkpoint and end the process (`Preempted`, status 143 or 130); the same call with resume=True continues.

    Example:
        import dataclasses
        import lorakit
        from lorakit.training.models import load_token_classifier
        data = lorakit.read_ner("examples/conll")
        data = dataclasses.replace(data, train=data.train[:8], validation=data.validation[:4], test=())
        model, tokenizer = load_token_classifier("examples/mini", data.labels)
        lorakit.apply_lora(model, r=8)
        result = lorakit.train(model, tokenizer, data, lorakit.TrainConfig(epochs=2, batch_size=4, progress=False))
        result.steps, len(result.history)  # (4, 2)

    Args:
        model: a token classifier in fp32 whose labels are the corpus'; its parameters that require a gradient are
            trained. It is changed in place: it moves to the process's device and ends with the best epoch's weights.
        tokenizer: the model's fast tokenizer, which takes pre-split words.
        data: the corpus; without a validation split the last epoch counts as the best.
        config: the settings; None for the defaults of `TrainConfig`.
        observe: called at every log step; what it returns, such as {"power_w": 61.0}, joins the log line and the bar.

    Returns:
        Scores, counts and times of the run.

    Raises:
        ValueError: the model cannot be trained on this corpus, the checkpoint belongs to another run, or output_dir
            holds a run and neither resume nor overwrite is set.
        FloatingPointError: training diverged: no step had a finite gradient for a while, or the loss of every epoch so
            far is not finite.
        MemoryError: a batch does not fit in memory; the message names it and what to change.
        Preempted: a signal asked to stop.
    """
    config = config or TrainConfig()
    with process_group():
        layout, encoded = _set_up(model, tokenizer, data, config)
        with faster_operators(model), StopRequest(active=config.output_dir is not None) as stop:
            trainer = Trainer(model, encoded, layout, config, stop, observe, data=data)
            with run_lock(config.output_dir):
                return trainer.train(Evaluator(model, tokenizer, data, layout, config))


def _set_up(model: nn.Module, tokenizer: Tokenizer, data: NerData, config: TrainConfig) -> tuple[Layout, Encoded]:
    """Check what a run is given, seed it, and move the model to its device; how it takes batches, and the corpus."""
    check_tokenizer(tokenizer)
    _check_trainable(model, data)
    check_table(model, tokenizer, (data.train, data.validation, data.test))
    check_ranks(config, model, data)
    decode = decoder_for(config.decode, data.labels)  # refuses other labels before the first step
    seed_everything(config.seed, rank())
    remember_habits(model, learn_habits(data.train))  # for `predict` on raw texts
    remember_decoder(model, decode)
    model.to(device())
    layout = layout_for(model, config.packing, config.precision)
    return layout_of_loss(model, layout, config), encode_tagged(model, tokenizer, data.train)


@contextmanager
def faster_operators(model: nn.Module) -> Iterator[None]:
    """While active, the model takes packed rows, and its CPU operators are replaced by faster ones."""
    with faster_products(model), faster_dropout(model), packed_attention(model):
        yield


class PausableRun:
    """What `train` does, in pieces: setting up, then a number of steps at a time, then the test.

    The run's random numbers are its own, and what it changes globally (the attention function, layer classes, progress
    bars, the log) is undone at each pause. So other runs may continue in between, and the result is that of `train`.

    Args:
        model, tokenizer, data, config, observe: as for `train`.
        stop: set by a signal.
        label: the run's name in progress bars and lines.

    Attributes:
        result: of the run; None until it has finished.
        folder: of its checkpoints, None without.

    Raises:
        ValueError: the run cannot be paused, or as for `train`.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        data: NerData,
        config: TrainConfig,
        stop: StopRequest,
        observe: Observe | None = None,
        label: str = "",
    ) -> None:
        check_pausable(config)
        self.folder = Path(config.output_dir) / "checkpoints" if config.output_dir else None
        self.result: TrainResult | None = None
        self._model = model
        layout, encoded = _set_up(model, tokenizer, data, config)
        with faster_operators(model):
            self._trainer = Trainer(model, encoded, layout, config, stop, observe, label, data)
            began = time.perf_counter()
            self._lock = ExitStack()
            self._lock.enter_context(run_lock(config.output_dir))
            self._trainer.start()
        with self._trainer.session.open():
            pass  # an earlier run's log is cut off, also where a signal comes before this run's first turn
        # opening W&B takes seconds, so that run pauses after epochs only
        steps = None if "wandb" in config.log_to else steps_per_turn(self._trainer.steps_per_epoch, config.epochs)
        self._parts = self._trainer.parts(Evaluator(model, tokenizer, data, layout, config), steps)
        self._random, self._duration_s = random_state(), time.perf_counter() - began

    @property
    def step(self) -> int:
        """Optimizer steps taken so far."""
        return self._trainer.state.counters.step

    def advance(self) -> None:
        """Continue until the next pause, or to the end, after which `result` is set."""
        began, trainer = time.perf_counter(), self._trainer
        set_random_state(self._random)
        with faster_operators(self._model), trainer.session.open():
            finished = next(self._parts, True)  # it yields None at a pause
        self._random = random_state()
        self._duration_s += time.perf_counter() - began
        if finished:
            self.result = result_of(trainer.state.counters, trainer.test, self._duration_s)
            self._trainer = self._parts = None  # frees the optimizer's moments and the best epoch's copy
            self._lock.close()

    def save(self) -> bool:
        """Write a checkpoint during a pause; returns False, on all ranks, if the disk cannot take it."""
        set_random_state(self._random)
        return self._trainer.session.save()

    def close(self) -> None:
        """End an unfinished run: the model keeps its newest weights."""
        if self._parts is not None:
            self._parts.close()
        self._lock.close()


class Trainer:
    """One run of the loop.

    Args:
        model: on its device; sharded in place with strategy "fsdp".
        encoded: the training corpus.
        layout: how the model takes its batches.
        config: the settings.
        stop: set by a signal.
        observe: as for `train`.
        label: the run's name in progress bars and lines.
        data: the corpus, which a checkpoint is compared with.
    """

    def __init__(
        self,
        model: nn.Module,
        encoded: Encoded,
        layout: Layout,
        config: TrainConfig,
        stop: StopRequest,
        observe: Observe | None = None,
        label: str = "",
        data: NerData | None = None,
    ) -> None:
        self.model, self.encoded, self.layout, self.config = model, encoded, layout, config
        where, sharded = next(model.parameters()).device, config.strategy == "fsdp"
        self.batch_layout = training_layout(layout, encoded, config.batch_size, config.engine, whole=sharded)
        self.steps_per_epoch = steps_per_epoch(len(encoded), config.batch_size, config.accumulate, world_size())
        self.autocast, scaled = autocast_for(config.precision, where)
        scaler = torch.amp.GradScaler(where.type, enabled=scaled)
        self.table = TokenTable(encoded, layout, where)
        objective = objective_for(model, layout, encoded, label_names(model), config, self.autocast)
        self.shares = objective.shares(encoded)
        self.forward_backward = ForwardBackward(model, layout, self.autocast, scaler, config.strategy, objective)
        self.engine = build_engine(config.engine, self.forward_backward, self.table)
        optimizer = build_optimizer(
            model, config.learning_rate, config.weight_decay, config.module_learning_rates, config.loraplus_lr_ratio
        )
        self.state = TrainState(model, optimizer, scaler)  # after sharding, which makes new parameters
        folder = Path(config.output_dir) / "checkpoints" if config.output_dir else None
        self.checkpointer = Checkpointer(folder, run_identity(config, model, encoded, data) if folder else {})
        self.session = Session(config, self.state, self.checkpointer, stop, self.steps_per_epoch, observe, label)
        self.test: Scores | None = None
        self.kernels_due = layout.row_length is not None and config.engine != "compile" and not sharded
        self.cache_due, self.gradients_due = config.cache_prefix, True
        self.note: str | None = None  # on how the run continues

    def train(self, evaluator: "Evaluator") -> TrainResult:
        """Train epoch by epoch, then test the weights of the best epoch."""
        began = time.perf_counter()
        self.start()
        with self.session.open():
            for _ in self.parts(evaluator):
                pass
        return result_of(self.state.counters, self.test, time.perf_counter() - began)

    def start(self) -> None:
        """Continue from the newest checkpoint, or begin in a folder that no other run is in."""
        if self.config.resume:
            self.note = self.checkpointer.restore(self.state)
        else:
            self.checkpointer.begin(SENTENCES, self.config.overwrite)

    def parts(self, evaluator: "Evaluator", pause_every: int | None = None) -> Iterator[None]:
        """Train and test; yields after each epoch, and within it after every `pause_every` steps."""
        config, state = self.config, self.state
        if self.note:
            self.session.log.note(self.note)
        if cut := self.encoded.cut:
            sentences = counted(len(self.encoded.sentence_lengths), "training sentence")
            self.session.log.note(
                f"{cut:,} of {sentences} {'is' if cut == 1 else 'are'} longer than the model can read at once, and"
                " read in overlapping windows; to avoid it, split where a sentence ends"
            )
        # FSDP gathers parameters in groups of one type
        held = frozen_in_half(
            self.model, nullcontext if config.strategy == "fsdp" else self.autocast, self.forward_once
        )
        with held:
            while not state.counters.has_ended(config.epochs, config.patience):
                yield from self.train_epoch(pause_every)
                self.validate(evaluator)
                state.counters.next_epoch()
                self.session.save()
                yield
            state.restore_best()
            if evaluator.has("test"):
                self.test = evaluator.score("test", self.session)
                self.session.evaluated("test", state.counters.best_epoch, self.test)
                self.session.check_loss("test", self.test.loss)
            if config.output_dir:
                self.session.write_sentences(evaluator.splits_of_best(self.session))

    def validate(self, evaluator: "Evaluator") -> None:
        """Score the epoch, and keep its weights if it is the best so far."""
        counters = self.state.counters
        if not evaluator.has("validation"):
            counters.best_epoch = counters.epoch
            self.session.check_loss("training", evaluator.training_loss())
            return
        scores = evaluator.score("validation", self.session)
        self.session.evaluated("validation", counters.epoch, scores)
        self.state.keep_if_best(scores.to_json())
        evaluator.keep_counts(best=counters.best_epoch == counters.epoch)
        self.session.check_loss("validation", counters.history[counters.best_epoch - 1]["loss"])

    def train_epoch(self, pause_every: int | None = None) -> Iterator[None]:
        """Take the epoch's steps, or those that a resumed run has left; yields after every `pause_every` steps."""
        self.model.train()
        if self.cache_due:
            self.fill_cache()
        self.session.start_epoch()
        if self.kernels_due:
            self.warm_up_kernels()
        for step in self.steps():
            grad_norm = self.train_step(step)
            self.session.after_step(grad_norm)
            done = self.state.counters.epoch_step
            if pause_every and done % pause_every == 0 and done < self.steps_per_epoch:
                self.session.pause()
                yield
                self.session.unpause()
        self.session.end_epoch()

    def train_step(self, step: Step) -> Tensor:
        """Take one optimizer step; returns the norm of its gradients before clipping, on the device."""
        config, state, engine = self.config, self.state, self.engine
        steps = self.steps_per_epoch * config.epochs
        set_rate(state.optimizer, rate_of(state.counters.step, steps, config.learning_rate, config.warmup_ratio))
        engine.total.zero_()
        for i, micro in enumerate(step.micros, start=1):
            self.forward_backward_step(micro, step.targets, last=i == len(step.micros))
        if self.gradients_due:
            check_gradients(state.trained)
            self.gradients_due = False
        state.scaler.unscale_(state.optimizer)  # clip true gradients, not scaled ones
        grad_norm = whole(nn.utils.clip_grad_norm_(state.trained.values(), config.max_grad_norm))
        # of the reduced gradients, so all ranks decide alike; on the device, so the host does not wait
        bad = ~torch.isfinite(grad_norm)
        state.optimizer.found_inf = bad.float()  # where this is 1, the fused optimizer changes nothing
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=engine.drops_gradients)
        tokens = sum(micro.tokens for micro in step.micros)
        state.count_step(engine.total, bad, tokens, sum(micro.computed_tokens for micro in step.micros))
        return grad_norm

    def forward_backward_step(self, micro: Plan, targets: float, last: bool) -> None:
        """Add a micro-batch's share to the step's gradients and loss; ranks exchange gradients after the last."""
        with self.session.memory_errors_explained(micro, self.batch_layout.parts):
            seconds = self.engine.prepare(micro, targets)
            if seconds is not None:
                self.session.count_compiling(micro, seconds)
            self.engine.run(micro, targets, last)

    def steps(self) -> Iterator[Step]:
        """This rank's part of the epoch's remaining steps."""
        config, counters = self.config, self.state.counters
        return epoch_steps(
            self.encoded,
            self.batch_layout,
            config.batch_size,
            config.accumulate,
            config.seed,
            counters.epoch,
            rank(),
            world_size(),
            first_step=counters.epoch_step,
            shares=self.shares,
        )

    def forward_once(self) -> None:
        """Run the model on one sentence."""
        self.model(**self.layout.inputs(self.table.batch(plan_batch(self.encoded, [0], self.layout))))

    def fill_cache(self) -> None:
        """Compute the frozen layers' output for the corpus; the time counts as training time."""
        began = time.perf_counter()
        cache = FrozenLayerCache(self.model, self.encoded, self.layout, self.autocast)
        self.forward_backward.around, self.cache_due = cache.skipped, False
        seconds = time.perf_counter() - began
        self.state.counters.train_seconds += seconds
        self.session.log.cached(
            again=self.state.counters.step > 0, layers=cache.depth, bytes=cache.nbytes, seconds=seconds
        )

    def warm_up_kernels(self) -> None:
        """Build oneDNN's kernels for nearly all shapes of the run before its first step."""
        first = islice(self.steps(), SHAPES_FROM)
        with self.autocast():  # in the type in which steps multiply
            make_kernels(self.model, (tuple(plan.source.shape) for step in first for plan in step.micros))
        self.kernels_due = False


class Evaluator:
    """Scores the splits of a corpus during a run; each is encoded when it is first needed."""

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer, data: NerData, layout: Layout, config: TrainConfig
    ) -> None:
        self.model, self.tokenizer, self.data, self.layout, self.config = model, tokenizer, data, layout, config
        self.splits: dict[str, EncodedSplit] = {}
        self.counts: dict[str, SentenceCounts] = {}  # of the last evaluation of each split
        self.best_validation: SentenceCounts | None = None

    def has(self, split: str) -> bool:
        """Whether the corpus has sentences in this split."""
        return bool(getattr(self.data, split))

    def score(self, split: str, session: Session) -> Scores:
        """Score the model; the session may end the run between two batches."""
        if split not in self.splits:
            sentences = getattr(self.data, split)
            self.splits[split] = encode_split(self.model, self.tokenizer, sentences, self.layout)
        with session.bars.evaluation(split) as show:

            def between(done: int, total: int) -> None:
                show(done, total)
                session.after_batch(done, total)

            scores, self.counts[split] = score_split(self.model, self.splits[split], self.config.precision, between)
        return scores

    def training_loss(self) -> float:
        """The loss on a few training sentences: enough to see, without a validation set, that training diverged."""
        if "train" not in self.splits:
            few = self.data.train[:SEEN_WITHOUT_VALIDATION]
            self.splits["train"] = encode_split(self.model, self.tokenizer, few, self.layout)
        return score_split(self.model, self.splits["train"], self.config.precision)[0].loss

    def keep_counts(self, best: bool) -> None:
        """Keep the counts of the last validation if its epoch is the best so far."""
        if best:
            self.best_validation = self.counts["validation"]

    def splits_of_best(self, session: Session) -> dict[str, SplitSentences]:
        """The counts by sentence of the best epoch, whose weights the model has and which the test set was scored with.

        A run that was resumed after its best epoch scores the validation set again.
        """
        if self.has("validation") and self.best_validation is None:
            self.score("validation", session)
            self.best_validation = self.counts["validation"]
        counts = {"validation": self.best_validation, "test": self.counts.get("test")}
        return {
            split: SplitSentences(digest_of(getattr(self.data, split)), found)
            for split, found in counts.items()
            if found is not None
        }


def build_engine(name: str, forward_backward: ForwardBackward, table: TokenTable) -> StepEngine:
    """The engine of a `TrainConfig`.

    Raises:
        ValueError: this machine or this number of processes cannot run it.
    """
    engines = {"eager": EagerEngine, "compile": CompiledEngine, "cuda_graphs": CudaGraphEngine}
    return engines[name](forward_backward, table)


def result_of(counters: Counters, test: Scores | None, duration_s: float) -> TrainResult:
    """The result of a run; every rank calls it, because tokens are summed."""
    tokens = torch.tensor([counters.train_tokens, counters.computed_tokens], device=device())
    train_tokens, computed_tokens = all_sum(tokens).tolist()
    history = tuple(Scores.from_json(scores) for scores in counters.history)
    return TrainResult(
        validation=history[counters.best_epoch - 1] if history else None,
        test=test,
        best_epoch=counters.best_epoch,
        epochs=counters.epoch - 1,
        steps=counters.step,
        skipped_steps=counters.skipped,
        train_tokens=train_tokens,
        computed_tokens=computed_tokens,
        train_seconds=counters.train_seconds,
        compile_seconds=counters.compile_seconds,
        duration_s=duration_s,
        history=history,
    )


def check_pausable(config: TrainConfig) -> None:
    """Refuse a run that cannot make room for another one.

    Raises:
        ValueError: its engine or its strategy forbids it.
    """
    if config.engine != "eager" or config.strategy != "ddp":
        raise ValueError(
            f"runs with engine {config.engine!r} and strategy {config.strategy!r} cannot take turns: that needs engine"
            " 'eager' and strategy 'ddp'"
        )


def check_corpus(model: nn.Module, data: NerData, own_labels: bool = False) -> None:
    """Raise ValueError unless the corpus is one, has the model's labels, and sentences to train on.

    Args:
        model: a token classifier.
        data: the corpus.
        own_labels: whether it may have other labels than the model.
    """
    if not hasattr(data, "labels") or not hasattr(data, "train"):
        is_path = isinstance(data, str | os.PathLike)
        read = f"lorakit.read_ner({os.fspath(data)!r})" if is_path else "what lorakit.read_ner gives"
        raise ValueError(f"data is a {type(data).__name__}, not a corpus; give {read}")
    names = label_names(model)
    if list(data.labels) != names and not own_labels:
        raise ValueError(
            f"the model's labels are {names}, the corpus' {list(data.labels)}; load the model with"
            " num_labels=len(data.labels), id2label=dict(enumerate(data.labels))"
        )
    if not data.train:
        raise ValueError("the corpus has no training sentence")


def _check_trainable(model: nn.Module, data: NerData) -> None:
    check_corpus(model, data)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("no parameter requires a gradient: there is nothing to train")
    for name, parameter in trained.items():
        if parameter.dtype != torch.float32:
            raise ValueError(
                f"{name} is {parameter.dtype}, in which small updates vanish; load the model with dtype=torch.float32"
            )
