"""Issue slots that a score costs, by kernel and path, beside what the copy of a score leaves.

A loop over the scores of a row belongs to the pass whose name (PASS_..., kernels/stats.cuh) stands in one of
its lines. Its slots a score, times how often warps look at a score in that pass (looks.txt, from the
simulator), are summed over the passes of a path. An instruction is one slot, and two if its unit has 64
lanes of an SM's 128 (CUDA C++ programming guide, arithmetic throughput for compute capability 9.0: compare,
minimum, select, integer add, logic, shift, conversion, doubles). `unit` is what the busiest unit needs, if it
is more than issuing does: 8 for an exponential, 4 for 4 bytes of shared memory, 4 for a product of matrices.

`// path: NAME` in a source line leaves it out of all paths but those with that name. `// path: loop NAME`
leaves out the loop with that line. `none` is on no path: betas that need more care, rows beyond the chip. A
mark stands at a line that only its variant runs: nvcc names one call where a function calls two variants of
another.

Loops are unrolled. The vectors that are left over, up to three a thread and pass, cost up to a fifth more.
"""

import pathlib
import re
import sys
from collections import Counter

import loops

ARCH = "sm_90"
LOOKS = pathlib.Path(__file__).with_name("looks.txt")
# Lane slots a score while a copy moves it: 132 SMs, 4 x 32 lanes, 1.755 GHz, 4.3 TB/s
# (../shared/performance.md).
BUDGET = {("critical_softmax", "f32"): 55.0, ("critical_softmax", "16-bit"): 27.6}
BUDGET |= {("gap_profile", "f32"): 27.0, ("gap_profile", "16-bit"): 13.5}
# The paths of each family, and the names that their lines may ask for.
PATHS = {
    "critical_softmax": {
        "plain": ("plain",),
        "near the top": ("search",),
        "sink": ("search", "bulk"),
        "student t": ("search", "bulk"),
    },
    "gap_profile": {
        "critical beta": ("search",),
        "critical beta of a sink": ("search", "bulk"),
        "statistics": ("search", "sums"),
        "statistics of a sink": ("search", "bulk", "sums"),
    },
}
HALF = re.compile(
    r"FMNMX|FSETP?|FSEL|FCHK|ISETP|SEL|IADD|VIADD|VIMNMX|IMNMX|IABS|LEA|P?LOP3|SHF|SHL|SHR|PRMT|BMSK|SGXT"
    r"|V?HMNMX2?|HSETP?2|F2FP|[FI]2[FI]P?|VABSDIFF"
)
MARK = re.compile(r"//.*\bpath: (loop )?([a-z0-9, ]+)")
# Passes that look at one score a turn, not at a vector.
SINGLE = {"MAXIMA", "GROUPS"}
NAME = re.compile(r"\bPASS_([A-Z]+)\b")


class Sources:
    """What the lines of the sources say of the instructions that come from them."""

    def __init__(self):
        self.files = {}

    def of(self, path):
        if path not in self.files:
            lines = pathlib.Path(path).read_text().splitlines()
            only, loops_only = {}, {}
            for at, line in enumerate(lines):
                if match := MARK.search(line):
                    names = {name.strip() for name in match[2].split(",")}
                    (loops_only if match[1] else only)[at + 1] = names
            self.files[path] = lines, only, loops_only
        return self.files[path]

    def passes_of(self, frames):
        """The passes that the lines of an instruction name, innermost first."""
        lines = [self.line(path, int(line)) for path, line in frames if path.endswith((".cu", ".cuh"))]
        return [match[1] for line in lines if (match := NAME.search(line))]

    def line(self, path, number):
        """Nothing for a line of a header of nvcc, which may have the name of the file that includes it."""
        lines = self.of(path)[0]
        return lines[number - 1] if number <= len(lines) else ""

    def pass_of(self, code):
        """The pass of a loop. Where a line was taken for another that calls the same, the inner name is right."""
        names = [found for _, _, frames, _ in code if (found := self.passes_of(frames))]
        unlike = [found for found in names if len(set(found)) > 1]
        common = Counter(found[0] for found in unlike or names).most_common(1)
        return common[0][0] if common else None

    def marks(self, frames, of_loops):
        lines = ((path, int(line)) for path, line in frames if path.endswith((".cu", ".cuh")))
        return [names for path, line in lines if (names := self.of(path)[1 + of_loops].get(line))]

    def has(self, code, tags):
        """Whether a loop is on the path with these tags."""
        return not any(mark.isdisjoint(tags) for _, _, frames, _ in code for mark in self.marks(frames, True))

    def is_on(self, frames, tags):
        return not any(mark.isdisjoint(tags) for mark in self.marks(frames, False))


