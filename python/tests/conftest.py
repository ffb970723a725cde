"""What all tests share."""

import sys

import pytest


@pytest.fixture(scope="module", autouse=True)
def nothing_is_compiled():
    """Each file begins without compiled code: PyTorch keeps 8 versions of a function, and then refuses more."""
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
