"""The lines of a README from logits to tags, and the logits that they begin with."""

import numpy as np
import pytest

from lorakit.data.decoding import transitions, viterbi
from lorakit.export.words import TO_TAGS, TRANSITIONS, in_torch, read_by_words, write_transitions

SCHEMES = {
    "iob2": ["O", "B-X", "I-X", "B-Y", "I-Y"],
    "bioes": ["S-X", "O", "B-X", "E-X", "I-X", "B-Y", "E-Y"],
    "types": ["X", "O", "Y"],
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_readmes_lines_find_the_sequences_that_lorakit_finds(scheme, tmp_path, monkeypatch, capsys):
    labels, random = SCHEMES[scheme], np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    write_transitions("viterbi", labels, tmp_path)
    changed = 0
    for length in (1, 2, 5, 9) * 5:
        rows = random.normal(size=(length, len(labels))).astype(np.float32)
        chances = rows - np.log(np.exp(rows).sum(1, keepdims=True))
        best = viterbi(chances, np.array([length]), transitions(labels))
        printed = {}
        for decode, lines in TO_TAGS.items():
            exec(compile(lines, "README.md", "exec"), {"rows": rows, "labels": labels})
            printed[decode] = capsys.readouterr().out
        assert printed["viterbi"] == f"{[labels[i] for i in best]}\n"
        assert printed["greedy"] == f"{[labels[i] for i in rows.argmax(1)]}\n"
        changed += printed["viterbi"] != printed["greedy"]
    assert scheme == "types" or changed > 5


def test_greedy_tags_need_no_file(tmp_path):
    write_transitions("greedy", ["O"], tmp_path)
    assert not (tmp_path / TRANSITIONS).exists()


def test_the_logits_of_a_word_are_those_of_its_first_subword(tiny_model, tokenizer):
    import torch

    model, sentences = tiny_model(), [["NF-kappa", "B", "p50/p65"], ["IL-2"], ["GATA-1", "binds"]]
    found = list(read_by_words(tokenizer, in_torch(model), sentences))
    assert [rows.shape for rows in found] == [(len(words), model.config.num_labels) for words in sentences]
    for words, rows in zip(sentences, found, strict=True):
        batch = tokenizer([words], is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**batch).logits[0].numpy()
        ids = batch.word_ids(0)
        np.testing.assert_allclose(rows, logits[[ids.index(i) for i in range(len(words))]], atol=1e-5)
