"""Makes stand-ins for the CUDA libraries that PyPI's torch is linked with: python stubs.py TORCH_LIB_DIR OUT.

PyPI's torch for Linux is the CUDA build, and it does not load without libcudart, libcublas and others: 2.5
GB that a CPU never calls. Here they are 0.3 MB: libraries of the same names with the symbols that torch
leaves undefined, each of which returns 100, cudaErrorNoDevice. Then LD_LIBRARY_PATH=OUT. It was tested with
torch 2.13.0.
"""

import re
import subprocess
import sys
from pathlib import Path

SYSTEM = (
    "libc.so",
    "libm.so",
    "libdl",
    "librt",
    "libpthread",
    "libstdc++",
    "libgcc_s",
    "ld-linux",
    "libgomp",
)
CUDA = re.compile(r"^(cu[a-z]*[A-Z_]|nccl|nvrtc|nvshmem|cupti|cudnn|cufile|__cuda|curand)")


def printed(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main(source, out):
    libraries = sorted(Path(source).glob("lib*.so*"))
    needed, undefined, defined = set(), set(), set()
    by_library, shmem = {}, set()
    for library in libraries:
        needed |= set(re.findall(r"NEEDED.*\[(.*?)\]", printed("readelf", "-d", library)))
        for line in printed("nm", "-D", library).splitlines():
            words = line.split()
            if len(words) == 3:
                defined.add(words[2].partition("@")[0])
            elif len(words) == 2 and words[0] == "U":
                name, _, version = words[1].partition("@")
                version = version.lstrip("@")
                # Some libraries give their symbols a version.
                if version.startswith("lib"):
                    by_library.setdefault(version, set()).add(name)
                elif version == "NVSHMEM":
                    shmem.add(name)
                elif not version:
                    undefined.add(name)
    own = {library.name for library in libraries}
    missing = [n for n in sorted(needed - own) if not n.startswith(SYSTEM) and n != "libcuda.so.1"]
    others = {name for name in undefined - defined if CUDA.match(name)}
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for library in missing:
        names = set(by_library.get(library, ()))
        names |= others if library == missing[0] else set()
        names |= shmem if library.startswith("libnvshmem") else set()
        code = "".join(f"long {name}(void) {{ return 100; }}\n" for name in sorted(names))
        flags = ["-shared", "-fPIC", "-w", "-o", out / library, f"-Wl,-soname,{library}"]
        version = (
            "NVSHMEM" if library.startswith("libnvshmem") else library if library in by_library else None
        )
        if version:
            script = out / "versions"
            script.write_text(f"{version} {{ global: *; }};\n")
            flags.append(f"-Wl,--version-script={script}")
        subprocess.run(["gcc", *flags, "-x", "c", "-"], input=code, text=True, check=True)
    print(f"{len(missing)} stand-ins for CUDA libraries")


main(*sys.argv[1:])
