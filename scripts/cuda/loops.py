"""The loops of compiled kernels, from the disassembly with its lines.

A loop is a natural loop of the control flow: the blocks from which a backward edge is reached without passing
its head, wherever the assembler put them.
"""

import re
import subprocess

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?([A-Z0-9_.]+)(.*);")
LABEL = re.compile(r"^(\.L_x_\d+|\$[\w$]+):")
FRAME = re.compile(r'\s*//## File "([^"]+)", line (\d+)')


def disassembled(nvdisasm, image):
    """Yields the name of each function of the image, its instructions and its labels."""
    ran = subprocess.run([nvdisasm, "-c", "-gi", str(image)], capture_output=True, text=True, check=True)
    yield from functions(ran.stdout)


def functions(text):
    """The same of the text of a disassembly.

    An instruction is (opcode, rest, frames, guard or None). Frames are (file, line), innermost first.
    """
    name, code, labels, frames, fresh = None, None, {}, [], False
    for line in text.splitlines():
        if line.startswith(".text."):
            if code:
                yield name, code, labels
            name = line.removeprefix(".text.").rstrip().rstrip(":")
            code, labels, frames, fresh = [], {}, [], False
        elif code is None:
            continue
        elif match := LABEL.match(line):
            labels[match[1]] = len(code)
        elif match := FRAME.match(line):
            frames = (frames if fresh else []) + [match.groups()]
            fresh = True
        elif match := INSTRUCTION.match(line):
            code.append((match[2], match[3].strip(), frames, match[1]))
            fresh = False
    if code:
        yield name, code, labels


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
