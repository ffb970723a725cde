"""The device of tests that need one: a GPU, or CPU memory with the simulator of the kernels as driver.

The simulator needs a build with `--features simt` (scripts/python-simt.sh makes one). CRITBETA_REQUIRE_GPU=1
and CRITBETA_REQUIRE_SIMT=1 turn a skip into a failure.
"""

import os

import critbeta
import pytest

torch = pytest.importorskip("torch")
import critbeta.torch  # noqa: E402
from critbeta import _arrays, _core, _cuda  # noqa: E402

HAS_GPU = torch.cuda.is_available() or bool(os.environ.get("CRITBETA_REQUIRE_GPU"))
if not HAS_GPU:
    try:
        SIMULATED = _core.Engine.simulated("sm_90")
    except RuntimeError as error:
        if os.environ.get("CRITBETA_REQUIRE_SIMT"):
            raise
        pytest.skip(str(error), allow_module_level=True)


class Device:
    """A block in which kernels run on the tensors that it makes. On the simulator they run on all tensors,
    and what reads keys in pages on a CPU refuses them."""

    def __init__(self, engine=None):
        self.engine = engine

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        if not HAS_GPU:
            self.patch.setattr(_cuda, "engine", lambda device: self.engine or SIMULATED)
            self.patch.setattr(_cuda, "stream", lambda device: 0)
            self.patch.setattr(critbeta.torch, "is_launched", lambda scores: scores.numel() > 0)
            self.patch.setattr(_arrays, "is_on_gpu", _arrays.is_tensor)
        return lambda tensor: tensor.cuda() if HAS_GPU else tensor.clone()

    def __exit__(self, *_how):
        self.patch.undo()
