"""Runs the compiled instructions of a CTA on paper, to count how often each is issued.

Only what decides about branches and addresses is computed: integers, predicates, single floats. All else
(products of matrices, doubles, memory that nobody gave) is unknown, and so is what is made of it. A branch or
an address that is unknown is an error. Lanes that have parted go on with the lowest instruction first, which
is how they meet again.

A value is one number if all lanes have the same, a list of 32 if not, and None if it is unknown.
"""

import re
from collections import Counter

import alu
from alu import ALL, each, lanes_of

ENDLESS = 1 << 20
PARAMS_AT = 0x210  # of constant bank 0 on sm_90
ADDRESS = re.compile(r"\[([^\[\]]*)\]$")
IDLE = "NOP BSSY BSYNC BREAK WARPSYNC MEMBAR ERRBAR CGAERRBAR CCTL YIELD DEPBAR ENDCOLLECTIVE UCGABAR".split()
SPECIAL = {"SR_CTAID.X": 0, "SR_CgaCtaId": 0, "SR_LANEID": list(range(32))}
LANES = range(32)
PLAIN = {"RZ": 0, "URZ": 0, "SRZ": 0, "PT": True, "UPT": True}


class Unknown(Exception):
    """What the instructions do depends on something that is not computed here."""

    def __str__(self):
        at = self.args[0]
        if not isinstance(at, Instruction):
            return str(at)
        lines = ", ".join(f"{path.split('/kernels/')[-1]}:{line}" for path, line in at.frames)
        return f"{at.text} depends on what scripts/cuda/alu.py does not compute ({lines})"


def lanes_in(mask):
    return [i for i in LANES if mask >> i & 1]


class Instruction:
    def __init__(self, opcode, rest, frames, guard, labels):
        self.opcode, self.frames, self.text = opcode, frames, f"{guard or ''}{opcode} {rest}"
        self.head, *self.mods = opcode.split(".")
        self.guard = guard.strip().removeprefix("@") if guard else None
        target = re.search(r"`\(([.$\w]+)\)", rest)
        self.target = labels.get(target[1]) if target else None
        self.operands = [word.replace(".reuse", "").strip() for word in rest.split(",") if word.strip()]
        self.words = 4 if "128" in self.mods else 2 if "64" in self.mods else 1


