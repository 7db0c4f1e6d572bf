"""A search for the settings of an adapter: Optuna proposes trials and stops the worse ones, `train_queue` trains them.

A trial is one combination of learning rate, rank and targets. Every trial that has a place trains in the same step, and
is judged after 1, `factor`, `factor`², … epochs: only about the best of every `factor` continues (successive halving,
arXiv:1810.05934, Optuna's `SuccessiveHalvingPruner`), and another trial takes the place of each one that stops. Which
is tried next is proposed by Optuna's TPE sampler from what has been seen so far.

Everything that Optuna knows is in a list of events, which a checkpoint holds and which is played again on a resume.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

from lorakit.adapters.config import LoRAConfig
from lorakit.training.adapter_run import AdapterRun
from lorakit.training.config import TrainConfig
from lorakit.training.identity import as_json
from lorakit.training.many_queue import settings_of_run
from lorakit.training.scores import Scores

ALPHA_PER_RANK = LoRAConfig.lora_alpha / LoRAConfig.r
LAST_START, LAST_STEP = 0.5, 0.75  # shares of the budget: no trial starts after the one, or trains after the other
STARTUP = 10  # trials that are drawn at random before the sampler has seen enough
FINISHED, STOPPED, DIVERGED, OUT_OF_BUDGET = "finished", "stopped", "diverged", "out of budget"
LOSS_WEIGHT, MOST_LOSS = 1e-6, 1e3  # among trials of the same F1, the loss decides


@dataclass(frozen=True)
class Space:
    """What is searched: every combination of these.

    Attributes:
        learning_rates: highest rates.
        ranks: of the updates; lora_alpha is ALPHA_PER_RANK times the rank, so that a rank does not change the scale.
        targets: values of `target_modules`.
    """

    learning_rates: tuple[float, ...]
    ranks: tuple[int, ...]
    targets: tuple[str | tuple[str, ...], ...]

    def __post_init__(self) -> None:
        for name, values in vars(self).items():
            if not values:
                raise ValueError(f"{name} is empty; give at least one value")
            if twice := next((value for value in values if values.count(value) > 1), None):
                raise ValueError(f"{name} has {twice!r} twice; give each value once")
        for name in ("learning_rates", "ranks"):  # neighbours are alike, which the sampler makes use of
            object.__setattr__(self, name, tuple(sorted(getattr(self, name))))

    def __len__(self) -> int:
        return math.prod(len(values) for values in vars(self).values())

    def at(self, places: Mapping[str, int]) -> dict[str, Any]:
        """The settings at these places of the lists."""
        return {name: values[places[name]] for name, values in vars(self).items()}

    def places(self) -> Iterator[dict[str, int]]:
        """The places of all combinations."""
        for found in product(*(range(len(values)) for values in vars(self).values())):
            yield dict(zip(vars(self), found, strict=True))


@dataclass
class Trial:
    """One combination, and what became of it.

    Attributes:
        name: of its run.
        settings: learning_rates, ranks and targets, one of each.
        f1: validation F1 after each epoch.
        state: FINISHED, STOPPED, DIVERGED, OUT_OF_BUDGET, or None while it is trained.
        quality: the best by which it is judged: F1, and the loss where that is the same.
    """

    name: str
    settings: Mapping[str, Any]
    f1: list[float] = field(default_factory=list)
    state: str | None = None
    quality: float = -math.inf

    @property
    def best_f1(self) -> float | None:
        """The best F1 of its epochs; None before the first."""
        return max(self.f1, default=None)


class Budget:
    """What a search may spend.

    Args:
        limits: the most of each, such as {"seconds": 1200.0}; without any there is no limit.
        spent: what this process has spent so far, by the same names.

    Attributes:
        before: what a resumed search had spent before this process.
    """

    def __init__(self, limits: Mapping[str, float], spent: Callable[[], Mapping[str, float]]) -> None:
        self.limits, self._spent = limits, spent
        self.before: Mapping[str, float] = {}

    def spent(self) -> dict[str, float]:
        """What has been spent of each, that before a resume included."""
        now = self._spent() if self.limits else {}
        return {name: self.before.get(name, 0.0) + now[name] for name in self.limits}

    def share(self) -> float:
        """The largest share of a limit that has been spent."""
        return max((found / self.limits[name] for name, found in self.spent().items()), default=0.0)


class Search:
    """A queue of runs for `train_queue` that searches.

    Args:
        space: what to search.
        trials: the most combinations to try.
        config: of every run; its `epochs` are those of a trial that is never stopped.
        folder: trials are kept in folders of this one.
        budget: what may be spent.
        factor: of the trials that are judged, one in this many continues; at least 2.

    Raises:
        ImportError: Optuna is not installed.
        ValueError: `trials` or `factor` is out of range.
    """

    def __init__(
        self,
        space: Space,
        trials: int,
        config: TrainConfig,
        folder: Path,
        budget: Budget | None = None,
        factor: int = 3,
    ) -> None:
        for name, value, least in (("trials", trials, 1), ("factor", factor, 2)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least {least}")
        self.space, self.config, self.folder = space, config, folder
        self.most = min(trials, len(space))
        self.budget, self.factor = budget or Budget({}, dict), factor
        self._optuna = load_optuna()
        self._begin()

    def _begin(self) -> None:
        optuna = self._optuna
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=self.factor)
        with quiet(optuna):
            self.study = optuna.create_study(direction="maximize", pruner=pruner)
        self.distributions = {
            # targets are no scale on which neighbours are alike
            name: optuna.distributions.CategoricalDistribution(tuple(range(len(values))))
            if name == "targets"
            else optuna.distributions.IntDistribution(0, len(values) - 1)
            for name, values in vars(self.space).items()
        }
        self.trials: dict[str, Trial] = {}
        self.events: list[list[Any]] = []
        self._asked: dict[str, Any] = {}  # by run, Optuna's trial
        self._out_of_budget: set[str] = set()

    def largest(self) -> Sequence[AdapterRun]:
        """A run of the highest rank for each of the targets."""
        highest = max(self.space.ranks)
        first = min(self.space.learning_rates)
        return [
            self._run(f"largest {i}", {"learning_rates": first, "ranks": highest, "targets": targets})
            for i, targets in enumerate(self.space.targets)
        ]

    def next(self) -> AdapterRun | None:
        """The next combination; None if all or enough were tried, or half of the budget is spent."""
        if len(self.trials) == self.most or (self.trials and self.budget.share() >= LAST_START):
            return None
        asked = self._ask("TPESampler", n_startup_trials=STARTUP, constant_liar=True)
        tried = [trial.settings for trial in self.trials.values()]
        if self.space.at(asked.params) in tried:  # it may propose the same again: then any other one
            self.study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
            asked = self._ask("BruteForceSampler")
        return self._add(asked)

    def run(self, name: str) -> AdapterRun:
        """The run of a trial."""
        return self._run(name, self.trials[name].settings)

    def folders(self) -> dict[str, Path]:
        """Those of all trials that there can be."""
        names = (self._name(number) for number in range(self.most))
        return {name: self.folder / name / "checkpoints" for name in names}

    def after_epoch(self, run: AdapterRun, epoch: int, scores: Scores | None) -> bool:
        """Whether a trial is stopped, because others are better after as many epochs, or because of the budget."""
        assert scores is not None, "a search needs a validation split"
        if not math.isfinite(scores.loss):
            return False  # it has diverged, and ends for that
        out_of_budget = epoch < self.config.epochs and self.budget.share() >= LAST_STEP
        return self._report(run.name, scores.f1, scores.loss, out_of_budget)

    def ended(self, run: AdapterRun, diverged: bool) -> None:
        """A trial has ended."""
        trial, states = self.trials[run.name], self._optuna.trial.TrialState
        if diverged:
            trial.state = DIVERGED
        elif trial.name in self._out_of_budget:
            trial.state = OUT_OF_BUDGET
        else:
            # patience may end a trial before its epochs are over
            trial.state = STOPPED if trial.state == STOPPED else FINISHED
        asked = self._asked[run.name]
        if trial.state == FINISHED:
            self.study.tell(asked, trial.quality)
        else:
            self.study.tell(asked, state=states.FAIL if diverged else states.PRUNED)
        self.events.append(["ended", run.name, diverged])

    def settings(self) -> dict[str, Any]:
        """What is searched and how each run is trained."""
        run = self._run("a trial", {name: values[0] for name, values in vars(self.space).items()})
        varied = ("a trial: learning_rate", "a trial: LoRA's r", "a trial: LoRA's lora_alpha")
        fixed = {name: value for name, value in settings_of_run(run).items() if name not in varied}
        fixed.pop("a trial: LoRA's target_modules")
        return {**fixed, **as_json(vars(self.space)), "trials": self.most, "factor": self.factor}

    def state_dict(self) -> dict[str, Any]:
        """The events so far, and what has been spent."""
        return {"events": list(self.events), "spent": self.budget.spent()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Play the events of a stopped search again."""
        self._begin()
        self.budget.before = state["spent"]
        for kind, name, *rest in state["events"]:
            if kind == "asked":
                self.study.enqueue_trial(rest[0])
                self._add(self._ask("RandomSampler"))
            elif kind == "scored":
                self._report(name, *rest)
            else:
                self.ended(self.run(name), *rest)

    def best(self, count: int) -> list[Trial]:
        """The best trials, of those that were trained to the end; if there is none, of all that have a score."""
        scored = [trial for trial in self.trials.values() if trial.f1 and trial.state != DIVERGED]
        finished = [trial for trial in scored if trial.state == FINISHED]
        return sorted(finished or scored, key=lambda trial: -trial.quality)[:count]

    def _ask(self, sampler: str, **options: Any) -> Any:
        """A trial of Optuna; its sampler starts from a seed, so that it proposes the same after a resume."""
        with quiet(self._optuna):
            seed = self.config.seed + len(self.trials)
            self.study.sampler = getattr(self._optuna.samplers, sampler)(seed=seed, **options)
            asked = self.study.ask(self.distributions)
            # told of the last combination, the one that draws each once would stop a loop that is not running
            self.study.sampler = self._optuna.samplers.RandomSampler(seed=seed)
            return asked

    def _add(self, asked: Any) -> AdapterRun:
        name = self._name(len(self.trials))
        self.trials[name], self._asked[name] = Trial(name, self.space.at(asked.params)), asked
        self.events.append(["asked", name, dict(asked.params)])
        return self.run(name)

    def _report(self, name: str, f1: float, loss: float, out_of_budget: bool) -> bool:
        trial, asked = self.trials[name], self._asked[name]
        trial.f1.append(f1)
        quality = f1 - LOSS_WEIGHT * min(loss, MOST_LOSS)
        trial.quality = max(trial.quality, quality)
        asked.report(quality, len(trial.f1))
        stopped = asked.should_prune() and len(trial.f1) < self.config.epochs
        if stopped:
            trial.state = STOPPED
        elif out_of_budget:
            self._out_of_budget.add(name)
        self.events.append(["scored", name, f1, loss, out_of_budget])
        return stopped or out_of_budget

    def _run(self, name: str, settings: Mapping[str, Any]) -> AdapterRun:
        return run_of(name, settings, replace(self.config, output_dir=self.folder / name))

    @staticmethod
    def _name(number: int) -> str:
        return f"trial-{number:03d}"


