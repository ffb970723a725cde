"""Threads, forks, and arrays that two calls use at once."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import critbeta
import numpy as np
import pytest
from reference import rows


def test_threads_get_the_results_of_one_thread():
    blocks = [np.stack(list(rows(3000, seed).values())) for seed in range(6)]
    both = lambda x: [f(x).tobytes() for f in (critbeta.softmax, critbeta.critical_beta)]  # noqa: E731
    alone = list(map(both, blocks))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(both, blocks)) == alone


def test_one_array_is_read_by_many_and_written_by_one():
    scores, shared = np.stack(list(rows(20_000).values())), np.zeros((13, 20_000), np.float32)
    expected = critbeta.softmax(scores, "identity").tobytes()

    def write(_):
        try:
            critbeta.softmax(scores, "identity", out=shared)
            return "written"
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        answers = set(pool.map(write, range(40)))
    assert "written" in answers and answers <= {"written", "out is read-only, or in use by another call"}
    assert shared.tobytes() == expected


@pytest.mark.parametrize("name", ["critical_beta", "draw"])
def test_the_interpreter_goes_on_meanwhile(name):
    scores = np.random.default_rng(1).permutation((-np.log(np.arange(1, 2**21 + 1)) / 2.5).astype(np.float32))
    gaussian = critbeta.Family.parse("gaussian")
    calls = {"critical_beta": lambda: critbeta.critical_beta(scores), "draw": lambda: gaussian.draw(2**23)}
    done = threading.Event()

    def work():
        for _ in range(3):
            calls[name]()
        done.set()

    worker = threading.Thread(target=work)
    worker.start()
    ticks = 0
    while not done.is_set():
        time.sleep(0.001)
        ticks += 1
    worker.join()
    # With the lock held there would be one tick before each call and one after the last.
    assert ticks > 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes():
    code = """
import os, signal, sys
import numpy as np, critbeta
scores = np.random.default_rng(1).standard_normal((64, 1000)).astype(np.float32)
before = critbeta.softmax(scores).tobytes()
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if critbeta.softmax(scores).tobytes() == before else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=120)
    assert done.returncode == 0


def test_nothing_else_is_imported():
    code = "import sys, critbeta; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "pandas", "pyarrow", "ml_dtypes", "transformers"} & set(done.stdout.split())


def test_hf_that_cannot_be_imported_is_an_attribute_that_is_not_there():
    code = """
import sys
sys.modules["torch"] = None
import critbeta
assert not hasattr(critbeta, "hf") and not hasattr(critbeta, "nothing")
try:
    critbeta.hf
except AttributeError as error:
    print(error)
try:
    import critbeta.hf
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    messages = done.stdout.splitlines()
    assert len(messages) == 2 and "no attribute 'hf' here: " in messages[0], done
    assert all("pip install torch 'transformers>=5'" in message for message in messages), done
