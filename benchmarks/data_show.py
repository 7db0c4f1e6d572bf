"""A picture of `lorakit data show` on a terminal with colours, taken by Chromium.

  python benchmarks/data_show.py
  python benchmarks/data_show.py --dataset path/to/corpus --first 6

Writes data_show.png. The command runs on a pseudo-terminal, since without one it marks entities by brackets.
"""

import html
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from provenance import ROOT, BenchmarkParser

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking")
BACKGROUNDS = {"41": "#d9534f", "42": "#4fb06d", "43": "#d0a215", "44": "#5b9bd5", "45": "#b37fc4", "46": "#3fb0ac"}
LINE, COLUMN, EDGE = 21, 8.43, 18  # pixels of a line, a character and the margin
PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; padding: {edge}px; background: #1e1e1e; color: #d4d4d4; }}
pre {{ margin: 0; font: 14px/{line}px "DejaVu Sans Mono", monospace; white-space: pre; }}
b.prompt {{ color: #4fb06d; }}
</style><pre>{text}</pre>"""


def main(arguments: list[str] | None = None) -> int:
    parser = BenchmarkParser(prog="data_show.py", description=__doc__)
    parser.add_common(dataset="examples/conll", first=4)
    options = parser.parse_args(arguments)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        parser.error("there is no Chromium here (Debian: apt-get install chromium)")
    command = ["data", "show", options.dataset, "--first", str(options.first)]
    status, shown = on_terminal([sys.executable, "-m", "lorakit.cli", *command])
    if status:
        parser.error(shown.strip())
    text = f'<b class="prompt">$</b> lorakit {html.escape(shlex.join(command))}\n{as_html(shown)}'
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines()
    width = round(COLUMN * max(map(len, plain))) + 2 * EDGE
    size = f"--window-size={width},{LINE * (len(plain) + 1) + 2 * EDGE}"
    picture = Path(options.output_dir, f"{options.name}.png").resolve()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "shown.html")
        page.write_text(PAGE.format(edge=EDGE, line=LINE, text=text), encoding="utf-8")
        taken = [*FLAGS, f"--user-data-dir={folder}/user", size, f"--screenshot={picture}", page.as_uri()]
        subprocess.run([chromium, *taken], check=True)
    print(f"written: {picture}")
    return 0


def on_terminal(command: list[str]) -> tuple[int, str]:
    """The exit status of a command on a terminal with colours, and what it prints there."""
    ours, its = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(command, stdout=its, stderr=its, cwd=ROOT, env=environment) as process:
        os.close(its)
        parts = []
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # Linux: the other end is closed
                part = b""
            if not part:
                break
            parts.append(part)
    os.close(ours)
    return process.returncode, b"".join(parts).decode().replace("\r\n", "\n")


def as_html(text: str) -> str:
    """Text of a terminal with its colours and bold letters as HTML."""
    parts, is_open = [], False
    for piece in re.split(r"(\x1b\[[\d;]*m)", text):
        match = re.fullmatch(r"\x1b\[([\d;]*)m", piece)
        if match is None:
            parts.append(html.escape(piece))
            continue
        parts.append("</span>" * is_open)
        codes = match[1].split(";")
        style = "".join(f"background:{BACKGROUNDS[code]};" for code in codes if code in BACKGROUNDS)
        style += "color:#111;" * ("30" in codes) + "font-weight:bold;" * ("1" in codes)
        is_open = bool(style)
        parts.append(f'<span style="{style}">' if style else "")
    return "".join(parts) + "</span>" * is_open


if __name__ == "__main__":
    sys.exit(main())
