"""Ranks that were given different settings find out before the first step; two ranks are simulated in one process."""

from dataclasses import replace

import pytest

import lorakit
from lorakit.training import same_run
from lorakit.training.identity import OtherRunError
from lorakit.training.same_run import check_ranks
from tests.support.toy import quick, toy_sentences


@pytest.fixture
def compare(tiny_model, data, monkeypatch):
    """Let two ranks compare what they were given, one after the other in this process."""

    def compare(config=None, corpus=None, seed=0, **options):
        sent = []

        def gather(mine):
            sent.append(mine)
            return sent * 2 if len(sent) == 1 else sent

        monkeypatch.setattr(same_run, "world_size", lambda: 2)
        monkeypatch.setattr(same_run, "gather_bytes", gather)
        check_ranks(quick(), lorakit.apply_lora(tiny_model(), r=4), data)
        check_ranks(config or quick(), lorakit.apply_lora(tiny_model(seed=seed), r=4, **options), corpus or data)

    return compare


def test_ranks_with_the_same_settings_agree(compare, tmp_path):
    compare()
    compare(quick(progress=True, output_dir=tmp_path))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"config": quick(seed=1)}, "seed is '0' on rank 0 and '1' on rank 1; start all with the same command"),
        ({"config": quick(learning_rate=0.5)}, "learning_rate is .* and '0.5' on rank 1"),
        ({"config": quick(precision="bf16")}, "precision is"),
        ({"config": quick(epochs=9)}, "epochs is"),
        ({"lora_alpha": 4}, "LoRA: lora_alpha is 32 on rank 0 and 4 on rank 1"),
        ({"seed": 1}, "weights"),
    ],
)
def test_ranks_with_other_settings_are_refused(compare, changes, named):
    with pytest.raises(OtherRunError, match=f"the processes were given different settings: {named}"):
        compare(**changes)


def test_ranks_with_another_corpus_are_refused(compare, data):
    with pytest.raises(OtherRunError, match="train set"):
        compare(corpus=replace(data, train=toy_sentences(5, 2)))
