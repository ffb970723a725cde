"""What the arithmetic instructions of a kernel (SASS) compute, as far as branches and addresses need it.

No document says what the opcodes mean. It is taken from what the compiler makes of known expressions. If it
were wrong, a kernel would touch other words than it should, which attention.py sees.
"""

import re
import struct
from itertools import repeat
from math import isnan

ALL = (1 << 32) - 1
PREDICATE = re.compile(r"U?P(\d|T)")
ORDERS = {"LT": lambda a, b: a < b, "LE": lambda a, b: a <= b, "GT": lambda a, b: a > b}
ORDERS |= {"GE": lambda a, b: a >= b, "EQ": lambda a, b: a == b, "NE": lambda a, b: a != b}


def each(function, *values):
    """The function of the values of every lane."""
    lanes, known = False, True
    for value in values:
        if value is None:
            return None
        if type(value) is list:
            lanes, known = True, known and None not in value
    if not lanes:
        return function(*values)
    rows = (value if type(value) is list else repeat(value, 32) for value in values)
    if known:
        return list(map(function, *rows))
    return [None if None in row else function(*row) for row in zip(*rows)]


def lanes_of(value):
    return value if type(value) is list else [value] * 32


def signed(x):
    return (x & ALL) - (1 << 32) if x >> 31 & 1 else x & ALL


def float_of(bits):
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def bits_of(number):
    try:
        return struct.unpack("<I", struct.pack("<f", number))[0]
    except OverflowError:
        return 0xFF800000 if number < 0 else 0x7F800000


def half(word):
    return struct.unpack("<H", struct.pack("<e", float(word)))[0]


def lut3(table, a, b, c):
    found = 0
    for i in range(8):
        if table >> i & 1:
            found |= (a if i & 4 else a ^ ALL) & (b if i & 2 else b ^ ALL) & (c if i & 1 else c ^ ALL)
    return found


def permute(a, selector, c):
    data, found = (a & ALL) | (c & ALL) << 32, 0
    for i in range(4):
        pick = selector >> 4 * i & 15
        byte = data >> 8 * (pick & 7) & 255
        found |= ((255 if byte >> 7 else 0) if pick & 8 else byte) << 8 * i
    return found


def shift(mods):
    def of(a, by, c):
        by = by & 31 if "W" in mods else min(by, 63)
        both = (a & ALL) | (c & ALL) << 32
        if "L" in mods:
            return (both << by >> 32 if "HI" in mods else a << by) & ALL
        if "S32" in mods:
            both = (a & ALL) | signed(c) << 32
        return (both >> by >> 32 if "HI" in mods else both >> by) & ALL

    return of


def to_integer(mods):
    def of(bits):
        number = float_of(bits)
        low, high = (0, ALL) if "U32" in mods else (-(1 << 31), (1 << 31) - 1)
        return 0 if isnan(number) else int(max(low, min(high, number))) & ALL

    return of


def to_float(mods):
    def of(x):
        number = x & ALL if "U32" in mods else signed(x)
        bits = bits_of(number)
        return bits + 1 if "RP" in mods and float_of(bits) < number else bits

    return of


def double_of(bits):
    return struct.unpack("<d", struct.pack("<Q", bits & ((1 << 64) - 1)))[0]


def bits_of_double(number):
    return struct.unpack("<Q", struct.pack("<d", number))[0]


def most(mods, of=signed):
    number = (lambda x: x & ALL) if "U32" in mods else of
    return lambda a, b, least: min(a, b, key=number) & ALL if least else max(a, b, key=number) & ALL


def reciprocal(bits):
    number = float_of(bits)
    return bits_of(1 / number) if number else 0x7F800000


def power_of_2(bits):
    number = float_of(bits)
    return bits if isnan(number) else bits_of(2.0 ** max(-200.0, min(200.0, number)))


def reciprocal_of_upper(bits):
    """The upper word of the reciprocal of a double, from its upper word."""
    number = double_of(bits << 32)
    return bits_of_double(1 / number) >> 32 if number else 0x7FF00000


def rounded(function):
    return lambda *bits: bits_of(function(*map(float_of, bits)))


def lea(mods):
    """(a << by) + b, or with HI the upper half of ({c, a} << by), + b; X adds a carry."""

    def of(a, b, *rest):
        rest, carry = (rest[:-1], rest[-1]) if "X" in mods else (rest, 0)
        c, by = rest if len(rest) == 2 else (0, rest[0])
        both = signed(a) if "SX32" in mods else (a & ALL) | (c & ALL) << 32
        return (both << by >> 32 & ALL if "HI" in mods else a << by & ALL) + b + carry

    return of


