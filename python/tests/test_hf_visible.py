"""The keys that rows see under masks that no model here makes: flash attention, and wrong masks."""

import numpy as np
import pytest
import torch
from critbeta.hf._interface import Call
from critbeta.hf._visible import Visible


def call(implementation, rows, keys, mask=None, batch=1, **kwargs):
    module = torch.nn.Module()
    module.is_causal = kwargs.pop("causal", True)
    q, k = torch.zeros(batch, 4, rows, 8), torch.zeros(batch, 2, keys, 8)
    return Call(implementation, None, module, q, k, k, mask, kwargs, "layer")


def check(visible, sees, positions, batch=1):
    """Compares with `sees(text, row, key)`."""
    shape = batch, visible.rows, visible.keys
    expected = np.array([sees(*at) for at in np.ndindex(shape)], bool).reshape(shape)
    found = visible.seen_by(torch.arange(visible.rows)).expand(batch, 1, -1, -1)[:, 0].numpy()
    assert np.array_equal(found, expected)
    assert np.array_equal(visible.counts().expand(batch, 1, -1)[:, 0].numpy(), expected.sum(-1))
    assert visible.positions.expand(batch, -1).tolist() == positions
    for rows in (torch.tensor([0]), torch.arange(visible.rows)):
        assert not expected[:, rows.numpy(), visible.end(rows) :].any()


def test_no_mask_means_what_the_implementation_says():
    check(Visible(call("sdpa", 5, 5), None), lambda _, row, key: key <= row, [[0, 1, 2, 3, 4]])
    check(Visible(call("sdpa", 3, 7), None), lambda _, row, key: key <= row, [[0, 1, 2]])
    check(Visible(call("sdpa", 1, 7), None), lambda *_: True, [[6]])
    check(Visible(call("sdpa", 3, 7, causal=False), None), lambda *_: True, [[0, 1, 2]])
    check(Visible(call("sdpa", 3, 3, is_causal=False), None), lambda *_: True, [[0, 1, 2]])
    check(Visible(call("eager", 3, 3), None), lambda *_: True, [[0, 1, 2]])
    check(Visible(call("flash_attention_2", 3, 7), None), lambda _, row, key: key <= row + 4, [[4, 5, 6]])


def test_flash_windows_padding_and_packing():
    window = Visible(call("flash_attention_2", 4, 9, sliding_window=3), None)
    check(window, lambda _, row, key: row + 5 - 3 < key <= row + 5, [[5, 6, 7, 8]])
    padding = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    padded = Visible(call("flash_attention_3", 3, 5, padding, batch=2), padding)
    sees = lambda text, row, key: key <= row + 2 and padding[text, key] == 1  # noqa: E731
    check(padded, sees, [[0, 1, 2], [2, 3, 4]], batch=2)
    ids = torch.tensor([[0, 1, 2, 0, 1]])
    packed = Visible(call("flash_attention_2", 5, 5, position_ids=ids), None)
    check(packed, lambda _, row, key: key <= row and (key < 3) == (row < 3), ids.tolist())
    many = Visible(call("flash_attention_2", 5000, 5000, sliding_window=7), None)
    assert many.counts().flatten().tolist() == [min(row + 1, 7) for row in range(5000)]


def test_additive_masks_hide_the_lowest_numbers_and_bias_the_others():
    mask = torch.zeros(2, 1, 3, 3)
    mask[:, :, 0, 1:] = torch.finfo(torch.float32).min
    mask[:, :, 1, 2] = -torch.inf
    visible = Visible(call("eager", 3, 3, mask, batch=2), None)
    check(visible, lambda _, row, key: key <= row, [[0, 1, 2]] * 2, batch=2)
    assert not visible.biased
    mask[1, 0, 2, 0] = -4.0
    visible = Visible(call("eager", 3, 3, mask, batch=2), None)
    assert visible.biased and visible.counts()[1, 0].tolist() == [1, 2, 3]


def test_masks_of_unknown_kinds_are_refused():
    for implementation, mask, message in [
        ("flex", object(), "a mask of type object under 'flex', expected a tensor: load the model with"),
        ("sdpa", torch.zeros(1, 1, 3, 3, dtype=torch.int64), "a mask of torch.int64, expected bool"),
        ("sdpa", torch.zeros(1, 1, 2, 3), r"mask of shape \[1, 1, 2, 3\], expected a shape .*\[1, 4, 3, 3\]"),
        ("flash_attention_2", torch.zeros(1, 1, 3, 3), r"expected \[batch, keys\] for flash"),
        ("paged|eager", None, "without a mask it does not say which keys are whose"),
    ]:
        with pytest.raises(ValueError, match=message):
            Visible(call(implementation, 3, 3, mask), None)
