"""A peer's probabilities against float64, before it is timed."""

import torch

# Relative error of the output's own rounding, and the size below which the dtype has no relative precision.
ROUNDING = {torch.float32: (0.0, 2**-126), torch.float16: (2**-10, 2**-24), torch.bfloat16: (2**-7, 2**-126)}


def check(x, out, beta, lanes=None):
    """None, or what is wrong with `out` as softmax(beta x), by float64; the first rows stand for all.

    `lanes` is how many partial sums in f32 a peer may make of a row and no more: each then rounds n / lanes
    times. On a sink over 65,536 Gaussian scores PyTorch's softmax on a CPU is off by up to 1.4e-5
    (2026-11-25): what is added to the sink's lane is lost."""
    scores, beta, out = x[:4].double(), beta[:4].double(), out[:4].double()
    wanted = torch.softmax((scores - scores.amax(-1, keepdim=True)) * beta[:, None], -1)
    rounding, smallest = ROUNDING[x.dtype]
    summing = x.shape[-1] / lanes * 2**-24 if lanes else 0.0
    # The rounding of z = beta x gap, 16 times over for a peer's own exponential.
    z = beta[:, None] * (scores.amax(-1, keepdim=True) - scores)
    allowed = wanted * ((4 + z) * 2**-19 + summing + rounding).nan_to_num(posinf=1.0) + smallest
    wrong = (out - wanted).abs() > allowed
    wrong |= out.isnan()
    if not wrong.any():
        return None
    row, column = (index[0].item() for index in wrong.nonzero(as_tuple=True))
    found, expected = out[row, column].item(), wanted[row, column].item()
    return f"row {row}, column {column}: {found:.9e}, expected {expected:.9e}"
