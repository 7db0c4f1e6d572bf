"""A table with trained rows looks up what the table with these rows written into it would."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lorakit.nn.token_rows import ROWS, attach_rows, detach_rows, has_rows

TOKENS = st.lists(st.integers(0, 9), min_size=1, max_size=10, unique=True)


@given(tokens=TOKENS, padding=st.none() | st.integers(0, 9), x=st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_output_and_gradient_are_those_of_the_written_table(tokens: list[int], padding: int | None, x: list[int]):
    torch.manual_seed(len(tokens))
    table, ids = nn.Embedding(10, 4, padding_idx=padding).requires_grad_(False), torch.tensor(x)
    attach_rows(table, tokens)
    nn.init.normal_(table.lora_rows)
    written = table.weight.index_copy(0, torch.tensor(tokens), table.lora_rows.detach()).requires_grad_()
    expected, y = F.embedding(ids, written, padding), table(ids)
    assert torch.equal(y, expected) and torch.equal(table.merged_table(), written)
    scale = torch.randn_like(y)
    (y * scale).sum().backward()
    (expected * scale).sum().backward()
    torch.testing.assert_close(table.lora_rows.grad, written.grad[tokens])
    assert table.weight.grad is None


def test_a_table_gets_other_rows_and_becomes_plain_again() -> None:
    table = nn.Embedding(10, 4)
    keys, weight = set(vars(table)), table.weight
    attach_rows(table, [1, 2])
    rows = table.lora_rows
    assert "trained rows=2" in repr(table) and set(table.state_dict()) == {"weight", ROWS}
    nn.init.zeros_(rows)
    attach_rows(table, [3, 4])  # as many: the optimizer keeps its parameter
    assert table.lora_rows is rows and torch.equal(rows, weight[[3, 4]])
    attach_rows(table, [5])
    assert table.lora_rows.shape == (1, 4)
    detach_rows(table)
    assert type(table) is nn.Embedding and set(vars(table)) == keys and table.weight is weight and not has_rows(table)
    assert set(table.state_dict()) == {"weight"}


def test_a_half_precision_table_keeps_float32_rows() -> None:
    table = nn.Embedding(10, 4, dtype=torch.bfloat16)
    attach_rows(table, [1])
    assert table.lora_rows.dtype == torch.float32 and table(torch.tensor([0, 1])).dtype == torch.bfloat16
