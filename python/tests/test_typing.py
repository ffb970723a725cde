"""The verdict of a type checker on the code of a user."""

import re
import subprocess
import sys

import pytest

pytest.importorskip("mypy")

CODE = """
import critbeta
import numpy as np

scores = np.zeros((2, 3), np.float32)
reveal_type(critbeta.softmax(scores))
reveal_type(critbeta.softmax(scores, return_stats=True))
reveal_type(critbeta.stats(scores).critical_beta)
critbeta.sofmax(scores)
critbeta.stats(scores).critical_bta
critbeta.softmax(scores, 1.3)
"""


def test_names_that_are_none_are_errors_and_arrays_are_arrays(tmp_path):
    (tmp_path / "user.py").write_text(CODE)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), "user.py"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    lines = [line for line in found.splitlines() if "Revealed" in line or "error:" in line]
    expected = [
        'is "numpy.ndarray.*float',
        r'is "tuple\[Any, .*SoftmaxStats',
        'is "numpy.ndarray',
        'Module has no attribute "sofmax"',
        '"Stats" has no attribute "critical_bta"',
        'No overload variant of "softmax"',
    ]
    assert len(lines) == len(expected) and all(map(re.search, expected, lines)), found
