"""The search by itself: what it tries, what it stops and that a resume repeats it; the runs are simulated."""

import json
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.training import tuning
from lorakit.training.config import TrainConfig
from lorakit.training.scores import EntityScores, Scores
from lorakit.training.tuning import Budget, Search, Space, front, load_optuna, operations_of

SPACE = Space((1e-3, 3e-4, 3e-3, 1e-2), (32, 2, 8), (("query", "value"), "all-linear"))
EPOCHS = 9


def scores(f1, loss=0.5):
    found = EntityScores(f1, f1, f1, 9)
    return Scores(loss, f1, f1, f1, f1, found, {})


def f1_of(run, epoch):
    """Best at rate 3e-3, rank 8 and all-linear, at every epoch, and better with every epoch."""
    away = abs(SPACE.learning_rates.index(run.config.learning_rate) - 2) + abs(SPACE.ranks.index(run.lora["r"]) - 1) / 2
    away += run.lora["target_modules"] != "all-linear"
    return (0.8 - 0.1 * away) * epoch / (epoch + 1)


def make(trials=24, budget=None, space=SPACE, seed=0):
    config = TrainConfig(epochs=EPOCHS, seed=seed, output_dir="runs")
    return Search(space, trials, config, tuning.Path("runs"), budget)


class Simulated:
    """What `train_queue` does, without training: a round of epochs, then a checkpoint, then ends and starts."""

    def __init__(self, search, at_once=6, diverging=()):
        self.search, self.at_once, self.diverging = search, at_once, diverging
        self.members, self.done = [], {}

    def fill(self):
        while len(self.members) < self.at_once and (run := self.search.next()) is not None:
            self.members.append(run)

    def round(self):
        """One epoch of every run; returns the checkpoint."""
        self.fill()
        ended = []
        for run in self.members:
            epoch = self.done[run.name] = self.done.get(run.name, 0) + 1
            diverges = run.config.learning_rate in self.diverging
            if diverges:
                self.search.after_epoch(run, epoch, scores(0.0, float("nan")))
            if diverges or self.search.after_epoch(run, epoch, scores(f1_of(run, epoch))) or epoch == EPOCHS:
                ended.append((run, diverges))
        saved = json.loads(json.dumps(self.search.state_dict()))
        checkpoint = saved, [run.name for run in self.members], dict(self.done), [run.name for run, _ in ended]
        self.end(ended)
        return checkpoint

    def end(self, ended):
        for run, diverges in ended:
            self.search.ended(run, diverges)
            self.members.remove(run)
        self.fill()

    def finish(self):
        self.fill()
        while self.members:
            self.round()
        return self.search

    @classmethod
    def resumed(cls, search, checkpoint, at_once=6):
        saved, members, done, ended = checkpoint
        search.load_state_dict(saved)
        found = cls(search, at_once)
        found.members, found.done = [search.run(name) for name in members], done
        found.end([(search.run(name), False) for name in ended])
        return found


needs_optuna = pytest.mark.skipif(
    tuning.find_spec("optuna") is None, reason="Optuna is not installed (pip install 'lorakit[tune]')"
)


@needs_optuna
def test_the_best_combination_is_trained_to_the_end_in_half_of_the_epochs_and_none_is_tried_twice():
    search = Simulated(make()).finish()
    tried = [tuple(trial.settings.values()) for trial in search.trials.values()]
    assert len(set(tried)) == len(tried) == len(SPACE) == 24
    (best,) = search.best(1)
    assert dict(best.settings) == {"learning_rates": 3e-3, "ranks": 8, "targets": "all-linear"}
    assert (best.state, len(best.f1)) == ("finished", EPOCHS)
    assert sum(len(trial.f1) for trial in search.trials.values()) <= 24 * EPOCHS / 2
    assert {len(trial.f1) for trial in search.trials.values()} <= {1, 3, EPOCHS}  # judged after 1 and 3 epochs
    states = [trial.state for trial in search.trials.values()]
    assert states.count("stopped") + states.count("finished") == 24


@needs_optuna
@pytest.mark.parametrize("seed", range(2))
def test_a_few_trials_come_closer_than_as_many_at_random_would_on_average(seed):
    """Of 24 combinations 12 are tried; the mean of the best of 12 drawn ones is the bar."""
    search = Simulated(make(12, seed=seed), at_once=3).finish()
    everything = sorted(f1_of(search._run("a", SPACE.at(places)), EPOCHS) for places in SPACE.places())
    assert search.best(1)[0].best_f1 >= everything[-3]
    assert len(search.trials) == 12


@needs_optuna
@settings(max_examples=3, deadline=None, derandomize=True)
@given(st.integers(1, 8), st.integers(2, 7))
def test_a_search_that_is_resumed_after_any_epoch_ends_as_one_that_was_never_stopped(rounds, at_once):
    whole = Simulated(make(14), at_once).finish()
    stopped = Simulated(make(14), at_once)
    for _ in range(rounds):
        checkpoint = stopped.round()
    resumed = Simulated.resumed(make(14), checkpoint, at_once).finish()
    assert resumed.trials == whole.trials and resumed.events == whole.events


