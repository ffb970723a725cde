"""Six novels by Jane Austen, public domain, as Debian's package r-cran-janeaustenr ships them: 1.1 million tokens of SmolLM2.

Needs the apt-get and dpkg-deb of Debian or Ubuntu (no root, nothing is installed), and rdata: pip install rdata.
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
    """Title -> text. Raises RuntimeError where the package cannot be had, with what apt-get says where there is one."""
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        told = f"the novels come from Debian's {PACKAGE}; give texts of your own"
        raise RuntimeError(f"no {' and no '.join(missing)} here: {told}")
    with tempfile.TemporaryDirectory() as folder:
        got = subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, capture_output=True, text=True, check=False)
        packages = list(Path(folder).glob("*.deb"))
        if got.returncode != 0 or not packages:
            raise RuntimeError(f"apt-get download {PACKAGE}: {got.stderr.strip() or got.returncode}; try apt-get update")
        subprocess.run(["dpkg-deb", "-x", packages[0], folder], check=True)
        data = next(Path(folder).glob("usr/lib/R/site-library/janeaustenr/data"))
        index = _r_object(gzip.decompress((data / "Rdata.rdx").read_bytes()))
        body = (data / "Rdata.rdb").read_bytes()
    # R's database for lazy loading: each object is its length, 4 bytes, and its compressed form.
    places = {str(name): [int(part) for part in place] for name, place in index["variables"].items()}
    objects = {name: zlib.decompress(body[start + 4 : start + size]) for name, (start, size) in places.items()}
    return {name: "\n".join(_r_object(lines)) for name, lines in sorted(objects.items())}


def _r_object(raw: bytes):
    with warnings.catch_warnings():
        # It says that bytes without a file's magic number are taken as an R object, which they are.
        warnings.simplefilter("ignore", UserWarning)
        return rdata.conversion.convert(rdata.parser.parse_data(raw))
