"""Adapters under DistributedDataParallel and FSDP2: two ranks compute, save and merge like one process."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.support.tiny import ROOT


def test_two_processes_train_save_load_and_merge_like_one(tmp_path: Path) -> None:
    """Two gloo ranks with half the batch each, under DDP and FSDP2, equal one process with the full batch.

    Whatever would give FSDP2 other parameters than it was given is refused.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    ranks = subprocess.Popen(
        [sys.executable, "-m", "tests.support.adapter_ranks", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MASTER_PORT": port, "PYTHONFAULTHANDLER": "1"},
        start_new_session=True,  # so that both ranks can be killed
    )
    try:
        output = ranks.communicate(timeout=240)[0]
    finally:
        if ranks.poll() is None:
            os.killpg(ranks.pid, signal.SIGKILL)
            ranks.wait()
    assert ranks.returncode == 0, output
    assert output.splitlines().count("fine") == 2, output
    for kind in ("ddp", "fsdp2"):
        assert json.loads((tmp_path / kind / "adapter_config.json").read_text())["task_type"] == "TOKEN_CLS"