class Warp:
    def __init__(self, cta, number):
        self.cta, self.number, self.groups, self.values = cta, number, {0: ALL}, dict(PLAIN)

    # Operands.

    def read(self, word, floats=False):
        """The value of a word: a register, a predicate, a constant, or a number."""
        if word[0] == "!":
            return each(lambda x: not x, self.read(word[1:]))
        if word[0] == "|":
            return each(lambda x: x & 0x7FFFFFFF, self.read(word.strip("|")))
        if word[0] == "~":
            return each(lambda x: x ^ ALL, self.read(word[1:]))
        if word[0] == "-" and word[1] in "RUc|":
            # 2^32 for 0: so the sum carries, as that of ~0 + 1 does.
            negated = (lambda x: x ^ 1 << 31) if floats else (lambda x: (1 << 32) - x)
            return each(negated, self.read(word[1:]))
        if word.startswith("c["):
            return self.constant(word)
        if word[0] in "RUPS":
            return self.values.get(word)
        return int(word, 16) & ALL if "0x" in word else alu.bits_of(float(word.replace("Q", "")))

    def constant(self, word, further=0):
        """A word of constant bank 0: threads of a CTA, CTAs (one), the arguments."""
        at = int(word.split("][")[1].rstrip("]").replace("RZ", "0"), 16) + 4 * further
        if at < 24:
            return 1 if at else 32 * len(self.cta.warps)
        params = self.cta.params[at - PARAMS_AT :][:4] if at >= PARAMS_AT else b""
        return int.from_bytes(params, "little") if len(params) == 4 else None

    def following(self, word, further):
        """The name of the register so many behind this one."""
        name = re.fullmatch(r"(U?R)(\d+)", word)
        return f"{name[1]}{int(name[2]) + further}" if name else word

    def read_wide(self, word):
        if word.startswith("c["):
            return each(lambda low, high: low | high << 32, self.constant(word), self.constant(word, 1))
        if word[0] in "RU":
            both = self.read(word), self.read(self.following(word, 1))
            return each(lambda low, high: low | high << 32, *both)
        return self.read(word)

    def read_double(self, word):
        if word.strip("|-")[0] not in "RUc":
            return float(word.replace("Q", ""))
        number = each(alu.double_of, self.read_wide(word.strip("|-")))
        number = each(abs, number) if "|" in word else number
        return each(lambda x: -x, number) if word[0] == "-" else number

    def write(self, word, value, mask):
        if word in PLAIN:
            return
        if mask != ALL:
            before, after = lanes_of(self.values.get(word)), lanes_of(value)
            value = [after[i] if mask >> i & 1 else before[i] for i in range(32)]
        if type(value) is list and value.count(value[0]) == 32:
            value = value[0]
        self.values[word] = value

    def write_wide(self, word, value, mask):
        if word in PLAIN:
            return
        self.write(word, each(lambda x: x & ALL, value), mask)
        self.write(self.following(word, 1), each(lambda x: x >> 32 & ALL, value), mask)

    def lanes_where(self, word, mask, at):
        """The lanes of the mask where a predicate holds."""
        value = self.read(word)
        if type(value) is bool:
            return mask if value else 0
        lanes = lanes_in(mask)
        if value is None or any(value[i] is None for i in lanes):
            raise Unknown(at)
        return sum(1 << i for i in lanes if value[i])

    # Memory.

    def addresses(self, word):
        sum_of = 0
        for part in ADDRESS.search(word)[1].split("+"):
            wide = part.endswith(".64")
            value = self.read_wide(part[:-3]) if wide else self.read(part.removesuffix(".U32"))
            if part.startswith("-0x"):
                value = -int(part[1:], 16)
            sum_of = each(lambda a, b: a + b, sum_of, value)
        return sum_of

    def access(self, at, mask):
        """A load, a store, or an addition in memory."""
        kind, operands = at.head, at.operands
        memory = self.cta.shared if kind in ("LDS", "STS", "ATOMS") else self.cta.device
        where = next(word for word in operands if ADDRESS.search(word))
        addresses, active = lanes_of(self.addresses(where)), LANES if mask == ALL else lanes_in(mask)
        if None in addresses and any(addresses[i] is None for i in active):
            raise Unknown(at)
        if kind in ("STS", "STG", "ST"):
            for word in range(at.words):
                values = lanes_of(self.read(self.following(operands[-1], word)))
                for i in active:
                    memory.store(addresses[i] + 4 * word, values[i])
            return
        register = next(word for word in operands if re.fullmatch(r"R(\d+|Z)", word))
        for word in range(at.words):
            found = [None] * 32
            for i in active:
                found[i] = memory.load(addresses[i] + 4 * word)
                if kind in ("ATOM", "RED", "ATOMS"):
                    memory.store(addresses[i] + 4 * word, self.added(at, found[i], i))
            self.write(self.following(register, word), found, mask)

    def added(self, at, found, lane):
        """What an addition leaves in memory; unknown for any other operation."""
        if "INC" in at.mods:
            return None if found is None else found + 1 & ALL
        by = lanes_of(self.read(at.operands[-1]))[lane] if "ADD" in at.mods and at.words == 1 else None
        return None if by is None or found is None else found + by & ALL

    # Control.

    def run(self):
        """Runs to the end. Yields at barriers of the CTA."""
        code, issued = self.cta.code, self.cta.issued
        while self.groups:
            pc = min(self.groups)
            mask, at = self.groups.pop(pc), code[pc]
            issued[pc] += 1
            if issued[pc] > ENDLESS:
                raise Unknown(f"{at.text} is issued more than {ENDLESS} times")
            to = pc + 1
            if at.guard and self.is_open(at, mask):
                alu.unknown(self, at, mask)
                self.groups[to] = self.groups.get(to, 0) | mask
                continue
            if self.skips_division(code, pc):
                self.groups[at.target] = self.groups.get(at.target, 0) | mask
                continue
            lanes = self.lanes_where(at.guard, mask, at) if at.guard else mask
            if at.head == "EXIT":
                mask &= ~lanes
            elif at.head == "BRA":
                apart = "DIV" in at.mods or "CONV" in at.mods
                if len(at.operands) > 1 and not apart:
                    lanes = self.lanes_where(at.operands[0], lanes, at)
                if apart:
                    lanes = 0
                mask &= ~lanes
                if lanes:
                    self.groups[at.target] = self.groups.get(at.target, 0) | lanes
            elif at.head == "BAR":
                if "RED" in at.mods:
                    self.cta.reduced |= self.lanes_where(at.operands[-1], lanes, at) != 0
                yield
            elif at.head == "CALL":
                mask &= ~lanes
                self.groups[at.target] = self.groups.get(at.target, 0) | lanes
            elif at.head == "RET":
                # To the address in a register; an instruction has 16 bytes.
                mask &= ~lanes
                back = lanes_of(self.read(at.operands[0].split()[0]))
                if None in back:
                    raise Unknown(at)
                for i in lanes_in(lanes):
                    self.groups[back[i] // 16] = self.groups.get(back[i] // 16, 0) | 1 << i
            elif at.head in ("BRX", "JMP", "BMOV"):
                raise Unknown(at)
            elif at.head not in IDLE and lanes:
                try:
                    self.execute(at, lanes)
                except (ValueError, KeyError, IndexError) as error:
                    raise Unknown(at) from error
            if mask:
                self.groups[to] = self.groups.get(to, 0) | mask

    @staticmethod
    def skips_division(code, pc):
        """Whether a branch goes round what only divides numbers near the ends of their range. It is taken."""
        at = code[pc]
        between = code[pc + 1 : at.target] if at.head == "BRA" and at.target else []
        return len(between) <= 16 and any(i.head == "CALL" and "div_rn" in i.text for i in between)

    def is_open(self, at, mask):
        """Whether an instruction has a result that nobody knows, because its guard is unknown."""
        value = self.read(at.guard)
        # A load from shared memory too: nobody counts what it reads.
        if type(value) is bool or (at.head not in alu.COMPUTED and at.head != "LDS"):
            return False
        return value is None or any(value[i] is None for i in lanes_in(mask))

    def execute(self, at, mask):
        ops = at.operands
        if at.head in ("LDG", "LD", "LDS", "STG", "ST", "STS", "ATOM", "ATOMS", "RED"):
            self.access(at, mask)
        elif at.head in ("S2R", "S2UR"):
            tid = [32 * self.number + i for i in range(32)]
            self.write(ops[0], tid if ops[1] == "SR_TID.X" else SPECIAL.get(ops[1]), mask)
        elif at.head == "R2UR":
            found = lanes_of(self.read(ops[1]))
            self.write(ops[0], found[(mask & -mask).bit_length() - 1], ALL)
        elif at.head in ("VOTE", "VOTEU"):
            # The lanes of its predicate, whether there are any (or all) of them, or either alone.
            lanes, to = self.lanes_where(ops[-1], mask, at), ALL if at.head == "VOTEU" else mask
            for word in ops[:-1]:
                one = lanes == mask if "ALL" in at.mods else lanes != 0
                self.write(word, one if alu.PREDICATE.fullmatch(word) else lanes, to)
        elif at.head == "SHFL":
            found, by = lanes_of(self.read(ops[2])), self.read(ops[3])
            known = "BFLY" in at.mods and type(by) is int
            self.write(ops[1], [found[i ^ by] for i in range(32)] if known else None, mask)
            self.write(ops[0], True, mask)
        elif at.head == "B2R":
            self.write(ops[1], self.cta.reduced, mask)
        elif at.head in ("QSPC", "FCHK"):
            # A generic address is not of shared memory, and a quotient is in the range of the short division.
            self.write(ops[0], False, mask)
        else:
            alu.compute(self, at, mask)


class Shared(dict):
    """Shared memory; what nobody stored is unknown."""

    load, store = dict.get, dict.__setitem__


class Cta:
    """One CTA. device: memory with load(address) and store(address, value) of words; an unknown word is None."""

    def __init__(self, code, params, warps, device):
        self.code, self.params, self.device, self.shared = code, params, device, Shared()
        self.issued, self.reduced = Counter(), False
        self.warps = [Warp(self, number) for number in range(warps)]

    def run(self):
        """How often each instruction is issued, by all warps."""
        waiting = [warp.run() for warp in self.warps]
        while waiting:
            waiting = [warp for warp in waiting if next(warp, self) is not self]
        return self.issued

