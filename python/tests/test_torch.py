"""torch tensors on the CPU, where torch is installed: shared by DLPack, never copied."""

import critbeta
import numpy as np
import pytest
from reference import assert_probabilities, rows

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "float64"])
def test_tensors_are_arrays(name):
    dtype = getattr(torch, name)
    scores = torch.randn(3, 4, 500, generator=torch.Generator().manual_seed(1)).to(dtype)
    wide = scores.double().numpy() if name == "float64" else scores.float().numpy()
    assert np.array_equal(critbeta.critical_beta(scores), critbeta.critical_beta(wide))
    assert critbeta.softmax(scores).tobytes() == critbeta.softmax(wide).tobytes()
    assert critbeta.softmax(scores[..., 10:60]).tobytes() == critbeta.softmax(wide[..., 10:60]).tobytes()
    block, _ = critbeta._arrays.rows(scores, "scores")
    assert block.__array_interface__["data"][0] == scores.data_ptr()


@pytest.mark.parametrize(("name", "rounding"), [("float32", 0.0), ("float16", 2.0**-11), ("bfloat16", 2.0**-8)])
def test_out_is_a_tensor(name, rounding):
    row = rows(600)["spiky"]
    scores, out = torch.from_numpy(row), torch.zeros(600, dtype=getattr(torch, name))
    assert critbeta.softmax(scores, "identity", out=out) is out
    assert_probabilities(out.float().numpy(), row, 1.0, rounding)
    same = out.clone()
    expected = critbeta.softmax(same, "identity", out=torch.empty_like(same))
    assert critbeta.softmax(same, "identity", out=same) is same and torch.equal(same, expected)


def test_lens_and_positions_are_tensors():
    scores = torch.zeros(3, 8)
    assert critbeta.stats(scores, lens=torch.tensor([1, 2, 8])).n.tolist() == [1, 2, 8]
    beta = critbeta.softmax(scores, "qwen-logn:train=10", positions=torch.tensor(99), return_stats=True)[1].beta
    assert np.allclose(beta, 2)


def test_queries_and_keys_are_tensors():
    q, k = torch.randn(1, 4, 20, 16).bfloat16(), torch.randn(1, 2, 30, 16).bfloat16()
    found = critbeta.diagnose(q=q, k=k).rows
    expected = critbeta.diagnose(q=q.float().numpy(), k=k.float().numpy()).rows
    assert found.shape == (4, 20) and np.array_equal(found.critical_beta, expected.critical_beta)


def test_what_torch_does_not_share_is_refused():
    with pytest.raises(ValueError, match=r"scores of shape \(2, 3\) cannot be shared through DLPack"):
        critbeta.stats(torch.zeros(2, 3, requires_grad=True))
    with pytest.raises(TypeError, match="int64"):
        critbeta.stats(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="meta|DLPack"):
        critbeta.stats(torch.zeros(2, 3, device="meta"))
    with pytest.raises(ValueError, match="DLPack"):
        critbeta.stats(torch.zeros(2, 3).to_sparse())
