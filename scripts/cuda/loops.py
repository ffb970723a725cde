"""Instructions per element of the hot loops, counted in the disassembly.

A loop is a natural loop of the control flow: the blocks from which a backward edge is reached without passing
its head, wherever the assembler put them. A loop over the elements of a row moves 16-byte vectors, and an
iteration handles as many elements as its vectors hold. Shared and global loads of one loop read the same
vector (resident or not), so the more frequent of them counts; if a loop only stores, its stores count. Loops
around such loops are left out. Every instruction of a loop counts, even if its predicate or branch does not
let it run: an upper bound. The exception is a loop without vectors inside of it (marked +): its body counts
once.
"""

import itertools
import pathlib
import re
import subprocess
from collections import Counter

ARCH = "sm_90"
HOT = {"critical_softmax_f32_block256x1": 4, "critical_softmax_bf16_block256x1": 2}

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?([A-Z0-9_.]+)(.*);")
LABEL = re.compile(r"^(\.L_x_\d+):")
FRAME = re.compile(r'\s*//## File "([^"]+)", line (\d+)')


def disassembled(nvdisasm, image):
    """Each hot function of the image: its instructions as (opcode, rest, frames, predicated), and its labels.

    Frames are (file, line), innermost first.
    """
    ran = subprocess.run([nvdisasm, "-c", "-gi", str(image)], capture_output=True, text=True, check=True)
    found, code, labels, frames, fresh = {}, None, {}, [], False
    for line in ran.stdout.splitlines():
        if line.startswith(".text."):
            symbol = line.removeprefix(".text.").rstrip(":")
            code, labels, frames, fresh = ([] if symbol in HOT else None), {}, [], False
            found[symbol] = (code, labels)
        elif code is None:
            continue
        elif match := LABEL.match(line):
            labels[match[1]] = len(code)
        elif match := FRAME.match(line):
            frames = (frames if fresh else []) + [match.groups()]
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


def chains(body):
    """Where each instruction comes from: its lines from the kernel's own body inwards."""
    lines = ([f for f in reversed(frames) if not f[0].endswith(".def")] for _, _, frames, _ in body)
    return Counter(map(tuple, lines))


def shared_prefix(all_chains):
    """The lines around every loop: calls from the kernel to its verbs, the same for all loops."""
    shortest = min(map(len, all_chains), default=0)
    same = (len({chain[i] for chain in all_chains}) == 1 for i in range(max(shortest - 1, 0)))
    return sum(1 for _ in itertools.takewhile(bool, same))


def report(nvdisasm, images, kernels):
    """The loops of the hot kernels as text."""
    lines = [f"Loops over the elements of a row, {ARCH} (scripts/cuda/loops.py says how they are counted)"]
    lines.append(f"{'instructions':>12} {'elements':>8} {'per element':>11} {'exp':>4} {'atomics':>7}  line")
    known = {}
    for symbol, element_bytes in HOT.items():
        family = symbol.split("_f32")[0].split("_bf16")[0]
        image = images.get((family, ARCH))
        if image is None:
            lines.append(f"{symbol}: no {family}.cu")
            continue
        if image not in known:
            known[image] = disassembled(nvdisasm, image)
        code, labels = known[image][symbol]
        lines.append(f"{symbol}: {len(code)} instructions in all")
        found = loops_of(code, labels)
        loops = [(loop, vectors) for loop in found if (vectors := vectors_of(loop, code))]
        # The loop over rows, and others that hold a loop over elements, say nothing of an element.
        loops = [(loop, vectors) for loop, vectors in loops if not any(inner < loop for inner, _ in loops)]
        main = [chains([code[at] for at in loop]).most_common(1)[0][0] for loop, _ in loops]
        skip = shared_prefix(main)
        for (loop, vectors), chain in zip(loops, main):
            opcodes = [code[at][0] for at in loop]
            elements = vectors * 16 // element_bytes
            nested = "+" if any(inner < loop for inner in found) else " "
            exps = sum(o.startswith("MUFU.EX2") for o in opcodes)
            atomics = sum(o.startswith(("ATOM", "RED")) for o in opcodes)
            each = len(loop) / elements
            numbers = f"{len(loop):11}{nested} {elements:8} {each:11.2f} {exps:4} {atomics:7}"
            lines.append(f"{numbers}  {where(chain[skip:], kernels)}")
    return "\n".join(lines)


def vectors_of(loop, code):
    opcodes = [code[at][0] for at in loop]
    kinds = ["LDS", "LDG", "STG", "STS"]
    moved = [sum(o.startswith(kind) and ".128" in o for o in opcodes) for kind in kinds]
    return max(moved[:2]) or max(moved[2:])


def where(chain, kernels):
    """The outermost line that tells this loop from others, and the innermost one."""
    if not chain:
        return "?"

    def name(frame):
        path = pathlib.Path(frame[0]).resolve()
        inside = path.is_relative_to(kernels.resolve())
        return f"{path.relative_to(kernels.resolve()) if inside else path.name}:{frame[1]}"

    text = pathlib.Path(chain[0][0]).read_text().splitlines()[int(chain[0][1]) - 1].strip()
    return f"{name(chain[0])}: {text}" + (f" (mostly {name(chain[-1])})" if len(chain) > 1 else "")
