"""Train many adapters over one frozen base in one step.

Runs that differ in rate, rank, layers or seed share the base, so one forward and backward serves them all: every
row of a batch is one run's (`many_batches`), every adapted layer has its updates stacked (`lorakit.nn.stacked`), and
what is trained is one matrix with a row for each run (`stacked_parameters`). Each run has its own order, rates,
clipping and stop, and is what it would be alone, up to rounding. A run that ends makes room for the next.
"""

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.adapters.adapter import STATE, Adapter
from lorakit.adapters.pretrained import SAVE, save_adapted
from lorakit.adapters.state import add_adapter, restore_base
from lorakit.adapters.storage import save_adapter
from lorakit.data.decoding import decoder_for, remember_decoder
from lorakit.data.habits import learn_habits, remember_habits
from lorakit.data.ner_data import NerData
from lorakit.data.packing import Batch, plan_batch, without_waiting
from lorakit.data.subwords import check_tokenizer
from lorakit.data.tokenization import IGNORE
from lorakit.nn.stacked import stacked
from lorakit.training.checkpoint import Checkpointer
from lorakit.training.config import TrainResult
from lorakit.training.distributed import device, process_group, world_size
from lorakit.training.dry_run import dry_run
from lorakit.training.evaluation import (
    EncodedSplit,
    Tokenizer,
    check_table,
    encode_split,
    encode_tagged,
    evaluate_split,
    label_names,
)
from lorakit.training.layout import is_rounding, layout_for, packed_attention, relative_error
from lorakit.training.loop import check_corpus, faster_operators, result_of
from lorakit.training.loss import objective_for
from lorakit.training.many_batches import join_corpora, layout_of_many, losses_by_run, micros
from lorakit.training.many_checks import check_runs, new_adapters
from lorakit.training.many_run import AdapterRun, Member, StepOutcome
from lorakit.training.optimizer import build_optimizer
from lorakit.training.precision import autocast_for, frozen_in_half
from lorakit.training.scores import Scores
from lorakit.training.sentences import NAME as SENTENCES
from lorakit.training.stacked_parameters import StackedParameters
from lorakit.training.state import seed_everything


def train_many(
    model: nn.Module, tokenizer: Tokenizer, data: NerData, runs: Sequence[AdapterRun], at_once: int = 16
) -> dict[str, TrainResult]:
    """Train several adapters of one base at once; each is, up to rounding, what `apply_lora` and `train` give alone.

    The frozen base is computed once for all of them. A run that ends, by its epochs or its patience, makes room for the
    next one. Without dropout (in the base, or `lora_dropout`), losses and gradients are those of each run alone to
    about 1e-5; with dropout, other values are dropped than alone. Runs cannot be resumed.

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
        runs: the adapters; their order is that in which they start. With a run's `output_dir` its metrics.jsonl and its
            adapter are written there.
        at_once: runs that share a step, at least 1; the others wait.

    Returns:
        By run the result of `train`; `train_seconds` is its share by tokens of the time of the steps.

    Raises:
        ValueError: two runs have one name or folder, or a setting cannot be batched; the message names the run and the
            setting. The model is then unchanged.
    """
    check_tokenizer(tokenizer)
    if hasattr(model, STATE):
        raise ValueError("train_many makes the adapters itself, and this model has LoRA; call remove_lora(model) first")
    check_runs(runs, at_once)
    corpora = list({id(run.data or data): run.data or data for run in runs}.values())
    for corpus in corpora:
        check_corpus(model, corpus)
        check_table(model, tokenizer, (corpus.train, corpus.validation, corpus.test))
    adapters = new_adapters(model, runs)
    with process_group():
        if world_size() > 1:
            raise ValueError("train_many runs in one process, and this is one of several; start it without torchrun")
        for run in runs:
            if run.config.output_dir:
                folder = Path(run.config.output_dir) / "checkpoints"
                Checkpointer(folder, {}).begin(SENTENCES, run.config.overwrite)
        seed_everything(runs[0].config.seed, 0)
        model.to(device())
        try:
            return _Together(model, tokenizer, corpora, data, runs, adapters, at_once).train()
        except BaseException:
            if hasattr(model, STATE):
                restore_base(model)
                model.__dict__.pop(SAVE, None)
            raise


