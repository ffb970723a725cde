"""Issue slots of an element of a key or a value in the attention kernels, beside what the memory leaves.

A CTA of each kernel runs on paper (warp.py) over half a chunk of keys, a chunk, and two. From half a chunk to
one, only keys are added: this is what they cost. From one to two a chunk is added: the rest is what it costs
by itself. What a CTA costs once, as the queries do, is in neither. The words that are read and written are
compared with what they should be: each once for every group of query rows that shares it.

A further kernel is one more line of KERNELS.
"""

import concurrent.futures
import re
import sys
from collections import Counter

import loops
import warp

ARCH = "sm_90"
PARAMS = "attention/params.cuh"
DIMS, ROWS = (64, 128), (1, 4, 8, 16)
PAGE = 16
# Lane slots for a byte while it is copied: 132 SMs, 4 x 32 lanes, 1.755 GHz, 4.3 TB/s (slots.py). So much of
# them can be used (src/cuda/model.rs).
SLOTS_A_BYTE, USABLE = 132 * 128 * 1.755e9 / 4.3e12, 0.85
# A score or a probability, 1e-5: most masses are far from 1 and from their least.
PROBABILITY = 0x3727C5AC
FIELD = re.compile(r"^    (u64|u32|double) ([\w, \[\]]+);", re.M)
POINTERS = "queries keys table lens scores row_lens positions values out partials arrivals masses histogram"
POINTERS += " audits betas_out"
PIECE = 1 << 40  # of addresses, for each pointer


class Kernel:
    """chunk: keys of one. reads: by what it reads, how many query rows share a word, by the bytes of an
    element; 0: a word is of one row and lies in the L2 cache, so there is no memory time to fill and no
    budget. writes: what it writes for every key, and whether for each row. room: for query rows, in a CTA."""

    def __init__(self, chunk, reads, writes=None, of_rows=False, room=None):
        self.chunk, self.reads, self.writes, self.of_rows = chunk, reads, writes, of_rows
        self.has_budget, self.room = any(reads.values()), room or {4: 16, 2: 16}


KERNELS = {
    "attention_scores": Kernel(128, {"keys": {4: 8, 2: 32}}, "scores", of_rows=True),
    "attention_masses": Kernel(512, {"scores": 0}, "masses"),
    "attention_values": Kernel(512, {"values": {4: 8, 2: 16}}),
    "attention_one_pass": Kernel(512, {"keys": {4: 8, 2: 16}, "values": {4: 8, 2: 16}}, room={4: 8, 2: 16}),
}


class Params:
    """The arguments of the kernels, from their declaration."""

    def __init__(self, text):
        self.fields = []
        fields = text[text.index("struct AttentionParams") :].partition("};")[0]
        for kind, names in FIELD.findall(fields):
            for name, _, count in (name.strip().partition("[") for name in names.split(",")):
                self.fields += [(name, 4 if kind == "u32" else 8)] * int(count.rstrip("]") or 1)
        size = int(re.search(r"sizeof\(AttentionParams\) == (\d+)", text)[1])
        if len(self.bytes_of({})) != size:
            sys.exit(f"error: {PARAMS}: {len(self.bytes_of({}))} bytes of arguments are known, expected {size}")

    def bytes_of(self, given):
        """Fields that are not given are 0, and a name that no field has is left out: `check` sees the rest."""
        made = b""
        for name, size in self.fields:
            made += bytes(-len(made) % size) + given.get(name, 0).to_bytes(size, "little")
        return made + bytes(-len(made) % 8)


