"""Decode attention on a GPU: critbeta and its peers in one process and in turns, beside what `critbeta plan
--decode` predicts.

    python3 benches/peers/gpu_decode.py --csv DECODE.csv [--seconds 40]
    python3 benches/peers/gpu_decode.py --dry-run [--csv DECODE.csv]

It needs the package critbeta and PyTorch. FlashInfer, FlashAttention 3 (flash_attn_interface) and 2
(flash_attn) are peers where they can be imported, and PyTorch's scaled_dot_product_attention always is. Ours
and FlashInfer read pages of 16 that lie in random order; the others read a dense copy of the same keys and
values. Every method is checked against float64, and then timed in alternating order with CUDA events, the L2
cache overwritten before each; the median counts. A case that begins after --seconds, or needs more memory
than the device has, is left out and named. Standard normal keys, and queries of a length that makes the
shares of values which stay unread those of attention.md, stand for a model's. --dry-run proves the script
without a GPU, on tiny shapes, with critbeta's simulator where the package has it: its times mean nothing.

The columns: `of copy` is the speed at which the keys and the values that are read go through, over that of a
copy of all of them; `peer/this` is the time of the fastest peer over that of the method; `read` is the share
of the values that were read.
"""

import argparse
import csv
import math
import signal
import statistics
import sys
import time
from typing import NamedTuple

import gpu
import torch

import critbeta
from critbeta import _arrays, _cuda, _cuda_pages
from critbeta._pages import Arguments

ROUNDS, PAGE, DIM = 9, 16, 128
# Sequences, keys, heads, key heads: the shapes of docs/gpu.md.
CASES = [(1, 32 << 10, 32, 8), (1, 4 << 10, 32, 8), (1, 128 << 10, 32, 8), (64, 64 << 10, 64, 4)]
DRY_CASES = [(1, 300, 4, 2), (2, 77, 6, 2)]
# The standard deviation of the scores. Of four rows to a key head the two eps then leave .45 and .7 of the
# values unread.
SPREAD = 4.3
CRITICAL, RESOLVE = "critical:resolve=0.69", 0.69
# The rule and eps of our methods.
OURS = {
    "given": ("identity", 0.0),
    "given 1e-3": ("identity", 1e-3),
    "given 1e-2": ("identity", 1e-2),
    "critical": (CRITICAL, 0.0),
    "critical 1e-3": (CRITICAL, 1e-3),
    "critical 1e-2": (CRITICAL, 1e-2),
}
# What a peer's output may be off, of the largest value: some round weights or scores to 16 bits.
ALLOWED = 0.03
# A peer that compiles itself first may take so many seconds for that.
PATIENCE = 25
# The device waits for so many cycles, about a millisecond, while the host prepares the launches.
WAIT = 1_500_000
HEADER = ["seqs", "keys", "heads", "kv_heads", "method", "seconds", "of copy", "peer/this", "read"]
HEADER += ["predicted s", "measured/predicted"]


class Cache(NamedTuple):
    q: torch.Tensor
    """[seqs, heads, dim]"""
    both: torch.Tensor
    """Keys and values [2, pages, page, kv_heads, dim]."""
    tables: torch.Tensor
    lens: torch.Tensor

    @property
    def bytes(self):
        """Of the keys, or of the values."""
        return self.lens.sum().item() * self.both.shape[3] * DIM * self.both.element_size()

    def dense(self):
        """Keys and values [seqs, keys, kv_heads, dim]."""
        seqs, n = len(self.q), self.lens[0].item()
        return [pool[self.tables.long()].view(seqs, -1, *pool.shape[2:])[:, :n] for pool in self.both]

    def given(self, rule):
        return Arguments(self.q, self.both[0], None, self.tables, self.lens, rescaling=rule)


