"""The CUDA kernels on torch tensors: launches on torch's current stream, in memory of torch's allocator.

Only `stats` waits for the device, because it returns NumPy arrays. All memory is allocated on the current
stream, so torch's allocator reuses it in the order of that stream only. A CUDA graph can capture a launch
after the first call has loaded the kernels.
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

DTYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
REPORT, SKIP = dict(_core.report_layout()), dict(_core.skip_layout())
_ALIGNMENT = 256
# Laws of the position. Without positions the kernels take n - 1, and the CPU path the last visible key.
_BY_POSITION = {law.name for law in _core.laws() if "position" in law.granularity}
_engines: dict[int, _core.Engine] = {}
_lock = threading.Lock()
_of_thread = threading.local()


def engine(device: Any) -> _core.Engine:
    """Returns the kernels on a device, loaded once. Raises a RuntimeError that lists all attempts."""
    index = torch.cuda.current_device() if device.index is None else device.index
    with _lock:
        if index not in _engines:
            if torch.version.cuda is None:
                found = f"no kernels for {device}: this torch is not built for CUDA"
                raise RuntimeError(f"{found}; pass scores.cpu()")
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                expected = "call once before the capture of a CUDA graph begins"
                raise RuntimeError(f"the kernels are not loaded yet: {expected}")
            notes = _load_nvrtc()
            try:
                _engines[index] = _core.Engine.cuda(index)
            except RuntimeError as error:
                attempts = [f"no kernels for {device}: {error}", *notes, "or pass scores.cpu()"]
                raise RuntimeError("; ".join(attempts)) from error
        return _engines[index]


def stream(device: Any) -> int:
    """Returns torch's current stream of a device as a handle of the driver."""
    return int(torch.cuda.current_stream(device).cuda_stream)


def _load_nvrtc() -> list[str]:
    """Loads the NVRTC of torch's wheels by its path, because no loader searches those folders; then its name
    finds it. Returns notes on what failed."""
    nvidia = importlib.util.find_spec("nvidia")
    places = nvidia.submodule_search_locations if nvidia else None
    folders = [os.path.join(path, "*", "lib") for path in places or []]
    folders.append(os.path.join(os.path.dirname(torch.__file__), "lib"))
    found = [path for folder in folders for path in sorted(glob.glob(os.path.join(folder, "libnvrtc*.so*")))]
    notes = [] if found else [f"no libnvrtc in {', '.join(folders)}"]
    # libnvrtc-builtins comes first in this order, and libnvrtc.so needs it loaded.
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
    sums: bool = False,
    both: bool = False,
) -> Any:
    """Launches over non-empty `scores` [..., n], and returns reports, uint8 [rows, bytes], if `reports`. With
    `sums` they hold Z and the entropy; beside an `out` they hold Z in any case. With `both` they hold Lambda
    beside Lambda(resolve), which is one more search.

    positions, lens: integers on the device that broadcast to the leading shape. Nothing reads them before the
        launch, which clamps a length to 0..=n and a position to 0..=2^32 - 1.
    """
    device, lead, n = scores.device, scores.shape[:-1], scores.shape[-1]
    kernels = engine(device)
    rows = math.prod(lead)
    block = scores.reshape(rows, n)
    if (n > 1 and block.stride(1) != 1) or (rows > 1 and block.stride(0) < n):
        block = block.contiguous()
    # The stride of a single row has no meaning, and torch may hold any number there.
    distance = block.stride(0) if rows > 1 else n
    lens = None if lens is None else _words(lens, lead, n)
    positions = None if positions is None else _words(positions, lead, 2**32 - 1)
    report = torch.empty((rows, REPORT["bytes"]), dtype=torch.uint8, device=device) if reports else None
    dtype = DTYPES[block.dtype]
    target = None
    if out is not None:
        if not out.is_contiguous():
            shape, strides = tuple(out.shape), out.stride()
            raise ValueError(f"out of shape {shape} with strides {strides}: expected contiguous")
        if out.dtype not in DTYPES:
            raise TypeError(f"out is {out.dtype}: expected float32, or the dtype of scores")
        target = (out.data_ptr(), DTYPES[out.dtype], n)
    needed = kernels.workspace_bytes(rows, n, dtype, target is not None)
    on = stream(device)
    enqueue(
        kernels.launch,
        on,
        (block.data_ptr(), dtype),
        [rows, n, distance],
        address(lens),
        address(positions),
        rule,
        target,
        address(report),
        workspace(device, on, needed) if needed else None,
        resolve,
        top_k,
        sums,
        both,
    )
    return report


def enqueue(launch: Any, *given: Any) -> None:
    """Calls a launch of an engine."""
    try:
        launch(*given)
    except BaseException:
        _of_thread.__dict__.clear()  # a kernel that failed may have left anything in its workspace
        raise


def is_capturing(device: Any) -> bool:
    """Says whether a CUDA graph captures torch's current stream."""
    return bool(device.type == "cuda" and torch.cuda.is_current_stream_capturing())