class _Together:
    """The runs that share steps, those that wait, and what they have in common."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        corpora: Sequence[NerData],
        data: NerData,
        runs: Sequence[AdapterRun],
        adapters: Sequence[Adapter],
        at_once: int,
    ) -> None:
        first = runs[0].config
        remember_habits(model, learn_habits(data.train))  # for `predict` on raw texts, as in `train`
        remember_decoder(model, decoder_for(first.decode, data.labels))
        self.model, self.tokenizer, self.corpora = model, tokenizer, corpora
        self.of_all, self.at_once = data, at_once
        encoded = [encode_tagged(model, tokenizer, corpus.train) for corpus in corpora]
        self.layout = layout_for(model, first.packing, first.precision)
        if self.layout.by_length:
            raise ValueError(
                f"{type(model).__name__} takes only sentences of equal length in a batch, because"
                f" {self.layout.reason or 'padding changes its output'}; train its runs one after the other with train"
            )
        self.autocast, scaled = autocast_for(first.precision, device())
        if scaled:
            raise ValueError("precision 'fp16' scales the loss of each run; use precision='bf16' or 'fp32'")
        objective_for(model, self.layout, encoded[0], label_names(model), first, self.autocast)
        sizes = [(encoded[self.corpus_of(run)], run.config.batch_size) for run in runs]
        run_layout = layout_of_many(self.layout, sizes, min(at_once, len(runs)))
        self.table = join_corpora(encoded, self.layout, device())
        self.waiting = deque(
            (run, adapter, encoded[self.corpus_of(run)], run_layout)
            for run, adapter in zip(runs, adapters, strict=True)
        )
        for run, adapter in zip(runs, adapters, strict=True):
            save_adapted(add_adapter(model, run.name, adapter), save_adapter)
        self.parameters = StackedParameters(model, adapters)
        self.members: list[Member] = []
        self.results: dict[str, TrainResult] = {}
        self.splits: dict[tuple[int, str], EncodedSplit] = {}
        self.order = [run.name for run in runs]

    def corpus_of(self, run: AdapterRun) -> int:
        return next(i for i, corpus in enumerate(self.corpora) if corpus is (run.data or self.of_all))

    def train(self) -> dict[str, TrainResult]:
        """Train all runs; the model then holds the best adapter of each."""
        try:
            self.fill()
            self.prove()
            while self.members:
                ended: list[int] = []
                # left before adapters are switched or saved: they change layers' classes, and weights' types
                with faster_operators(self.model), frozen_in_half(self.model, self.autocast, self.forward_once):
                    while not ended:
                        ended = self.step()
                self.end_epochs(ended)
        finally:
            for member in self.members:
                member.close()
        return {name: self.results[name] for name in self.order}

    def fill(self) -> None:
        """Let waiting runs start where there is room."""
        while self.waiting and len(self.members) < self.at_once:
            run, adapter, encoded, layout = self.waiting.popleft()
            config = run.config
            add_adapter(self.model, run.name, adapter)
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
            self.members.append(Member(run, adapter, encoded, self.corpus_of(run), layout))

    def step(self) -> list[int]:
        """Take one optimizer step of every run; returns the rows of those whose epoch has ended."""
        began, members, parameters = time.perf_counter(), self.members, self.parameters
        self.model.train()
        steps = [member.next_step() for member in members]
        targets = self.column([step.targets for step in steps])
        losses, grad = torch.zeros(len(members), device=device()), None
        for plans in micros([(member.corpus, step) for member, step in zip(members, steps, strict=True)]):
            loss, more = self.forward_backward(*self.table.batch(plans), targets)
            losses, grad = losses + loss, more if grad is None else grad + more
        rates = self.column([member.rate for member in members])
        norms, skipped = parameters.step(grad, rates, self.column([m.config.max_grad_norm for m in members]))
        seconds, tokens = time.perf_counter() - began, [sum(p.tokens for p in step.micros) for step in steps]
        outcome = StepOutcome(losses, norms, skipped)
        ended = [
            member.after_step(step, row, outcome, seconds * tokens[row] / sum(tokens))
            for row, (member, step) in enumerate(zip(members, steps, strict=True))
        ]
        return [row for row, end in enumerate(ended) if end]

    def end_epochs(self, rows: Sequence[int]) -> None:
        """Evaluate these runs; those that have ended make room for others."""
        for row in rows:
            self.members[row].evaluated(self.score(row, "validation"), self.parameters.adapter(row))
        if any(member.has_ended for member in self.members):
            self.finish()

    def forward_backward(self, batch: Batch, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Each run's share of its step's loss in this batch, and the gradient (runs, width)."""
        values = self.parameters.values.detach().requires_grad_()
        with self.autocast():
            logits = self.logits(batch, rows, values)
        words = F.cross_entropy(
            logits.flatten(0, 1).float(), batch.labels.flatten(), ignore_index=IGNORE, reduction="none"
        )
        losses = losses_by_run(words, rows, len(values)) / targets[:, 0]
        return losses.detach(), torch.autograd.grad(losses.sum(), values)[0]

    def logits(self, batch: Batch, rows: Tensor, values: Tensor) -> Tensor:
        """The model's output, with each run's adapter for its rows."""
        with stacked(self.parameters.modules, self.parameters.stacks(values, rows), len(rows)):
            return self.model(**self.layout.inputs(batch))[0]

    def finish(self) -> None:
        """Test and save the runs that have ended, and let waiting ones start in their place."""
        for row, member in enumerate(self.members):
            if not member.has_ended:
                continue
            name, config, counters = member.run.name, member.config, member.counters
            best = member.adapter if counters.best_epoch else self.parameters.adapter(row)
            add_adapter(self.model, name, best)
            split = self.split("test", member.corpus)
            if split is not None:
                member.test = evaluate_split(self.model, split, config.precision)
                member.log.evaluation("test", counters.best_epoch, counters.step, member.test)
            if config.output_dir:
                scores = {"validation": counters.history[counters.best_epoch - 1]["f1"]} if counters.history else {}
                save_adapter(self.model, Path(config.output_dir) / "adapter", metrics=scores)
            member.close()
            self.results[name] = result_of(counters, member.test, time.perf_counter() - member.began)
        kept = [row for row, member in enumerate(self.members) if not member.has_ended]
        self.members = [self.members[row] for row in kept]
        self.parameters.keep(kept)
        self.fill()

    def score(self, row: int, name: str) -> Scores | None:
        """Score a run's present adapter; None where its corpus has no such split."""
        member = self.members[row]
        split = self.split(name, member.corpus)
        if split is None:
            return None
        add_adapter(self.model, member.run.name, self.parameters.adapter(row))
        return evaluate_split(self.model, split, member.config.precision)

    def split(self, name: str, corpus: int) -> EncodedSplit | None:
        """A split of a corpus, encoded when it is first needed; None where there is none."""
        sentences = getattr(self.corpora[corpus], name)
        if sentences and (corpus, name) not in self.splits:
            self.splits[corpus, name] = encode_split(self.model, self.tokenizer, sentences, self.layout)
        return self.splits.get((corpus, name))

    def prove(self) -> None:
        """Compare the runs' outputs in one batch with each one's alone, for adapters that are no longer zero.

        Raises:
            ValueError: they differ.
        """
        parameters, members = self.parameters, self.members
        own, generator = parameters.values, torch.Generator().manual_seed(0)
        noise = torch.randn(own.shape, generator=generator).to(own)
        moved = own + 0.02 * noise * (parameters.ratio > 0)
        plans = [(member.corpus, plan_batch(member.encoded, [0], self.layout)) for member in members]
        batch, rows = self.table.batch(plans)
        coarsest = max(torch.finfo(p.dtype).eps for p in self.model.parameters() if p.is_floating_point())
        with dry_run(self.model), torch.no_grad(), packed_attention(self.model):  # without autocast: rounding is small
            self.model.eval()
            together = self.logits(batch, rows, moved)
            parameters.values = moved
            for row in {0, len(members) - 1}:
                add_adapter(self.model, members[row].run.name, parameters.adapter(row))
                part = Batch(*(getattr(batch, name)[row : row + 1] for name in vars(batch)))
                alone = self.model(**self.layout.inputs(part))[0]
                error = relative_error(together[row], alone[0])
                if not is_rounding(error, coarsest):
                    raise ValueError(
                        f"{type(self.model).__name__} gives other outputs for several adapters in a batch than for each"
                        f" alone (by {error:.1g} of their size); train its runs one after the other with train"
                    )
        parameters.values = own

    def forward_once(self) -> None:
        """Run the model on one sentence."""
        plan = plan_batch(self.table.encoded, [0], self.layout)
        self.model(**self.layout.inputs(self.table.table.batch(plan)))

    def column(self, values: Sequence[float]) -> Tensor:
        """One value for each run: (runs, 1), float32 on the device."""
        return without_waiting(torch.tensor(values, dtype=torch.float32), device())[:, None]