def cost(opcode):
    """Slots of an instruction, and of the unit that it keeps busy."""
    head = opcode.split(".")[0]
    if head in ("DADD", "DMUL", "DFMA", "DSETP"):
        return 2, ("double", 2)
    if head == "HMMA":
        return 1, ("matrix", 4)
    if HALF.fullmatch(head):
        return 2, ("alu", 2)
    width = 16 if ".128" in opcode else 8 if ".64" in opcode else 4
    if head in ("LDS", "STS", "ATOMS"):
        return 1, ("shared", width)
    if head in ("MUFU", "POPC", "FLO"):
        return 1, ("special", 8)
    return 1, ("fma", 2 if head == "IMAD" else 1)


def scores_of(opcodes, size):
    """Scores that one turn of a loop looks at, of this size: those of its 16-byte vectors."""
    kinds = {kind: [o for o in opcodes if o.split(".")[0] == kind] for kind in ("LDS", "LDG", "STG", "STS")}
    vectors = {kind: sum(".128" in o for o in of) for kind, of in kinds.items()}
    moved = max(vectors["LDS"], vectors["LDG"]) or max(vectors["STG"], vectors["STS"])
    return moved * 16 // size


def named_loops(code, labels, size, sources):
    """The loops over scores, each with the name of its pass. A loop around such loops is not one of them."""
    named = []
    for loop in loops.loops_of(code, labels):
        name = sources.pass_of([code[at] for at in loop])
        if name in SINGLE or (name and scores_of([code[at][0] for at in loop], size)):
            named.append((loop, name))
    return [(loop, name) for loop, name in named if not any(inner < loop for inner, _ in named)]


def passes(code, named, size, tags, sources):
    """Slots and slots by unit a score, of each pass on the path with these tags."""
    found = {}
    for loop, name in named:
        if not sources.has([code[at] for at in loop], tags):
            continue
        on = [code[at][0] for at in sorted(loop) if sources.is_on(code[at][2], tags)]
        scores = 1 if name in SINGLE else scores_of(on, 4 if name == "PAIRS" else size)  # PAIRS: keys
        if not scores:
            continue
        slots = sum(cost(opcode)[0] for opcode in on) / scores
        units = Counter()
        for opcode in on:
            unit, busy = cost(opcode)[1]
            units[unit] += busy / scores
        # Of two loops of one pass, at two places of the search, the dearer one counts.
        if name not in found or slots > found[name][0]:
            found[name] = slots, units
    return found


def looks():
    """How often warps look at a score: by path, scope and size the number for each pass."""
    table = {}
    for line in LOOKS.read_text().splitlines():
        if not line.startswith("#"):
            key, _, numbers = line.partition(":")
            words = numbers.split()
            table[tuple(key.split(" | "))] = dict(zip(words[::2], map(float, words[1::2])))
    return table


def report(nvdisasm, images, table):
    """The lines of the table, and how many paths are over their budget."""
    seen, sources, rows = looks(), Sources(), {}
    for family, paths in PATHS.items():
        if (family, ARCH) not in images:
            continue
        for symbol, code, labels in loops.disassembled(nvdisasm, images[family, ARCH]):
            if symbol not in table:
                continue
            dtype = symbol.removeprefix(family + "_").split("_")[0]
            size, bytes_each = ("f32", 4) if dtype == "f32" else ("16-bit", 2)
            named = named_loops(code, labels, bytes_each, sources)
            for path, tags in paths.items():
                made = passes(code, named, bytes_each, {*tags, size}, sources)
                wanted = seen[path, table[symbol], size]
                if missing := wanted.keys() - made.keys():
                    sys.exit(
                        f"error: {symbol}: no loop of {', '.join(sorted(missing))} is on the path {path}"
                    )
                parts = {name: looked * made[name][0] for name, looked in wanted.items()}
                units = Counter()
                for name, looked in wanted.items():
                    for unit, busy in made[name][1].items():
                        units[unit] += looked * busy
                rows[symbol, path] = sum(parts.values()), units.most_common(1)[0], parts, BUDGET[family, size]
    lines = [f"Issue slots a score on {ARCH}, and what the busiest unit needs (scripts/cuda/slots.py)"]
    lines.append(f"{'kernel':36} {'path':24} {'slots':>6} {'budget':>6}  {'unit':>13}  passes")
    over = 0
    for symbol in table:
        for path in PATHS.get(re.sub(r"_(f32|f16|bf16)_.*", "", symbol), ()):
            slots, (unit, busy), parts, budget = rows[symbol, path]
            over += slots > budget
            mark = "*" if slots > budget else " "
            shown = ", ".join(f"{name.lower()} {part:.1f}" for name, part in parts.items())
            lines.append(
                f"{symbol:36} {path:24} {slots:6.1f}{mark}{budget:6.1f}  {unit:>7} {busy:5.1f}  {shown}"
            )
    return lines, len(rows), over
