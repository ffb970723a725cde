"""Times `import critbeta` in a new process, with and without the time of NumPy: medians of nine."""

import statistics
import subprocess
import sys

# -I keeps Python from importing the sources beside this folder, which lack their compiled half.
COMMAND = [sys.executable, "-I", "-c", """
from time import perf_counter
start = perf_counter()
import numpy
middle = perf_counter()
import critbeta
print(perf_counter() - start, perf_counter() - middle)
"""]

runs = [subprocess.run(COMMAND, capture_output=True, check=True, text=True).stdout.split() for _ in range(9)]
whole, own = (1e3 * statistics.median(map(float, times)) for times in zip(*runs))
print(f"import: {whole:.0f} ms with NumPy, {own:.1f} ms without")
