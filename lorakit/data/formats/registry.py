"""The formats of annotated corpora: how each is recognised, read and written, and where it is specified.

To add one, write its reader in a file of this folder and list it in FORMATS.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from lorakit.data.formats.annotation_fields import choose_field
from lorakit.data.formats.bioc import (
    read_bioc_json,
    read_bioc_xml,
    recognise_bioc_json,
    recognise_bioc_xml,
    write_bioc_json,
    write_bioc_xml,
)
from lorakit.data.formats.brat import read_brat, recognise_brat, write_brat
from lorakit.data.formats.cluener import read_cluener, recognise_cluener, write_cluener
from lorakit.data.formats.conll import read_conll, read_csv, recognise_conll, recognise_csv, write_conll, write_csv
from lorakit.data.formats.datasets import (
    read_dataset,
    read_parquet,
    recognise_dataset,
    recognise_parquet,
    write_dataset,
    write_parquet,
)
from lorakit.data.formats.doccano import read_doccano, read_doccano_records, recognise_doccano, write_doccano
from lorakit.data.formats.gliner import read_gliner, recognise_gliner, write_gliner
from lorakit.data.formats.json_lines import read_json_lines, recognise_json_lines, write_json_lines
from lorakit.data.formats.json_records import read_records
from lorakit.data.formats.label_studio import read_label_studio, recognise_label_studio, write_label_studio
from lorakit.data.formats.prodigy import read_prodigy, read_prodigy_records, recognise_prodigy, write_prodigy
from lorakit.data.formats.pubtator import read_pubtator, recognise_pubtator, write_pubtator
from lorakit.data.formats.record import Document, Note, Reading
from lorakit.data.formats.spacy_docbin import read_docbin, recognise_docbin, write_docbin
from lorakit.data.formats.spacy_json import read_spacy_json, recognise_spacy_json, write_spacy_json
from lorakit.data.formats.spans_jsonl import (
    read_span_records,
    read_spans_jsonl,
    recognise_spans_jsonl,
    write_spans_jsonl,
)
from lorakit.data.formats.webanno import read_webanno, recognise_webanno, write_webanno
from lorakit.data.split_files import SPLIT_NAMES


@dataclass(frozen=True)
class Format:
    """A format of annotated corpora.

    Attributes:
        name: what `--format` calls it.
        about: what it is, in a few words, for lists.
        specification: the address of the document that defines it.
        endings: of its files, lower case, the usual one first; () for a folder.
        recognise: the evidence that a path holds this format, as a short clause for people ("each line is an object
            with tokens and tags"), or None. It looks at the beginning of a file only, and never raises on bad content.
        read: the documents of a path, in order. A ValueError names the file and the line or the annotation.
        write: writes documents to a path that does not exist yet, and returns a line for everything that the format
            cannot hold; None where the format is only read.
        takes: what its documents must have to be written: "text" (and spans in characters; `alignment.with_text`),
            "words" (and spans in words; `alignment.with_words`) or "tags" (and words; `alignment.tag_sentences`).
        is_folder: whether `write` makes a folder.
        files: patterns of the names of its files, where a folder of them is one corpus or one split.
        has_columns: whether the user may name the columns, or the fields, of words and tags.
        has_layers: whether annotations may be nested.
    """

    name: str
    about: str
    specification: str
    endings: tuple[str, ...]
    recognise: Callable[[Path], str | None]
    read: Callable[[Path, Reading], Iterator[Document]]
    write: Callable[[Sequence[Document], Path], list[str]] | None = None
    takes: str = "text"
    is_folder: bool = False
    files: tuple[str, ...] = ()
    has_columns: bool = False
    has_layers: bool = True


SPAN_READERS = {"spans-jsonl": read_span_records, "doccano": read_doccano_records, "prodigy": read_prodigy_records}

# In the order in which they are tried: the narrower first.
FORMATS = (
    Format(
        name="parquet",
        about="Parquet with columns of tokens and tags, or of texts and spans",
        specification="https://huggingface.co/docs/datasets/loading#parquet",
        endings=(".parquet",),
        recognise=recognise_parquet,
        read=partial(read_parquet, readers=SPAN_READERS),
        write=write_parquet,
        takes="tags",
        has_columns=True,
    ),
    Format(
        name="datasets",
        about="a dataset that datasets.Dataset.save_to_disk wrote",
        specification="https://huggingface.co/docs/datasets/process#save",
        endings=(),
        recognise=recognise_dataset,
        read=partial(read_dataset, readers=SPAN_READERS),
        write=write_dataset,
        takes="tags",
        files=("*.arrow", "state.json", "dataset_info.json"),
        has_columns=True,
        is_folder=True,
    ),
    Format(
        name="brat",
        about="brat's standoff files: a folder of .txt and .ann",
        specification="https://brat.nlplab.org/standoff.html",
        endings=(".ann", ".a1"),
        recognise=recognise_brat,
        read=read_brat,
        write=write_brat,
        files=("*.txt", "*.ann", "*.a1", "*.a2"),
        is_folder=True,
    ),
    Format(
        name="webanno",
        about="WebAnno TSV 3, which INCEpTION exports",
        specification="https://inception-project.github.io/releases/36.0/docs/user-guide.html#sect_webannotsv",
        endings=(".tsv",),
        recognise=recognise_webanno,
        read=read_webanno,
        write=write_webanno,
        is_folder=True,
        files=("*.tsv",),
        has_columns=True,
    ),
    Format(
        name="pubtator",
        about="PubTator: abstracts with places of entities",
        specification="https://www.ncbi.nlm.nih.gov/CBBresearch/Lu/Demo/tmTools/Format.html",
        endings=(".pubtator", ".txt"),
        recognise=recognise_pubtator,
        read=read_pubtator,
        write=write_pubtator,
    ),
    Format(
        name="bioc-xml",
        about="BioC in XML",
        specification="https://bioc.sourceforge.net/",
        endings=(".xml",),
        recognise=recognise_bioc_xml,
        read=read_bioc_xml,
        write=write_bioc_xml,
    ),
    Format(
        name="bioc-json",
        about="BioC in JSON, such as PubTator 3 writes",
        specification="https://bioc.sourceforge.net/",
        endings=(".json", ".jsonl"),
        recognise=recognise_bioc_json,
        read=read_bioc_json,
        write=write_bioc_json,
    ),
    Format(
        name="spacy",
        about="spaCy's DocBin",
        specification="https://spacy.io/api/docbin",
        endings=(".spacy",),
        recognise=recognise_docbin,
        read=read_docbin,
        write=write_docbin,
    ),
    Format(
        name="spacy-json",
        about="spaCy's JSON of version 2",
        specification="https://v2.spacy.io/api/annotation#json-input",
        endings=(".json", ".jsonl"),
        recognise=recognise_spacy_json,
        read=read_spacy_json,
        write=write_spacy_json,
    ),
    Format(
        name="label-studio",
        about="Label Studio's JSON export, full or short",
        specification="https://labelstud.io/guide/task_format",
        endings=(".json", ".jsonl"),
        recognise=recognise_label_studio,
        read=read_label_studio,
        write=write_label_studio,
    ),
    Format(
        name="gliner",
        about="GLiNER's training data",
        specification="https://github.com/urchade/GLiNER/blob/main/README.md",
        endings=(".json", ".jsonl"),
        recognise=recognise_gliner,
        read=read_gliner,
        write=write_gliner,
        takes="words",
    ),
    Format(
        name="prodigy",
        about="Prodigy's JSON lines",
        specification="https://prodi.gy/docs/api-interfaces#ner_manual",
        endings=(".jsonl", ".json"),
        recognise=recognise_prodigy,
        read=read_prodigy,
        write=write_prodigy,
        has_columns=True,
    ),
    Format(
        name="doccano",
        about="doccano's JSON lines",
        specification="https://doccano.github.io/doccano/tutorial/#export-a-dataset",
        endings=(".jsonl", ".json"),
        recognise=recognise_doccano,
        read=read_doccano,
        write=write_doccano,
        has_columns=True,
    ),
    Format(
        name="cluener",
        about="CLUENER's JSON lines: texts, and surfaces by type with the first and the last character",
        specification="https://github.com/CLUEbenchmark/CLUENER2020",
        endings=(".json", ".jsonl"),
        recognise=recognise_cluener,
        read=read_cluener,
        write=write_cluener,
    ),
    Format(
        name="spans-jsonl",
        about="JSON lines of texts and spans, such as `lorakit predict` writes",
        specification="https://huggingface.co/docs/transformers/main_classes/pipelines",
        endings=(".jsonl", ".json"),
        recognise=recognise_spans_jsonl,
        read=read_spans_jsonl,
        write=write_spans_jsonl,
        has_columns=True,
    ),
    Format(
        name="tokens-jsonl",
        about="JSON lines of tokens and tags",
        specification="https://huggingface.co/datasets/tner/bionlp2004",
        endings=(".json", ".jsonl"),
        recognise=recognise_json_lines,
        read=read_json_lines,
        write=write_json_lines,
        takes="tags",
        has_layers=False,
        has_columns=True,
    ),
    Format(
        name="csv",
        about="a word and its tag per line, with commas or semicolons between columns",
        specification="https://www.rfc-editor.org/rfc/rfc4180",
        endings=(".csv",),
        recognise=recognise_csv,
        read=read_csv,
        write=write_csv,
        takes="tags",
        has_columns=True,
    ),
    Format(
        name="conll",
        about="a word and its tag per line",
        specification="https://www.clips.uantwerpen.be/conll2003/ner/",
        endings=(".tsv", ".txt", ".iob2", ".conll", ".bio", ".conllu", ".conllup", ".cupt"),
        recognise=recognise_conll,
        read=read_conll,
        write=write_conll,
        takes="tags",
        has_columns=True,
    ),
)
DEFAULT_READING = Reading()
OF_FIELDS = ("prodigy", "doccano", "spans-jsonl", "tokens-jsonl")  # of objects whose fields all records decide
ENDINGS = tuple(dict.fromkeys(ending for format in FORMATS for ending in format.endings))


def format_named(name: str) -> Format:
    """The format that a user calls by name.

    Raises:
        ValueError: there is none of this name.
    """
    for format in FORMATS:
        if format.name == name:
            return format
    raise ValueError(f"unknown format {name!r}; it is one of {', '.join(format.name for format in FORMATS)}")


def recognised(path: Path) -> tuple[Format, str] | None:
    """The first format that recognises a file or folder, and the evidence; None if none does."""
    for format in FORMATS:
        if evidence := format.recognise(path):
            return format, evidence
    return None


class Found(NamedTuple):
    """How a file or folder is read.

    Attributes:
        format: the format.
        evidence: how it was recognised.
        reading: how to read it, with the field of its annotations.
        notes: what to know about its fields.
        layered: whether `reading.layer` chose the field.
    """

    format: Format
    evidence: str
    reading: Reading
    notes: tuple[Note, ...] = ()
    layered: bool = False


def format_of(path: Path, reading: Reading = DEFAULT_READING, others: Format | None = None) -> Found:
    """The format of a file or folder, the evidence for it and how to read it.

    Content decides: of JSON objects with texts or words, all of them, in which field their annotations are. Where no
    format recognises it, that of the corpus' other files, or the last of those whose files end as this one does reads
    it, so that its error says what is wrong.

    Raises:
        ValueError: no format recognises it, and none has files with this ending; or fields that differ hold its
            annotations.
    """
    found = recognised(path)
    is_json = path.suffix.lower() in (".json", ".jsonl") and path.is_file()
    if found and found[0].name in OF_FIELDS or not found and is_json:
        choice = choose_field(_readable(path), reading, str(path))
        if choice and choice.format:
            columns = {**(reading.columns or {}), **({"tag": choice.field} if choice.field else {})}
            reading = reading._replace(columns=columns)
            return Found(format_named(choice.format), choice.evidence, reading, choice.notes, choice.layered)
        if found and choice:
            return Found(*found, reading, choice.notes)
    if found:
        return Found(*found, reading)
    candidates = [format for format in FORMATS if path.suffix.lower() in format.endings]
    if others in candidates:
        return Found(others, "by its ending, as the training file", reading)
    if not candidates:
        raise ValueError(
            f"{path}: unknown ending {path.suffix!r}, and no format recognises the content; a corpus file ends in "
            f"{' '.join(ENDINGS)}"
        )
    return Found(candidates[-1], f"by its ending {path.suffix}", reading)


def files_beside(path: Path, form: Format) -> tuple[str, ...]:
    """The names of the files in a folder of a format that are not of it, sorted; () for a file.

    Raises:
        ValueError: one of them is a corpus, so that the folder has two formats.
    """
    if not path.is_dir():
        return ()
    others = []
    for file in sorted(path.iterdir()):
        is_own = any(fnmatch(file.name, pattern) for pattern in form.files) and not _is_lone_split(file, form)
        if is_own or not file.is_file() or file.name.startswith("."):
            continue
        if found := recognised(file):
            raise ValueError(
                f"{path}: holds two formats, {form.about}, and {file.name}: {found[0].about}; move one of them to a"
                " folder of its own, or give the file instead of the folder"
            )
        others.append(file.name)
    return tuple(others)


def _is_lone_split(file: Path, form: Format) -> bool:
    """Whether a text among brat's has the name of a split and no annotations: columns that end in .txt, perhaps."""
    is_split = file.suffix == ".txt" and file.stem.lower() in chain(*SPLIT_NAMES.values())
    return is_split and not any(file.with_suffix(ending).exists() for ending in form.endings)


def _readable(path: Path) -> Iterator[tuple[str, Any]]:
    """The records of a file, up to one that its reader will refuse with the line."""
    try:
        yield from read_records(path)
    except (ValueError, RecursionError):
        return
