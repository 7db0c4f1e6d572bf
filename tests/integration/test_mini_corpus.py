import hashlib
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType

import pytest
from seqeval.metrics import f1_score

from lorakit.data.corpus import read_ner
from lorakit.data.tags import irregular, spans

SCRIPT = Path(__file__).parents[2] / "examples" / "mini" / "corpus.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mini_corpus", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["mini_corpus"] = module
    spec.loader.exec_module(module)
    return module


mini = load_script()
CORPUS = mini.make_corpus()
ALL = [sentence for split in CORPUS for sentence in split]


def entities(rows: list) -> list[tuple[str, str]]:
    """(type, text) of every mention."""
    return [(span.type, " ".join(words[span.start : span.end])) for words, tags in rows for span in spans(tags)]


# Determinism


def test_a_seed_gives_the_same_corpus_and_another_seed_another() -> None:
    assert mini.make_corpus(3, 20, 10, 10) == mini.make_corpus(3, 20, 10, 10)
    assert not set(map(str, mini.make_corpus(3, 20, 10, 10).train)) & set(
        map(str, mini.make_corpus(4, 20, 10, 10).train)
    )


def test_the_corpus_of_seed_0_is_this_one_on_every_python() -> None:
    digest = hashlib.sha256(json.dumps(mini.make_corpus(0, 50, 10, 10)).encode()).hexdigest()
    assert digest[:16] == "300795b9002f9ecf", "a new corpus: measure again what the README and benchmarks say about it"


