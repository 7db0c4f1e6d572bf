"""Which architectures train by the defaults of `lorakit train`, packed or in plain rows, and what they predict.

For each architecture that transformers has a token classifier for, a tiny random model is saved with the embedded
tokenizer, and trained, evaluated and used to predict by the command line. Its predictions in batches, packed and plain,
are compared with those of plain transformers, one sentence at a time. An adapter is saved and loaded, by lorakit and by
PEFT. What is found is kept after each architecture, so a run that was stopped continues where it was.

    python benchmarks/architectures.py                      those not in the results yet, 5 s each
    python benchmarks/architectures.py bert deberta-v2      these, again
    python benchmarks/architectures.py --compile aot_eager  also torch.compile's steps beside eager ones, 20 s each
    python benchmarks/architectures.py --compile inductor   the same with the kernels that it makes, 100 s each
    python benchmarks/architectures.py --bert FOLDER        also a pretrained BERT, by its own tokenizer
    python benchmarks/architectures.py --bionlp2004 FOLDER  also 1,000 of its sentences packed and one by one
"""

import argparse
import contextlib
import io
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for the tests' tiny models

# ruff: noqa: E402
import torch
from architectures_before import before
from provenance import RESULTS, origin, origin_lines
from torch import nn

import lorakit
from lorakit._files import write_text
from lorakit.cli.__main__ import main as lorakit_command
from lorakit.data.corpus import NerData, Sentence
from lorakit.report.tables import markdown_table
from lorakit.training import graphs
from lorakit.training.evaluation import encode_tagged, tag_words
from lorakit.training.layout import layout_for
from lorakit.training.models import load_token_classifier
from tests.support.tiny import LABELS, MINI
from tests.support.token_classifiers import OPTIONS, build
from tests.support.toy import toy_sentences

PAGE = ROOT / "docs" / "architectures.md"
REAL = ("deberta-v2", "modernbert")  # packed and one by one on a real corpus
PRETRAINED = "all-MiniLM-L6-v2 (pretrained)"
NOT_RUN = "not run"
TRACED = "traced"
SAME = 1e-5  # largest difference of logits, relative to them, that is rounding
TITLES = (
    "architecture",
    "before",
    "trains by CLI",
    "rows",
    "adapted layers",
    "attention",
    "packed",
    "plain",
    "tags equal",
    "saved, loaded",
    "compile",
    "why not",
)


@dataclass(frozen=True)
class Row:
    """What was found out about an architecture.

    Attributes:
        attention: "sdpa" or "eager".
        targets: layers that `apply_lora` adapts by default; 0 where it asks for names.
        rows: of the defaults: "packed", "plain", or "plain, of equal length".
        packed: largest difference between the probabilities of tags in packed rows and alone; None: never packed.
        plain: the same with packing off.
        tags: share of tags that are the same in batches and alone, of both.
        trained: whether `lorakit train`, `evaluate` and `predict` end with status 0.
        saved: what computes the same with an adapter loaded from its folder: "lorakit", "PEFT"; None: no adapter.
        compiled: "yes" if training with torch.compile gives eager's weights; TRACED if it does with the same graphs
            and torch's own kernels, those of eager steps; NOT_RUN; or why not.
        why: why rows are not packed, and why it does not train; "" where there is nothing to explain.
    """

    attention: str
    targets: int
    rows: str
    packed: float | None
    plain: float
    tags: float
    trained: bool
    saved: tuple[str, ...] | None
    compiled: str = NOT_RUN
    why: str = ""


# What is found out ---------------------------------------------------------------------------------------------------


def examine(folder: Path) -> Row:
    """Find out how the model of FOLDER/base is trained and used, with the tokenizer beside it."""

    def load() -> tuple[nn.Module, Any]:
        return load_token_classifier(folder / "base", LABELS, dropout=None)

    model, tokenizer = load()
    model.eval()
    rows, why = rows_of(model)
    plain, tags = compare(model, tokenizer, "off")
    packed = None
    if rows == "packed":
        packed, more = compare(model, tokenizer, "on")
        tags = min(tags, more)
    attention = model.config._attn_implementation
    targets, refusal = adapted(model)
    saved = reloaded(model, lambda: load()[0].eval(), folder / "adapter") if targets else None
    why = "; ".join(filter(None, (why, refusal)))
    return Row(attention, targets, rows, packed, plain, tags, trains(folder), saved, why=why)


