"""The library as scripts/capi-test.sh built it, and programs that are compiled against it."""

import ctypes
import json
import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TESTS = ROOT / "capi" / "tests"
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-O1", "-g"]


def run(*words, **env):
    """Runs a command. Where it fails, the test shows what it said."""
    done = subprocess.run([*map(str, words)], env={**os.environ, **env}, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def prefix():
    """Where scripts/capi-test.sh installed the header, the libraries and critbeta.pc."""
    return pathlib.Path(os.environ["CRITBETA_PREFIX"])


@pytest.fixture(scope="session")
def compiled(prefix, tmp_path_factory):
    """Compiles a program by what pkg-config says of critbeta."""
    folder = tmp_path_factory.mktemp("programs")

    def compile_(source, *flags, name=None, static=False):
        config = ["pkg-config", *(["--static"] if static else []), "--cflags", "--libs", "critbeta"]
        flags_of_library = run(*config, PKG_CONFIG_PATH=str(prefix / "lib" / "pkgconfig")).split()
        if static:
            flags_of_library = [str(prefix / "lib/libcritbeta.a") if f == "-lcritbeta" else f for f in flags_of_library]
        is_c = pathlib.Path(source).suffix == ".c"
        compiler = ["gcc", "-std=c11"] if is_c else ["g++", "-std=c++17"]
        program = folder / (name or pathlib.Path(source).name.replace(".", "_"))
        run(*compiler, *WARNINGS, *flags, source, *flags_of_library, "-lm", "-pthread", "-o", program)
        return program

    return compile_


@pytest.fixture(scope="session")
def env(prefix, tmp_path_factory):
    """The environment of a program: where its library is, and a calibration file of one layer."""
    law = {"conclusive": True, "interval": None}
    laws = [{"c": 1.0, "xi": 0.5}, {"c": 0.5, "xi": 1.0}, {"c": 0.25, "xi": 0.0}]
    heads = [
        {"layer": "layer.0", "head": head, "critical": {**law, **fit}, "resolved": None}
        for head, fit in enumerate(laws)
    ]
    file = tmp_path_factory.mktemp("calibration") / "cal.json"
    file.write_text(json.dumps({"critbeta": "0.1.0", "resolve": 0.0, "exclude_sink": 0, "heads": heads}))
    return {"LD_LIBRARY_PATH": str(prefix / "lib"), "CRITBETA_TEST_CALIBRATION": str(file)}


@pytest.fixture(scope="session")
def library(prefix):
    """The shared library by ctypes."""
    found = ctypes.CDLL(str(prefix / "lib" / "libcritbeta.so"))
    found.critbeta_last_error.restype = ctypes.c_char_p
    found.critbeta_version.restype = ctypes.c_char_p
    return found