def test_the_corpus_does_not_depend_on_the_hash_seed() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import corpus; print(corpus.make_corpus(1, 30, 5, 5))"
    printed = [
        subprocess.run(
            [sys.executable, "-c", code, str(SCRIPT.parent)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert printed[0] == printed[1]


def test_splits_do_not_depend_on_each_others_size() -> None:
    small, large = mini.make_corpus(0, 5, 7, 9), mini.make_corpus(0, 25, 3, 9)
    assert large.train[:5] == small.train
    assert small.validation[:3] == large.validation
    assert small.test == large.test


def test_splits_share_no_sentence_but_a_title_or_two() -> None:
    train, validation, test = ({tuple(words) for words, _ in split} for split in CORPUS)
    shared = (train & validation) | (train & test) | (validation & test)
    assert len(shared) <= 4
    assert all(len(words) < 12 for words in shared)


def test_a_split_without_sentences_is_refused() -> None:
    with pytest.raises(ValueError, match="validation must have at least 1 sentence, got 0"):
        mini.make_corpus(validation=0)


def test_writing_the_corpus_takes_less_than_two_seconds() -> None:
    start = time.process_time()
    mini.make_corpus()
    assert time.process_time() - start < 2


# It looks like the real corpus


def test_every_tag_is_a_label_and_obeys_iob2() -> None:
    for words, tags in ALL:
        assert len(words) == len(tags) > 0
        assert irregular(tags, "iob2") == []
        assert set(tags) <= set(mini.LABELS)


def test_no_mark_of_the_grammar_is_left_in_a_word() -> None:
    words = {word for row, _ in ALL for word in row}
    assert "" not in words
    assert not [word for word in words if set(word) & set("[]{}|= \n")]


def test_every_rule_of_the_grammar_is_used() -> None:
    named = set(re.findall(r"\{(\w+)\}", mini.RULES_TEXT))
    named |= {"clause", "opener", "joint", "extra", "title", "list", "cell_phrase"}  # named by Writer
    assert set(mini.RULES) == {name for name in named if not hasattr(mini.Writer, f"_make_{name}")}


def test_sentences_are_as_long_as_the_real_ones() -> None:
    lengths = sorted(len(words) for words, _ in ALL)
    quantile = [lengths[int(len(lengths) * share)] for share in (0.05, 0.25, 0.5, 0.75, 0.95)]
    assert quantile == pytest.approx([12, 18, 24, 33, 48], rel=0.1, abs=2.5)  # BioNLP2004
    assert statistics.mean(lengths) == pytest.approx(26.6, abs=3)
    assert 3 <= lengths[0] and lengths[-1] <= 160


@pytest.mark.parametrize("seed", range(4))
def test_every_split_of_every_seed_has_a_tail_past_100_words(seed: int) -> None:
    counts = [sum(len(words) > 100 for words, _ in split) for split in mini.make_corpus(seed, 300, 150, 75)]
    assert counts == [2, 1, 1]


def test_types_are_balanced_as_in_bionlp2004() -> None:
    counts = Counter(kind for kind, _ in entities(ALL))
    shares = {kind: count / counts.total() for kind, count in counts.items()}
    real = {"protein": 0.59, "DNA": 0.19, "cell_type": 0.13, "cell_line": 0.07, "RNA": 0.02}
    assert shares == pytest.approx(real, abs=0.03)
    assert counts.total() / len(ALL) == pytest.approx(2.77, abs=0.5)
    outside = [tag == "O" for _, tags in ALL for tag in tags]
    assert statistics.mean(outside) == pytest.approx(0.78, abs=0.04)


# It is a task: memorising words does not solve it


@pytest.mark.parametrize("split", ["validation", "test"])
def test_most_names_of_validation_and_test_never_occur_in_training(split: str) -> None:
    seen = set(entities(CORPUS.train))
    forms = set(entities(getattr(CORPUS, split)))
    assert len(forms - seen) / len(forms) >= 0.4
    words_seen = {word for words, _ in CORPUS.train for word in words}
    words = {word for _, text in forms for word in text.split()}
    assert len(words - words_seen) / len(words) >= 0.4


def test_a_name_takes_its_type_from_its_context() -> None:
    found = set(entities(ALL))
    proteins = {text for kind, text in found if kind == "protein"}
    everywhere = {name for name in proteins if {("DNA", f"{name} gene"), ("RNA", f"{name} mRNA")} <= found}
    assert len(everywhere) >= 5
    assert proteins & {text for kind, text in found if kind == "DNA"}
    dependent = {text.split("-dependent")[0] for kind, text in found if kind == "cell_line" and "-dependent" in text}
    assert len(dependent & proteins) >= 5


def test_names_occur_again_in_their_sentence_as_another_type() -> None:
    kinds = defaultdict(set)
    for number, (words, tags) in enumerate(ALL):
        for span in spans(tags):
            kinds[number, words[span.start]].add(span.type)
    assert sum(len(kind) > 1 for kind in kinds.values()) > 50


def test_coordination_is_two_proteins_but_one_dna() -> None:
    dna = [text.split() for kind, text in entities(ALL) if kind == "DNA" and text.endswith(" genes")]
    assert sum(words[-3] == "and" for words in dna) > 10
    pairs = [
        words
        for words, tags in ALL
        for i in range(len(words) - 3)
        if tags[i : i + 4] == ["B-protein", "O", "B-protein", "O"]
        and words[i + 1] == "and"
        and words[i + 3] != "proteins"
    ]
    assert len(pairs) > 50


def test_abbreviations_follow_in_brackets() -> None:
    marks = [
        (tags[i - 1][2:], tags[i + 1][2:])
        for words, tags in ALL
        for i in range(1, len(words) - 2)
        if words[i] == "(" and words[i + 2] == ")" and tags[i] == "O" and tags[i + 1].startswith("B-")
    ]
    assert {("protein", "protein"), ("DNA", "DNA"), ("cell_type", "cell_type"), ("cell_line", "cell_line")} <= set(
        marks
    )


@pytest.mark.parametrize(
    "word", ["protein", "gene", "mRNA", "promoter", "receptor", "cells", "T", "HIV-1", "stimulated"]
)
def test_indicative_words_are_also_distractors(word: str) -> None:
    tags = {tag for words, row in ALL for other, tag in zip(words, row, strict=True) if other == word}
    if word in ("promoter", "stimulated"):  # always, or never, part of an entity
        assert tags in ({"B-DNA", "I-DNA"}, {"O"})
    else:
        assert "O" in tags and len(tags) > 1


def test_a_word_list_does_not_solve_it() -> None:
    """Each word's most frequent tag in training, O for unseen words: the baseline that solves a trivial corpus."""
    counts = defaultdict(Counter)
    for words, tags in CORPUS.train:
        for word, tag in zip(words, tags, strict=True):
            counts[word][tag] += 1
    best = {word: counter.most_common(1)[0][0] for word, counter in counts.items()}
    predicted = [[best.get(word, "O") for word in words] for words, _ in CORPUS.validation]
    assert 0.1 < f1_score([tags for _, tags in CORPUS.validation], predicted) < 0.6


# Files and the command


def test_the_folder_reads_back_as_it_was_made(tmp_path: Path) -> None:
    mini.write_corpus(CORPUS, tmp_path)
    data = read_ner(tmp_path)
    assert data.labels == mini.LABELS
    assert data.notes == ()
    for got, made in zip((data.train, data.validation, data.test), CORPUS, strict=True):
        assert [(list(row.words), list(row.tags)) for row in got] == made


def test_labels_have_the_ids_of_bionlp2004() -> None:
    assert mini.LABELS[:5] == ("O", "B-DNA", "I-DNA", "B-protein", "I-protein")
    assert mini.LABELS[5:] == ("B-cell_type", "I-cell_type", "B-cell_line", "I-cell_line", "B-RNA", "I-RNA")


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text = Path.write_text

    def full_disk(self: Path, text: str, **options: str) -> int:
        if self.name == "test.json":
            raise OSError(28, "No space left on device")
        return write_text(self, text, **options)

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        mini.write_corpus(CORPUS, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


def test_the_command_writes_the_folder(tmp_path: Path) -> None:
    done = run("--output", str(tmp_path / "a" / "b"), "--seed", "2", "--sentences", "25")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'a' / 'b'}: train 25, validation 5, test 5 sentences\n"
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == sorted(
        ["label.json", "train.json", "valid.json", "test.json"]
    )
    assert [list(row.words) for row in read_ner(tmp_path / "a" / "b").test] == [
        w for w, _ in mini.make_corpus(2, 1, 1, 5).test
    ]


def test_the_command_explains_itself() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(flag in done.stdout for flag in ("--output", "--seed", "--sentences"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --output"),
        (["--output", "{tmp}", "--sentences", "4"], "--sentences must be at least 5, got 4"),
        (["--output", "{tmp}", "--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["--output", "{tmp}/file/corpus"], "cannot write {tmp}/file/corpus: Not a directory"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "file").write_text("")
    done = run(*(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert done.returncode == 2
    assert done.stderr.endswith(f"error: {message.replace('{tmp}', str(tmp_path))}\n")
    assert "Traceback" not in done.stderr
