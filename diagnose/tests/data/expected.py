"""Answers for the example file by the definitions: NumPy sorts every gap in float64, without critbeta.

    cd tests/data
    python3 expected.py ../../examples/data/smollm2_gpl3.safetensors > smollm2_gpl3.expected.json
"""

import json
import sys

import numpy as np

STRIDE = 6  # Every sixth row of a head is written, 0.2 MB; medians are of all.
RESOLVE = 0.69

with open(sys.argv[1], "rb") as file:
    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    data = file.read()


def tensor(name):
    begin, end = header[name]["data_offsets"]
    dtype = {"F16": "<f2", "I64": "<i8"}[header[name]["dtype"]]
    return np.frombuffer(data[begin:end], dtype).reshape(header[name]["shape"])


def answers(scores):
    gaps = np.sort(scores.max() - scores)
    n, ties = len(gaps), int((gaps == 0).sum())
    assert ties == 1
    log_rank, beyond = np.log(np.arange(2, n + 1)), gaps[1:]
    contact = int(np.argmax(log_rank / beyond))
    separated = log_rank > RESOLVE
    resolved = ((log_rank - RESOLVE) / beyond)[separated].max()
    weights = np.exp(-gaps)
    z = weights.sum()
    a = weights / z
    entropy = np.log(z) + (a * gaps).sum()
    alpha = log_rank[contact] / np.log(n)
    critical = log_rank[contact] / beyond[contact]
    reals = [critical, beyond[contact], alpha, resolved, np.log(z), entropy, a[0] - a[1], a[0]]
    return [n, float(scores.max()), ties, contact + 2, *map(float, reals)]


rows, heads = [], []
positions = tensor("positions")
for layer in sorted({name[:-2] for name in header if name.endswith(".q")}):
    q, k = (tensor(f"{layer}.{part}").astype(np.float64) for part in "qk")
    for head in range(len(q)):
        keys = k[head // (len(q) // len(k))]
        found = [answers(keys[: p + 1] @ q[head, i] / np.sqrt(q.shape[2])) for i, p in enumerate(positions)]
        betas = np.array([answer[4] for answer in found])
        heads.append([layer, head, float(np.median(betas)), float((betas < 1).mean())])
        rows += [[layer, head, i, int(positions[i]), *found[i]] for i in range(0, len(found), STRIDE)]

def text(lines):
    number = lambda value: float(f"{value:.13g}") if isinstance(value, float) else value  # noqa: E731
    return ",\n".join(json.dumps([number(value) for value in line], separators=(",", ":")) for line in lines)


print('{"heads":[\n%s],\n"rows":[\n%s]}' % (text(heads), text(rows)))
