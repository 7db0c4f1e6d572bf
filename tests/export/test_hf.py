"""The folder for transformers: its own pipeline finds what lorakit finds."""

import json

import pytest
from transformers import pipeline

import lorakit
from lorakit.cli.__main__ import main
from lorakit.data.tags import spans
from lorakit.training.models import load_tagger
from tests.support.tiny import make_tiny_model
from tests.support.tokenizers import make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")


def by_characters(words, tags):
    ends = [sum(map(len, words[: i + 1])) + i for i in range(len(words))]
    return [(e.type, ends[e.start] - len(words[e.start]), ends[e.end - 1]) for e in spans(tags)]


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_the_pipeline_finds_what_lorakit_finds(kind, request, corpus, words, tmp_path, capsys):
    source = str(request.getfixturevalue(kind))
    assert main(["export", source, str(tmp_path / "out"), "--to", "hf", "--dataset", str(corpus)]) == 0
    told = capsys.readouterr().out
    assert "entities (greedy, fp32) of 4 sentences of the validation set through transformers' pipeline." in told
    model, tokenizer = load_tagger(source if kind == "adapter" else None, None if kind == "adapter" else source)
    wanted = [by_characters(*pair) for pair in zip(words, lorakit.predict(model, tokenizer, words), strict=True)]
    assert sum(map(len, wanted)) > 10
    find = pipeline("token-classification", model=str(tmp_path / "out"), aggregation_strategy="first")
    found = [[(e["entity_group"], e["start"], e["end"]) for e in find(" ".join(row))] for row in words]
    assert found == wanted
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["task_specific_params"] == {"token-classification": {"aggregation_strategy": "first"}}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card and 'aggregation_strategy="first"' in card
    assert f"of more than {tokenizer.model_max_length:,} tokens the pipeline reads the beginning" in card


def test_of_a_text_longer_than_the_window_the_pipeline_reads_the_beginning_unless_it_strides(full, corpus, tmp_path):
    assert main(["export", str(full), str(tmp_path / "out"), "--to", "hf", "--dataset", str(corpus)]) == 0
    text = " ".join(["The IL-2 gene binds GATA-1 ."] * 200)
    ends = []
    for more in ({}, {"stride": 128}):
        find = pipeline("token-classification", model=str(tmp_path / "out"), aggregation_strategy="first", **more)
        ends.append(find(text)[-1]["end"])
    assert ends[0] < len(text) / 2 and ends[1] > 0.99 * len(text)


def test_the_pipeline_says_what_it_loses_to_the_decoder_of_training(valid, corpus, tmp_path, capsys):
    assert main(["export", str(valid), str(tmp_path / "out"), "--to", "hf", "--dataset", str(corpus)]) == 0
    told = capsys.readouterr().out
    assert "(greedy, fp32)" in told and "the pipeline's entities are greedy, and lorakit.predict decodes" in told
    assert "Note that the pipeline's entities are greedy" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["full", "valid"])
def test_the_lines_for_words_give_the_tags_of_lorakit(kind, request, corpus, words, tmp_path, capsys, run_readme):
    source, out = str(request.getfixturevalue(kind)), tmp_path / "out"
    command = ["export", source, str(out), "--to", "hf", "--dataset", str(corpus), "--through", "words"]
    assert main(command) == 0
    assert ("(viterbi, fp32)" in capsys.readouterr().out) == (kind == "valid")
    assert (out / "transitions.json").is_file() == (kind == "valid")
    wanted = lorakit.predict(*load_tagger(model=source), words)
    assert [run_readme(out, row) for row in words] == [f"{tags}\n" for tags in wanted]


def test_the_lines_of_the_readme_run(full, corpus, tmp_path, monkeypatch, capsys):
    for through, printed in (("pipeline", "'entity_group': "), ("words", "', '")):
        command = ["export", str(full), str(tmp_path / through), "--to", "hf", "--dataset", str(corpus)]
        assert main([*command, "--through", through]) == 0
        assert ("stride" if through == "pipeline" else "A sentence may have up to ") in (
            tmp_path / through / "README.md"
        ).read_text()
        monkeypatch.chdir(tmp_path / through)
        code = (tmp_path / through / "README.md").read_text().split("```python\n")[1].split("```")[0]
        capsys.readouterr()
        exec(compile(code, "README.md", "exec"), {})
        assert printed in capsys.readouterr().out


def test_a_pipeline_that_splits_words_again_is_not_what_the_readme_shows(corpus, tmp_path, capsys, run_readme, words):
    """A WordPiece tokenizer makes three words of IL-2."""
    tokenizer = make_tokenizer("bert")
    model = make_tiny_model(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    command = ["export", str(tmp_path / "model"), str(out), "--to", "hf", "--dataset", str(corpus)]
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--through", "pipeline"])
    told = capsys.readouterr().err
    assert "the export is refused and nothing was written: in sentence 1 of 4 lorakit finds" in told
    assert "leave --through out" in told and len(told.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "of 4 sentences of the validation set through transformers." in told
    assert "pipeline is not equal, so README.md shows other lines: in sentence 1 of 4 lorakit finds" in told
    card = (out / "README.md").read_text()
    assert "Note that transformers' pipeline is not equal" in card and "import pipeline" not in card
    wanted = lorakit.predict(*load_tagger(model=str(tmp_path / "model")), words)
    assert [run_readme(out, row) for row in words] == [f"{tags}\n" for tags in wanted]


def test_the_pipeline_takes_a_space_that_is_a_token_for_a_word(full):
    """Why a byte-level tokenizer's export may not be equal through it; without this, `--to hf` would need no words."""
    find = pipeline("token-classification", model=str(full), aggregation_strategy="first", ignore_labels=[])
    find.model.config.id2label = {i: f"B-{i}" for i in find.model.config.id2label}  # no two words make one entity
    text = "human umbilical vein"
    assert "Ġ" in find.tokenizer.tokenize(f" {text}")
    assert [(e["start"], e["end"]) for e in find(text)] == [(0, 5), (6, 6), (6, 15), (16, 20)]