class Memory:
    """Device memory: how often each word of a pointer is read and written. Queries, keys and values are 0."""

    def __init__(self, keys):
        self.pointers = {name: (i + 1) * PIECE for i, name in enumerate(POINTERS.split())}
        self.names = {at // PIECE: name for name, at in self.pointers.items()}
        self.given, self.stored = {"lens": keys, "scores": PROBABILITY}, {}
        self.reads, self.writes = Counter(), Counter()

    def load(self, address):
        name = self.names.get(address // PIECE)
        self.reads[name, address] += 1
        if name == "table":
            return address % PIECE // 4
        return self.stored.get(address, self.given.get(name, 0))

    def store(self, address, value):
        self.writes[self.names.get(address // PIECE), address] += 1
        self.stored[address] = value

    def counts(self, of, name):
        """Different words of a pointer, and all accesses to them."""
        found = [count for (pointer, _), count in of.items() if pointer == name]
        return len(found), sum(found)


def run(code, params, threads, dim, rows, keys, room=16):
    """How often each instruction of a CTA is issued over all of these keys, and its memory."""
    memory = Memory(keys)
    wide = {"query_token": rows * dim, "query_head": dim, "out_token": rows * dim, "out_head": dim}
    for of in ("key", "value"):
        wide |= {f"{of}_page": PAGE * dim, f"{of}_slot": dim, f"{of}_head": dim}
    sizes = {"dim": dim, "value_dim": dim, "group": rows, "page": PAGE}
    sizes |= {"value_rows": min(-(-rows // 8) * 8, room)}
    sizes |= dict.fromkeys(["table_stride", "score_stride", "mass_stride", "pages", "max_len", "cols"], keys)
    sizes |= dict.fromkeys(["token_count", "seqs", "kv_heads", "query_len", "splits"], 1)
    # page_shift: at / PAGE is (high word of at * page_factor + at) >> page_shift, where the kernels multiply.
    division = {"page_factor": 0, "page_shift": PAGE.bit_length() - 1}
    given = memory.pointers | wide | sizes | division | {"chunks": 66, "scale": 0x3FF0 << 48}
    cta = warp.Cta(code, params.bytes_of(given), threads // 32, memory)
    return cta.run(), memory


def check(kernel, memories, size, dim, rows, keys):
    """A chunk more touches each word that the kernel is for, and as often as it should."""

    def compare(what, name, words, times):
        before, after = (memory.counts(getattr(memory, what), name) for memory in memories)
        found = after[0] - before[0], after[1] - before[1]
        if found != (words, words * times):
            says = f"a chunk more is {found[0]} words of {name} and {found[1]} {what}"
            raise warp.Unknown(f"{says}, expected {words} words and {words * times} {what}")

    for name, shared in kernel.reads.items():
        if shared:
            compare("reads", name, keys * dim * size // 4, -(-rows // shared[size]))
        else:
            compare("reads", name, keys * rows, 1)
    if kernel.writes:
        compare("writes", kernel.writes, keys * (rows if kernel.of_rows else 1), 1)


def slots_of(code, cost, issued, elements):
    """Lane slots of an element, and of the unit that it keeps busiest."""
    slots, units = 0.0, Counter()
    for at, count in issued.items():
        each, (unit, busy) = cost(code[at].opcode)
        slots += 32 * count * each / elements
        units[unit] += 32 * count * busy / elements
    return slots, units


def family_of(symbol):
    return re.sub(r"_(f32|f16|bf16)_.*", "", symbol)


def paths_of(symbol, code, labels, params, cost):
    """(dim, rows, slots of keys, slots of chunks, busiest unit) of every shape."""
    kernel, size = KERNELS[family_of(symbol)], 4 if "_f32_" in symbol else 2
    threads = int(re.search(r"(\d+)x\d+$", symbol)[1])
    code, found = [warp.Instruction(*instruction, labels) for instruction in code], []
    for dim in DIMS:
        for rows in ROWS:
            shape, chunks = (threads, dim, rows), (kernel.chunk // 2, kernel.chunk, 2 * kernel.chunk)
            try:
                runs, memories = zip(*(run(code, params, *shape, keys, kernel.room[size]) for keys in chunks))
                check(kernel, memories[1:], size, dim, rows, kernel.chunk)
            except warp.Unknown as unknown:
                sys.exit(f"error: {symbol}, {named(rows, dim)}: {unknown}")
            half, chunk = (Counter(after) for after in runs[1:])
            half.subtract(runs[0])
            chunk.subtract(runs[1])
            elements = kernel.chunk * dim * len(kernel.reads)
            keys, _ = slots_of(code, cost, half, elements / 2)
            slots, units = slots_of(code, cost, chunk, elements)
            found.append((dim, rows, keys, slots - keys, units.most_common(1)[0]))
    return found


def named(rows, dim):
    return f"{rows} row{'s' if rows > 1 else ''} of {dim}"


def report(nvdisasm, images, table, kernels, cost):
    """The lines of the table, how many paths have a budget, and how many are over it."""
    params, jobs = Params((kernels / PARAMS).read_text()), {}
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        for (family, arch), image in images.items():
            if family in KERNELS and arch == ARCH:
                for symbol, code, labels in loops.disassembled(nvdisasm, image):
                    if symbol in table:
                        jobs[symbol] = pool.submit(paths_of, symbol, code, labels, params, cost)
        made = {symbol: job.result() for symbol, job in jobs.items()}
    lines = [f"Issue slots an element of a key or a value on {ARCH}, by query rows of a key head (attention.py)"]
    lines.append(f"{'kernel':36} {'path':24} {'slots':>6} {'budget':>6}  {'unit':>13}  of keys, of chunks")
    paths, over = 0, 0
    for symbol in (symbol for symbol in table if symbol in made):
        size = 4 if "_f32_" in symbol else 2
        for dim, rows, keys, chunks, (unit, busy) in made[symbol]:
            has_budget = KERNELS[family_of(symbol)].has_budget
            slots, budget = keys + chunks, USABLE * SLOTS_A_BYTE * size
            is_over = has_budget and slots > budget
            paths, over = paths + has_budget, over + is_over
            shown = f"{slots:6.2f}{'*' if is_over else ' '}" + (f"{budget:6.1f}" if has_budget else f"{'-':>6}")
            parts = f"keys {keys:.2f}, chunks {chunks:.2f}"
            lines.append(f"{symbol:36} {named(rows, dim):24} {shown}  {unit:>7} {busy:5.1f}  {parts}")
    return lines, paths, over
