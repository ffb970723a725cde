"""What warp.py and attention.py say of small programs whose answer is known. scripts/cuda-compile.sh runs it."""

import alu
import attention
import loops
import warp

# Each lane goes round as often as its number says, and all go on together.
TURNS = """
.text.turns:
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/                   IMAD.MOV.U32 R1, RZ, RZ, RZ ;
.L_x_0:
        /*0020*/                   ISETP.GE.U32.AND P0, PT, R1, R0, PT ;
        /*0030*/               @P0 BRA `(.L_x_1) ;
        /*0040*/                   VIADD R1, R1, 0x1 ;
        /*0050*/                   BRA `(.L_x_0) ;
.L_x_1:
        /*0060*/                   IADD3 R2, P1, R1, -R0, RZ ;
        /*0070*/              @!P1 BRA `(.L_x_0) ;
        /*0080*/                   EXIT ;
"""
# (thread + 100) / 7, as nvcc divides, times 4: where each lane stores its number.
QUOTIENTS = """
.text.quotients:
        /*0000*/                   S2R R6, SR_TID.X ;
        /*0010*/                   HFMA2.MMA R9, -RZ, RZ, 0, 4.172325134277343750e-07 ;
        /*0020*/                   I2F.U32.RP R0, R9 ;
        /*0030*/                   MUFU.RCP R0, R0 ;
        /*0040*/                   VIADD R2, R0, 0xffffffe ;
        /*0050*/                   F2I.FTZ.U32.TRUNC.NTZ R3, R2 ;
        /*0060*/                   IMAD.MOV.U32 R2, RZ, RZ, RZ ;
        /*0070*/                   IMAD.MOV R5, RZ, RZ, -R3 ;
        /*0080*/                   IMAD R5, R5, R9, RZ ;
        /*0090*/                   IMAD.HI.U32 R3, R3, R5, R2 ;
        /*00a0*/                   VIADD R7, R6, 0x64 ;
        /*00b0*/                   IMAD.HI.U32 R3, R3, R7, RZ ;
        /*00c0*/                   IMAD.MOV R4, RZ, RZ, -R3 ;
        /*00d0*/                   IMAD R4, R9, R4, R7 ;
        /*00e0*/                   ISETP.GE.U32.AND P0, PT, R4, R9, PT ;
        /*00f0*/               @P0 VIADD R3, R3, 0x1 ;
        /*0100*/                   LDC.64 R10, c[0x0][0x210] ;
        /*0110*/                   LEA R12, P1, R3, R10, 0x2 ;
        /*0120*/                   LEA.HI.X R13, R3, R11, RZ, 0x2, P1 ;
        /*0130*/                   STG.E desc[UR4][R12.64], R6 ;
        /*0140*/                   EXIT ;
"""
# A branch by what memory holds.
UNKNOWN = """
.text.unknown:
        /*0000*/                   LDC.64 R2, c[0x0][0x210] ;
        /*0010*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0020*/                   HMMA.16816.F32 R4, R4, R8, RZ ;
        /*0030*/                   FSETP.GT.AND P0, PT, R4, RZ, PT ;
        /*0040*/               @P0 BRA `(.L_x_0) ;
.L_x_0:
        /*0050*/                   EXIT ;
"""
# A division, whose slow path it does not take.
DIVISION = UNKNOWN.replace("BRA `", "BRA P1, `").replace(
    ".L_x_0:", "        /*0048*/                   CALL.REL.NOINC `($__cuda_sm20_div_rn_f64_full) ;\n.L_x_0:"
)
AT = 0xFFFFFFFC  # so that addresses carry


def run(text, memory):
    ((_, code, labels),) = loops.functions(text)
    code = [warp.Instruction(*instruction, labels) for instruction in code]
    return warp.Cta(code, AT.to_bytes(8, "little"), 1, memory).run()


def refused(act):
    try:
        act()
    except warp.Unknown as unknown:
        return str(unknown)
    return ""


def main():
    issued = run(TURNS, warp.Shared())
    # Lane 31 goes round 31 times, and lanes that are done wait at the end.
    assert [issued[at] for at in range(9)] == [1, 1, 32, 32, 31, 31, 1, 1, 1], issued
    memory = warp.Shared()
    run(QUOTIENTS, memory)
    wanted = {AT + 4 * ((lane + 100) // 7): lane for lane in range(32)}
    assert memory == wanted, memory
    assert "P0" in refused(lambda: run(UNKNOWN, warp.Shared()))
    assert list(run(DIVISION, warp.Shared()).values()) == [1] * 6
    # 5 + 2^32 - 7 does not carry, and 7 + 2^32 - 5 does: how a difference of 64 bits is made.
    sums = alu.SUMS["IADD3"](["X"])
    assert [sums(a, (1 << 32) - b, 0) >> 32 for a, b in ((5, 7), (7, 5), (5, 5))] == [0, 1, 1]

    # The upper words decide, and the lower ones where those are equal.
    lane = warp.Cta([], b"", 1, None).warps[0]
    at = warp.Instruction("ISETP.GE.U32.AND.EX", "P0, PT, R1, R2, PT, P1", [], None, {})
    cases = [(2, 1, False, True), (1, 2, True, False), (1, 1, True, True), (1, 1, False, False)]
    for high, other, low, holds in cases:
        lane.values |= {"R1": high, "R2": other, "P1": low}
        alu.compute(lane, at, warp.ALL)
        assert lane.values["P0"] is holds, (high, other, low)

    # A key that is read twice, one that is not read, and one whose score is not written.
    kernel = attention.KERNELS["attention_scores"]
    faults = {"": "", "twice": "65 reads", "unread": "63 words", "unwritten": "15 words of scores"}
    for fault, says in faults.items():
        memory = attention.Memory(16)
        for word in range(fault == "unread", 64):
            memory.load(memory.pointers["keys"] + 4 * word)
        for key in range(fault == "unwritten", 16):
            memory.store(memory.pointers["scores"] + 4 * key, None)
        if fault == "twice":
            memory.load(memory.pointers["keys"])
        memories = attention.Memory(16), memory
        said = refused(lambda: attention.check(kernel, memories, 2, 8, 1, 16))  # noqa: B023
        assert says in said and bool(says) == bool(said), said


main()
