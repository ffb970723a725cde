"""`diagnose` of files and `report` of tables: the numbers of the arrays and of the records."""

import json
import pathlib
import re

import critbeta
import numpy as np
import pytest
from test_diagnose import safetensors
from test_report import ATTENTION, assert_is_of, scores, words  # noqa: F401  scores is a fixture


def assert_same_rows(found, expected):
    assert found.shape == expected.shape and found.names == expected.names
    for name in found.names:
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name


def of_rows(summary):
    """Returns a summary without what it says of files."""
    heads = [{**head, "sources": 0} for head in summary["heads"]]
    return {**summary, "heads": heads, "inputs": []}


@pytest.mark.parametrize("kind", [str, pathlib.Path])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_file_is_diagnosed_as_its_array(scores, tmp_path, kind, dtype):
    array = scores.astype(dtype)
    np.save(tmp_path / "drawn.npy", array)
    np.savez(tmp_path / "stored.npz", drawn=array)
    np.savez_compressed(tmp_path / "deflated.npz", drawn=np.asfortranarray(array), ids=np.arange(3))
    settings = dict(resolve=0.69, beta=2.0, train_length=100.0, seed=3)
    expected = critbeta.diagnose(array, layer="drawn", **settings)
    for name in ("drawn.npy", "stored.npz", "deflated.npz"):
        found = critbeta.diagnose(kind(tmp_path / name), **settings)
        assert_same_rows(found.rows, expected.rows)
        assert of_rows(found.summary) == of_rows(expected.summary)
        skipped = ["ids"] if name == "deflated.npz" else []
        assert found.summary["inputs"] == [{"path": str(tmp_path / name), "skipped": skipped}]
    critbeta.report(found, tmp_path / "page.html", train_length=100.0, seed=3)
    assert_is_of((tmp_path / "page.html").read_text(), expected.summary)


def test_a_file_of_queries_and_keys_and_a_folder_of_shards_are_diagnosed(tmp_path):
    found = critbeta.diagnose(ATTENTION)
    tensors, metadata = safetensors(ATTENTION)
    layers = [name[:-2] for name in tensors if name.endswith(".q")]
    assert found.rows.shape == (len(found.rows),)
    assert list(dict.fromkeys(found.rows.layer.tolist())) == layers and "notes" not in found.summary
    layer = layers[1]
    of = critbeta.diagnose(
        q=tensors[f"{layer}.q"],
        k=tensors[f"{layer}.k"],
        positions=tensors.get(f"{layer}.positions", tensors.get("positions")),
        scale=float(metadata["scale"]) if "scale" in metadata else None,
        layer=layer,
    )
    here = found.rows.layer == layer
    assert np.array_equal(found.rows.critical_beta[here], of.rows.critical_beta.ravel())
    from safetensors.numpy import load_file, save_file

    whole = load_file(ATTENTION)
    (tmp_path / "shards").mkdir()
    names = sorted(whole)
    files = {name: f"model-{at % 3 + 1:05}-of-00003.safetensors" for at, name in enumerate(names)}
    for file in set(files.values()):
        part = {name: whole[name] for name in names if files[name] == file}
        save_file(part, tmp_path / "shards" / file, metadata=metadata)
    assert_same = critbeta.diagnose(tmp_path / "shards")
    index = tmp_path / "shards" / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    for path in (index, tmp_path / "shards"):
        by_index = critbeta.diagnose(path)
        assert by_index.summary["heads"] == assert_same.summary["heads"]
    by_name = {(head["layer"], head["head"]): head for head in assert_same.summary["heads"]}
    assert by_name == {(head["layer"], head["head"]): head for head in found.summary["heads"]}
    critbeta.report(tmp_path / "shards", tmp_path / "page.html")
    page = words((tmp_path / "page.html").read_text())
    assert page.count("SHA-256") == 4 and "a shard of" in page and "layer10: queries and keys" in page
    index.write_text(json.dumps({"weight_map": {**files, "x": "../x.safetensors"}}))
    with pytest.raises(ValueError, match=r"\.\./x\.safetensors.*outside of the folder"):
        critbeta.diagnose(tmp_path / "shards")