def rows_of(model: nn.Module) -> tuple[str, str]:
    """How the model takes its batches by default, and why not packed."""
    layout = layout_for(model)
    if layout.packing:
        return "packed", ""
    if layout.by_length:
        return "plain, of equal length", f"{layout.reason}, and padding changes its output"
    return "plain", layout.reason


def compare(
    model: nn.Module, tokenizer: Any, packing: str, sentences: Sequence[Sentence] | None = None
) -> tuple[float, float]:
    """The largest difference of probabilities between batches and single sentences, and the share of equal tags."""
    sentences = sentences or long_enough(60, 3)
    found = tag_words(model, tokenizer, [sentence.words for sentence in sentences], packing=packing)
    encoded, number, worst, equal = encode_tagged(model, tokenizer, sentences), 0, 0.0, 0
    tags = [tag for row in found.tags for tag in row]
    probabilities = [value for row in found.probabilities for value in row]
    with torch.no_grad():
        for start, end in zip(encoded.offsets, encoded.offsets[1:], strict=False):
            ids, words = torch.from_numpy(encoded.ids[start:end]), torch.from_numpy(encoded.words[start:end])
            best = model(ids[None])[0][0][words >= 0].softmax(-1).max(-1)
            for probability, label in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                worst = max(worst, abs(probability - probabilities[number]))
                equal += tags[number] == LABELS[label]
                number += 1
    return worst, equal / len(tags)


def compare_on(corpus: Path) -> dict[str, dict[str, float]]:
    """The same for the first 1,000 training sentences of a corpus, packed, by REAL's architectures."""
    from transformers import AutoTokenizer

    sentences = [Sentence(s.words, ("O",) * len(s.words)) for s in lorakit.read_ner(corpus).train[:1000]]
    tokenizer, found = AutoTokenizer.from_pretrained(MINI), {}
    for name in REAL:
        packed, tags = compare(build(name), tokenizer, "on", sentences)
        words = sum(len(sentence.words) for sentence in sentences)
        found[name] = {"sentences": len(sentences), "words": words, "packed": packed, "tags": tags}
    return found


def long_enough(count: int, seed: int) -> list[Sentence]:
    """Sentences of two words or more: CANINE takes no fewer than four tokens."""
    return [sentence for sentence in toy_sentences(count, seed) if len(sentence.words) > 1]


def adapted(model: nn.Module) -> tuple[int, str]:
    """Adapt the model by default; the number of layers that LoRA adapts, or 0 and what is said instead."""
    try:
        lorakit.apply_lora(model)
    except ValueError as refusal:
        return 0, str(refusal).partition(": ")[2].partition(";")[0]
    return sum(hasattr(module, "lora_A") for module in model.modules()), ""


def reloaded(model: nn.Module, fresh: Callable[[], nn.Module], folder: Path) -> tuple[str, ...]:
    """Save the adapter of a model, load it into fresh ones; which libraries' then compute the same."""
    from peft import PeftModel

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1, generator=generator)
    lorakit.save_adapter(model, folder)
    readers = {
        "lorakit": lambda: lorakit.load_adapter(fresh(), folder),
        "PEFT": lambda: PeftModel.from_pretrained(fresh(), str(folder)),
    }
    ids = torch.arange(20, 44)[None]
    with torch.no_grad():
        wanted = model.eval()(input_ids=ids)[0]
        found = {name: read().eval()(input_ids=ids)[0] for name, read in readers.items()}
    return tuple(n for n, logits in found.items() if (logits - wanted).abs().max() <= SAME * wanted.abs().max())


def trains(folder: Path) -> bool:
    """Whether the command line trains the model of FOLDER/base by its defaults, and uses what came out."""
    corpus = folder / "corpus"
    corpus.mkdir()
    for split, count, seed in (("train", 24, 0), ("valid", 8, 1), ("test", 8, 2)):
        words = ({"tokens": s.words, "tags": [LABELS.index(tag) for tag in s.tags]} for s in long_enough(count, seed))
        (corpus / f"{split}.json").write_text("".join(json.dumps(line) + "\n" for line in words))
    (corpus / "label.json").write_text(json.dumps({label: number for number, label in enumerate(LABELS)}))
    adapter = str(folder / "run" / "adapter")
    given = ["--dataset", str(corpus)]
    commands = [
        ["train", "--model", str(folder / "base"), *given, "--epochs", "1", "--output-dir", str(folder / "run")],
        ["evaluate", "--adapter", adapter, *given],
        ["predict", "--adapter", adapter, "the IL-2 gene in T cells", "--output", str(folder / "entities.jsonl")],
    ]
    return all(succeeds(command) for command in commands)


