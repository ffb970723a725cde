"""The flash attention of llama.cpp on a CPU (`ggml_flash_attn_ext`), called by ctypes in libggml-cpu.so.

benches/peers/ggml.sh builds that library from llama.cpp's sources, for the CPU that it runs on. A call here
is llama.cpp's own: a graph of one node, on the CPU backend, with a pool of threads that lasts. The tensors
lie in PyTorch's memory. Nothing here depends on the layout of a struct of ggml but for ggml_init_params,
which has three fields; the rest are pointers. ggml ends the process when an argument is wrong, so the sizes
and places of tensors are checked here.
"""

import ctypes
import pathlib

import torch

# enum ggml_type of ggml.h; a row of it is as PyTorch has it.
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}
FEATURES = ("avx2", "avx512", "avx512_bf16", "amx_int8", "neon", "sve")
# Bytes: ggml_threadpool_params takes 536 in ggml 0.25.
POOL_PARAMS = 4096
# Bytes: TENSOR_ALIGNMENT of ggml-impl.h.
ALIGNMENT = 32


class InitParams(ctypes.Structure):
    _fields_ = [
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    ]


POINTER, INT, LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
SIZE, FLOAT, TEXT = ctypes.c_size_t, ctypes.c_float, ctypes.c_char_p
# What each function returns, and what it takes.
FUNCTIONS = {
    "ggml_version": (TEXT, []),
    "ggml_commit": (TEXT, []),
    "ggml_init": (POINTER, [InitParams]),
    "ggml_tensor_overhead": (SIZE, []),
    "ggml_graph_overhead_custom": (SIZE, [SIZE, ctypes.c_bool]),
    "ggml_nbytes": (SIZE, [POINTER]),
    "ggml_new_tensor_4d": (POINTER, [POINTER, INT, LONG, LONG, LONG, LONG]),
    "ggml_flash_attn_ext": (POINTER, [POINTER] * 5 + [FLOAT] * 3),
    "ggml_new_graph_custom": (POINTER, [POINTER, SIZE, ctypes.c_bool]),
    "ggml_build_forward_expand": (None, [POINTER, POINTER]),
    "ggml_threadpool_params_init": (None, [POINTER, INT]),
    "ggml_threadpool_new": (POINTER, [POINTER]),
    "ggml_backend_cpu_init": (POINTER, []),
    "ggml_backend_cpu_set_n_threads": (None, [POINTER, INT]),
    "ggml_backend_cpu_set_threadpool": (None, [POINTER, POINTER]),
    "ggml_backend_cpu_buffer_from_ptr": (POINTER, [POINTER, SIZE]),
    "ggml_backend_tensor_alloc": (INT, [POINTER, POINTER, POINTER]),
    "ggml_backend_graph_compute": (INT, [POINTER, POINTER]),
}


class Ggml:
    """The library in `place`, which is its file or a folder somewhere above it, with `threads` threads."""

    def __init__(self, place, threads):
        place = pathlib.Path(place)
        files = {file.resolve() for file in (place.rglob("libggml-cpu.*") if place.is_dir() else [place])}
        if len(files) != 1:
            raise FileNotFoundError(f"{len(files)} libggml-cpu below {place}, expected that of ggml.sh")
        # libggml-base comes with it, and the functions of both are found in the one handle.
        self.library = ctypes.CDLL(str(files.pop()))
        for name, (returned, taken) in FUNCTIONS.items():
            function = getattr(self.library, name)
            function.restype, function.argtypes = returned, taken
        self.backend = self.library.ggml_backend_cpu_init()
        self.library.ggml_backend_cpu_set_n_threads(self.backend, threads)
        params = ctypes.create_string_buffer(POOL_PARAMS)
        self.library.ggml_threadpool_params_init(params, threads)
        self.library.ggml_backend_cpu_set_threadpool(self.backend, self.library.ggml_threadpool_new(params))

    def version(self):
        has = [name for name in FEATURES if getattr(self.library, f"ggml_cpu_has_{name}")()]
        version, commit = self.library.ggml_version().decode(), self.library.ggml_commit().decode()
        return f"ggml {version} ({commit}), built with {' '.join(has)}"

    def tensor(self, context, of, shape):
        """The ggml tensor of `shape` whose numbers are those of `of`, contiguous, in its memory."""
        made = self.library.ggml_new_tensor_4d(context, TYPES[of.dtype], *reversed(shape))
        self.place(made, of)
        return made

    def place(self, tensor, of):
        size = of.numel() * of.element_size()
        if not of.is_contiguous() or self.library.ggml_nbytes(tensor) != size:
            raise ValueError(f"{tuple(of.shape)}: expected {self.library.ggml_nbytes(tensor)} bytes in a row")
        if of.data_ptr() % ALIGNMENT:
            raise ValueError(f"{tuple(of.shape)}: expected memory that begins at {ALIGNMENT} bytes")
        buffer = self.library.ggml_backend_cpu_buffer_from_ptr(of.data_ptr(), size)
        if self.library.ggml_backend_tensor_alloc(buffer, tensor, of.data_ptr()):
            raise MemoryError("ggml_backend_tensor_alloc failed")

    def attention(self, q, cache):
        """What attends with q [seqs, heads, dim] to the keys and values [seqs, kv heads, n, dim] of a place
        of `cache`, and gives float32 [seqs, heads, dim]: the same memory each time. ggml takes queries in
        float32 alone, so they are converted here, before the clock. There is no mask, which is in ggml's
        favour: the graphs of llama.cpp have one."""
        library, (seqs, heads, dim) = self.library, q.shape
        q, out = q.contiguous().to(torch.float32, copy=True), torch.empty(q.shape)
        size = 8 * library.ggml_tensor_overhead() + library.ggml_graph_overhead_custom(8, False)
        graphs = []
        for k, v in cache:
            context = library.ggml_init(InitParams(size, None, True))
            given = [(q, (seqs, heads, 1, dim)), (k, k.shape), (v, v.shape)]
            tensors = [self.tensor(context, *each) for each in given]
            node = library.ggml_flash_attn_ext(context, *tensors, None, dim**-0.5, 0, 0)
            self.place(node, out)
            graph = library.ggml_new_graph_custom(context, 8, False)
            library.ggml_build_forward_expand(graph, node)
            graphs.append(graph)

        def run(at, keep=(q, cache)):
            if library.ggml_backend_graph_compute(self.backend, graphs[at]):
                raise ArithmeticError("ggml_backend_graph_compute failed")
            return out

        return run
