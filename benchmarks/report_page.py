"""The picture of a report's first screen in docs/training.md, taken by Chromium.

  python benchmarks/report_page.py

Writes report.png with the digest of the page that it shows, which a test compares with that of today's page.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from errors_page import FLAGS
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from provenance import BenchmarkParser

from lorakit.report.page import make_page
from lorakit.report.runs import read_sources

ROOT = Path(__file__).resolve().parents[1]
RUN = Path("tests", "support", "recorded", "bionlp")
SIZE = "1160,1530"


def report_page() -> str:
    """The page of the recorded run; the working directory must be the project's."""
    return make_page(read_sources([RUN]))


def page_digest(page: str) -> str:
    """Of a page without its footer, which names lorakit's version."""
    return f"sha256 {hashlib.sha256(page.partition('<footer>')[0].encode()).hexdigest()}"


def main(arguments: list[str] | None = None) -> int:
    parser = BenchmarkParser(prog="report_page.py", description=__doc__)
    picture = Path(parser.parse_args(arguments).output_dir, "report.png").resolve()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        parser.error("there is no Chromium here (Debian: apt-get install chromium)")
    os.chdir(ROOT)
    page = report_page()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "report.html")
        file.write_text(page, encoding="utf-8")
        shown = [f"--window-size={SIZE}", f"--screenshot={picture}", file.as_uri()]
        subprocess.run([chromium, *FLAGS, f"--user-data-dir={folder}/profile", *shown], check=True)
    about = PngInfo()
    about.add_text("Comment", page_digest(page))
    Image.open(picture).save(picture, pnginfo=about, optimize=True)
    print(f"written: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
