"""Rows of the test families, drawn where they are used. Parameters are those of `critbeta families`."""

import math

import torch

FAMILIES = ["gaussian", "sink", "needles", "student-t", "log-grid", "equal", "masked", "bf16", "ascending"]
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def draw(family, rows, n, dtype, device):
    """`rows` rows of `n` scores [rows, n]; family as in FAMILIES."""
    shape, where = (rows, n), {"device": device}
    if family in ("equal", "log-grid", "ascending"):
        rank = torch.arange(n, dtype=torch.float64, **where)
        row = {
            "equal": torch.zeros_like(rank),
            "log-grid": -torch.log1p(rank) / 2.5,
            "ascending": rank * 0.125,
        }[family]
        return row.to(dtype).expand(shape).contiguous()
    x = torch.randn(shape, **where)
    at = torch.randint(n, (rows, 4), **where)
    if family == "sink":
        x.scatter_(1, at[:, :1], 20.0)
    elif family == "needles":
        x.scatter_(1, at, 30.0 + torch.randn((rows, 4), **where))
    elif family == "student-t":
        # Two degrees of freedom: a normal over the root of half a chi-squared, which is an exponential.
        x /= torch.empty(shape, **where).exponential_().clamp_min_(1e-12).sqrt_()
    elif family == "masked":
        x.masked_fill_(torch.rand(shape, **where) < 0.5, -math.inf)
        x.scatter_(1, at[:, :1], 0.0)  # no row without a score: PyTorch makes NaN of it
    elif family == "bf16":
        x = x.bfloat16()
    elif family != "gaussian":
        raise ValueError(f"family {family!r}; expected one of {', '.join(FAMILIES)}")
    return x.to(dtype)