def draw(case, device):
    seqs, n, heads, kv_heads = case
    blocks = -(-n // PAGE)
    like = {"dtype": torch.bfloat16, "device": device}
    q = torch.randn(seqs, heads, DIM, device=device)
    q = (q * (SPREAD * DIM**0.5 / q.norm(dim=-1, keepdim=True))).to(torch.bfloat16)
    both = torch.randn(2, seqs * blocks, PAGE, kv_heads, DIM, **like)
    tables = torch.randperm(seqs * blocks, device=device).int().view(seqs, blocks)
    return Cache(q, both, tables, torch.full((seqs,), n, dtype=torch.int32, device=device))


class Exact:
    """Rows of the first and the last head of the last sequence in float64."""

    def __init__(self, cache):
        self.heads = [0, cache.q.shape[1] - 1]
        group, n = cache.q.shape[1] // cache.both.shape[3], cache.lens[-1].item()
        of = [pool[cache.tables[-1].long()].flatten(0, 1)[:n].double() for pool in cache.both]
        self.rows = []
        for head in self.heads:
            q, k, v = cache.q[-1, head].double(), of[0][:, head // group], of[1][:, head // group]
            scores = k @ q / DIM**0.5
            # A score of 16 bits is within this of its definition.
            error = (DIM + 8) * 2.0**-23 * ((k.abs() @ q.abs()) / DIM**0.5).max().item()
            self.rows.append((scores, error, v))

    def wrong(self, out, share, beta=None):
        """None, or what is wrong with the output of a peer, which may be off by `share` of the largest value
        and its rounding; of our own too, with its betas, where `share` is what each head lost."""
        for at, (head, (scores, error, v)) in enumerate(zip(self.heads, self.rows)):
            of_row = 1.0 if beta is None else beta[-1, head].item()
            wanted = torch.softmax(of_row * (scores - scores.max()), -1) @ v
            allowed = share if beta is None else share[at] + 2 * of_row * error + 2.0**-15
            apart = (out[-1, head].double() - wanted).abs() - wanted.abs() * 2.0**-8
            most = (v.abs().max() * allowed).item()
            if not bool((apart <= most).all()):
                return f"head {head} is off by {apart.max().item():.3g}, expected at most {most:.3g}"
        return None

    def wrong_betas(self, beta, is_critical):
        """None, or a beta that is not 1, or that no scores within their errors have as critical beta."""
        if not is_critical:
            return None if bool((beta == 1).all()) else f"betas {beta[-1].tolist()}, expected 1"
        for head, (scores, error, _) in zip(self.heads, self.rows):
            gaps = (scores.max() - scores).sort().values[1:]
            logs = torch.arange(2, len(scores) + 1, device=gaps.device).double().log() - RESOLVE
            low = (logs / (gaps + 2 * error)).max().clamp_min(0).item()
            high = torch.where(gaps > 2 * error, logs / (gaps - 2 * error), math.inf)[logs > 0].max().item()
            found = beta[-1, head].item()
            if not low * (1 - 2.0**-20) <= found <= high * (1 + 2.0**-20):
                return f"head {head}: beta {found}, expected {low} to {high}"
        return None


def ours(cache, exact, failed):
    """Our methods that are right, by name, and the share of the values that each reads."""
    runs, reads = {}, {}
    q, (k, v), tables, lens = cache.q, cache.both, cache.tables, cache.lens
    group = q.shape[1] // k.shape[2]
    for name, (rule, eps) in OURS.items():
        out = torch.full_like(q, math.nan)

        def run(rule=rule, eps=eps, out=out):
            critbeta.decode(q, k, v, tables, lens, rescaling=rule, eps=eps, out=out)

        try:
            options = {"rescaling": rule, "eps": eps, "return_stats": True}
            _, stats = critbeta.decode(q, k, v, tables, lens, **options)
            run()
            share = [stats.dropped[-1, head].item() for head in exact.heads]
            if stats.dropped.max().item() > eps:
                raise ArithmeticError(f"dropped {stats.dropped.max().item()}, expected at most {eps}")
            wrong = exact.wrong_betas(stats.beta, rule == CRITICAL)
            if wrong := wrong or exact.wrong(out, share, stats.beta):
                raise ArithmeticError(wrong)
            runs[name] = run
            # All rows of a key head read the same values.
            reads[name] = (stats.kept[:, ::group].double().mean() / lens.double().mean()).item()
        except Exception as error:
            failed[name] = said(error)
    given, betas = cache.given(CRITICAL), torch.full(q.shape[:2], math.nan, device=q.device)
    most = lens.max().item()
    try:
        _cuda_pages.betas(given, most, betas)
        if wrong := exact.wrong_betas(betas, True):
            raise ArithmeticError(wrong)
        runs["measure"], reads["measure"] = lambda: _cuda_pages.betas(given, most, betas), 0.0
    except Exception as error:
        failed["measure"] = said(error)
    return runs, reads


def said(error):
    return f"{type(error).__name__}: {error}".splitlines()[0]


def sdpa(cache, k, v):
    q, k, v = cache.q[:, :, None], k.transpose(1, 2), v.transpose(1, 2)
    attend = torch.nn.functional.scaled_dot_product_attention
    return lambda: attend(q, k, v, enable_gqa=True)[:, :, 0]


def sdpa_rows(cache, k, v):
    """The heads of a group as rows of one."""
    rows = cache.q.view(len(cache.q), k.shape[2], -1, DIM)
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    return lambda: torch.nn.functional.scaled_dot_product_attention(rows, k, v).view(cache.q.shape)


def flash(attend):
    def peer(cache, k, v):
        def run():
            out = attend(cache.q[:, None], k, v, cache_seqlens=cache.lens)
            return (out[0] if isinstance(out, tuple) else out)[:, 0]

        return run

    return peer


def fa3(*given):
    from flash_attn_interface import flash_attn_with_kvcache

    return flash(flash_attn_with_kvcache)(*given)


def fa2(*given):
    from flash_attn import flash_attn_with_kvcache

    return flash(flash_attn_with_kvcache)(*given)


def flashinfer(cache, k, _v):
    import flashinfer

    seqs, blocks = cache.tables.shape
    scratch = torch.empty(256 << 20, dtype=torch.uint8, device=k.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(scratch, "NHD", use_tensor_cores=True)
    starts = torch.arange(seqs + 1, dtype=torch.int32, device=k.device) * blocks
    sizes = cache.q.shape[1], k.shape[2], DIM, PAGE
    kinds = {"q_data_type": k.dtype, "kv_data_type": k.dtype}
    wrapper.plan(starts, cache.tables.flatten(), (cache.lens - 1) % PAGE + 1, *sizes, **kinds)
    return lambda: wrapper.run(cache.q, tuple(cache.both))


PEERS = {"flashinfer": flashinfer, "fa3": fa3, "fa2": fa2, "sdpa": sdpa, "sdpa rows": sdpa_rows}


def impatient(*_):
    raise TimeoutError(f"not ready after {PATIENCE} s")


def peers(cache, exact, failed, absent):
    """The peers that are here and right."""
    runs, dense = {}, cache.dense()
    signal.signal(signal.SIGALRM, impatient)
    for name, make in PEERS.items():
        if name in absent:
            continue
        signal.alarm(PATIENCE)
        try:
            run = make(cache, *dense)
            if wrong := exact.wrong(run(), ALLOWED):
                raise ArithmeticError(wrong)
            runs[name] = run
        except ImportError as error:
            absent[name] = said(error)
        except Exception as error:
            failed[name] = said(error)
            if isinstance(error, TimeoutError):
                absent[name] = failed[name]
        finally:
            signal.alarm(0)
    return runs


def measure(case, clock, device, is_simulated, absent):
    """What each method took and read; what failed, of ours and of the peers."""
    cache, failed, of_peers = draw(case, device), {}, {}
    exact, target = Exact(cache), torch.empty_like(cache.both)
    runs, reads = ours(cache, exact, failed) if device == "cuda" or is_simulated else ({}, {})
    others = peers(cache, exact, of_peers, absent)
    runs |= {"copy": lambda: target.copy_(cache.both), **others}
    times = {name: [] for name in runs}
    for turn in range(ROUNDS + 1):
        for name in list(runs) if turn % 2 else reversed(runs):
            seconds = clock.seconds(runs[name])
            if turn > 0:
                times[name].append(seconds)
    seconds = {name: statistics.median(taken) for name, taken in times.items()}
    best = min((seconds[name] for name in others), default=math.nan)
    copied = 4 * cache.bytes / seconds["copy"]
    rows = []
    for name, taken in seconds.items():
        read = reads.get(name, 1.0)
        speed = cache.bytes * (2 if name == "copy" else 1) * (1 + read) / taken
        peer = best / taken if name in OURS else None
        expected = predicted(case, name, read, device) if name in OURS else None
        rows.append([*case, name, taken, speed / copied, peer, read, expected, expected and taken / expected])
    return rows, failed, of_peers


def predicted(case, name, read, device):
    """Seconds by the model; None for a GPU that it does not know."""
    (seqs, n, heads, kv_heads), (rule, eps) = case, OURS[name]
    engine = _cuda.engine(torch.device(device))
    found = engine.decode_predictions([seqs, heads, kv_heads, DIM, n, PAGE], "bf16", eps, read)
    return found and found[rule == CRITICAL]


def shown(rows):
    def cell(value, form, factor=1.0):
        return "-" if value is None else form.format(value * factor)

    yield f"{'seqs x keys, heads':24} {'method':14} {'us':>9} {'of copy':>8} {'peer/this':>9} {'read':>6} " + (
        f"{'predicted':>9} {'measured/predicted':>18}"
    )
    for seqs, n, heads, kv_heads, name, seconds, speed, peer, read, expected, ratio in rows:
        cells = [f"{seconds * 1e6:9.1f}", f"{speed:8.3f}", f"{cell(peer, '{:.3f}'):>9}", f"{read:6.3f}"]
        cells += [f"{cell(expected, '{:.1f}', 1e6):>9}", f"{cell(ratio, '{:.3f}'):>18}"]
        yield f"{f'{seqs} x {n}, {heads} over {kv_heads}':24} {name:14} " + " ".join(cells)


def write(path, rows):
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(HEADER)
        out.writerows(["" if value is None else value for value in row] for row in rows)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--csv")
    args.add_argument("--seconds", type=float, default=40.0, help="no case is begun after so many seconds")
    args.add_argument("--dry-run", action="store_true")
    args = args.parse_args()
    device = "cpu" if args.dry_run else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"error: PyTorch {torch.__version__} sees no CUDA device; --dry-run needs none")
    is_simulated = args.dry_run and gpu.simulate()
    if is_simulated:
        _arrays.is_on_gpu = _arrays.is_tensor
    clock = gpu.HostClock() if args.dry_run else gpu.GpuClock(WAIT)
    began, rows, left_out, wrong, absent = time.monotonic(), [], [], {}, {}
    for case in DRY_CASES if args.dry_run else CASES:
        label = "{} x {}, {} over {}".format(*case)
        # Pages, their copy, the dense copy, and what peers need.
        needed = 4 * case[0] * case[1] * case[3] * DIM * 4 + (2 << 30)
        if time.monotonic() - began > args.seconds:
            left_out.append(f"{label}: no time left of {args.seconds:.0f} s")
            continue
        if device == "cuda" and torch.cuda.mem_get_info()[0] < needed:
            left_out.append(f"{label}: needs {needed >> 30} GiB of device memory")
            continue
        torch.manual_seed(1)
        try:
            found, failed, of_peers = measure(case, clock, device, is_simulated, absent)
        except Exception as error:
            wrong[label] = said(error)
            print(f"  {label} failed: {wrong[label]}", flush=True)
            continue
        print("\n".join(list(shown(found))[len(rows) > 0 :]), flush=True)
        for name, why in (failed | of_peers).items():
            print(f"  {name} failed: {why}", flush=True)
        rows += found
        wrong |= failed
        # What is there is kept, should a later case run into a time-out.
        if args.csv:
            write(args.csv, rows)
    print("\n".join(f"left out: {case}" for case in left_out), end="\n" if left_out else "")
    names = [name for name in PEERS if name in absent]
    print(f"peers that are not here: {', '.join(names) or 'none'}")
    print(f"{len(rows)} times, our methods and cases that failed: {', '.join(wrong) or 'none'}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