@needs_optuna
def test_half_of_a_budget_is_for_starting_trials_and_a_quarter_is_left_when_they_end():
    spent = {"seconds": 0.0, "wh": 0.0}
    budget = Budget({"seconds": 100.0, "wh": 8.0}, lambda: spent)
    search = make(24, budget)
    simulated = Simulated(search, 4)
    simulated.round()
    spent["wh"] = 3.9
    assert (budget.share(), search.next() is None) == (3.9 / 8, False)
    started = len(search.trials)
    spent["wh"] = 4.0
    assert search.next() is None
    simulated.members.append(search.run(list(search.trials)[-1]))  # the one that was asked for above
    spent["seconds"] = 75.0
    simulated.finish()
    states = [trial.state for trial in search.trials.values()]
    assert len(states) == started and "out of budget" in states and "finished" not in states
    assert search.best(1)[0].f1  # of those that were not trained to the end
    again = make(24, Budget({"seconds": 100.0, "wh": 8.0}, lambda: {"seconds": 5.0, "wh": 0.0}))
    again.load_state_dict(search.state_dict())
    assert again.budget.spent() == {"seconds": 80.0, "wh": 4.0}
    assert again.trials == search.trials


@needs_optuna
def test_trials_that_diverge_are_never_the_best():
    search = Simulated(make(), diverging=(3e-3, 1e-2)).finish()
    for trial in search.trials.values():
        assert (trial.state == "diverged") == (trial.settings["learning_rates"] in (3e-3, 1e-2))
    assert search.best(1)[0].settings["learning_rates"] == 1e-3


@needs_optuna
def test_where_no_trial_finds_anything_yet_the_loss_decides():
    search = make(6, space=Space((1e-4, 1e-3), (1, 2, 4), ("all-linear",)))
    runs = [search.next() for _ in range(6)]
    assert search.next() is None
    stops = [search.after_epoch(run, 1, scores(0.0, loss)) for run, loss in zip(runs, (9, 8, 7, 6, 5, 4), strict=True)]
    assert not stops[-1]
    assert search.best(1)[0].name == runs[-1].name


@needs_optuna
def test_every_run_has_room_in_the_largest_and_the_settings_that_all_share():
    search = make()
    runs = [search.next() for _ in range(search.most)]
    largest = {str(run.lora["target_modules"]): run.lora["r"] for run in search.largest()}
    for run in runs:
        assert run.lora["r"] <= largest[str(run.lora["target_modules"])]
        assert run.lora["lora_alpha"] == 2 * run.lora["r"]
        assert search.folders()[run.name] == tuning.Path("runs") / run.name / "checkpoints"
    assert search.settings() == make().settings()
    other = {**search.settings(), "learning_rates": [3e-4, 1e-3]}
    assert make(space=Space((3e-4, 1e-3), SPACE.ranks, SPACE.targets)).settings() == other | {"trials": 12}
    assert make(trials=5).settings() != search.settings()


@needs_optuna
@pytest.mark.parametrize(
    ("trials", "factor", "message"), [(0, 3, "trials is 0; it must be"), (4, 1, "factor is 1; it")]
)
def test_what_is_no_search_is_refused(trials, factor, message):
    with pytest.raises(ValueError, match=message):
        Search(SPACE, trials, TrainConfig(), tuning.Path("runs"), factor=factor)


def test_without_optuna_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(tuning, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs Optuna, which is not installed: pip install 'lorakit\[tune\]'"):
        load_optuna()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (((), (1,), ("a",)), "learning_rates is empty; give at least one value"),
        (((1.0,), (4, 4), ("a",)), "ranks has 4 twice; give each value once"),
        (((1.0,), (4,), ("a", ("b",), "a")), "targets has 'a' twice"),
    ],
)
def test_a_space_has_each_value_once(values, message):
    with pytest.raises(ValueError, match=message):
        Space(*values)


def test_a_space_is_the_product_of_its_lists():
    found = [tuple(SPACE.at(places).values()) for places in SPACE.places()]
    assert sorted(map(str, found)) == sorted(map(str, product(SPACE.learning_rates, SPACE.ranks, SPACE.targets)))


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), max_size=12))
def test_the_front_has_exactly_the_points_that_no_other_one_beats(points):
    places = front(points)
    chosen = [points[place] for place in places]
    assert chosen == sorted(set(chosen))
    unbeaten = {
        (cost, f1) for cost, f1 in points if not any(c <= cost and f >= f1 and (c, f) != (cost, f1) for c, f in points)
    }
    assert set(chosen) == unbeaten


def test_operations_are_those_of_matrices_forward_and_backward():
    """A frozen weight multiplies and adds forward and for the input's gradient, a trained one also for its own."""
    assert operations_of(10, frozen=100, trained=7) == 10 * (100 * 2 * 2 + 7 * 2 * 3)
