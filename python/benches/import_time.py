"""The time of `import critbeta` in new processes, NumPy's in it: the median of nine, taking turns with NumPy alone."""

import statistics
import subprocess
import sys

TIMED = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def milliseconds(module: str) -> float:
    # Isolated: the package's sources, which lie beside this folder without their compiled half, must not be found first.
    command = [sys.executable, "-I", "-c", TIMED.format(module)]
    return 1e3 * float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


runs = [(milliseconds("numpy"), milliseconds("critbeta")) for _ in range(9)]
alone, both = (statistics.median(times) for times in zip(*runs))
print(f"import: {both:.0f} ms, of which NumPy {alone:.0f} ms")
