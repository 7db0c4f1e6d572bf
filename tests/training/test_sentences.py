"""sentences.json holds the entity counts of the best epoch, by sentence, and which sentences they are of."""

import json
from dataclasses import replace

import numpy as np
import pytest
from torch.optim.optimizer import register_optimizer_step_post_hook

import lorakit
from lorakit.training.checkpoint import load_checkpoint
from lorakit.training.identity import digest_of
from lorakit.training.metrics import SentenceCounts
from lorakit.training.sentences import (
    METRIC,
    NAME,
    RunSentences,
    SplitSentences,
    read_sentences,
    settings_of,
    write_sentences,
)
from tests.support.tiny import LABELS
from tests.support.toy import killed_after, quick, read_log

RATE = 3e-2
COUNTS = SentenceCounts(np.array([[1, 2, 3], [0, 0, 1]]), np.array([[1, 1, 3], [0, 0, 1]]))


def test_what_is_written_is_read_again(tmp_path):
    run = RunSentences(3, 2, {"epochs": 5}, {"test": SplitSentences("abc", COUNTS)})
    write_sentences(tmp_path, run)
    back = read_sentences(tmp_path)
    assert (back.seed, back.best_epoch, back.settings, back.splits["test"].digest) == (3, 2, {"epochs": 5}, "abc")
    assert back.splits["test"].counts.default.tolist() == COUNTS.default.tolist()
    assert back.splits["test"].counts.strict.tolist() == COUNTS.strict.tolist()
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "sentences.json is not JSON"),
        ("[]", "sentences.json has schema None, and this version of lorakit reads 1"),
        ('{"schema": 2}', "has schema 2, and this version of lorakit reads 1"),
        ('{"schema": 1, "metric": "words"}', "has metric 'words', and this version of lorakit reads 'entities by"),
        (json.dumps({"schema": 1, "metric": METRIC}), "sentences.json is damaged .'splits'.; train the run again"),
    ],
)
def test_a_file_that_cannot_be_compared_is_refused(tmp_path, text, message):
    (tmp_path / NAME).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_sentences(tmp_path)


def test_the_digest_tells_words_tags_and_order_apart():
    pairs = [(("a", "b"), ("O", "B-x")), (("c",), ("O",))]
    others = [pairs[::-1], pairs[:1], [(("a", "b"), ("O", "O")), pairs[1]], [(("a", "B"), ("O", "B-x")), pairs[1]]]
    assert len({digest_of(sentences) for sentences in (pairs, *others)}) == 5
    assert digest_of([[list(side) for side in pair] for pair in pairs]) == digest_of(pairs)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_run_writes_the_counts_of_its_best_epoch(tiny_model, tokenizer, data, tmp_path, mode):
    model = tiny_model()
    if mode == "lora":
        lorakit.apply_lora(model, r=4)
    config = quick(epochs=3, output_dir=tmp_path, learning_rate=3e-2, seed=5)
    result = lorakit.train(model, tokenizer, data, config)
    run = read_sentences(tmp_path)
    assert (run.seed, run.best_epoch) == (5, result.best_epoch)
    for split, scores in (("validation", result.validation), ("test", result.test)):
        counts = run.splits[split].counts
        assert run.splits[split].digest == digest_of(getattr(data, split))
        assert len(counts.default) == len(getattr(data, split))
        assert counts.total("default").f1 == scores.f1
        assert counts.total("strict") == scores.strict


@pytest.fixture
def fading():
    """In the second half of a run every step sets the head to zero, so that no entity is found."""

    def fade(optimizer, *_):
        for group in optimizer.param_groups:
            if float(group["lr"]) < RATE / 2:
                for parameter in group["params"]:
                    if len(parameter) == len(LABELS):
                        parameter.data.zero_()

    hook = register_optimizer_step_post_hook(fade)
    yield
    hook.remove()


def test_an_epoch_that_is_not_the_best_leaves_the_counts_of_the_best(tiny_model, tokenizer, data, tmp_path, fading):
    result = lorakit.train(tiny_model(), tokenizer, data, quick(epochs=4, output_dir=tmp_path, learning_rate=RATE))
    assert result.best_epoch < 4 and result.history[3].f1 == 0 < result.validation.f1
    assert read_sentences(tmp_path).splits["validation"].counts.total("default").f1 == result.validation.f1


def test_a_run_resumed_after_its_best_epoch_writes_the_same_file(tiny_model, tokenizer, data, tmp_path, fading):
    config = quick(epochs=4, learning_rate=RATE, output_dir=tmp_path / "whole")
    whole = lorakit.train(tiny_model(), tokenizer, data, config)
    config = replace(config, output_dir=tmp_path / "parts")
    steps = 12 * whole.best_epoch + 3  # 12 steps per epoch
    with pytest.raises(KeyboardInterrupt), killed_after(steps):
        lorakit.train(tiny_model(), tokenizer, data, config)
    assert load_checkpoint(tmp_path / "parts" / "checkpoints").state["progress"]["best_epoch"] == whole.best_epoch
    lorakit.train(tiny_model(), tokenizer, data, replace(config, resume=True))
    assert (tmp_path / "parts" / NAME).read_bytes() == (tmp_path / "whole" / NAME).read_bytes()
    logged = [[line["event"] for line in read_log(tmp_path / name)] for name in ("whole", "parts")]
    assert logged[0] == logged[1]


def test_settings_differ_where_runs_differ_in_more_than_the_seed():
    identity = {"seed": 0, "epochs": 2, "trained parameters": {"a": [1, 2]}, "frozen weights (hash)": "1"}
    first = settings_of(quick(), identity)
    assert settings_of(quick(seed=1), {**identity, "seed": 1, "frozen weights (hash)": "2"}) == first
    assert settings_of(quick(), {**identity, "trained parameters": {"a": [1, 3]}}) != first
    assert settings_of(quick(patience=2), identity) != first


def test_a_disk_that_cannot_take_the_file_does_not_end_the_training(tiny_model, tokenizer, data, tmp_path):
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "in the way").touch()
    with pytest.warns(RuntimeWarning, match="sentences.json could not be written .*cannot be compared by sentence"):
        result = lorakit.train(tiny_model(), tokenizer, data, quick(epochs=1, output_dir=tmp_path))
    assert result.test is not None


def test_without_an_output_folder_nothing_is_written(tiny_model, tokenizer, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lorakit.train(tiny_model(), tokenizer, data, quick(epochs=1))
    assert list(tmp_path.iterdir()) == []
