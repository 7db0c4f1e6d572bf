"""Train state: everything a checkpoint holds, so that a resumed run continues bit for bit.

(On a CPU; GPU kernels may add in another order.) That is the trained weights, those of the best epoch, the optimizer's
moments, the loss scaler, the counters, what was summed since the last log line, and every random generator.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lorakit.nn.weights import like


@dataclass
class Counters:
    """How far a run has come; tokens and seconds are this rank's."""

    epoch: int = 1  # the current one
    epoch_step: int = 0  # steps done in it
    step: int = 0
    best_epoch: int = 0  # 0 before the first evaluation
    history: list[dict[str, Any]] = field(default_factory=list)  # validation scores, as JSON
    train_tokens: int = 0
    computed_tokens: int = 0
    train_seconds: float = 0.0
    compile_seconds: float = 0.0
    skipped: int = 0  # steps without a finite gradient
    log_bytes: int = 0  # length of metrics.jsonl

    def count_step(self, tokens: int, computed_tokens: int) -> None:
        """Count a step.

        Args:
            tokens: real tokens of its batches on this rank.
            computed_tokens: the same with padding.
        """
        self.train_tokens += tokens
        self.computed_tokens += computed_tokens
        self.step, self.epoch_step = self.step + 1, self.epoch_step + 1

    def next_epoch(self) -> None:
        """Count an epoch."""
        self.epoch, self.epoch_step = self.epoch + 1, 0

    def add_scores(self, scores: dict[str, Any]) -> bool:
        """Add an epoch's validation scores to the history; returns whether it is the best epoch so far.

        That is the one with the highest F1 and, of equal ones, the lowest loss: where entities are rare, F1 is 0 for
        the first epochs, in which the loss already tells that the model learns.
        """
        self.history.append(scores)
        best = self.best_epoch == 0 or quality(scores) > quality(self.history[self.best_epoch - 1])
        if best:
            self.best_epoch = self.epoch
        return best

    def has_ended(self, epochs: int, patience: int | None) -> bool:
        """Whether all epochs are over, or as many as `patience` have passed since the best one."""
        return self.epoch > epochs or bool(patience) and self.epoch - 1 - self.best_epoch >= patience


class SinceLog:
    """Sums since the last log line, kept on the device because reading them would make the host wait."""

    def __init__(self, device: torch.device, in_a_row: Tensor | None = None) -> None:
        self.loss, self.skipped = torch.zeros((), device=device), torch.zeros((), device=device)
        self.in_a_row = torch.zeros((), device=device) if in_a_row is None else in_a_row  # skipped steps up to now
        self.tokens = self.steps = 0

    def add(self, loss: Tensor, bad: Tensor, tokens: int) -> None:
        """Count a step.

        Args:
            loss: the step's, a scalar on the device.
            bad: a scalar bool on the device, whether the step was skipped.
            tokens: real tokens of the step on this rank.
        """
        self.loss += torch.where(bad, 0.0, loss)
        self.skipped += bad
        self.in_a_row = (self.in_a_row + 1) * bad
        self.tokens, self.steps = self.tokens + tokens, self.steps + 1

    def state_dict(self) -> dict[str, float]:
        """The sums as JSON."""
        values = {name: float(getattr(self, name)) for name in ("loss", "skipped", "in_a_row")}
        return {**values, "tokens": self.tokens, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from sums that `state_dict` gave."""
        for name in ("loss", "skipped", "in_a_row"):
            getattr(self, name).fill_(state[name])
        self.tokens, self.steps = int(state["tokens"]), int(state["steps"])


class TrainState:
    """A run's trained weights, optimizer, loss scaler and counters.

    Args:
        model: its parameters that require a gradient are the trained ones.
        optimizer: over the same parameters.
        scaler: a GradScaler, disabled where the precision needs none.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer, self.scaler = optimizer, scaler
        self.device = next(model.parameters()).device
        self.counters = Counters()
        self.best_weights: dict[str, Tensor] = {}
        self.since_log = SinceLog(self.device)

    def count_step(self, loss: Tensor, bad: Tensor, tokens: int, computed_tokens: int) -> None:
        """Count a step.

        Args:
            loss: the step's, a scalar on the device.
            bad: whether it was skipped, a scalar bool on the device.
            tokens: real tokens of its batches on this rank.
            computed_tokens: the same with padding.
        """
        self.since_log.add(loss, bad, tokens)
        self.counters.count_step(tokens, computed_tokens)

    def restart_log(self) -> None:
        """Begin to sum up the next log line."""
        self.since_log = SinceLog(self.device, self.since_log.in_a_row)

    def keep_if_best(self, scores: dict[str, Any]) -> None:
        """Add an epoch's validation scores to the history, and copy the weights if it is the best so far."""
        if self.counters.add_scores(scores):
            self.best_weights = {name: p.detach().clone() for name, p in self.trained.items()}

    @torch.no_grad()
    def restore_best(self) -> None:
        """Give the model the weights of the best epoch."""
        for name, weights in self.best_weights.items():
            self.trained[name].copy_(weights)

    def state_dict(self) -> dict[str, Any]:
        """The state: tensors on the device, possibly sharded, and JSON values, both by what they belong to."""
        moments = {name: self.optimizer.state.get(p, {}) for name, p in self.trained.items()}
        return {
            "model": {name: p.detach() for name, p in self.trained.items()},
            "best": self.best_weights,
            "optimizer": moments,
            "scaler": self.scaler.state_dict(),
            "counters": asdict(self.counters),
            "since_log": self.since_log.state_dict(),
            "random": random_state(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state.

        Args:
            state: as `state_dict` gives it, with full tensors on any device. Without "since_log" and "random", as from
                another number of ranks, sums and random generators stay as they are.
        """
        for item in fields(Counters):
            setattr(self.counters, item.name, state["counters"][item.name])
        for name, parameter in self.trained.items():
            parameter.copy_(like(state["model"][name], parameter))
            if kept := state["optimizer"].get(name):
                self.optimizer.state[parameter] = {key: like(value, parameter) for key, value in kept.items()}
        best = state["best"]
        self.best_weights = {name: like(best[name], p) for name, p in self.trained.items() if name in best}
        self.scaler.load_state_dict(state["scaler"])
        if "since_log" in state:
            self.since_log.load_state_dict(state["since_log"])
            set_random_state(state["random"])


def quality(scores: Mapping[str, Any]) -> tuple[float, float]:
    """What an epoch is judged by; one whose loss is not finite is worse than any other."""
    loss = scores["loss"]
    return (scores["f1"], -loss) if math.isfinite(loss) else (-1.0, -math.inf)


# Random generators ---------------------------------------------------------------------------------------------------


def seed_everything(seed: int, rank: int) -> None:
    """Seed Python's, NumPy's and torch's generators, differently on each rank, so that each draws other dropout."""
    random.seed(seed + rank)
    np.random.seed(seed + rank)
    torch.manual_seed(seed + rank)  # the order of sentences has its own generator, the same on all ranks


def random_state() -> dict[str, Any]:
    """The state of every generator of this process, as JSON."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), position, has_gauss, gauss],
        "torch": bytes(torch.get_rng_state().tolist()).hex(),
    }
    if torch.cuda.is_available():
        state["cuda"] = bytes(torch.cuda.get_rng_state().tolist()).hex()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore what `random_state` gave."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(torch.tensor(list(bytes.fromhex(state["torch"])), dtype=torch.uint8))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(list(bytes.fromhex(state["cuda"])), dtype=torch.uint8))
