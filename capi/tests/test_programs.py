"""Programs in C and C++, compiled as a user compiles them, plainly and under valgrind."""

import re

import pytest
from conftest import ROOT, TESTS, run

VALGRIND = ["valgrind", "-q", "--error-exitcode=9", "--leak-check=full", "--show-leak-kinds=definite",
            "--errors-for-leak-kinds=definite"]


def passed(text):
    found = re.search(r"(\d+) checks, 0 failures", text)
    assert found and int(found[1]) > 100, text


@pytest.mark.parametrize("source", ["check.c", "check.cpp"])
@pytest.mark.parametrize("tool", ["plain", "valgrind"])
def test_program(compiled, env, source, tool):
    program = compiled(TESTS / source)
    # valgrind knows AVX2, which the library then finds. Two threads are enough for a pool.
    passed(run(*(VALGRIND if tool == "valgrind" else []), program, **env, RAYON_NUM_THREADS="2"))


def test_program_on_the_simulator_of_a_gpu(compiled, env):
    passed(run(compiled(TESTS / "check.c"), "simt", **env))


def test_header_beside_dlpack(compiled, env):
    tvm_ffi = pytest.importorskip("tvm_ffi")
    headers = tvm_ffi.libinfo.find_dlpack_include_path()
    # Found by itself, and included before and after by the program.
    passed(run(compiled(TESTS / "check.cpp", f"-isystem{headers}", name="beside"), **env))
    for order in ("-include dlpack/dlpack.h", "-include critbeta.h -include dlpack/dlpack.h"):
        passed(run(compiled(TESTS / "check.c", f"-isystem{headers}", *order.split(), name="order"), **env))


def test_static_library(compiled, env):
    # The simulator is in this build, and it is C++.
    program = compiled(TESTS / "check.c", "-Wl,--no-as-needed", "-lstdc++", name="static", static=True)
    assert "libcritbeta" not in run("ldd", program)
    passed(run(program))


def test_soname_and_exported_symbols(prefix):
    library = prefix / "lib" / "libcritbeta.so"
    assert "[libcritbeta.so.0.1]" in run("readelf", "-d", library)
    needed = re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", library))
    assert not [name for name in needed if "tvm" in name or "cuda" in name], needed
    exported = {line.split()[-1] for line in run("nm", "-D", "--defined-only", library).splitlines()}
    declared = set(re.findall(r"\b(critbeta_\w+)\(", (ROOT / "capi" / "critbeta.h").read_text()))
    assert {name for name in exported if name.startswith("critbeta_") and "simt" not in name} == declared
    only_c = {"critbeta_last_error", "critbeta_close"}
    assert {name for name in exported if name.startswith("__tvm_ffi_")} == {
        f"__tvm_ffi_{name}" for name in declared - only_c
    }


def test_example_of_the_page(compiled, env, tmp_path):
    page = (ROOT / "docs" / "embedding.md").read_text().split("## C and TVM-FFI")[1]
    source = tmp_path / "example.c"
    source.write_text(re.search(r"```c\n(.*?)```", page, re.S)[1])
    assert run(compiled(source), **env) == "beta 0.4621, weight 0.5714\n"
