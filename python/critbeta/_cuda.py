"""The CUDA kernels on torch tensors: what is launched, on torch's current stream, in memory of torch's allocator.

Nothing here waits for the device but `stats`, whose result is NumPy's. Whatever is allocated is allocated on the current
stream, so that torch's allocator gives it to others in that stream's order only; a CUDA graph can capture a launch after the
first call has loaded the kernels.
"""

from __future__ import annotations

import ctypes
import glob
import importlib.util
import math
import os
import threading
from typing import Any

import torch  # type: ignore[import-not-found, unused-ignore]

from . import _core
from ._results import Stats

_DTYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
_REPORT = dict(_core.report_layout())
_ALIGNMENT = 256
# Laws for which it matters where the query stands. Without positions the kernels take n - 1, the CPU path the last visible key.
_BY_POSITION = {law.name for law in _core.laws() if "position" in law.granularity}
_engines: dict[int, _core.Engine] = {}
_lock = threading.Lock()


def engine(device: Any) -> _core.Engine:
    """The kernels on a device, loaded once. Raises RuntimeError with every attempt where there are none."""
    index = torch.cuda.current_device() if device.index is None else device.index
    with _lock:
        if index not in _engines:
            if torch.version.cuda is None:
                raise RuntimeError(f"no kernels for {device}: this torch is not built for CUDA; pass scores.cpu()")
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                raise RuntimeError("the kernels are not loaded yet: call once before the capture of a CUDA graph begins")
            notes = _load_nvrtc()
            try:
                _engines[index] = _core.Engine.cuda(index)
            except RuntimeError as error:
                raise RuntimeError(
                    "; ".join([f"no kernels for {device}: {error}", *notes, "or pass scores.cpu()"])
                ) from error
        return _engines[index]


def stream(device: Any) -> int:
    """torch's current stream of a device as the driver's handle."""
    return int(torch.cuda.current_stream(device).cuda_stream)


def _load_nvrtc() -> list[str]:
    """Loads the NVRTC that torch's wheels bring, in folders where no loader looks, so that it is found by its name; says what
    failed."""
    nvidia = importlib.util.find_spec("nvidia")
    folders = [os.path.join(path, "*", "lib") for path in (nvidia.submodule_search_locations or [] if nvidia else [])]
    folders.append(os.path.join(os.path.dirname(torch.__file__), "lib"))
    found = [path for folder in folders for path in sorted(glob.glob(os.path.join(folder, "libnvrtc*.so*")))]
    notes = [] if found else [f"no libnvrtc in {', '.join(folders)}"]
    # libnvrtc-builtins sorts before libnvrtc.so, which looks for it by its bare name.
    for path in found:
        try:
            ctypes.CDLL(path)
        except OSError as error:
            notes.append(f"{path}: {error}")
    return notes


