"""NVRTC by its C interface, and the expander that makes one text of a kernel source. A user's machine
without a toolkit compiles this text, so it may need no header."""

import ctypes
import pathlib
import re
import sys

QUOTED = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"[^\n]*$', re.MULTILINE)


def expand(source, once=None):
    """The source with every quoted include in its place; a file with `#pragma once` only the first time.

    simt/host.cuh is the one include that no device compiler reaches; it stays as it is.
    """
    once = set() if once is None else once
    path = pathlib.Path(source).resolve()
    text = path.read_text()
    if "#pragma once" in text:
        if path in once:
            return ""
        once.add(path)
        text = text.replace("#pragma once", "")

    def inlined(match):
        if match[1].endswith("simt/host.cuh"):
            return match[0]
        return expand(path.parent / match[1], once)

    return QUOTED.sub(inlined, text)


ROW = re.compile(r"^([A-Z_]+)\((\w+), (\w+), (\d+), (\d+)\)$", re.MULTILINE)


def symbol(row):
    """The symbol of a row of variants.def, a match of ROW."""
    return f"{row[1].lower()}_{row[2]}_{row[3]}{row[4]}x{row[5]}"


def only(text, symbols):
    """The text without the rows of variants.def that make other kernels, as the loader gives it to NVRTC."""
    return ROW.sub(lambda row: row[0] if symbol(row) in symbols else "", text)


class Nvrtc:
    def __init__(self, library):
        # NVRTC opens its builtins by name alone: outside of the system's folders they must be loaded already.
        for builtins in pathlib.Path(library).parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins))
        self.nvrtc = ctypes.CDLL(library)
        self.nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p

    def version(self):
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self.nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "nvrtcVersion")
        return f"{major.value}.{minor.value}"

    def _check(self, code, what):
        if code != 0:
            sys.exit(f"error: {what}: {self.nvrtc.nvrtcGetErrorString(code).decode()}")

    def _bytes(self, program, of):
        size = ctypes.c_size_t()
        self._check(getattr(self.nvrtc, f"nvrtcGet{of}Size")(program, ctypes.byref(size)), of)
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self.nvrtc, f"nvrtcGet{of}")(program, buffer), of)
        return buffer.raw

    def compile(self, text, name, arch):
        """PTX for compute_NN, a cubin for sm_NN."""
        program = ctypes.c_void_p()
        source = text.encode()
        made = self.nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, name.encode(), 0, None, None)
        self._check(made, name)
        # For nvcc a lambda inside a device function is one of the device; NVRTC needs an option for that.
        options = [f"--gpu-architecture={arch}", "--std=c++17", "--device-as-default-execution-space"]
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        code = self.nvrtc.nvrtcCompileProgram(program, len(options), given)
        if code != 0:
            log = self._bytes(program, "ProgramLog").decode().rstrip("\0")
            sys.exit(f"error: NVRTC, {name} for {arch}:\n{log}")
        image = self._bytes(program, "PTX" if arch.startswith("compute") else "CUBIN")
        self._check(self.nvrtc.nvrtcDestroyProgram(ctypes.byref(program)), name)
        return image
