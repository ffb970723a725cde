"""What people run today: each peer takes scores [rows, n] and gives probabilities and the betas they were
made at.

None is beta = 1: a plain softmax. PyTorch's dispatcher, not ours, chooses the kernels."""

import torch

try:
    import triton
    import triton_online
except ImportError:
    triton = None

TOP_K = 2048
# At beta = +inf the limit of softmax is finite, PyTorch's is not: this is as far above any score's gap.
LARGEST_BETA = 1e30


def triton_version():
    return triton.__version__ if triton else None


def sorted_gaps(x):
    """All gaps of each row, ascending, each one rounded f32 subtraction."""
    ordered = torch.sort(x.float(), dim=-1, descending=True).values
    return ordered[:, :1] - ordered


def critical_beta(gaps):
    """max over k >= 2 of log k / gap_k; in a tied block the last rank is the largest, so no tie needs
    care."""
    if gaps.shape[-1] < 2:
        return torch.zeros_like(gaps[:, 0])
    ranks = torch.arange(2, gaps.shape[-1] + 1, device=gaps.device, dtype=gaps.dtype)
    return (ranks.log() / gaps[:, 1:]).amax(-1).clamp_max(LARGEST_BETA)


def rescaled(x, beta):
    """softmax(beta x) in the dtype of x."""
    scores = x.float()
    return torch.softmax((scores - scores.amax(-1, keepdim=True)) * beta[:, None], -1).to(x.dtype)


def sort_based(x):
    beta = critical_beta(sorted_gaps(x))
    return rescaled(x, beta), beta


def topk_softmax(x):
    top = torch.topk(x, min(TOP_K, x.shape[-1]), dim=-1).values.float()
    beta = critical_beta(top[:, :1] - top)
    return rescaled(x, beta), beta


def plain(x):
    return torch.softmax(x, -1)


def eager(x):
    return plain(x), None


# One shape per case: a kernel of its own for each, which is the best that the compiler has.
_compiled = {}


def compiled(x):
    if x.device not in _compiled:
        torch._dynamo.config.recompile_limit = 256
        torch._dynamo.config.accumulated_recompile_limit = 1024
        backend = "inductor" if x.is_cuda else "eager"
        _compiled[x.device] = torch.compile(plain, dynamic=False, backend=backend)
    return _compiled[x.device](x), None


def peers(device, sort):
    """The peers that this machine has, by name; `sort` is whether to sort whole rows."""
    found = {"eager": eager, "compile": compiled, "topk_softmax": topk_softmax}
    if sort:
        found["sort"] = sort_based
    if triton and (device == "cuda" or triton_online.INTERPRETED):
        found["triton"] = lambda x: (triton_online.softmax(x), None)
    return found