WRONG = [
    (lambda at: critbeta.diagnose(at / "absent.npy"), FileNotFoundError, "absent"),
    (lambda at: critbeta.diagnose(str(at / "x.txt")), ValueError, r"x\.txt: .*unknown extension"),
    (lambda at: critbeta.diagnose(at / "rows.csv"), ValueError, r"rows\.csv: .*unknown extension"),
    (lambda at: critbeta.diagnose(at / "good.npy", scale=1.0), ValueError, "scaled already"),
    (lambda at: critbeta.diagnose(at / "good.npy", lens=[1]), TypeError, "lens is for arrays"),
    (lambda at: critbeta.diagnose(at / "good.npy", positions=[1]), TypeError, "positions is for arrays"),
    (lambda at: critbeta.diagnose(at / "good.npy", layer="a"), TypeError, "layer is for arrays"),
    (lambda at: critbeta.diagnose(at / "good.npy", q=1, k=1), TypeError, "q is for arrays"),
    (lambda at: critbeta.diagnose(at / "good.npy", beta=-1.0), ValueError, "beta must be"),
    (lambda at: critbeta.diagnose(at / "good.npy", train_length=1.0), ValueError, "training length"),
    (lambda at: critbeta.diagnose(at / "good.npy", seed=-1), ValueError, "seed is -1"),
    (lambda at: critbeta.diagnose(at / "objects.npz"), ValueError, r"o\.npy.*pickled Python objects"),
    (lambda at: critbeta.diagnose(at), ValueError, "is a directory without .safetensors files"),
]


@pytest.mark.parametrize("case", range(len(WRONG)))
def test_files_that_cannot_be_diagnosed_are_refused(case, tmp_path):
    given, exception, message = WRONG[case]
    np.save(tmp_path / "good.npy", np.zeros((3, 20), np.float32))
    np.savez(tmp_path / "objects.npz", a=np.zeros((3, 20)), o=np.array([{}], dtype=object))
    for name in ("x.txt", "rows.csv"):
        (tmp_path / name).write_text("text")
    with pytest.raises(exception, match=message):
        given(tmp_path)


def test_numbers_that_are_no_scores_are_noted(tmp_path):
    rng, n = np.random.default_rng(0), 30
    logits, see = rng.standard_normal((2, n, n)), np.tril(np.ones((n, n), bool))
    weights = np.exp(np.where(see, logits, -np.inf))
    weights /= weights.sum(-1, keepdims=True)
    for dtype in (np.float16, np.float32, np.float64):
        np.save(tmp_path / "attentions.npy", weights.astype(dtype))
        for given in (weights.astype(dtype), tmp_path / "attentions.npy"):
            found = critbeta.diagnose(given)
            (note,) = found.summary["notes"]
            assert re.search("60 of 60 rows hold probabilities .*give logits, or log p", note)
            critbeta.report(found, tmp_path / "page.html")
            assert note in words((tmp_path / "page.html").read_text())
            critbeta.report(found.rows, tmp_path / "page.html")
            assert note in words((tmp_path / "page.html").read_text())
        low = np.where(see, logits, -1e4).astype(dtype)
        (note,) = critbeta.diagnose(low).summary["notes"]
        assert re.search("58 of 60 rows have scores more than 1,000 below .*give -inf", note)
        np.save(tmp_path / "low.npy", low)
        (of_file,) = critbeta.diagnose(tmp_path / "low.npy").summary["notes"]
        assert of_file.replace('"low"', '"attention"') == note
        masked = np.where(see, logits, -np.inf).astype(dtype)
        assert "notes" not in critbeta.diagnose(masked).summary
    with np.errstate(divide="ignore"):
        assert "notes" not in critbeta.diagnose(np.log(weights)).summary


def test_heads_that_come_last_are_noticed():
    rng = np.random.default_rng(0)
    q, k, few = (rng.standard_normal((1, 40, heads, 8)) for heads in (4, 4, 2))
    (note,) = critbeta.diagnose(q=q, k=k).summary["notes"]
    assert "40 key heads with 4 keys each: if its heads come last" in note
    batch = critbeta.diagnose(q=np.zeros((9, 2, 3, 8)), k=np.zeros((9, 1, 3, 8)))
    assert "notes" not in batch.summary
    for given in (dict(q=q, k=few), dict(q=q[:, -3:], k=few), dict(q=q[:, -1:], k=k)):
        with pytest.raises(ValueError, match="its heads come last"):
            critbeta.diagnose(**given)
    with pytest.raises(ValueError, match="positions"):
        critbeta.diagnose(q=q, k=k, positions=np.arange(40))
    scores = rng.standard_normal((1, 40, 4, 40))
    (note,) = critbeta.diagnose(scores).summary["notes"]
    assert "40 heads of 4 rows with 40 keys each" in note
    seen = np.arange(60) <= np.arange(20, 60)[:, None, None]
    masked = np.where(seen, rng.standard_normal((40, 4, 60)), -np.inf)
    (note,) = critbeta.diagnose(masked).summary["notes"]
    assert "the visible keys grow from head to head" in note
    assert "notes" not in critbeta.diagnose(masked.swapaxes(0, 1)).summary


