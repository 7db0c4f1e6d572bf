"""Whether every format is read to the letter: random documents in all formats, and public corpora entity for entity.

  python benchmarks/format_fuzz.py --documents 10000
  python benchmarks/format_fuzz.py --corpora path/to/MTL-Bioinformatics-2016/data     folders of words and tags

Documents are written by each format's own rules (tests/support/columns.py, tests/support/annotated.py): every layout of
columns in every scheme and spelling, with each kind of line ends, and the files of annotation tools. Each file is read,
compared with what was written word for word and entity for entity, written again in the same format and read again. A
file that is refused is loud; one whose content differs without an error is a silent loss.

--corpora compares every folder with a reader of five lines (first and last column, blank lines) and with the entities
that seqeval finds in the file's own tags.
"""

import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from provenance import BIONLP, ROOT, BenchmarkParser, write_results

from lorakit.data.alignment import with_words
from lorakit.data.corpus import read_ner
from lorakit.data.formats.conll import write_conll
from lorakit.data.formats.record import Document
from lorakit.data.formats.registry import format_of
from lorakit.data.tags import spans
from lorakit.report.tables import markdown_table

sys.path.append(str(ROOT))
ENDS = {"LF": "\n", "CRLF": "\r\n", "CR": "\r"}
ROUNDS = 5  # of reading BioNLP2004; the fastest counts


def main(argv: list[str] | None = None) -> int:
    parser = BenchmarkParser("format_fuzz.py", __doc__)
    parser.add_argument("--documents", type=int, default=10_000, metavar="N", help="default: %(default)s")
    parser.add_argument("--corpora", type=Path, metavar="DIR", help="a folder of corpora of two columns")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.add_common(dataset=BIONLP)
    options = parser.parse_args(argv)
    found: dict[str, Any] = {"formats": fuzz(options.documents, options.seed)}
    if options.corpora:
        found["corpora"] = compare_corpora(options.corpora)
    if Path(options.dataset).is_dir():
        found["reading"] = reading_time(options.dataset)
    write_results(options, found, report)
    return 0 if not any(row["silent"] for row in found["formats"].values()) else 1