def succeeds(command: list[str]) -> bool:
    """Run a command of lorakit; what it says about a failure is printed to stderr."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            status = lorakit_command(command)
    except SystemExit as error:
        status = error.code
    except Exception as error:
        status = repr(error)
    if status:
        print(f"lorakit {command[0]}: {status} {said.getvalue().strip()[-300:]}", file=sys.stderr)
    return not status


def compiles(folder: Path, backend: str) -> str:
    """Whether two steps with torch.compile give the weights of two eager ones: "yes", TRACED, or why not.

    Args:
        folder: holds the model as "base".
        backend: "inductor", which makes kernels; others trace the same graphs and run torch's own.
    """
    sentences = tuple(Sentence(s.words[:6], s.tags[:6]) for s in toy_sentences(40, 3) if len(s.words) >= 6)[:16]
    data, trained, start, usual = NerData(sentences, (), (), LABELS, "toy"), {}, {}, graphs.BACKEND
    torch._dynamo.reset()  # of the architectures before
    for engine in ("eager", "compile"):
        model, tokenizer = load_token_classifier(folder / "base", LABELS, dropout=0.0)
        graphs.BACKEND = backend
        try:
            lorakit.apply_lora(model)
            start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
            config = lorakit.TrainConfig(epochs=1, batch_size=8, engine=engine, progress=False, precision="fp32")
            lorakit.train(model, tokenizer, data, config)
        except ValueError as problem:
            return f"n/a: {reason(str(problem))}"
        finally:
            graphs.BACKEND = usual
        trained[engine] = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    apart = {name: trained["compile"][name] - p for name, p in trained["eager"].items()}
    worst = max(float(difference.abs().max()) for difference in apart.values())
    # Adam divides a gradient by its own size: of many weights a few have one of rounding, and take a step of rounding
    learned = size({name: p - start[name] for name, p in trained["eager"].items()})
    share = size(apart) / max(learned, 1e-12)
    print(f"compiled: weights differ by {worst:.1e}, in all by {share:.1e} of what was learned", file=sys.stderr)
    if worst >= 1e-4 and share >= 1e-3:
        return f"no: weights differ by {worst:.0e}"
    return "yes" if backend == "inductor" else TRACED


def size(tensors: dict[str, torch.Tensor]) -> float:
    """The Euclidean norm of all of them."""
    return sum(float(tensor.double().square().sum()) for tensor in tensors.values()) ** 0.5


def reason(message: str) -> str:
    """A refusal of torch.compile in a few words."""
    if "needs packed rows" in message:
        return "not packed"
    if "'all-linear'" in message:
        return "asks for layers"
    if "does not compile" in message:
        return "no single graph"
    return message[:60]


# What is written -----------------------------------------------------------------------------------------------------


def table(rows: dict[str, Row]) -> str:
    """The rows as Markdown, and how many train."""

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.0e}" if value else "0"

    cells = []
    for name, row in rows.items():
        trained, targets = "yes" if row.trained else "**no**", str(row.targets or "asks")
        saved = "–" if row.saved is None else ", ".join(row.saved) or "**no**"
        numbers = (number(row.packed), number(row.plain), f"{row.tags:.1%}")
        cells.append(
            [name, before(name), trained, row.rows, targets, row.attention, *numbers, saved, row.compiled, row.why]
        )
    return f"{markdown_table(TITLES, cells)}\n\n{totals(rows)}\n"


def totals(rows: dict[str, Row]) -> str:
    """How many of the tiny models train and pack."""
    tiny = {name: row for name, row in rows.items() if name in OPTIONS}
    trained = sum(row.trained for row in tiny.values())
    packed = sum(row.trained and row.rows == "packed" for row in tiny.values())
    once = sum(before(name) == "packed" for name in tiny)
    compiled = sum(row.compiled in ("yes", TRACED) for row in tiny.values())
    made = sum(row.compiled == "yes" for row in tiny.values())
    unknown = sum(row.compiled == NOT_RUN for row in tiny.values())
    return (
        f"{trained} of {len(tiny)} architectures train by the defaults, {packed} of them packed (before: {once})."
        f" torch.compile's steps equal eager ones on {compiled}, on {made} of them with kernels of its own,"
        f" and were not run on {unknown}."
    )


def command(rows: dict[str, Row]) -> str:
    """What makes these rows."""
    made = [name for name, row in rows.items() if row.compiled == "yes"]
    pretrained = " --bert FOLDER" * (PRETRAINED in rows)
    again = f"; python benchmarks/architectures.py --compile inductor {' '.join(made)}" if made else ""
    return f"python benchmarks/architectures.py --compile aot_eager --bionlp2004 FOLDER{pretrained}{again}"


def real_line(found: dict[str, dict[str, float]]) -> str:
    """What `compare_on` found, as a sentence."""
    parts = [
        f"{name} {row['tags']:.1%} of {row['words']:,} tags, within {row['packed']:.0e}" for name, row in found.items()
    ]
    return f"BioNLP2004's first 1,000 sentences, packed and one by one, get the same tags: {'; '.join(parts)}.\n"


def read_corpus(path: Path) -> dict[str, dict[str, float]]:
    """What a result file says of a real corpus; nothing if there is no file."""
    return json.loads(path.read_text()).get("corpus", {}) if path.exists() else {}


def read(path: Path) -> dict[str, Row]:
    """The rows of a result file, in the order of OPTIONS; none if there is no file."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text())["architectures"]
    rows = {name: Row(**{**row, "saved": row["saved"] and tuple(row["saved"])}) for name, row in found.items()}
    return {name: rows[name] for name in (*OPTIONS, PRETRAINED) if name in rows}