# By head: the function of the sources that gives the low word of the result. Sums give the carry too.
SUMS = {
    "IADD3": lambda mods: lambda a, b, c, *carries: a + b + c + sum(carries),
    "VIADD": lambda mods: lambda a, b: a + b,
    "LEA": lea,
}
WORDS = {
    "MOV": lambda mods: lambda a: a,
    "SEL": lambda mods: lambda a, b, first: a if first else b,
    "FSEL": lambda mods: lambda a, b, first: a if first else b,
    "SHF": shift,
    "PRMT": lambda mods: permute,
    "POPC": lambda mods: lambda a: bin(a & ALL).count("1"),
    "FLO": lambda mods: lambda a: (31 - (a.bit_length() - 1) if "SH" in mods else a.bit_length() - 1) & ALL,
    "VIMNMX": most,
    "FMNMX": lambda mods: most((), float_of),
    "VIADDMNMX": lambda mods: lambda a, b, c, least: most(mods)((a + b) & ALL, c, least),
    "FADD": lambda mods: rounded(lambda a, b: a + b),
    "FMUL": lambda mods: rounded(lambda a, b: a * b),
    "FFMA": lambda mods: rounded(lambda a, b, c: a * b + c),
    "I2F": to_float,
    "I2FP": to_float,
    "F2I": to_integer,
}
FLOATS = {"FADD", "FMUL", "FFMA", "FSEL", "FSETP", "FMNMX", "F2I", "F2F", "MUFU"}
DOUBLES = {"DADD": lambda a, b: a + b, "DMUL": lambda a, b: a * b, "DFMA": lambda a, b, c: a * b + c}
SPECIALS = {"RCP": reciprocal, "EX2": power_of_2, "RCP64H": reciprocal_of_upper}
UNIFORM = {"UIADD3": "IADD3", "ULEA": "LEA", "USEL": "SEL", "USHF": "SHF", "UPRMT": "PRMT", "UMOV": "MOV"}
UNIFORM |= {"UPOPC": "POPC", "UFLO": "FLO", "UIMAD": "IMAD", "ULOP3": "LOP3", "UISETP": "ISETP"}
UNIFORM |= {"UPLOP3": "PLOP3", "ULDC": "LDC", "USHL": "SHL"}
CONVERSIONS, WIDE = {"F2F", "F2I", "I2F"}, {"S64", "U64", "F64"}
COMPUTED = {*SUMS, *WORDS, *FLOATS, *UNIFORM, "IMAD", "LOP3", "ISETP", "DSETP", "PLOP3", "LDC", "CS2R"}
COMPUTED |= {"P2R", "R2P", "HFMA2", "HADD2", "HMUL2", "HMMA", "F2FP", "F2F", *DOUBLES}


def compute(warp, at, mask):
    """The result of an instruction for the lanes of the mask."""
    head, mods, ops = UNIFORM.get(at.head, at.head), at.mods, at.operands
    if head.endswith("SETP"):
        return compare(warp, at, head, mask)
    if head == "PLOP3":
        table, sources = int(ops[5], 16), [warp.read(word) for word in ops[2:5]]
        bit = each(lambda a, b, c: bool(table >> (4 * a + 2 * b + c) & 1), *sources)
        return warp.write(ops[0], bit, mask)
    if head == "R2P":
        bits, chosen = warp.read(ops[1]), int(ops[2], 16)
        for i in range(7):
            if chosen >> i & 1:
                warp.write(f"P{i}", each(lambda x: bool(x >> i & 1), bits), mask)  # noqa: B023
        return None
    # Predicates that a result is written to stand behind its register, or one stands before it.
    if PREDICATE.fullmatch(ops[0]):
        ops = [ops[1], ops[0], *ops[2:]]
    first = next((i for i, word in enumerate(ops) if i and not PREDICATE.fullmatch(word)), 1)
    carries, words = ops[1:first], ops[first:]
    sources = [warp.read(word, head in FLOATS) for word in words]
    if head in SUMS:
        total = each(SUMS[head](mods), *sources)
        warp.write(ops[0], each(lambda x: x & ALL, total), mask)
        for i, word in enumerate(carries):
            warp.write(word, each(lambda x: x >> 32 > i, total), mask)  # noqa: B023
    elif head == "IMAD":
        multiply(warp, at, ops[0], words, carries, mask)
    elif head == "LOP3":
        table = int(words[3], 16)
        found = each(lambda a, b, c: lut3(table, a, b, c), *sources[:3])
        warp.write(ops[0], found, mask)
        for word in carries:
            warp.write(word, each(lambda x: x != 0, found), mask)
    elif head in ("LDC", "CS2R"):
        wide = "64" in mods or (head == "CS2R" and "32" not in mods)
        of = (warp.read_wide if wide else warp.read)(words[0])
        (warp.write_wide if wide else warp.write)(ops[0], of, mask)
    elif head == "P2R":
        chosen = [i for i in range(7) if int(words[-1], 16) >> i & 1]
        bits = [each(lambda x: x << i, warp.read(f"P{i}")) for i in chosen]  # noqa: B023
        warp.write(ops[0], each(lambda *of: sum(of), *bits), mask)
    elif head == "HFMA2" and words[:2] == ["-RZ", "RZ"] and words[2][0] not in "R-U":
        warp.write(ops[0], half(words[2]) << 16 | half(words[3]), mask)  # how a constant is loaded
    elif head == "MUFU" and mods[0] in SPECIALS:
        warp.write(ops[0], each(SPECIALS[mods[0]], sources[0]), mask)
    elif head in DOUBLES:
        number = each(DOUBLES[head], *(warp.read_double(word) for word in words))
        warp.write_wide(ops[0], each(bits_of_double, number), mask)
    elif head == "F2F" and mods[:2] == ["F64", "F32"]:
        warp.write_wide(ops[0], each(lambda x: bits_of_double(float_of(x)), sources[0]), mask)
    elif head == "F2F" and mods[:2] == ["F32", "F64"]:
        warp.write(ops[0], each(bits_of, warp.read_double(words[0])), mask)
    elif head == "HMMA" and is_zero(warp, words[0], 4):
        for further in range(4):
            warp.write(warp.following(ops[0], further), warp.read(warp.following(words[2], further)), mask)
    elif head in WORDS and not (head in CONVERSIONS and WIDE & set(mods)):
        warp.write(ops[0], each(WORDS[head](mods), *sources), mask)
    else:
        unknown(warp, at, mask)