def run_of(name: str, settings: Mapping[str, Any], config: TrainConfig) -> AdapterRun:
    """The run of some settings.

    Args:
        name: of the run.
        settings: learning_rates, ranks and targets, one of each.
        config: the rest, with the seed that the adapter's start has, too.
    """
    targets, rank = settings["targets"], settings["ranks"]
    lora = {
        "r": rank,
        "lora_alpha": ALPHA_PER_RANK * rank,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "seed": config.seed,
    }
    return AdapterRun(name, lora, replace(config, learning_rate=settings["learning_rates"]))


def load_optuna() -> ModuleType:
    """The package.

    Raises:
        ImportError: it is not installed.
    """
    if find_spec("optuna") is None:
        raise ImportError("a search needs Optuna, which is not installed: pip install 'lorakit[tune]'")
    import optuna

    return optuna


@contextmanager
def quiet(optuna: ModuleType) -> Iterator[None]:
    """While active, Optuna neither logs what it does nor warns that a sampler is experimental."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def operations_of(tokens: int, frozen: int, trained: int) -> float:
    """Estimated operations of a run trained alone: 4 per token and frozen weight, 6 per trained one.

    That is a forward and, of frozen weights, a backward to the input alone. Attention and embeddings are left out.

    Args:
        tokens: real ones, over all epochs.
        frozen: weights of the base that multiply, without its embeddings.
        trained: weights that are trained.
    """
    return float(tokens) * (4 * frozen + 6 * trained)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The places of the points of which no other one costs at most as much and scores at least as well.

    Args:
        points: cost and F1 of each.

    Returns:
        Their places by rising cost; of equal points the first.
    """
    found: list[int] = []
    for place in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not found or points[place][1] > points[found[-1]][1]:
            found.append(place)
    return found
