"""Six novels by Jane Austen, which are in the public domain and have 1.1 million tokens of SmolLM2.

They come from Debian's package r-cran-janeaustenr. This needs the apt-get and dpkg-deb of Debian or Ubuntu
(without root; it installs nothing), and rdata: pip install rdata.
"""

from __future__ import annotations

import gzip
import shutil
import subprocess
import tempfile
import warnings
import zlib
from pathlib import Path

import rdata

PACKAGE = "r-cran-janeaustenr"


def novels() -> dict[str, str]:
    """Returns title -> text. Raises RuntimeError without the package, with the message of apt-get."""
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        expected = "pass your own texts with --text"
        raise RuntimeError(f"no {' and no '.join(missing)} here to get Debian's {PACKAGE}: {expected}")
    with tempfile.TemporaryDirectory() as folder:
        command = ["apt-get", "download", PACKAGE]
        got = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        packages = list(Path(folder).glob("*.deb"))
        if got.returncode != 0 or not packages:
            reason = got.stderr.strip() or got.returncode
            raise RuntimeError(f"apt-get download {PACKAGE}: {reason}; try apt-get update")
        subprocess.run(["dpkg-deb", "-x", packages[0], folder], check=True)
        data = next(Path(folder).glob("usr/lib/R/site-library/janeaustenr/data"))
        index = _r_object(gzip.decompress((data / "Rdata.rdx").read_bytes()))
        body = (data / "Rdata.rdb").read_bytes()
    # In R's database for lazy loading an object is its length in 4 bytes, and then its compressed form.
    places = {str(name): list(map(int, place)) for name, place in index["variables"].items()}
    objects = {name: zlib.decompress(body[at + 4 : at + size]) for name, (at, size) in places.items()}
    return {name: "\n".join(_r_object(lines)) for name, lines in sorted(objects.items())}


def _r_object(raw: bytes):
    with warnings.catch_warnings():
        # The warning says that it reads bytes without the magic number of a file as an R object.
        warnings.simplefilter("ignore", UserWarning)
        return rdata.conversion.convert(rdata.parser.parse_data(raw))
