"""Softmax in Triton by the online recurrence: one program per row, two reads and one write, any n."""

import os

import torch
import triton
import triton.language as tl

# Triton's own interpreter runs the kernel on a CPU: how the dry run covers it.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LARGEST_BLOCK = 8192


@triton.jit
def _online_softmax(scores, out, n, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * n
    columns = tl.arange(0, BLOCK)
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, n, BLOCK):
        at = first + columns
        x = tl.load(scores + row + at, mask=at < n, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(top, x)
        # A lane that has seen nothing but -inf keeps an empty sum: -inf - -inf is no number.
        anchor = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(top - anchor) + tl.exp(x - anchor)
        top = higher
    highest = tl.max(top, 0)
    scale = 1.0 / tl.sum(total * tl.exp(top - highest), 0)
    for first in range(0, n, BLOCK):
        at = first + columns
        x = tl.load(scores + row + at, mask=at < n, other=float("-inf")).to(tl.float32)
        tl.store(out + row + at, (tl.exp(x - highest) * scale).to(out.dtype.element_ty), mask=at < n)


def softmax(x):
    out = torch.empty_like(x)
    block = min(triton.next_power_of_2(x.shape[-1]), LARGEST_BLOCK)
    warps = max(1, min(16, block // 256))
    _online_softmax[(x.shape[0],)](x, out, x.shape[-1], BLOCK=block, num_warps=warps)
    return out