def fuzz(documents: int, seed: int) -> dict[str, dict[str, Any]]:
    """Name -> how many documents of it were written, and how they were read."""
    from tests.support.columns import LAYOUTS, LISTS

    names = [*LAYOUTS, "GermEval", "CoNLL-2012", *LISTS]
    tools = _tools()
    each = -(-documents // (len(names) + len(tools)))
    rows = {name: _columns(name, each, Random(f"{seed} {name}")) for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rows | {name: _tool(name, each, *tool, seed=seed) for name, tool in tools.items()}


def _columns(name: str, count: int, random: Random) -> dict[str, Any]:
    """Files of up to six sentences in one layout; each sentence is a document."""
    from tests.support import columns

    # types before the words (IO) are refused where few words are outside: see tests/data/formats/test_conll_layouts.py
    written = [how for how in columns.COMBINATIONS if name not in columns.TAG_FIRST or how[0] != "io"]
    done: Counter[str] = Counter()
    refusals: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        file, write = columns.LISTS.get(name, ("train.tsv", None))
        path = Path(folder) / file
        while done["documents"] < count:
            scheme, spelling = random.choice(written)
            made = columns.sentences(random, random.randint(2, 6), ("ENTITY",) if spelling == "B" else columns.TYPES)
            if write:
                write(path, made, scheme, spelling)
            elif name == "GermEval":
                path.write_bytes(columns.germeval(made, [m._replace(entities=()) for m in made]))
            elif name == "CoNLL-2012":
                path.write_bytes(columns.conll2012(made))
            else:
                end = random.choice(list(ENDS.values()))
                path.write_bytes(columns.column_file(made, columns.LAYOUTS[name], scheme, spelling, end))
            io = scheme == "io" and name not in ("GermEval", "CoNLL-2012", "gliner")
            expected = [(m.words, columns.as_io(m.entities) if io else list(m.entities)) for m in made]
            done["documents"] += len(made)
            done["annotations"] += sum(len(entities) for _, entities in expected)
            try:
                data = read_ner(path)
            except ValueError as error:
                refusals.append(str(error).replace(folder, ""))
                continue
            got = [(s.words, [(e.type, e.start, e.end) for e in spans(s.tags)]) for s in data.train]
            form = format_of(path)[0]
            taken = [Document(s.words, s.tags, "") for s in data.train]
            again = path.with_name(f"again{path.suffix if form.write else '.tsv'}")
            write_again = form.write or write_conll
            said = write_again([with_words(d) for d in taken] if form.takes == "words" else taken, again)
            path.with_name("label.json").unlink(missing_ok=True)
            done["silent"] += got != expected
            done["unequal"] += bool(said) or read_ner(again).train != data.train
    return _row(done, refusals)


def _row(done: Counter[str], refusals: list[str]) -> dict[str, Any]:
    keys = ("documents", "annotations", "silent", "unequal")
    return {key: done[key] for key in keys} | {"refused": len(refusals), "refusals": refusals[:3]}


def _tools() -> dict[str, tuple[Any, ...]]:
    """The formats of annotation tools whose libraries are installed."""
    from importlib.util import find_spec

    from tests.support.annotated import TOOLS

    return {name: tool for name, tool in TOOLS.items() if not name.startswith("bioc") or find_spec("bioc")}


def _tool(name: str, count: int, write: Any, file: str, strategy: Any, seed: int) -> dict[str, Any]:
    """Files of three documents in the format of a tool."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as with_seed
    from hypothesis import strategies as st

    from lorakit.data.formats.registry import format_named
    from tests.support.annotated import content, read, said

    done: Counter[str] = Counter()
    refusals: list[str] = []
    form = format_named(name.split(",")[0])

    @with_seed(seed)
    @settings(
        max_examples=-(-count // 3), deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.lists(strategy, min_size=3, max_size=3))
    def check(documents: list[Any]) -> None:
        if done["documents"] >= count:
            return
        with tempfile.TemporaryDirectory() as folder:
            source = write(Path(folder) / file, documents)
            done["documents"] += len(documents)
            done["annotations"] += sum(len(document.marked) for document in documents)
            try:
                found = read(name, source)
            except ValueError as error:
                refusals.append(str(error).replace(folder, ""))
                return
            done["silent"] += content(found) != said(name, documents)
            lines = form.write(found, Path(folder) / f"again-{file}")
            done["unequal"] += bool(lines) or content(read(name, Path(folder) / f"again-{file}")) != content(found)

    check()
    return _row(done, refusals)


# Public corpora ------------------------------------------------------------------------------------------------------


def compare_corpora(folder: Path) -> dict[str, Any]:
    """Every corpus in a folder against the plainest reader of its files and seqeval's entities."""
    from seqeval.metrics.sequence_labeling import get_entities

    found: dict[str, Any] = {"equal": [], "unequal": [], "refused": {}, "sentences": 0, "entities": 0}
    for corpus in sorted(path for path in folder.iterdir() if (path / "train.tsv").is_file()):
        try:
            data = read_ner(corpus)
        except ValueError as error:
            found["refused"][corpus.name] = str(error).replace(str(corpus), "")
            continue
        equal = True
        for split, name in (("train", "train.tsv"), ("validation", "devel.tsv"), ("test", "test.tsv")):
            mine = list(_plain_sentences(corpus / name)) if (corpus / name).is_file() else []
            ours = getattr(data, split)
            expected = [(words, [(k, a, b + 1) for k, a, b in get_entities(list(tags))]) for words, tags in mine]
            equal &= expected == [(s.words, [(e.type, e.start, e.end) for e in spans(s.tags)]) for s in ours]
            found["sentences"] += len(ours)
            found["entities"] += sum(len(entities) for _, entities in expected)
        found["equal" if equal else "unequal"].append(corpus.name)
    return found


def _plain_sentences(path: Path) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    for block in path.read_bytes().decode().replace("\r\n", "\n").split("\n\n"):
        rows = [line.split("\t") for line in block.split("\n") if line.strip()]
        if rows:
            yield tuple(row[0] for row in rows), tuple(row[-1] for row in rows)


def reading_time(dataset: str) -> dict[str, Any]:
    """CPU seconds to read a corpus of JSON lines, and the same as columns; the fastest of ROUNDS."""
    data = read_ner(dataset)
    splits = {"train": data.train, "dev": data.validation, "test": data.test}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in splits.items():
            write_conll([Document(s.words, s.tags, "") for s in part], Path(folder) / f"{name}.tsv")
        seconds = {}
        for name, source in (("JSON lines", dataset), ("columns", folder)):
            times = []
            for _ in range(ROUNDS):
                start = time.process_time()
                read_ner(source)
                times.append(time.process_time() - start)
            seconds[name] = min(times)
    words = sum(len(s.words) for part in splits.values() for s in part)
    return {"dataset": Path(dataset).name, "words": words, "seconds": seconds}


def report(summary: dict[str, Any]) -> list[str]:
    rows = summary["formats"]
    keys = ("documents", "annotations", "silent", "refused", "unequal")
    total = {key: sum(row[key] for row in rows.values()) for key in keys}
    cells = [[name, *(f"{row[key]:,}" for key in keys)] for name, row in [*rows.items(), ("all", total)]]
    header = ["format", "documents", "annotations", "silent losses", "refused", "written again, not equal"]
    lines = ["# Formats read to the letter", "", markdown_table(header, cells)]
    if "corpora" in summary:
        found = summary["corpora"]
        refused = "".join(f"\n- refused: {name}: {why}" for name, why in found["refused"].items())
        lines += [
            "",
            f"Public corpora: {len(found['equal'])} equal word for word and entity for entity, not equal: "
            f"{', '.join(found['unequal']) or 'none'}; {found['sentences']:,} sentences, "
            f"{found['entities']:,} entities{refused}",
        ]
    if "reading" in summary:
        found = summary["reading"]
        seconds = ", ".join(f"{name} {value:.2f} s" for name, value in found["seconds"].items())
        lines += ["", f"Reading {found['dataset']} ({found['words']:,} words), CPU time: {seconds}"]
    return lines


if __name__ == "__main__":
    sys.exit(main())