def workspace(device: Any, on: int, needed: int, zeros: int | None = None) -> list[int]:
    """Returns the address and bytes of memory whose first `zeros` bytes were zeroed once, by default all.
    Every launch leaves it ready for the next one, so each thread keeps one for every stream. A CUDA graph may
    be replayed on any stream: it gets its own, and zeroes it in each replay."""
    kept = _of_thread.__dict__.setdefault("workspaces", {})
    memory = kept.get((device, on))
    capturing = is_capturing(device)
    if memory is None or memory.numel() < needed + _ALIGNMENT - 1 or capturing:
        memory = torch.empty(needed + _ALIGNMENT - 1, dtype=torch.uint8, device=device)
        memory[: _ALIGNMENT - 1 + (needed if zeros is None else zeros)].zero_()
        if not capturing:
            kept[device, on] = memory
    return [-(-memory.data_ptr() // _ALIGNMENT) * _ALIGNMENT, needed]


def softmax(
    scores: Any, rule: _core.Rescaling, positions: Any, lens: Any, out: Any, columns: int
) -> list[Any]:
    """Launches a softmax into `out`, and returns the first `columns` of `SoftmaxStats` as tensors."""
    if positions is None and str(rule).partition(":")[0] in _BY_POSITION:
        last = _last_visible(scores.reshape(-1, scores.shape[-1]), _within(scores, lens))
        positions = last.reshape(scores.shape[:-1])
    report = launch(scores, rule, positions, lens, out, reports=columns > 0)
    if columns == 0:
        return []
    beta = betas(report)
    found = [beta]
    if columns > 1:
        poisoned = integers(report, "poisoned") != 0
        log_partition = torch.where(beta.isnan(), math.nan, doubles(report, "sum").log())
        top = torch.where(poisoned, math.nan, floats(report, "max").double())
        n, argmax, ties = (integers(report, name).long() for name in ("n", "argmax", "ties"))
        found += [log_partition, n, top, argmax, torch.where(poisoned, 0, ties), poisoned]
    return [column.reshape(scores.shape[:-1]) for column in found]


def critical_beta(scores: Any, resolve: float) -> Any:
    """Returns Lambda(resolve) of every row, float64 on the device, from its contact."""
    report = launch(scores, _core.Rescaling.parse("identity"), resolve=resolve)
    return ratios(report, "resolved", resolve).reshape(scores.shape[:-1])


def ratios(report: Any, contact: str, resolve: float) -> Any:
    """Returns Lambda(resolve) of every row, float64 [rows], from its contact: "critical" or "resolved"."""
    ties, n = integers(report, "ties"), integers(report, "n")
    gap, rank = floats(report, contact).double(), integers(report, contact, 1)
    ratio = torch.where(gap > 0, (rank.double().log() - resolve) / gap, 0.0).clamp(min=0.0)
    found = torch.where(ties >= _smallest_exceeding(resolve), math.inf, ratio)
    unknown = (integers(report, "poisoned") != 0) | ((rank == 0) & (n > 0))
    return torch.where(unknown, math.nan, found)


def betas(report: Any) -> Any:
    """Returns the beta of every row, float64 [rows]; NaN where poisoned."""
    return torch.where(integers(report, "poisoned") != 0, math.nan, doubles(report, "beta"))


def stats(scores: Any, lens: Any, resolve: float, beta: float, top_k: int | None) -> Stats:
    """Does the work of `critbeta.stats`, and waits for the device."""
    lead = scores.shape[:-1]
    rule = _core.Rescaling.parse(f"fixed:{beta!r}")
    report = launch(scores, rule, lens=lens, resolve=resolve, top_k=top_k, sums=True, both=True)
    within = _within(scores, lens)
    last, masked = (within - 1).clamp(min=0), (integers(report, "n") != within).nonzero().flatten()
    last[masked] = _last_visible(scores.reshape(-1, scores.shape[-1])[masked], within[masked])
    per_head = lead[-1] if lead else 1
    rows = _core.rows_of_reports(report.cpu().numpy(), last.cpu().numpy(), per_head, resolve, beta, top_k)
    return Stats(rows, tuple(lead))


def address(tensor: Any) -> int | None:
    return None if tensor is None else int(tensor.data_ptr())


def integers(report: Any, name: str, beyond: int = 0) -> Any:
    return report.view(torch.int32)[:, REPORT[name] // 4 + beyond]


def floats(report: Any, name: str) -> Any:
    return report.view(torch.float32)[:, REPORT[name] // 4]


def doubles(report: Any, name: str) -> Any:
    return report.view(torch.float64)[:, REPORT[name] // 8]


def _words(values: Any, lead: Any, most: int) -> Any:
    """Returns integers as the kernels read them: one u32 per row, clamped to 0..=most."""
    wide = values.long().clamp(0, most).expand(lead).reshape(-1).contiguous()
    # It takes the low halves, because a conversion of numbers beyond int32 is not defined.
    return wide.view(torch.int32)[::2].contiguous()


def _smallest_exceeding(resolve: float) -> int:
    """Returns the smallest count whose logarithm exceeds resolve >= 0, or a number beyond all counts. The
    logarithm is the host's, as in the launch."""
    near = max(1, int(math.exp(min(resolve, 22.0))) - 2)
    return next((count for count in range(near, near + 5) if math.log(count) > resolve), 2**31 - 1)


def _within(scores: Any, lens: Any) -> Any:
    """Returns the number of scores before the length of each row, int64 [rows]."""
    lead, n = scores.shape[:-1], scores.shape[-1]
    if lens is None:
        return torch.full((math.prod(lead),), n, dtype=torch.int64, device=scores.device)
    return lens.long().clamp(0, n).expand(lead).reshape(-1)


def _last_visible(block: Any, within: Any) -> Any:
    """Returns the index of the last unmasked score of every row, or 0. It reads all scores once more."""
    columns = torch.arange(block.shape[-1], dtype=torch.int32, device=block.device)
    # It takes as many scores at a time as have indices of 32 MB.
    step = max(1, (8 << 20) // block.shape[-1])
    low = torch.finfo(block.dtype).min / 2  # a score below is masked
    last = [
        torch.where(~(some < low) & (columns < end[:, None]), columns, 0).amax(-1)
        for some, end in zip(block.split(step), within.split(step))
    ]
    return torch.cat(last).long() if last else within
