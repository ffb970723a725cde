"""What every inference server needs of critbeta, with no server imported. It needs torch.

A rule multiplies the logits of a row. So a server applies it as `query * beta[token, head]` in front of its
own kernel, whatever that is; and measuring a row needs its query and the pages of its keys. A door to a
server (`critbeta.vllm`, `critbeta.sglang`) describes layers and requests, and everything else is here.

    layers = [Layer("model.layers.0.self_attn", heads=9), ...]
    betas = Betas("qwen-logn:train=8192", layers, length=32768)
    step = betas.step(tokens=8192)              # buffers that a CUDA graph may read
    step.fill(positions)                        # before each step
    query = step.scale("model.layers.0.self_attn", query)
    # or, for a rule that is measured on each row:
    query = step.measure("model.layers.0.self_attn", query, requests, k_pages, scale)

    recorder = Recorder(layers, length=32768, folder="records")
    taken = recorder.begin(Requests(starts, counts, tables, page=16))
    if taken:
        recorder.add(taken, "model.layers.0.self_attn", query, k_pages, scale)
"""

from __future__ import annotations

try:
    from ._betas import Betas, Step
    from ._layers import Layer
    from ._record import Recorder, Taken
    from ._requests import OnDevice, Requests, measured
    from ._settings import Settings
except ImportError as error:
    raise ImportError(f"critbeta.serve needs torch: pip install torch ({error})") from error

__all__ = ["Betas", "Layer", "OnDevice", "Recorder", "Requests", "Settings", "Step", "Taken", "measured"]
