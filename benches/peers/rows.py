"""Rows of the test laws, drawn where they are used. Parameters are those of `critbeta families`."""

import math

import torch

LAWS = ["gaussian", "sink", "needles", "student-t", "log-grid", "equal", "masked", "bf16", "ascending"]
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def draw(law, rows, n, dtype, device):
    """`rows` rows of `n` scores [rows, n]; law as in LAWS."""
    shape, where = (rows, n), {"device": device}
    if law in ("equal", "log-grid", "ascending"):
        rank = torch.arange(n, dtype=torch.float64, **where)
        row = {
            "equal": torch.zeros_like(rank),
            "log-grid": -torch.log1p(rank) / 2.5,
            "ascending": rank * 0.125,
        }[law]
        return row.to(dtype).expand(shape).contiguous()
    x = torch.randn(shape, **where)
    at = torch.randint(n, (rows, 4), **where)
    if law == "sink":
        x.scatter_(1, at[:, :1], 20.0)
    elif law == "needles":
        x.scatter_(1, at, 30.0 + torch.randn((rows, 4), **where))
    elif law == "student-t":
        # Two degrees of freedom: a normal over the root of half a chi-squared, which is an exponential.
        x /= torch.empty(shape, **where).exponential_().clamp_min_(1e-12).sqrt_()
    elif law == "masked":
        x.masked_fill_(torch.rand(shape, **where) < 0.5, -math.inf)
        x.scatter_(1, at[:, :1], 0.0)  # no row without a score: PyTorch makes NaN of it
    elif law == "bf16":
        x = x.bfloat16()
    elif law != "gaussian":
        raise ValueError(f"law {law!r}; expected one of {', '.join(LAWS)}")
    return x.to(dtype)
