"""Diagnoses against the output of the command, and row records as files and frames."""

import json
import pickle
import re
import sys
from pathlib import Path

import critbeta
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def safetensors(path):
    """Returns the tensors of a file and its metadata, read by the description of the format."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    dtypes = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U32": "<u4", "BF16": "<u2"}

    def tensor(of):
        begin, end = of["data_offsets"]
        raw = data[8 + length + begin : 8 + length + end]
        values = np.frombuffer(raw, dtypes[of["dtype"]]).reshape(of["shape"])
        if of["dtype"] == "BF16":
            import ml_dtypes

            return values.view(ml_dtypes.bfloat16)
        return values

    return {name: tensor(of) for name, of in header.items()}, metadata


def shown(value):
    """Returns four digits, as in the table of the command."""
    decimals = max(0, 3 - int(np.floor(np.log10(value))))
    return f"{value:.{decimals}f}"


LINE = r"│ (\S+) +(\d+) +(\d+) +(\d+)\.\.(\d+) +([\d. ]+?) +([\d.]+) % +([\d.]+) % +([\d.]+) +([\d.]+) │"


def test_the_first_table_of_the_report_page_has_the_numbers_of_its_example():
    page = (ROOT / "docs" / "reading-a-report.md").read_text()
    tensors, metadata = safetensors(ROOT / re.search(r"(examples/data/\S+\.safetensors)", page)[1])
    lines = re.findall(LINE, page)
    assert lines
    diagnoses = {}
    for layer in {line[0] for line in lines}:
        q, k = tensors[f"{layer}.q"], tensors[f"{layer}.k"]
        positions = tensors.get(f"{layer}.positions", tensors.get("positions"))
        scale = float(metadata["scale"]) if "scale" in metadata else None
        found = diagnoses[layer] = critbeta.diagnose(q=q, k=k, positions=positions, scale=scale, layer=layer)
        assert found.summary["inputs"] == [] and found.summary["beta"] == 1.0
        assert found.rows.shape == q.shape[:2]
    for layer, number, rows, least, most, quantiles, above, tied, alpha, entropy in lines:
        head = diagnoses[layer].summary["heads"][int(number)]
        assert (head["layer"], head["head"], head["rows"]) == (layer, int(number), int(rows))
        assert head["n"] == [int(least), int(most)]
        names = ["q05", "q25", "q50", "q75", "q95"]
        assert [shown(head["critical_beta"][name]) for name in names] == quantiles.split()
        assert f"{100 * head['share_above_critical']:.1f}" == above
        assert f"{100 * head['share_tied']:.1f}" == tied
        assert [shown(head["median_alpha"]), shown(head["median_relative_entropy"])] == [alpha, entropy]
        column = diagnoses[layer].rows.critical_beta[int(number)]
        assert head["critical_beta"]["q50"] == pytest.approx(np.median(column), rel=1e-15)


def test_scores_of_queries_and_keys_are_diagnosed_alike():
    rng = np.random.default_rng(1)
    q, k = (rng.standard_normal(shape).astype(np.float32) for shape in [(4, 60, 16), (2, 90, 16)])
    by_pair = critbeta.diagnose(q=q, k=k, layer="a", resolve=0.69)
    scores = np.einsum("hrd,hkd->hrk", q.astype(float), np.repeat(k, 2, 0).astype(float)) / 4
    positions = np.arange(30, 90)
    scores[:, np.arange(90) > positions[:, None]] = -np.inf
    by_scores = critbeta.diagnose(scores, layer="a", resolve=0.69)
    assert np.array_equal(by_scores.rows.position, np.broadcast_to(positions, (4, 60)))
    for name in ["head", "row", "position", "n", "argmax"]:
        assert np.array_equal(getattr(by_pair.rows, name), getattr(by_scores.rows, name)), name
    # A gap of float32 scores near 2 errs by 2^-22, and a critical gap is rarely below 1e-3.
    close = np.isclose(by_pair.rows.critical_beta, by_scores.rows.critical_beta, rtol=1e-3)
    assert close.mean() > 0.99
    for one, other in zip(by_pair.summary["heads"], by_scores.summary["heads"]):
        assert one["critical_beta"]["q50"] == pytest.approx(other["critical_beta"]["q50"], rel=1e-3)
        assert one["length_law"]["verdict"] == other["length_law"]["verdict"]
    batched = critbeta.diagnose(q=q.reshape(2, 2, 60, 16), k=k.reshape(2, 1, 90, 16), layer="a", resolve=0.69)
    assert np.array_equal(batched.rows.critical_beta, by_pair.rows.critical_beta)
    transposed = critbeta.diagnose(q=np.asfortranarray(q), k=np.asfortranarray(k), layer="a", resolve=0.69)
    assert np.array_equal(transposed.rows.critical_beta, by_pair.rows.critical_beta)


def test_a_summary_is_of_its_rows():
    scores = np.stack([family.draw(300, seed=seed) for family in critbeta.families[:2] for seed in range(50)])
    found = critbeta.diagnose(scores.reshape(2, 50, 300), layer="families", beta=2.0, train_length=100)
    assert [found.summary[name] for name in ("train_length", "resolve", "beta")] == [100, 0, 2]
    simplex, gaussian = found.summary["heads"]
    assert simplex["critical_beta"]["q05"] == simplex["critical_beta"]["q95"] == np.log(300) / 4
    assert gaussian["share_above_critical"] == np.mean(found.rows.critical_beta[1] < 2)
    assert set(found.rows.layer.ravel()) == {"families"}
    stats = critbeta.stats(scores.reshape(2, 50, 300), beta=2.0)
    for name in stats.names[1:]:
        assert np.array_equal(getattr(stats, name), getattr(found.rows, name)), name


PAIR = dict(q=np.zeros((2, 2, 4)), k=np.zeros((2, 2, 4)))


@pytest.mark.parametrize(
    ("given", "exception", "message"),
    [
        (dict(), TypeError, "expected scores, or q and k"),
        (dict(q=np.zeros((1, 2, 4), np.float32)), TypeError, "expected scores, or q and k"),
        (dict(scores=np.zeros((2, 2), np.float32), q=np.zeros((1, 2, 4))), TypeError, "expected scores, or"),
        (dict(scores=np.zeros((2, 2), np.float32), scale=1.0), TypeError, "scores are scaled already"),
        (
            dict(q=np.zeros((2, 4)), k=np.zeros((2, 4))),
            ValueError,
            r"q of shape \(2, 4\): expected \[\.\.\., heads",
        ),
        (
            dict(q=np.zeros((3, 2, 4)), k=np.zeros((2, 2, 4))),
            ValueError,
            "3 heads, expected a multiple of the 2",
        ),
        (dict(q=np.zeros((2, 2, 4)), k=np.zeros((2, 2, 5))), ValueError, "head_dim 5, expected 4"),
        (dict(q=np.zeros((2, 3, 4)), k=np.zeros((2, 2, 4))), ValueError, "needs positions"),
        (dict(q=np.zeros((2, 3, 0)), k=np.zeros((2, 2, 0))), ValueError, "head_dim is 0"),
        (dict(q=np.zeros((2, 0, 4)), k=np.zeros((2, 2, 4))), ValueError, "has no rows"),
        (dict(q=np.zeros((0, 2**57, 4)), k=np.zeros((2, 2, 4))), ValueError, "has no rows"),
        (dict(q=np.zeros((2, 2, 4)), k=np.zeros((2, 0, 4))), ValueError, "no keys for the 2 rows"),
        (dict(PAIR, positions=[0, 2]), ValueError, r"positions\[1\] is 2"),
        (dict(PAIR, positions=[0, 1, 1]), ValueError, r"positions of shape \(3,\)"),
        (dict(PAIR, scale=0.0), ValueError, "scale must be finite and above 0"),
        (dict(PAIR, lens=[1, 1]), TypeError, "lens are for scores"),
        (dict(q=np.zeros((2, 2, 4), int), k=np.zeros((2, 2, 4))), TypeError, "q is dtype"),
        (dict(scores=np.zeros((2, 2)), train_length=1.0), ValueError, "training length"),
        (dict(scores=np.zeros((2, 2)), resolve=-1.0), ValueError, "resolve"),
        (dict(scores=np.zeros((2, 2)), positions=[-1, 0]), ValueError, "positions: -1 of row 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(given, exception, message):
    with pytest.raises(exception, match=message):
        critbeta.diagnose(**given)


def test_poisoned_and_tiny_rows_are_summed_up_without_them():
    scores = np.zeros((1, 4, 6), np.float32)
    scores[0, 0, 0] = np.nan
    scores[0, 1, 1:] = -np.inf
    scores[0, 2] = -np.inf
    (head,) = critbeta.diagnose(scores).summary["heads"]
    assert (head["rows"], head["measured"], head["poisoned"]) == (4, 1, 1) and head["share_tied"] == 1
    assert head["critical_beta"]["q50"] is None


def test_columns_are_files_and_frames(tmp_path):
    pandas = pytest.importorskip("pandas")
    parquet = pytest.importorskip("pyarrow.parquet")
    scores = np.stack([family.draw(99, seed=3) for family in critbeta.families]).reshape(3, 5, 99)
    scores[1, 1, 7] = np.nan
    for top_k, columns in [(None, 20), (16, 22)]:
        stats = critbeta.stats(scores, resolve=0.69, top_k=top_k)
        frame = stats.to_pandas()
        assert list(frame.columns) == stats.names and frame.shape == (15, columns)
        path = tmp_path / "rows.parquet"
        stats.to_parquet(path)
        table = parquet.read_table(path)
        assert table.column_names == stats.names
        for name in stats.names:
            read = table[name].to_numpy()
            assert np.array_equal(read, getattr(stats, name).ravel(), equal_nan=read.dtype.kind == "f"), name
        assert isinstance(frame, pandas.DataFrame) and frame["head"].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert stats.critical_beta is stats.critical_beta and "15 rows" in repr(stats)
    with pytest.raises(TypeError, match="to_parquet"):
        pickle.dumps(stats)


def test_a_table_of_no_rows_has_the_types_of_one_with_rows():
    empty, one = critbeta.stats(np.zeros((0, 4))), critbeta.stats(np.zeros((1, 4)))
    for name in one.names:
        assert getattr(empty, name).dtype.kind == getattr(one, name).dtype.kind, name


def test_a_row_without_scores_is_zeros():
    scores = np.full((1, 4), -np.inf, np.float32)
    stats = critbeta.stats(scores, beta=2.0)
    for name in stats.names[4:]:
        assert not getattr(stats, name).any(), name
    row_stats = critbeta.softmax(scores, "fixed:2", return_stats=True)[1]
    assert (row_stats.n, row_stats.max, row_stats.beta, row_stats.log_partition) == (0, -np.inf, 2, -np.inf)


def test_a_frame_needs_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="to_pandas needs pandas: pip install pandas"):
        critbeta.stats(np.zeros((1, 4))).to_pandas()


def test_a_calibration_holds_the_fitted_law_of_every_head(tmp_path):
    rng = np.random.default_rng(5)
    n = np.geomspace(32, 512, 200).astype(int)
    scores = rng.standard_normal((2, 200, 512)).astype(np.float32)
    found = critbeta.diagnose(scores, lens=n, layer="drawn", resolve=0.69, seed=3)
    found.rows.to_calibration(tmp_path / "cal.json", seed=3)
    written = json.loads((tmp_path / "cal.json").read_text())
    assert (written["resolve"], written["critbeta"]) == (0.69, critbeta.__version__)
    for head, law in zip(found.summary["heads"], written["heads"], strict=True):
        assert (law["layer"], law["head"]) == ("drawn", head["head"])
        for name, fitted in (("critical", "critical_beta"), ("resolved", "resolved_beta")):
            fit = head["length_law"][fitted]
            assert all(law[name][part] == fit[part] for part in ("c", "xi", "interval"))
    with pytest.raises(ValueError, match="the 16 largest"):
        critbeta.stats(scores, top_k=16).to_calibration(tmp_path / "none.json")
    with pytest.raises(OSError, match="nowhere"):
        found.rows.to_calibration("/nowhere/cal.json")
    assert [path.name for path in tmp_path.iterdir()] == ["cal.json"]


def test_queries_and_keys_of_different_texts_are_refused():
    q, k = np.ones((2, 8, 16, 4), np.float32), np.ones((1, 2, 16, 4), np.float32)
    with pytest.raises(ValueError, match=r"q has the leading shape \(2,\), and k \(1,\)"):
        critbeta.diagnose(q=q, k=k)
    assert len(critbeta.diagnose(q=q[:1], k=k[0]).rows) == 8 * 16


def test_heads_behind_the_keys_are_noted():
    scores = np.random.default_rng(0).standard_normal((64, 64, 4)).astype(np.float32)
    assert "if its heads come last" in critbeta.diagnose(scores).summary["notes"][0]
    assert "notes" not in critbeta.diagnose(np.moveaxis(scores, -1, 0)).summary