def launch(
    scores: Any,
    rule: _core.Rescaling,
    positions: Any = None,
    lens: Any = None,
    out: Any = None,
    resolve: float = 0.0,
    top_k: int | None = None,
    reports: bool = True,
) -> Any:
    """Begins one launch over `scores` [..., n], not empty, and gives the report of every row, uint8 [rows, bytes]; None without
    `reports`.

    positions, lens: integers on the device that broadcast to the leading shape. Their values cannot be looked at before the
    launch: a length is taken as one of 0..=n, a position as one of 0..2^32.
    """
    device, lead, n = scores.device, scores.shape[:-1], scores.shape[-1]
    kernels = engine(device)
    rows = math.prod(lead)
    block = scores.reshape(rows, n)
    if (n > 1 and block.stride(1) != 1) or (rows > 1 and block.stride(0) < n):
        block = block.contiguous()
    # A stride of one row means nothing, and torch leaves anything there.
    distance = block.stride(0) if rows > 1 else n
    lens = None if lens is None else _words(lens, lead, n)
    positions = None if positions is None else _words(positions, lead, 2**32 - 1)
    report = torch.empty((rows, _REPORT["bytes"]), dtype=torch.uint8, device=device) if reports else None
    dtype = _DTYPES[block.dtype]
    target = None
    if out is not None:
        if not out.is_contiguous():
            raise ValueError(f"out of shape {tuple(out.shape)} with strides {out.stride()}: expected contiguous")
        if out.dtype not in _DTYPES:
            raise TypeError(f"out is {out.dtype}: expected float32, or the dtype of scores")
        target = (out.data_ptr(), _DTYPES[out.dtype], n)
    needed = kernels.workspace_bytes(rows, n, dtype, target is not None)
    workspace = None
    if needed:
        memory = torch.empty(needed + _ALIGNMENT - 1, dtype=torch.uint8, device=device)
        workspace = [-(-memory.data_ptr() // _ALIGNMENT) * _ALIGNMENT, needed]
    kernels.launch(
        stream(device),
        (block.data_ptr(), dtype),
        [rows, n, distance],
        _address(lens),
        _address(positions),
        rule,
        target,
        _address(report),
        workspace,
        resolve,
        top_k,
    )
    return report


def softmax(scores: Any, rule: _core.Rescaling, positions: Any, lens: Any, out: Any, columns: int) -> list[Any]:
    """Begins to write probabilities to `out`; the first `columns` of `SoftmaxStats` as tensors on the device."""
    if positions is None and str(rule).partition(":")[0] in _BY_POSITION:
        last = _last_visible(scores.reshape(-1, scores.shape[-1]), _within(scores, lens))
        positions = last.reshape(scores.shape[:-1])
    report = launch(scores, rule, positions, lens, out, reports=columns > 0)
    if columns == 0:
        return []
    poisoned = _integers(report, "poisoned") != 0
    beta = torch.where(poisoned, math.nan, _doubles(report, "beta"))
    found = [beta]
    if columns > 1:
        log_partition = torch.where(beta.isnan(), math.nan, _doubles(report, "sum").log())
        top = torch.where(poisoned, math.nan, _floats(report, "max").double())
        n, argmax, ties = (_integers(report, name).long() for name in ("n", "argmax", "ties"))
        found += [log_partition, n, top, argmax, torch.where(poisoned, 0, ties), poisoned]
    return [column.reshape(scores.shape[:-1]) for column in found]


def critical_beta(scores: Any, resolve: float) -> Any:
    """Lambda(resolve) of every row, float64 on the device: from the contacts, one division and one logarithm of the device."""
    report = launch(scores, _core.Rescaling.parse("identity"), resolve=resolve)
    ties, n = _integers(report, "ties"), _integers(report, "n")
    gap, rank = _floats(report, "resolved").double(), _integers(report, "resolved", 1)
    ratio = torch.where(gap > 0, (rank.double().log() - resolve) / gap, 0.0).clamp(min=0.0)
    found = torch.where(ties >= _smallest_exceeding(resolve), math.inf, ratio)
    unknown = (_integers(report, "poisoned") != 0) | ((rank == 0) & (n > 0))
    return torch.where(unknown, math.nan, found).reshape(scores.shape[:-1])


def stats(scores: Any, lens: Any, resolve: float, beta: float, top_k: int | None) -> Stats:
    """`critbeta.stats`: waits for the device."""
    lead = scores.shape[:-1]
    report = launch(scores, _core.Rescaling.parse(f"fixed:{beta!r}"), lens=lens, resolve=resolve, top_k=top_k)
    within = _within(scores, lens)
    last, masked = (within - 1).clamp(min=0), (_integers(report, "n") != within).nonzero().flatten()
    last[masked] = _last_visible(scores.reshape(-1, scores.shape[-1])[masked], within[masked])
    per_head = lead[-1] if lead else 1
    rows = _core.rows_of_reports(report.cpu().numpy(), last.cpu().numpy(), per_head, resolve, beta, top_k)
    return Stats(rows, tuple(lead))


def _address(tensor: Any) -> int | None:
    return None if tensor is None else int(tensor.data_ptr())


def _integers(report: Any, name: str, beyond: int = 0) -> Any:
    return report.view(torch.int32)[:, _REPORT[name] // 4 + beyond]


def _floats(report: Any, name: str) -> Any:
    return report.view(torch.float32)[:, _REPORT[name] // 4]


def _doubles(report: Any, name: str) -> Any:
    return report.view(torch.float64)[:, _REPORT[name] // 8]


def _words(values: Any, lead: Any, most: int) -> Any:
    """Integers as the kernels read them: one u32 per row, clamped to 0..=most."""
    wide = values.long().clamp(0, most).expand(lead).reshape(-1).contiguous()
    # The low halves: a conversion of what int32 does not hold is not defined.
    return wide.view(torch.int32)[::2].contiguous()


def _smallest_exceeding(resolve: float) -> int:
    """The smallest count whose logarithm exceeds resolve >= 0, beyond all counts where none does; the host's logarithm, as in
    the launch."""
    near = max(1, int(math.exp(min(resolve, 22.0))) - 2)
    return next((count for count in range(near, near + 5) if math.log(count) > resolve), 2**31 - 1)


def _within(scores: Any, lens: Any) -> Any:
    """Scores of each row before its length, int64 [rows]."""
    lead, n = scores.shape[:-1], scores.shape[-1]
    if lens is None:
        return torch.full((math.prod(lead),), n, dtype=torch.int64, device=scores.device)
    return lens.long().clamp(0, n).expand(lead).reshape(-1)


def _last_visible(block: Any, within: Any) -> Any:
    """The index of the last unmasked score of every row of [rows, n], 0 without any: reads all scores once more, as the CPU
    path does."""
    columns = torch.arange(block.shape[-1], dtype=torch.int32, device=block.device)
    # So many scores at a time that their indices take 32 MB.
    step = max(1, (8 << 20) // block.shape[-1])
    last = [
        torch.where((some != -math.inf) & (columns < end[:, None]), columns, 0).amax(-1)
        for some, end in zip(block.split(step), within.split(step))
    ]
    return torch.cat(last).long() if last else within
