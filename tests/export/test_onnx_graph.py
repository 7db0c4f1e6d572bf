"""The ONNX graph, run by onnxruntime itself."""

import json

import pytest

import lorakit
from lorakit.cli.__main__ import main
from lorakit.training.models import load_tagger

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package} is not installed (extra onnx)")


def test_onnxruntime_finds_what_lorakit_finds_and_int8_says_what_it_costs(adapter, corpus, words, tmp_path, capsys):
    import onnxruntime
    from transformers import AutoTokenizer

    out = tmp_path / "out"
    command = ["export", str(adapter), str(out), "--to", "onnx", "--int8", "--dataset", str(corpus)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "(greedy, fp32) of 4 sentences of the validation set through onnxruntime." in said
    assert "F1 on these sentences" in said and "Note that" not in said
    assert (out / "model.int8.onnx").stat().st_size < (out / "model.onnx").stat().st_size
    wanted = lorakit.predict(*load_tagger(str(adapter)), words)
    labels = json.loads((out / "config.json").read_text())["id2label"]
    tokenizer, session = AutoTokenizer.from_pretrained(out), onnxruntime.InferenceSession(out / "model.onnx")
    for row, tags in zip(words, wanted, strict=True):  # another batch size and other lengths than at export
        batch = tokenizer([row], is_split_into_words=True, return_tensors="np")
        logits = session.run(None, {name: batch[name] for name in ("input_ids", "attention_mask")})[0]
        ids = batch.word_ids(0)
        assert [labels[str(logits[0, ids.index(i)].argmax())] for i in range(len(row))] == tags


def test_the_lines_of_the_readme_give_the_valid_tags_of_a_model_of_viterbi(
    valid, corpus, words, tmp_path, capsys, run_readme
):
    out = tmp_path / "out"
    assert main(["export", str(valid), str(out), "--to", "onnx", "--int8", "--dataset", str(corpus)]) == 0
    said = capsys.readouterr().out
    assert (
        "(greedy, fp32) and" in said
        and "(viterbi, fp32) of 4 sentences of the validation set through onnxruntime." in said
    )
    assert "Note that its largest logits are greedy" in said and "model.int8.onnx (viterbi): " in said
    wanted, greedy = (lorakit.predict(*load_tagger(model=str(valid)), words, decode=d) for d in ("auto", "greedy"))
    assert wanted != greedy
    assert [run_readme(out, row) for row in words] == [f"{tags}\n" for tags in wanted]


def test_a_model_that_the_exporter_cannot_trace_is_named(full, corpus, tmp_path, capsys, monkeypatch):
    from transformers import RobertaForTokenClassification

    forward = RobertaForTokenClassification.forward

    def branching(self, *given, **options):
        found = forward(self, *given, **options)
        return found if found[0].sum() > -1e9 else None  # depends on values, which a graph cannot

    monkeypatch.setattr(RobertaForTokenClassification, "forward", branching)
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(full), str(tmp_path / "out"), "--to", "onnx", "--dataset", str(corpus)])
    told = capsys.readouterr().err
    assert "torch.onnx cannot export RobertaForTokenClassification: " in told and "--to hf" in told
    assert len(told.splitlines()) == 1 and list(tmp_path.iterdir()) == []
    assert main(["export", str(full), str(tmp_path / "out"), "--to", "hf", "--dataset", str(corpus)]) == 0
