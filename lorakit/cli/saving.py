"""Where a command keeps what it trained, and where instead if the disk cannot take it."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from lorakit.training.config import TrainConfig


def save_or_rescue(save: Callable[[Path], object], folder: Path, config: TrainConfig) -> None:
    """Save what was trained; if its disk cannot take it, in the system's folder for temporary files.

    Raises:
        OSError: it could not be saved where it should be; the message says where it is.
    """
    try:
        save(folder)
        return
    except OSError as error:
        reason = error
    message = f"{folder} could not be written ({reason})"
    if config.strategy != "fsdp":  # there all ranks would have to save again
        place = Path(tempfile.mkdtemp(prefix="lorakit-"))
        try:
            save(place / folder.name)
        except OSError:
            shutil.rmtree(place, ignore_errors=True)
        else:
            raise OSError(f"{message}; what was trained is in {place / folder.name}: move it") from reason
    if any((Path(config.output_dir) / "checkpoints").glob("step-*")):
        message += "; what was trained is in the newest checkpoint: make room, and run the same command with --resume"
    raise OSError(message) from reason


def saved_as(mode: str, folder: Path) -> tuple[str, str]:
    """The flag and the path with which `predict` and `evaluate` load what a mode saves."""
    return ("--adapter", str(folder / "adapter")) if mode == "lora" else ("--model", str(folder / "model"))
