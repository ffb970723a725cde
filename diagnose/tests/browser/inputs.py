"""Files of attention for pages that must hold: hostile names, and rows that say nothing. Nothing but Python
is needed."""

import json
import math
import os
import random
import struct


def npy(path, shape, rows):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    header = header.ljust((10 + len(header) + 1 + 63) // 64 * 64 - 11) + "\n"
    with open(path, "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
        for row in rows:
            file.write(struct.pack(f"<{len(row)}f", *row))


def safetensors(path, tensors):
    """Score tensors: name, shape, values in f32."""
    header, at = {}, 0
    for name, shape, values in tensors:
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 4 * len(values)]}
        at += 4 * len(values)
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, values in tensors:
            file.write(struct.pack(f"<{len(values)}f", *values))


def causal(heads, rows, cols, spread, seed, least=8):
    """Gaussian scores of rows that see `least` keys and more, up to all of them."""
    draw = random.Random(seed)
    values = []
    for _ in range(heads):
        for row in range(rows):
            seen = max(least, cols * (row + 1) // rows)
            values += [draw.gauss(0, spread) for _ in range(seen)] + [-math.inf] * (cols - seen)
    return values


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;\u202e\u001b[2J"


def write(folder):
    """Name of every case, and the arguments of `critbeta diagnose` for it."""
    at = lambda name: os.path.join(folder, name)
    inf = math.inf
    npy(at("one_row.npy"), (1, 4), [[3.0, 1.0, 0.5, 0.25]])
    npy(at("tied.npy"), (40, 16), [[1.0] * 16] * 40)
    npy(at("poisoned.npy"), (20, 8), [[math.nan] + [0.0] * 7] * 20)
    npy(at("masked.npy"), (5, 8), [[-inf] * 8] * 5)
    npy(at("single.npy"), (5, 8), [[1.0] + [-inf] * 7] * 5)
    safetensors(
        at("hostile.safetensors"),
        [
            (HOSTILE, [2, 60, 64], causal(2, 60, 64, 2.0, 1)),
            ("W" * 3000, [1, 60, 64], causal(1, 60, 64, 8.0, 2)),
            ("a name with spaces " * 20, [3, 60, 64], causal(3, 60, 64, 0.3, 3)),
            ("layer\u0000zero \u200b\u4e16\u754c \U0001f600", [1, 60, 64], causal(1, 60, 64, 1.0, 4)),
        ],
    )
    bytes_name = os.path.join(os.fsencode(folder), b"not utf-8 \xff\xfe <b>&.npy")
    npy(bytes_name, (60, 64), [causal(1, 1, 64, 2.0, seed) for seed in range(60)])
    grid = [
        (f"model.layers.{layer:02}.attn", [32, 24, 48], causal(32, 24, 48, 0.5 + 0.2 * layer, layer))
        for layer in range(30)
    ]
    safetensors(at("grid.safetensors"), grid)
    safetensors(at("lengths.safetensors"), [("lengths", [1, 256, 4096], causal(1, 256, 4096, 2.0, 5, 16))])
    plain = ["one_row", "tied", "poisoned", "masked", "single"]
    cases = {name: [at(f"{name}.npy")] for name in plain}
    cases["hostile"] = [at("hostile.safetensors"), "--resolve", "0.69"]
    cases["lengths"] = [at("lengths.safetensors")]
    cases["bytes"] = [bytes_name]
    cases["grid"] = [at("grid.safetensors"), "--resolve", "0.69"]
    return cases
