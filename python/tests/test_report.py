"""Pages have the numbers of the summary, from any source, and an error leaves no file."""

import html
import os
import re
from pathlib import Path

import critbeta
import numpy as np
import pytest

ATTENTION = Path(__file__).parents[2] / "examples" / "data" / "smollm2_gpl3.safetensors"


@pytest.fixture(scope="module")
def scores():
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((2, 40, 60)).astype(np.float32)
    scores[:, np.arange(60) > np.arange(20, 60)[:, None]] = -np.inf
    return scores


def words(page):
    text = re.sub(r"<style>.*?</style>|<script.*?</script>|<[^>]*>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(text))


def shown(value):
    """Returns a number with three significant digits, as a page shows it."""
    return re.escape(f"{value:.{max(0, 2 - int(np.floor(np.log10(value))))}f}")


def assert_is_of(page, summary):
    """Checks that the page has the medians of every head, and the shares of all rows."""
    text = words(page)
    assert page.startswith("<!DOCTYPE html>") and page.rstrip().endswith("</html>")
    assert f"seed {summary['seed']}" in text and f"training length {summary['train_length']:g}" in text
    measured = sum(head["measured"] for head in summary["heads"])
    for regime in ("below", "near", "above"):
        rows = sum(head["regimes"][regime] for head in summary["heads"])
        (found,) = re.findall(rf'<strong id="{regime}">([\d.]+) %</strong>', page)
        assert float(found) == pytest.approx(100 * rows / measured, abs=0.051), regime
    for head in summary["heads"]:
        name = f"{head['layer']} · head {head['head']}"
        ratio, critical = head["operating_ratio"], head["critical_beta"]
        rho, beta = shown(ratio["q50"]), shown(critical["q50"])
        lead = (
            rf"{name} choose anotherThe median of {head['measured']} rows has ρ = {rho}\. "
            rf"[^β]*critical β, [^β]*above\. The median critical β is {beta}\. In"
        )
        assert re.search(lead, text), lead


def test_a_page_of_rows_in_memory(scores, tmp_path):
    found = critbeta.diagnose(scores, layer="drawn", resolve=0.69, train_length=30, seed=5)
    critbeta.report(found, tmp_path / "diagnosis.html")
    page = (tmp_path / "diagnosis.html").read_text()
    assert_is_of(page, found.summary)
    assert "resolve r = 0.69 nats, training length 30" in words(page) and "rows in memory" in words(page)
    critbeta.report(found.rows, tmp_path / "rows.html", train_length=30, seed=5)
    rows = (tmp_path / "rows.html").read_text()
    assert f"critbeta.report(rows, {str(tmp_path / 'rows.html')!r}, train_length=30, seed=5)" in words(rows)
    cut = lambda page: page[: page.index("<dt>command")]  # noqa: E731
    assert cut(rows) == cut(page)
    stats = critbeta.stats(scores, resolve=0.69, top_k=16)
    critbeta.report(stats, str(tmp_path / "stats.html"))
    assert "only the 16 largest scores of a row were counted" in words((tmp_path / "stats.html").read_text())
    assert sorted(os.listdir(tmp_path)) == ["diagnosis.html", "rows.html", "stats.html"]


WRITERS = {
    "zstd.parquet": lambda frame, path: frame.to_parquet(path, compression="zstd"),
    "gzip.parquet": lambda frame, path: frame.to_parquet(path, compression="gzip"),
    "indexed.parquet": lambda frame, path: frame.set_index(frame.index + 7).to_parquet(path, index=True),
    "int32.parquet": lambda frame, path: frame.astype({"n": "int32", "head": "int32"}).to_parquet(path),
    "plain.csv": lambda frame, path: frame.to_csv(path, index=False),
    "indexed.csv": lambda frame, path: frame.to_csv(path),
    "ones.csv": lambda frame, path: frame.astype({"poisoned": int, "n": float}).to_csv(path),
    "rows.jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True, double_precision=15),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_page_of_row_records_after_pandas(scores, tmp_path, name):
    pandas = pytest.importorskip("pandas")
    found = critbeta.diagnose(scores, layer="drawn", resolve=0.69)
    path, page = tmp_path / name, tmp_path / "page.html"
    found.rows.to_parquet(tmp_path / "rows.parquet")
    frame = pandas.read_parquet(tmp_path / "rows.parquet")
    # Differences of columns keep their sign.
    assert ((frame["position"] - frame["n"]) < 0).all() and frame["n"].dtype == "int64"
    WRITERS[name](frame, path)
    with pytest.raises(ValueError, match="resolved_beta differs from critical_beta"):
        critbeta.report(path, page)
    assert not page.exists()
    critbeta.report(path, page, resolve=0.69)
    assert_is_of(page.read_text(), found.summary)
    with pytest.raises(TypeError, match=f"{name}: row records carry their own beta"):
        critbeta.report(path, page, resolve=0.69, beta=2.0)


def test_a_page_of_attention_files(scores, tmp_path):
    np.save(tmp_path / "drawn.npy", scores)
    page = tmp_path / "page.html"
    critbeta.report(tmp_path / "drawn.npy", page, beta=2.0, seed=3)
    found = critbeta.diagnose(scores, layer="drawn", beta=2.0, seed=3)
    text = page.read_text()
    assert_is_of(text, found.summary)
    assert "β = 2" in words(text) and "velickovic" in text
    assert f"critbeta.report({str(tmp_path / 'drawn.npy')!r}, {str(page)!r}, beta=2.0, seed=3)" in words(text)
    # Files of one layer name are pooled.
    (tmp_path / "more").mkdir()
    np.save(tmp_path / "more" / "drawn.npy", scores[:, :10])
    critbeta.report([tmp_path / "drawn.npy", tmp_path / "more" / "drawn.npy"], page)
    assert "The median of 50 rows" in words(page.read_text())


def test_queries_and_keys_have_gap_counts_and_what_if(tmp_path):
    critbeta.report(ATTENTION, tmp_path / "page.html")
    page = words((tmp_path / "page.html").read_text())
    assert "layer10 · head 2" in page and "scale 0.125" in page and "7,752 rows" in page
    assert "Gap count of a row" in page and page.count("critical:ratio=1") >= 12


STATS, report = critbeta.stats(np.zeros((2, 3))), critbeta.report
NOT_WRITTEN = [
    (lambda at: report([], at / "page.html"), ValueError, "no file is given"),
    (lambda at: report(at / "absent.npy", at / "page.html"), FileNotFoundError, r"absent\.npy"),
    (lambda at: report(at / "absent.parquet", at / "page.html"), FileNotFoundError, r"absent\.parquet"),
    (
        lambda at: report(at / "x.txt", at / "page.html"),
        ValueError,
        r"x\.txt: .*unknown extension.*\.parquet, \.csv",
    ),
    (
        lambda at: report(at / "empty.csv", at / "page.html"),
        ValueError,
        r"empty\.csv: is empty: expected the header",
    ),
    (lambda at: report(at / "good.npy", at / "page.html", seed=-1), ValueError, "seed is -1: expected 0 to"),
    (lambda at: report(STATS, at / "page.html", seed=2**64), ValueError, "seed is 1844674"),
    (lambda at: report(STATS, b"page.html"), TypeError, "path is bytes: expected text"),
    (lambda at: report(at / "bad.npy", at / "page.html"), ValueError, r"bad\.npy"),
    (lambda at: report(at / "bad.parquet", at / "page.html"), ValueError, r"bad\.parquet"),
    (lambda at: report(at / "bad.csv", at / "page.html"), ValueError, r"bad\.csv"),
    (
        lambda at: report([at / "bad.csv", at / "good.npy"], at / "page.html"),
        ValueError,
        "one file of row records",
    ),
    (lambda at: report(at / "good.npy", at / "good.npy"), ValueError, "is named twice"),
    (lambda at: report(at / "good.npy", at / "nowhere" / "page.html"), FileNotFoundError, "nowhere"),
    (lambda at: report(at / "good.npy", at), OSError, "directory"),
    (lambda at: report(at / "good.npy", at / "page.html", resolve=-1.0), ValueError, "resolve must be"),
    (lambda at: report(at / "good.npy", at / "page.html", beta=np.nan), ValueError, "beta must be"),
    (lambda at: report(at / "good.npy", at / "page.html", train_length=1.0), ValueError, "training length"),
    (
        lambda at: report(at / "good.npy", at / "page.html", top_k=0),
        ValueError,
        "top_k is 0: expected 1 to 2048",
    ),
    (
        lambda at: report(STATS, at / "page.html", beta=1.0),
        TypeError,
        "beta is for files: Stats",
    ),
    (
        lambda at: report(np.zeros((2, 3)), at / "page.html"),
        TypeError,
        "expected Stats, a Diagnosis, a DataFrame",
    ),
    (lambda at: report(3, at / "page.html"), TypeError, "expected Stats, a Diagnosis, a DataFrame"),
    (lambda at: report(STATS, 3), TypeError, "int"),
]


@pytest.mark.parametrize("case", range(len(NOT_WRITTEN)))
def test_an_error_leaves_no_page(case, tmp_path):
    given, exception, message = NOT_WRITTEN[case]
    np.save(tmp_path / "good.npy", np.random.default_rng(1).standard_normal((3, 20)).astype(np.float32))
    for name in ("bad.npy", "bad.parquet", "bad.csv", "x.txt"):
        (tmp_path / name).write_bytes(b"PAR1 nonsense\nof no format\n")
    (tmp_path / "empty.csv").write_bytes(b"")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(exception, match=message):
        given(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_error_of_the_system_is_pythons_own(tmp_path):
    absent = str(tmp_path / "nowhere" / "page.html")
    with pytest.raises(FileNotFoundError) as pythons:
        open(absent, "w")
    with pytest.raises(FileNotFoundError) as found:
        critbeta.report(critbeta.stats(np.zeros((2, 3))), absent)
    assert str(found.value) == str(pythons.value) and found.value.args == pythons.value.args
    assert (found.value.errno, found.value.filename) == (pythons.value.errno, absent)


@pytest.mark.parametrize("codec", ["gzip", "zstd", "lz4", "brotli", "snappy", None])
def test_compressions_of_parquet_files(scores, tmp_path, codec):
    pytest.importorskip("pyarrow")
    pytest.importorskip("pandas")
    critbeta.stats(scores).to_pandas().to_parquet(tmp_path / "rows.parquet", compression=codec)
    if codec not in ("lz4", "brotli"):
        critbeta.report(tmp_path / "rows.parquet", tmp_path / "page.html")
        return
    found = rf"column layer is compressed by {codec.upper()}(_RAW)?"
    with pytest.raises(ValueError, match=f"{found}: expected SNAPPY, ZSTD or GZIP"):
        critbeta.report(tmp_path / "rows.parquet", tmp_path / "page.html")


def test_decimals_of_parquet_are_refused_by_name(scores, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("pandas")
    table = pyarrow.Table.from_pandas(critbeta.stats(scores).to_pandas())
    at = table.schema.get_field_index("n")
    decimals = table.column("n").cast(pyarrow.decimal128(19, 0)).cast(pyarrow.decimal128(9, 1))
    table = table.set_column(at, "n", decimals)
    parquet.write_table(table, tmp_path / "rows.parquet", store_decimal_as_integer=True)
    with pytest.raises(ValueError, match="column n is INT32, expected INT64"):
        critbeta.report(tmp_path / "rows.parquet", tmp_path / "page.html")
