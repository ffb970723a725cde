"""`critbeta.decode` and `critbeta.measure`."""

from __future__ import annotations

from typing import Any

from . import _arrays, _pages
from ._arrays import ArrayLike
from ._pages import Arguments, Rules, Tables, number, whole
from ._results import DecodeStats, Stats


def decode(
    q: ArrayLike,
    k_pages: ArrayLike,
    v_pages: ArrayLike,
    block_tables: Tables,
    lens: ArrayLike,
    *,
    q_lens: ArrayLike | None = None,
    scale: float | None = None,
    rescaling: Rules = "identity",
    eps: float = 0.0,
    layout: str = "NHD",
    softcap: float | None = None,
    window: int | None = None,
    v_radius: ArrayLike | None = None,
    centre: ArrayLike | None = None,
    out: ArrayLike | None = None,
    return_stats: bool = False,
) -> Any:
    """Returns the attention of few query tokens over keys and values in pages, [tokens, heads, v_head_dim].

    The scores of a row come from one pass over the keys, and the row's beta from its scores, where
    `rescaling` measures it. Values are read last. Those with the smallest weights may stay unread.

    q: [tokens, heads, head_dim], after rotary embedding and norms. The tokens of a sequence follow each
        other. heads is a multiple of kv_heads: query head h reads head h / (heads / kv_heads).
    k_pages, v_pages: [pages, page, kv_heads, head_dim] if `layout` is "NHD", [pages, kv_heads, page,
        head_dim] if it is "HND", of one dtype. Any strides are read without a copy; K and V may lie in one
        allocation. head_dim is a multiple of 8 from 64 to 256, and that of v may differ from that of k.
        What no sequence uses is never read: it may be NaN.
    block_tables: the pages of each sequence in order, int32 [seqs, blocks], or (indptr, indices), where
        sequence s has indices[indptr[s]:indptr[s + 1]]. Entries behind the length may hold anything.
    lens: the number of keys of each sequence, those of its query tokens included.
    q_lens: the number of query tokens of each sequence, 0 to 8; 1 if not given. Token i of a sequence sees
        the keys up to its own, number len - q_len + i.
    scale: the factor of the products, by default 1 / sqrt(head_dim).
    rescaling: a `Rescaling` or its text, or a list of one per query head (of a calibration, those of the
        layer: "calibrated:c=,xi=").
    eps: the share of a row's weights whose values may stay unread, 0 <= eps < 1. 0 reads all values.
    softcap: scores become softcap * tanh(score / softcap).
    window: a token sees its own key and the window - 1 before it.
    v_radius: float32 [pages, kv_heads], at least the largest norm of v - centre over the used slots of each
        page. `bound` of the statistics then holds in that norm, Euclidean or maximum.
    centre: float32 [kv_heads, v_head_dim], what stands for values that stay unread; 0 if not given.
    out: float32, float16 or bfloat16, C-contiguous. It is written in place and returned. It shares no memory
        with the other arrays. Without it the result is new, of the kind and dtype of q.
    return_stats: returns (output, `DecodeStats`) if true. It measures the critical beta of every row.

    A row without keys gives 0. A row that sees a NaN or an infinite score gives NaN, and no other row does.
    The bits do not depend on threads, page size, layout, strides or other sequences. With eps above 0, what
    a row leaves unread depends on the heads and query tokens that share its keys.

    For inference only: it raises NotImplementedError for tensors that require a gradient, unless gradients
    are off. On an error `out` stays as it was. Source: docs/how-it-works.md.

    On a GPU all tensors are on one device, nothing waits for it, and a CUDA graph can capture the call where
    block_tables, lens and q_lens are tensors of int32. What differs there:

    - q has the dtype of the pages, whose strides are multiples of 16 bytes. out is float32 or has the dtype
      of q, with any strides of tokens and heads. Values of 16 bits are multiplied by weights within 2^-16.
    - A wrong length or page is no error: its rows are NaN, and all are where q_lens cannot be.
    - The room of block_tables (columns x slots of a page) decides the memory and the launches, so pass no
      more columns than the longest sequence needs.
    - Neighbouring heads of one rule share a launch. With return_stats, every rule but `critical` with
      resolve = 0 costs one more pass over the keys, which measures the critical beta.
    - `dropped` and `kept` are of the key head, which its rows share. `DecodeStats` says what each bounds.
    - NotImplementedError for v_radius and centre, and for (indptr, indices).
    """
    if eps is None:
        raise TypeError("eps is None: expected a number")
    of_scores = number(scale, "scale"), rescaling, number(eps, "eps"), layout
    limits = number(softcap, "softcap"), whole(window, "window")
    given = Arguments(q, k_pages, v_pages, block_tables, lens, q_lens, *of_scores, *limits, v_radius, centre)
    if _arrays.is_on_gpu(q) or (_arrays.is_tensor(q) and (out is None or _arrays.is_tensor(out))):
        from . import _tensors

        return _tensors.decode(given, out, return_stats)
    found, columns = _pages.decode(given, out, return_stats)
    return (found, DecodeStats(**columns)) if return_stats else found


def measure(
    q: ArrayLike,
    k_pages: ArrayLike,
    block_tables: Tables,
    lens: ArrayLike,
    *,
    q_lens: ArrayLike | None = None,
    scale: float | None = None,
    rescaling: Rules = "identity",
    layout: str = "NHD",
    softcap: float | None = None,
    window: int | None = None,
    resolve: float = 0.0,
    top_k: int | None = None,
) -> Stats:
    """Measures the row of every query token and head over keys in pages, without values.

    The arguments are those of `decode`; resolve and top_k are those of `stats`. Columns have the shape
    [tokens, heads]: `head` is the query head, `row` the token, `position` that of its own key, and `beta` the
    one that `rescaling` chose. A server multiplies its queries by beta, in front of its own kernel.
    `torch.ops.critbeta.measure` gives beta and critical beta as tensors.

    On a GPU all tensors are on one device, and q has the dtype of k_pages. Strides of pages, slots and heads
    are multiples of 16 bytes. Fastest are block_tables, lens and q_lens of int32; others are converted there.
    This call waits for the device, because it returns NumPy columns; the operator does not, and a CUDA graph
    can capture it. A row that needs a page which the pool does not have is poisoned, where a CPU raises
    ValueError; in the operator a length that is wrong does the same. Neighbouring heads of one rule share a
    launch. It raises NotImplementedError there for top_k and for (indptr, indices).
    """
    of_scores = number(scale, "scale"), rescaling, 0.0, layout
    limits = number(softcap, "softcap"), whole(window, "window")
    given = Arguments(q, k_pages, None, block_tables, lens, q_lens, *of_scores, *limits)
    if _arrays.is_on_gpu(q):
        from . import _tensors

        return _tensors.measure(given, resolve, top_k)
    return _pages.measure(given, resolve, top_k)