def is_zero(warp, word, registers):
    """Whether a left matrix is 0. What the right one has is taken to be finite."""
    return all(warp.read(warp.following(word, further)) == 0 for further in range(registers))


def unknown(warp, at, mask):
    wide = at.head[0] == "D" or (at.head in CONVERSIONS and at.mods[0] in WIDE)
    count = at.words if at.head == "LDS" else 4 if at.head == "HMMA" else 2 if wide else 1
    for further in range(count):
        warp.write(warp.following(at.operands[0], further), None, mask)


def multiply(warp, at, to, words, carries, mask):
    a, b = warp.read(words[0]), warp.read(words[1])
    if "WIDE" in at.mods or "HI" in at.mods:
        number = (lambda x: x & ALL) if "U32" in at.mods else signed
        total = each(lambda x, y, z: number(x) * number(y) + z, a, b, warp.read_wide(words[2]))
        if "WIDE" in at.mods:
            warp.write_wide(to, total, mask)
            for word in carries:
                warp.write(word, each(lambda x: x >> 64 != 0, total), mask)
            return
        warp.write(to, each(lambda x: x >> 32 & ALL, total), mask)
        return
    rest = [warp.read(word) for word in words[2:]]
    warp.write(to, each(lambda x, y, *of: x * y + sum(of) & ALL, a, b, *rest), mask)


def compare(warp, at, head, mask):
    """first, second = (a ORDER b) AND|OR c, and the opposite of the order."""
    mods, ops = at.mods, at.operands
    order = mods[0]
    if head == "DSETP":
        a, b = (warp.read_double(word) for word in ops[2:4])
    elif head == "FSETP":
        a, b = (each(float_of, warp.read(word, True)) for word in ops[2:4])
    else:
        number = (lambda x: x & ALL) if "U32" in mods else signed
        a, b = (each(number, warp.read(word)) for word in ops[2:4])
    if head == "ISETP":
        holds = each(ORDERS[order], a, b)
        if "EX" in mods:
            # Of the upper words; the lower ones are compared already.
            low = warp.read(ops[5])
            strict = order if order == "NE" else {"GE": "GT", "LE": "LT"}.get(order, order)
            holds = each(lambda x, y, z: z if x == y else strict != "EQ" and ORDERS[strict](x, y), a, b, low)
    elif order in ("NAN", "NUM"):
        holds = each(lambda x, y: (isnan(x) or isnan(y)) == (order == "NAN"), a, b)
    else:
        ordered = ORDERS.get({"MAX": "GT", "MIN": "LT"}.get(order, order)) or ORDERS[order.removesuffix("U")]
        either = order.endswith("U")  # true if one is NaN
        holds = each(lambda x, y: either if isnan(x) or isnan(y) else ordered(x, y), a, b)
    combine = {"AND": lambda x, y: x and y, "OR": lambda x, y: x or y, "XOR": lambda x, y: x != y}
    name = next(mod for mod in mods[1:] if mod in combine)
    other = warp.read(ops[4])
    settled = {"AND": False, "OR": True}.get(name)
    if type(other) is bool and other is settled:
        holds = opposite = settled
    else:
        opposite = each(combine[name], each(lambda x: not x, holds), other)
        holds = each(combine[name], holds, other)
    warp.write(ops[0], holds, mask)
    warp.write(ops[1], opposite, mask)
