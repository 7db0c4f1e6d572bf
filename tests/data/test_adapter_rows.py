"""Every window is in one row, every row has windows of one adapter, and little is padded."""

import numpy as np
import pytest

from lorakit.data.adapter_rows import batches_by_adapter, windows_of
from lorakit.data.encoding import encode
from lorakit.data.packing import Layout
from tests.support.toy import toy_sentences

LAYOUT = Layout(2, 1)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("world_size", [1, 2])
def test_rows_hold_one_adapter_and_all_windows_are_there(tokenizer, packing, world_size):
    sentences = [s.words for s in toy_sentences(60, 0)] + [(), ("word",) * 300]
    encoded = encode(tokenizer, sentences, 64)
    of_sentence = np.random.default_rng(0).integers(0, 5, len(sentences))
    adapters = windows_of(encoded, of_sentence)
    layout = Layout(2, 1, packing=packing)
    batches = [b for r in range(world_size) for b in batches_by_adapter(encoded, adapters, layout, 400, r, world_size)]
    window_of_token = np.repeat(np.arange(len(encoded)), encoded.lengths)
    ends, seen, cells = np.cumsum(encoded.sentence_lengths), [], 0
    for plan, rows in batches:
        assert len(rows) == len(plan.source)
        cells += plan.source.numel()
        for row, adapter in zip(plan.source.numpy(), rows, strict=True):
            tokens = row[row < len(encoded.ids)]
            seen += tokens.tolist()
            assert {adapters[w] for w in window_of_token[tokens]} == {adapter}
            words = encoded.words[tokens]
            assert all(of_sentence[np.searchsorted(ends, w, side="right")] == adapter for w in words[words >= 0])
    assert sorted(seen) == list(range(len(encoded.ids)))
    assert not packing or cells < 1.3 * len(encoded.ids)
