"""Pictures of the page of errors that `lorakit evaluate` writes, in its light and its dark theme, taken by Chromium.

  lorakit train --model examples/mini --dataset ../shared/bionlp2004 --sentences 1500 --epochs 2 --output-dir runs/mine
  python benchmarks/errors_page.py --adapter runs/mine/adapter --dataset ../shared/bionlp2004 --sentences 300

Writes errors-light.png and errors-dark.png: the tables, and the first sentences with most errors.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from provenance import BIONLP, BenchmarkParser

from lorakit.cli.__main__ import main as lorakit

THEMES = {"light": (), "dark": ("--force-dark-mode",)}
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking")
SIZE = "1120,1200"


def main(arguments: list[str] | None = None) -> int:
    parser = BenchmarkParser(prog="errors_page.py", description=__doc__)
    parser.add_common(dataset=BIONLP, sentences=300)
    parser.add_argument("--adapter", required=True)
    options = parser.parse_args(arguments)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        parser.error("there is no Chromium here (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "errors.html")
        command = ["evaluate", "--adapter", options.adapter, "--dataset", options.dataset, "--split", "validation"]
        status = lorakit([*command, "--sentences", str(options.sentences), "--errors", str(page)])
        for theme, flags in THEMES.items() if status == 0 else ():
            picture = Path(options.output_dir, f"errors-{theme}.png").resolve()
            shown = [f"--window-size={SIZE}", f"--screenshot={picture}", page.as_uri()]
            subprocess.run([chromium, *FLAGS, f"--user-data-dir={folder}/{theme}", *flags, *shown], check=True)
            print(f"written: {picture}")
    return status


if __name__ == "__main__":
    sys.exit(main())
