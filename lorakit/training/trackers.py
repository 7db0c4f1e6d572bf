"""Send the lines of metrics.jsonl to TensorBoard and Weights & Biases, where asked for and installed."""

import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LOGGERS = {"tensorboard": "tensorboard", "wandb": "wandb"}  # name -> what pip calls it

Write = Callable[[Mapping[str, float], int, float], None]  # values by name, step, time (s since 1970)


def check_loggers(names: Sequence[str]) -> None:
    """Refuse a logger that does not exist or is not installed, before a run begins.

    Raises:
        ValueError: there is no such logger.
        ImportError: its package is not installed.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"log_to is {names!r}; it must be a tuple of names, such as ('tensorboard',)")
    for name in names:
        if name not in LOGGERS:
            raise ValueError(f"log_to has {name!r}; allowed are {', '.join(LOGGERS)}")
    missing = [LOGGERS[name] for name in names if name not in sys.modules and find_spec(name) is None]
    if missing:
        raise ImportError(
            f"log_to needs a package that is not installed: pip install {' '.join(missing)}; or leave it out"
        )


@contextmanager
def open_logger(name: str, folder: Path, config: Mapping[str, Any], step: int) -> Iterator[Write]:
    """Open one logger for the length of a run.

    Args:
        name: a key of LOGGERS.
        folder: the run's. TensorBoard's events go into its folder tensorboard, W&B's files into its folder wandb.
        config: the run's settings.
        step: steps that a resumed run has already taken; what was logged after them is discarded.
    """
    with {"tensorboard": _tensorboard, "wandb": _wandb}[name](folder, config, step) as write:
        yield write


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl by name: `train/loss`, `validation/f1`, `test/by_type/protein/f1`."""
    if line["event"] not in ("step", "evaluation"):
        return {}
    values = {name: value for name, value in line.items() if name not in ("event", "split", "step", "wall_s")}
    return dict(_flat("train" if line["event"] == "step" else line["split"], values))


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}/{name}", value)
        elif value is not None:  # an unknown value is left out, not 0
            yield f"{prefix}/{name}", value


@contextmanager
def _tensorboard(folder: Path, config: Mapping[str, Any], step: int) -> Iterator[Write]:
    from torch.utils.tensorboard import SummaryWriter

    # purge_step hides events of an earlier run in this folder, or from after the checkpoint
    with SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1) as writer:

        def write(values: Mapping[str, float], step: int, wall_s: float) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step, walltime=wall_s)
            writer.flush()  # so that a killed run shows everything it logged

        yield write


@contextmanager
def _wandb(folder: Path, config: Mapping[str, Any], step: int) -> Iterator[Write]:
    import wandb

    kept = folder / "wandb-run-id"  # under which a resumed run continues
    if step == 0 or not kept.exists():
        kept.write_text(os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4), encoding="utf-8")
    named = "WANDB_NAME" in os.environ
    with wandb.init(  # wandb itself reads WANDB_MODE=offline, WANDB_ENTITY and others
        project=os.environ.get("WANDB_PROJECT", "lorakit"),
        name=None if named else f"{folder.resolve().parent.name}/{folder.resolve().name}",
        id=kept.read_text(encoding="utf-8"),
        resume="allow",
        dir=str(folder),
        config=dict(config),
    ) as run:
        run.define_metric("*", step_metric="step")  # W&B's own step must never fall; after a resume ours does

        def write(values: Mapping[str, float], step: int, wall_s: float) -> None:
            run.log({**values, "step": step})

        yield write