def write(
    rows: dict[str, Row],
    folder: Path,
    command: str,
    page: Path | None = None,
    corpus: dict[str, dict[str, float]] | None = None,
) -> None:
    """Write architectures.json and .md into a folder, and the table into a page of the documentation."""
    corpus = corpus or read_corpus(folder / "architectures.json")
    summary = {**origin(command), "architectures": {name: asdict(row) for name, row in rows.items()}, "corpus": corpus}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "architectures.json", json.dumps(summary, indent=1) + "\n")
    text = ["# Architectures", "", table(rows), *([real_line(corpus)] if corpus else []), *origin_lines(summary)]
    write_text(folder / "architectures.md", "\n".join(text) + "\n")
    if page:
        write_text(page, with_table(page.read_text(), rows, corpus))


def with_table(page: str, rows: dict[str, Row], corpus: dict[str, dict[str, float]]) -> str:
    """The page with the table between its two markers."""
    start, end = "<!-- TABLE -->\n", "<!-- /TABLE -->"
    before_it, rest = page.split(start)
    real = f"\n{real_line(corpus)}" if corpus else ""
    return f"{before_it}{start}\n{table(rows)}{real}\n{end}{rest.split(end)[1]}"


def put_base(name: str, folder: Path, bert: Path | None) -> None:
    """Save the tiny model of an architecture with the embedded tokenizer, or link the pretrained BERT."""
    if name == PRETRAINED:
        (folder / "base").symlink_to(bert.resolve())
        return
    from transformers import AutoTokenizer

    build(name).save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(MINI).save_pretrained(folder / "base")


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine the architectures that are asked for, and write the results after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *OPTIONS], metavar="ARCHITECTURE", help="default: the missing")
    parser.add_argument("--bert", type=Path, metavar="FOLDER", help="of a pretrained BERT with its tokenizer")
    parser.add_argument(
        "--compile", choices=["aot_eager", "inductor"], help="also compare torch.compile's steps with eager ones"
    )
    parser.add_argument("--bionlp2004", type=Path, metavar="FOLDER", help="also compare predictions on that corpus")
    parser.add_argument("--output-dir", type=Path, default=RESULTS, help="for the result files")
    options = parser.parse_args(arguments)
    rows = read(options.output_dir / "architectures.json")
    page = PAGE if options.output_dir == RESULTS else None
    for name in options.names or [*OPTIONS, *[PRETRAINED] * bool(options.bert)]:
        known = None if options.names else rows.get(name)
        weaker = {"aot_eager": [NOT_RUN], "inductor": [NOT_RUN, TRACED]}.get(options.compile, [])
        if known and known.compiled not in weaker:
            continue
        with tempfile.TemporaryDirectory() as folder:
            put_base(name, Path(folder), options.bert)
            row = known or examine(Path(folder))
            if options.compile:
                row = replace(row, compiled=compiles(Path(folder), options.compile))
        rows[name] = row
        rows = {name: rows[name] for name in (*OPTIONS, PRETRAINED) if name in rows}
        print(name, row, file=sys.stderr, flush=True)
        write(rows, options.output_dir, command(rows), page)
    if options.bionlp2004:
        write(rows, options.output_dir, command(rows), page, compare_on(options.bionlp2004))
    print(table(rows), end="")
    return 0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While active, libraries show no notes and no warnings; a program that imports this file gets its own back."""
    before_it = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before_it)


if __name__ == "__main__":
    with quiet():
        raise SystemExit(main())
