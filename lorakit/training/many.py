"""Train many adapters over one frozen base in one step.

Runs that differ in rate, rank, layers or seed share the base, so one forward and backward serves them all: every
row of a batch is one run's (`many_batches`), every adapted layer has its updates stacked (`lorakit.nn.stacked`), and
what is trained is one matrix with a row for each run (`stacked_parameters`). Each run has its own order, rates,
clipping and stop, and is what it would be alone, up to rounding. A run that ends makes room for the next, which a
queue gives (`many_queue`). All are saved at the same moments, and continue from one (`many_checkpoints`).

Under torchrun every rank has all runs and its part of each one's step, as in `train`; it takes the same decisions as
the others, and they exchange one matrix per step: the gradients, and the losses.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from lorakit.adapters.adapter import STATE, Adapter
from lorakit.adapters.pretrained import SAVE, save_adapted
from lorakit.adapters.state import add_adapter, restore_base
from lorakit.adapters.storage import save_adapter
from lorakit.data.decoding import decoder_for, remember_decoder
from lorakit.data.habits import learn_habits, remember_habits
from lorakit.data.ner_data import NerData
from lorakit.data.packing import Batch, Step, plan_batch, without_waiting
from lorakit.data.subwords import check_tokenizer
from lorakit.training.adapter_run import AdapterRun
from lorakit.training.checkpoint import Checkpointer
from lorakit.training.config import TrainConfig, TrainResult
from lorakit.training.distributed import all_sum, device, main_writes, process_group, rank, world_size
from lorakit.training.dry_run import dry_run
from lorakit.training.evaluation import (
    EncodedSplit,
    Tokenizer,
    check_table,
    encode_split,
    encode_tagged,
    label_names,
    score_split,
)
from lorakit.training.identity import check_same_run
from lorakit.training.layout import (
    COMPILED_UNIT,
    check_layout,
    is_rounding,
    layout_for,
    packed_attention,
    relative_error,
)
from lorakit.training.loop import SEEN_WITHOUT_VALIDATION, check_corpus, faster_operators, result_of
from lorakit.training.loss import objective_for
from lorakit.training.many_batches import join_corpora, layout_of_many, losses_by_run, micros
from lorakit.training.many_checkpoints import FIRST, newest_moment, together_at
from lorakit.training.many_checks import check_ranks_of_runs, check_ranks_of_start, check_runs, new_adapters
from lorakit.training.many_forward import CompiledRows, EagerRows, RowLosses
from lorakit.training.many_queue import RunList, RunQueue
from lorakit.training.many_run import Corpus, Member, StepOutcome
from lorakit.training.metrics import SentenceCounts
from lorakit.training.optimizer import build_optimizer
from lorakit.training.precision import autocast_for, frozen_in_half
from lorakit.training.preemption import Preempted, StopAgreement, StopRequest
from lorakit.training.same_run import frozen_hash, run_identity
from lorakit.training.scores import Scores
from lorakit.training.sentences import NAME as SENTENCES
from lorakit.training.stacked_parameters import StackedParameters
from lorakit.training.state import seed_everything, set_random_state


def train_many(
    model: nn.Module, tokenizer: Tokenizer, data: NerData, runs: Sequence[AdapterRun], at_once: int = 16
) -> dict[str, TrainResult]:
    """Train several adapters of one base at once; each is, up to rounding, what `apply_lora` and `train` give alone.

    The frozen base is computed once for all of them. A run that ends, by its epochs or its patience, makes room for the
    next one; one that diverges ends alone, with a warning. Without dropout (in the base, or `lora_dropout`), losses and
    gradients are those of each run alone to about 1e-5; with dropout, other values are dropped than alone.

    With output_dirs, SIGTERM and SIGINT save a checkpoint of every run and end the process (`Preempted`, status 143 or
    130); the same call with resume=True in all runs continues, on a CPU bit for bit. Under torchrun every process calls
    this with the same arguments, and each run is what `train` gives on as many processes.

    Example:
        import dataclasses
        import lorakit
        from lorakit.training.models import load_token_classifier
        data = lorakit.read_ner("examples/conll")
        data = dataclasses.replace(data, train=data.train[:8], validation=data.validation[:4], test=())
        model, tokenizer = load_token_classifier("examples/mini", data.labels)
        config = lorakit.TrainConfig(epochs=1, batch_size=4, progress=False)
        runs = [lorakit.AdapterRun(f"r{r}", {"r": r}, config) for r in (2, 8)]
        results = lorakit.train_many(model, tokenizer, data, runs)
        print({name: result.steps for name, result in results.items()})  # {'r2': 2, 'r8': 2}
        print(lorakit.adapter_names(model))  # ('r8', 'r2')

    Args:
        model: a token classifier without LoRA whose labels are the corpus'. It is changed in place: it moves to the
            process's device and ends with all adapters, each with the weights of its best epoch; the last is active.
        tokenizer: the model's fast tokenizer.
        data: the corpus of all runs that have none of their own.
        runs: the adapters; their order is that in which they start. With a run's `output_dir` its metrics.jsonl, its
            checkpoints, sentences.json and its adapter are written there; all have one, or none. All are saved after
            each epoch of any of them, and where one's `save_every` asks for it.
        at_once: runs that share a step, at least 1; the others wait.

    Returns:
        By run the result of `train`; `train_seconds` is its share by tokens of the time of the steps.

    Raises:
        ValueError: two runs have one name or folder, a setting cannot be batched, checkpoints belong to other runs, or
            the processes were given different runs; the message names the run and the setting. The model is then
            unchanged.
        Preempted: a signal asked to stop.
    """
    check_runs(runs, at_once)
    results = train_queue(model, tokenizer, data, RunList(runs), at_once)
    return {run.name: results[run.name] for run in runs}


def train_queue(
    model: nn.Module, tokenizer: Tokenizer, data: NerData, queue: RunQueue, at_once: int = 16
) -> dict[str, TrainResult]:
    """Train the runs that a queue gives, as `train_many` trains those of a list.

    Args:
        model, tokenizer, data, at_once: as for `train_many`.
        queue: decides which run starts where there is room, and which stop early.
    """
    check_tokenizer(tokenizer)
    if hasattr(model, STATE):
        raise ValueError("train_many makes the adapters itself, and this model has LoRA; call remove_lora(model) first")
    runs = queue.largest()
    check_runs(runs, at_once)
    corpora = list({id(run.data or data): run.data or data for run in runs}.values())
    for corpus in corpora:
        check_corpus(model, corpus, own_labels=corpus is not data)
        check_table(model, tokenizer, (corpus.train, corpus.validation, corpus.test))
    adapters = new_adapters(model, runs)
    with process_group():
        check_ranks_of_runs(model, data, queue, at_once)
        seed_everything(runs[0].config.seed, rank())
        model.to(device())
        try:
            with StopRequest(active=runs[0].config.output_dir is not None) as stop:
                together = _Together(model, tokenizer, corpora, data, queue, adapters, at_once, stop)
                return together.train()
        except BaseException:
            if hasattr(model, STATE):
                restore_base(model)
                model.__dict__.pop(SAVE, None)
            raise


class _Together:
    """The runs that share steps, and what they have in common.

    Args:
        model, tokenizer, data, queue, at_once: as for `train_queue`.
        corpora: of all runs.
        adapters: of `queue.largest()`, as they start.
        stop: set by a signal.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        corpora: Sequence[NerData],
        data: NerData,
        queue: RunQueue,
        adapters: Sequence[Adapter],
        at_once: int,
        stop: StopRequest,
    ) -> None:
        runs = queue.largest()
        first = runs[0].config
        remember_habits(model, learn_habits(data.train))  # for `predict` on raw texts, as in `train`
        remember_decoder(model, decoder_for(first.decode, data.labels))
        self.model, self.tokenizer, self.corpora = model, tokenizer, corpora
        self.of_all, self.queue, self.at_once = data, queue, at_once
        self.stopping, self.taken = StopAgreement(stop, device()), 0  # steps that this process has taken
        self.encoded = [encode_tagged(model, tokenizer, corpus.train, corpus.labels) for corpus in corpora]
        self.layout = layout_for(model, first.packing, first.precision)
        if self.layout.by_length:
            raise ValueError(
                f"{type(model).__name__} takes only sentences of equal length in a batch, because"
                f" {self.layout.reason or 'padding changes its output'}; train its runs one after the other with train"
            )
        check_layout(self.layout, first.engine)
        self.compiles = first.engine == "compile"
        if self.compiles:
            self.layout = replace(self.layout, unit=COMPILED_UNIT, part_length=None)
        self.autocast, scaled = autocast_for(first.precision, device())
        if scaled:
            raise ValueError("precision 'fp16' scales the loss of each run; use precision='bf16' or 'fp32'")
        objective_for(model, self.layout, self.encoded[0], label_names(model), first, self.autocast)
        sizes = [(self.encoded[self.corpus_of(run)], run.config.batch_size) for run in runs]
        self.run_layout = layout_of_many(self.layout, sizes, min(at_once, queue.most))
        self.table = join_corpora(self.encoded, self.layout, device(), few_shapes=self.compiles)
        self.parameters = StackedParameters(model, adapters, steady=self.compiles)
        self.losses = RowLosses(model, self.layout, self.parameters)
        self.rows = (CompiledRows if self.compiles else EagerRows)(self.losses, self.autocast)
        self.label_counts = [len(corpus.labels) for corpus in corpora]
        self.first: str | None = None  # run that started
        self.adapters = {run.name: adapter for run, adapter in zip(runs, adapters, strict=True)}
        self.members: list[Member] = []
        self.results: dict[str, TrainResult] = {}
        self.splits: dict[tuple[int, str], EncodedSplit] = {}
        self.resumes, self.is_saved = first.resume, first.output_dir is not None
        self.number, self.ended = FIRST - 1, {}  # of the last moment that was saved, and that of each run's end
        self.settings = {**queue.settings(), "at_once": at_once}
        self.frozen: dict[tuple[str, ...], str] = {}

    def corpus_of(self, run: AdapterRun) -> int:
        return next(i for i, corpus in enumerate(self.corpora) if corpus is (run.data or self.of_all))

    def train(self) -> dict[str, TrainResult]:
        """Train all runs; the model then holds the best adapter of each."""
        try:
            random = self.begin()
            self.fill()
            self.prove()
            if random is not None:
                set_random_state(random)
            while self.members:
                ended = [row for row, member in enumerate(self.members) if member.is_at_the_end_of_an_epoch]
                self.stopping.resume(self.taken)
                with self.steps_follow():
                    while not ended:
                        ended = self.step()
                self.end_epochs(ended)
        finally:
            for member in self.members:
                member.close()
        return self.results

    @contextmanager
    def steps_follow(self) -> Iterator[None]:
        """While active, steps are fast; left before adapters are switched or saved, which changes what is made fast."""
        state = getattr(self.model, STATE)
        if self.compiles and state.active != self.first:  # another one's layers would be compiled again
            add_adapter(self.model, self.first, state.adapters[self.first])
        with (
            faster_operators(self.model),  # changes layers' classes
            frozen_in_half(self.model, self.autocast, self.forward_once),  # changes weights' types
            self.rows.open(),  # changes layers' forward
        ):
            yield

    def begin(self) -> dict[str, Any] | None:
        """Continue from the newest moment, whose random numbers it returns, or begin in folders without other runs."""
        if not self.is_saved:
            return None
        if not self.resumes:
            for run in self.queue.largest():
                _begin(run)
            return None
        moment = newest_moment(self.queue.folders(), self.settings)
        if moment is None:
            return None
        self.number = moment.number
        self.queue.load_state_dict(moment.queue)
        for name, state in moment.ended.items():  # one at a time: together they may not fit in memory
            self.start(self.queue.run(name), state, moment.runs[name])
            self.finish(again=True)
        for name, state in moment.members.items():
            self.start(self.queue.run(name), state, moment.runs[name])
        if any(member.has_ended for member in self.members):
            self.finish()
        return next(iter(moment.members.values())).get("random")  # left out on another number of ranks

    def fill(self) -> None:
        """Let waiting runs start where there is room."""
        while len(self.members) < self.at_once and (run := self.queue.next()) is not None:
            self.start(run)

    def start(
        self, run: AdapterRun, state: Mapping[str, Any] | None = None, former: Mapping[str, Any] | None = None
    ) -> None:
        """Give a run a row.

        Args:
            run: which.
            state: of its checkpoint; None for a run that begins.
            former: what the run of the checkpoint is compared by.

        Raises:
            OtherRunError: the checkpoint is another run's, or other ranks start another run.
        """
        config, number = run.config, self.corpus_of(run)
        adapter = self.adapters.pop(run.name, None) or new_adapters(self.model, [run])[0]
        check_ranks_of_start(run, adapter)
        save_adapted(add_adapter(self.model, run.name, adapter), save_adapter)
        self.first = self.first or run.name
        corpus = Corpus(self.corpora[number], self.encoded[number], number, self.run_layout)
        identity = {}
        if self.is_saved:
            identity = run_identity(config, self.model, corpus.encoded, corpus.data, self.hash_frozen)
        if former is not None:
            check_same_run(_checkpoints(config), former, identity)
        elif self.is_saved:
            _begin(run, unfinished=self.resumes)
        optimizer = build_optimizer(
            self.model,
            config.learning_rate,
            config.weight_decay,
            config.module_learning_rates,
            config.loraplus_lr_ratio,
        )
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        groups = {
            names[parameter]: (group["rate_ratio"], group["weight_decay"])
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        self.parameters.add(adapter, groups)
        if state is not None:
            self.parameters.load_row(len(self.members), state)
        self.members.append(Member(run, adapter, corpus, identity, state))

    def hash_frozen(self, model: nn.Module) -> str:
        """The digest of what is frozen, computed once for all adapters that leave the same frozen."""
        names = tuple(name for name, parameter in model.named_parameters() if not parameter.requires_grad)
        if names not in self.frozen:
            self.frozen[names] = frozen_hash(model)
        return self.frozen[names]

    def step(self) -> list[int]:
        """Take one optimizer step of every run; returns the rows of those whose epoch has ended."""
        began, members, parameters = time.perf_counter(), self.members, self.parameters
        self.compile_s = 0.0
        self.model.train()
        steps = [member.next_step() for member in members]
        losses, grad = self.gradients(steps)
        rates = self.column([member.rate for member in members])
        norms, skipped = parameters.step(grad, rates, self.column([m.config.max_grad_norm for m in members]))
        seconds = time.perf_counter() - began - self.compile_s
        tokens = [sum(p.tokens for p in step.micros) for step in steps]
        outcome = StepOutcome(losses, norms, skipped)
        ended = [
            member.after_step(step, row, outcome, seconds * tokens[row] / max(1, sum(tokens)))
            for row, (member, step) in enumerate(zip(members, steps, strict=True))
        ]
        self.taken += 1
        if self.stopping.is_due(self.taken):
            self.stopping.meet(self.taken, losses.new_zeros(()))
        if self.stopping.is_agreed():
            self.leave()
        if any(m.config.save_every and m.counters.step % m.config.save_every == 0 for m in members):
            self.save()
        return [row for row, end in enumerate(ended) if end]

    def gradients(self, steps: Sequence[Step]) -> tuple[Tensor, Tensor]:
        """The loss of each run's step, (runs,), and its gradient, (runs, width), both over all ranks.

        Args:
            steps: this rank's part of each run's.
        """
        targets = self.column([step.targets for step in steps])
        losses, grad = torch.zeros(len(steps), device=device()), None
        numbers = [member.corpus.number for member in self.members]
        for plans in micros(list(zip(numbers, steps, strict=True))):
            loss, more = self.forward_backward(*self.table.batch(plans), targets)
            losses, grad = losses + loss, more if grad is None else grad + more
        if world_size() == 1:
            return losses, grad
        grad = torch.zeros_like(self.parameters.values) if grad is None else grad  # other ranks have the whole steps
        both = all_sum(torch.cat([losses[:, None], grad], dim=1))  # one exchange
        return both[:, 0], both[:, 1:]

    def end_epochs(self, rows: Sequence[int]) -> None:
        """Evaluate these runs and save all; those that have ended make room for others."""
        for row in rows:
            member = self.members[row]
            if member.diverged:
                continue
            epoch, (scores, counts) = member.counters.epoch, self.score(row, "validation")
            if scores is None:
                member.check_loss("training", self.score(row, "train")[0].loss)
            member.evaluated(scores, counts, self.parameters.adapter(row))
            member.stopped = self.queue.after_epoch(member.run, epoch, scores) and not member.diverged
        self.save()
        if any(member.has_ended for member in self.members):
            self.finish()
            self.fill()

    def save(self) -> bool:
        """Write a checkpoint of every run; returns False if the disk cannot take one."""
        if not self.is_saved:
            return True
        self.number += 1
        members = [member.run.name for member in self.members]
        together = together_at(self.number, members, self.ended, self.queue.state_dict(), self.settings)
        for row, member in enumerate(self.members):
            snapshot = member.snapshot(self.parameters.row_state(row), together, device())
            checkpointer = Checkpointer(_checkpoints(member.config), dict(member.identity))
            if not checkpointer.save(snapshot, member.log.problem):
                return False  # the others keep those of the last moment
            member.saved_at = self.number
        return True

    def leave(self, save: bool = True) -> NoReturn:
        """Save unless that has just been done, and end the process.

        Raises:
            Preempted: always.
        """
        folders = [os.fspath(Path(member.config.output_dir).resolve()) for member in self.members]
        raise Preempted(self.stopping.signal, os.path.commonpath(folders), self.save() if save else True)

    def forward_backward(self, batch: Batch, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Each run's share of its step's loss in this batch, and the gradient (runs, width)."""
        values = self.parameters.values.detach().requires_grad_()
        given = batch, *self.parameters.of_rows(values, rows), self.outside(rows)
        if (seconds := self.rows.prepare(*given)) is not None:
            self.compile_s += seconds
            for member in self.members:
                member.count_compiling(batch.input_ids.shape, seconds / len(self.members))
        losses = losses_by_run(self.rows(*given), rows, len(values)) / targets[:, 0]
        return losses.detach(), torch.autograd.grad(losses.sum(), values)[0]

    def outside(self, rows: Tensor) -> Tensor | None:
        """Whether a label is none of a row's run, (rows, labels): the output layer has room for the most labels."""
        if min(self.label_counts) == max(self.label_counts):
            return None
        counts = self.column([len(member.corpus.data.labels) for member in self.members])
        return (torch.arange(max(self.label_counts), device=rows.device) >= counts).index_select(0, rows)

    def finish(self, again: bool = False) -> None:
        """Test and save the runs that have ended.

        Args:
            again: the queue knows that they have, because the runs were resumed.
        """
        for row, member in enumerate(self.members):
            if not member.has_ended:
                continue
            name, config, counters = member.run.name, member.config, member.counters
            best = member.adapter if counters.best_epoch else self.parameters.adapter(row)
            add_adapter(self.model, name, best)
            if not member.stopped and not member.diverged:
                self.test(member)
            if config.output_dir and not member.stopped and not member.diverged:
                scores = {"validation": counters.history[counters.best_epoch - 1]["f1"]} if counters.history else {}
                folder = Path(config.output_dir) / "adapter"
                main_writes(lambda folder=folder, scores=scores: save_adapter(self.model, folder, metrics=scores))
                member.write_sentences()
            member.close()
            result = result_of(counters, member.test, time.perf_counter() - member.began)
            self.results[name] = replace(result, diverged=member.diverged)
            self.ended[name] = member.saved_at
            if not again:
                self.queue.ended(member.run, member.diverged)
        kept = [row for row, member in enumerate(self.members) if not member.has_ended]
        self.members = [self.members[row] for row in kept]
        self.parameters.keep(kept)

    def test(self, member: Member) -> None:
        """Score a run's best adapter, which the model has, on test, and on validation if a resume lost that."""

        def between(done: int, total: int) -> None:
            if self.stopping.ask_all():
                self.leave(save=False)  # all were saved when the run ended

        for name in ("validation", "test"):
            split = self.split(name, member.corpus.number)
            if split is None or name in member.counts:
                continue
            scores, member.counts[name] = score_split(self.model, split, member.config.precision, between)
            if name == "test":
                member.test = scores
                member.log.evaluation("test", member.counters.best_epoch, member.counters.step, scores)
                member.check_loss("test", scores.loss)

    def score(self, row: int, name: str) -> tuple[Scores | None, SentenceCounts | None]:
        """Score a run's present adapter; None where its corpus has no such split."""

        def between(done: int, total: int) -> None:
            if self.stopping.ask_all():
                self.leave()

        member = self.members[row]
        add_adapter(self.model, member.run.name, self.parameters.adapter(row))
        split = self.split(name, member.corpus.number)
        if split is None:
            return None, None
        return score_split(self.model, split, member.config.precision, between)

    def split(self, name: str, corpus: int) -> EncodedSplit | None:
        """A split of a corpus, encoded for the active adapter's labels when it is first needed; None without one."""
        sentences = getattr(self.corpora[corpus], name)
        if name == "train":  # enough to see, without a validation set, that training diverged
            sentences = sentences[:SEEN_WITHOUT_VALIDATION]
        if sentences and (corpus, name) not in self.splits:
            self.splits[corpus, name] = encode_split(self.model, self.tokenizer, sentences, self.layout)
        return self.splits.get((corpus, name))

    def prove(self) -> None:
        """Compare the runs' outputs in one batch with each one's alone, for adapters that are no longer zero.

        Raises:
            ValueError: they differ.
        """
        parameters, members = self.parameters, self.members
        if not members:
            return
        own, generator = parameters.values, torch.Generator().manual_seed(0)
        noise = torch.randn(own.shape, generator=generator).to(own)
        moved = own + 0.02 * noise * (parameters.ratio > 0)
        plans = [(m.corpus.number, plan_batch(m.corpus.encoded, [0], self.layout)) for m in members]
        batch, rows = self.table.batch(plans)
        coarsest = max(torch.finfo(p.dtype).eps for p in self.model.parameters() if p.is_floating_point())
        together = self.without_dropout(lambda: self.losses.logits(batch, *parameters.of_rows(moved, rows)))
        parameters.values = moved
        last = {member.corpus.number: row for row, member in enumerate(members)}  # each corpus may have its own head
        for row in sorted({0, *last.values()}):
            add_adapter(self.model, members[row].run.name, parameters.adapter(row))
            part = Batch(*(getattr(batch, name)[row : row + 1] for name in vars(batch)))
            alone = self.without_dropout(lambda part=part: self.model(**self.layout.inputs(part))[0])[0]
            error = relative_error(together[row, :, : alone.shape[-1]], alone)
            if not is_rounding(error, coarsest):
                raise ValueError(
                    f"{type(self.model).__name__} gives other outputs for several adapters in a batch than for each"
                    f" alone (by {error:.1g} of their size); train its runs one after the other with train"
                )
        parameters.values = own

    @torch.no_grad()
    def without_dropout(self, compute: Callable[[], Tensor]) -> Tensor:
        """What `compute` gives in evaluation mode and without autocast, where rounding is small; the model stays."""
        with dry_run(self.model), packed_attention(self.model):
            self.model.eval()
            return compute()

    def forward_once(self) -> None:
        """Run the model on one sentence."""
        plan = plan_batch(self.table.encoded, [0], self.layout)
        self.model(**self.layout.inputs(self.table.table.batch(plan)))

    def column(self, values: Sequence[float]) -> Tensor:
        """One value for each run: (runs, 1), float32 on the device."""
        return without_waiting(torch.tensor(values, dtype=torch.float32), device())[:, None]


def _checkpoints(config: TrainConfig) -> Path:
    """The folder of a run's checkpoints."""
    return Path(config.output_dir) / "checkpoints"


def _begin(run: AdapterRun, unfinished: bool = False) -> None:
    """Begin in a folder that no other run is in.

    Args:
        run: which.
        unfinished: delete what a stopped process left of the run, from after the moment from which all continue.
    """
    Checkpointer(_checkpoints(run.config), {}).begin(SENTENCES, run.config.overwrite or unfinished)
