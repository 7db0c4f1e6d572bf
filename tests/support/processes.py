"""Other Python processes for tests, and waiting for what they do."""

import os
import subprocess
import sys
import textwrap
import time


def start(code, **environ):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_until(true, seconds=30.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