FRAMES = {
    "pandas": lambda columns: pytest.importorskip("pandas").DataFrame(columns),
    "pandas index": lambda columns: pytest.importorskip("pandas")
    .DataFrame(columns)
    .set_index("row", drop=False),
    "pandas nullable": lambda columns: pytest.importorskip("pandas").DataFrame(columns).convert_dtypes(),
    "pandas arrow": lambda columns: pytest.importorskip("pandas")
    .DataFrame(columns)
    .convert_dtypes(dtype_backend="pyarrow"),
    "pandas category": lambda columns: pytest.importorskip("pandas")
    .DataFrame(columns)
    .astype({"layer": "category", "n": "int32", "poisoned": "int8", "critical_beta": "object"}),
    "polars": lambda columns: pytest.importorskip("polars").DataFrame(columns),
    "polars narrow": lambda columns: pytest.importorskip("polars")
    .DataFrame(columns)
    .with_columns(pytest.importorskip("polars").col("n", "head").cast(pytest.importorskip("polars").UInt32))
    .with_columns(pytest.importorskip("polars").col("layer").cast(pytest.importorskip("polars").Categorical)),
    "arrow": lambda columns: pytest.importorskip("pyarrow").table(columns),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_a_page_of_a_data_frame(scores, tmp_path, kind):
    scores = scores.copy()
    scores[0, 3, 5] = np.nan
    scores[1, 4, :2] = scores[1, 4].max() + 1
    found = critbeta.diagnose(scores, layer="drawn", resolve=0.69)
    columns = {name: getattr(found.rows, name).ravel() for name in found.rows.names}
    frame, page = FRAMES[kind](columns | {"mine": np.arange(80)}), tmp_path / "page.html"
    with pytest.raises(ValueError, match="rows: column resolved_beta differs from critical_beta"):
        critbeta.report(frame, page)
    assert not page.exists()
    critbeta.report(frame, page, resolve=0.69)
    text = page.read_text()
    assert_is_of(text, found.summary)
    assert "rows in memory" in words(text) and "/tmp" not in text.replace(str(page), "")
    critbeta.report(found.rows, tmp_path / "rows.html")
    cut = lambda page: page[: page.index("<dt>command")]  # noqa: E731
    assert cut(text) == cut((tmp_path / "rows.html").read_text())


def test_a_data_frame_that_holds_no_records_is_refused_by_row_and_column(scores, tmp_path):
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    frame, page = critbeta.stats(scores).to_pandas(), tmp_path / "page.html"
    negative, text = frame.copy(), frame.astype({"alpha": object})
    negative.loc[7, "n"], text.loc[8, "alpha"] = -1, "many"
    several = text.copy()
    several.at[8, "alpha"] = [1, 2]
    for given, message in [
        (frame.drop(columns="n"), "rows: has no column n: expected row records"),
        (negative, "rows: row 8: column n: -1, expected a whole number"),
        (text, 'rows: row 9: column alpha: "many", expected a number'),
        (several, "rows: row 9: column alpha: .*list"),
        (pandas.concat([frame, frame[["n"]]], axis=1), "rows: column n is there twice"),
        (frame.set_index("layer"), "layer is an index: expected a column, pass rows.reset_index"),
        (frame.set_index(["head", "layer"]), "head is an index"),
        (pandas.DataFrame({"a": [1]}), "rows: has no column layer"),
        (polars.DataFrame({"a": [1]}), "rows: has no column layer"),
    ]:
        with pytest.raises(ValueError, match=message):
            critbeta.report(given, page)
    with pytest.raises(TypeError, match="beta must not be given"):
        critbeta.report(frame, page, beta=1.0)
    with pytest.raises(TypeError, match=r"LazyFrame: expected a DataFrame, pass rows\.collect"):
        critbeta.report(polars.from_pandas(frame).lazy(), page)
    for given in (frame.to_dict("list"), frame.to_dict("records")):
        with pytest.raises(TypeError, match="expected Stats, a Diagnosis, a DataFrame of row records"):
            critbeta.report(given, page)
    assert not page.exists()


def test_tables_are_read_without_an_import_of_their_library(scores, tmp_path):
    class Column(list):
        def to_list(self):
            return list(self)

    class Table:
        def __init__(self, columns):
            self.held, self.columns = columns, list(columns)

        def __getitem__(self, name):
            return Column(self.held[name].ravel().tolist())

    stats = critbeta.stats(scores)
    critbeta.report(Table({name: getattr(stats, name) for name in stats.names}), tmp_path / "page.html")
    assert "80 rows" in words((tmp_path / "page.html").read_text())
