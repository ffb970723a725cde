"""Instructions per element of the hot loops, counted in the disassembly.

A loop is a natural loop of the control flow: the blocks from which a backward edge is reached without passing its head,
wherever the assembler laid them. A loop over the row's elements is one that moves 16-byte vectors; an iteration handles
as many elements as its vectors hold. Shared and global loads of one loop are two ways to the same vector (resident or not), so the more frequent
of them counts, or the stores where a loop only stores. Every instruction of the loop counts, whether its predicate or
branch lets it run or not: an upper bound, except where a loop stands inside it (marked +), whose body counts once.
"""

import pathlib
import re
import subprocess
from collections import Counter

ARCH = "sm_90"
HOT = {"critical_softmax_f32_block256x1": 4, "critical_softmax_bf16_block256x1": 2}

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?([A-Z0-9_.]+)(.*);")
LABEL = re.compile(r"^(\.L_x_\d+):")
FRAME = re.compile(r'File "([^"]+)", line (\d+)(?: inlined at)?')


def functions(nvdisasm, image):
    """Per function: its instructions as (opcode, rest, frames, predicated), innermost frame first, and its labels' places."""
    text = subprocess.run([nvdisasm, "-c", "-gi", str(image)], capture_output=True, text=True, check=True).stdout
    found, code, labels, frames, fresh = {}, [], {}, [], False
    for line in text.splitlines():
        if match := re.match(r"^\.text\.(\w+):", line):
            code, labels, frames, fresh = [], {}, [], False
            found[match[1]] = (code, labels)
        elif match := LABEL.match(line):
            labels[match[1]] = len(code)
        elif line.lstrip().startswith("//## File"):
            frames = (frames if fresh else []) + [FRAME.search(line).groups()]
            fresh = True
        elif match := INSTRUCTION.match(line):
            code.append((match[2], match[3].strip(), frames, match[1] is not None))
            fresh = False
    return found


def blocks_of(code, labels):
    """Basic blocks as (first, end), and the blocks that each leads to."""
    jumps = {at: labels.get(re.search(r"`\((\.L_x_\d+)\)", rest)[1])
             for at, (opcode, rest, _, _) in enumerate(code) if opcode.startswith("BRA")}  # fmt: skip
    ends = {at for at, (opcode, *_) in enumerate(code) if opcode.startswith(("EXIT", "RET", "BRX"))}
    starts = sorted({0, *labels.values(), *(at + 1 for at in [*jumps, *ends])} - {len(code)})
    blocks = list(zip(starts, [*starts[1:], len(code)]))
    number = {first: i for i, (first, _) in enumerate(blocks)}
    leads = []
    for i, (_, end) in enumerate(blocks):
        opcode, rest, _, predicated = code[end - 1]
        # `BRA P0, ...` and `BRA.DIV` are conditions too.
        leaves = not predicated and (end - 1 in ends or (opcode == "BRA" and rest.startswith("`")))
        to = {number[jumps[end - 1]]} if jumps.get(end - 1) in number else set()
        leads.append(to | (set() if leaves or i + 1 == len(blocks) else {i + 1}))
    return blocks, leads


def loops_of(code, labels):
    """Every natural loop as the set of its instructions; loops with one head are one loop."""
    blocks, leads = blocks_of(code, labels)
    comes = [{a for a in range(len(blocks)) if b in leads[a]} for b in range(len(blocks))]
    dominators = [{0}] + [set(range(len(blocks))) for _ in blocks[1:]]
    changed = True
    while changed:
        changed = False
        for b in range(1, len(blocks)):
            above = [dominators[a] for a in comes[b]]
            now = {b} | (set.intersection(*above) if above else set())
            changed |= now != dominators[b]
            dominators[b] = now
    bodies = {}
    for tail in range(len(blocks)):
        for head in leads[tail] & dominators[tail]:
            body, waiting = bodies.setdefault(head, {head}), [tail]
            while waiting:
                block = waiting.pop()
                if block not in body:
                    body.add(block)
                    waiting += comes[block]
    return [{at for block in bodies[head] for at in range(*blocks[block])} for head in sorted(bodies)]


def place(body):
    """Where most of a loop comes from: the line of the kernel's own body, and the innermost line."""
    outer, inner = Counter(), Counter()
    for _, _, frames, _ in body:
        own = [frame for frame in frames if not frame[0].endswith(".def")]
        if own:
            inner[own[0]] += 1
            outer[own[-1]] += 1
    return (outer.most_common(1) or [(None, 0)])[0][0], (inner.most_common(1) or [(None, 0)])[0][0]


def report(nvdisasm, images, kernels):
    """The loops of the hot kernels as text."""
    lines = [f"Loops over the elements of a row, {ARCH} (scripts/cuda/loops.py says how they are counted)"]
    lines.append(f"{'instructions':>12} {'elements':>8} {'per element':>11} {'exp':>4} {'atomics':>7}  line")
    for symbol, element_bytes in HOT.items():
        family = symbol.split("_f32")[0].split("_bf16")[0]
        image = images.get((family, ARCH))
        if image is None:
            lines.append(f"{symbol}: no {family}.cu")
            continue
        code, labels = functions(nvdisasm, image)[symbol]
        lines.append(f"{symbol}: {len(code)} instructions in all")
        loops = loops_of(code, labels)
        for loop in loops:
            body = [code[at] for at in sorted(loop)]
            opcodes = [opcode for opcode, *_ in body]
            moved = [sum(o.startswith(kind) and ".128" in o for o in opcodes) for kind in ["LDS", "LDG", "STG", "STS"]]
            vectors = max(moved[:2]) or max(moved[2:])
            if vectors == 0:
                continue
            elements = vectors * 16 // element_bytes
            nested = "+" if any(inner < loop for inner in loops) else ""
            exps = sum(o.startswith("MUFU.EX2") for o in opcodes)
            atomics = sum(o.startswith(("ATOM", "RED")) for o in opcodes)
            each = len(body) / elements
            told = f"{len(body):11}{nested or ' '} {elements:8} {each:11.2f} {exps:4} {atomics:7}"
            lines.append(f"{told}  {where(body, kernels)}")
    return "\n".join(lines)


def where(body, kernels):
    outer, inner = place(body)
    if outer is None:
        return "?"
    root = str(kernels.resolve()) + "/"
    path, number = outer
    text = pathlib.Path(path).read_text().splitlines()[int(number) - 1].strip()
    inside = f" (mostly {inner[0].removeprefix(root)}:{inner[1]})" if inner != outer else ""
    return f"{path.removeprefix(root)}:{number}: {text}{inside}"
