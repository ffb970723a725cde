"""The recorder of `critbeta.serve`: the rows of a server that computes requests in pieces."""

import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import critbeta
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from critbeta.serve import Layer, Recorder  # noqa: E402
from served import KV_HEADS, Server, table  # noqa: E402

NAMES = ["layers.0.self_attn", "layers.1.self_attn"]
LAYERS = [Layer(name, 6) for name in NAMES]
WHOLE = [[(0, 0, 200), (1, 0, 75)]]
PIECES = [[(0, 0, 64)], [(0, 64, 130), (1, 0, 40)], [(1, 40, 41), (0, 130, 131)]]
PIECES += [[(0, at, at + 1), (1, at - 90, at - 89)] for at in range(131, 165)]
PIECES += [[(0, at, at + 1)] for at in range(165, 200)]


def lengths(per_octave=4, most=256):
    """The lengths whose rows are recorded."""
    found = {round(8 * 2 ** (at / per_octave)) for at in range(100)}
    return sorted(n for n in found if n <= most)


def rows_of(server, layers=LAYERS, per_octave=4):
    """The rows of the same positions, measured from whole queries and keys."""
    found = {}
    for number, layer in enumerate(layers):
        for q, k in zip(server.q[number], server.k[number]):
            positions = np.array([n - 1 for n in lengths(per_octave) if n <= len(q)])
            rows = critbeta.diagnose(
                q=q[positions].transpose(0, 1), k=k.transpose(0, 1), positions=positions, layer=layer.name
            ).rows
            for key, values in table(flat(rows)).items():
                found.setdefault(key, []).extend(values)
    return {key: sorted(values) for key, values in found.items()}


def flat(rows):
    return critbeta.Stats(rows._rows, (len(rows),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("page", [16, 1])
def test_rows_are_those_of_the_whole_queries_and_keys_however_they_are_computed(dtype, page):
    for steps in (WHOLE, PIECES):
        server, recorder = Server(dtype=dtype, page=page), Recorder(LAYERS, 256)
        server.run(recorder, steps)
        assert recorder.error is None
        found = table(recorder.rows)
        # Every column of a row is the same to the bit.
        assert found == rows_of(server)
        assert recorder.recorded == sum(map(len, found.values())) == 2 * 6 * (19 + 13)


def test_rows_of_a_process_have_the_numbers_of_their_heads():
    whole, parts = Server(), []
    for rank in range(2):
        server = Server()
        server.q = [[q[:, 3 * rank : 3 * rank + 3] for q in layer] for layer in server.q]
        server.k = [[k[:, rank : rank + 1] for k in layer] for layer in server.k]
        server.pages = server.pages[:, :, :1].clone()
        layers = [Layer(name, 3, 3 * rank, 6) for name in NAMES]
        recorder = Recorder(layers, 256, max_bytes=1 << 20)
        server.run(recorder, PIECES)
        parts.append(recorder)
    assert {**table(parts[0].rows), **table(parts[1].rows)} == rows_of(whole)
    with pytest.raises(RuntimeError, match="this process has some of the heads of layers.1.self_attn"):
        parts[0].save("x.safetensors")


@pytest.mark.parametrize("window, softcap", [(50, None), (None, 5.0), (20, 3.0)])
def test_windows_and_softcaps_make_the_scores_that_the_softmax_sees(window, softcap):
    server = Server(lengths=(200,), layers=1)
    layer = Layer(NAMES[0], 6, window=window, softcap=softcap)
    recorder = Recorder([layer], 256)
    server.run(recorder, [[(0, 0, 120)], *([(0, at, at + 1)] for at in range(120, 200))], NAMES[:1])
    rows = recorder.rows
    assert sorted(set(rows.position.tolist())) == [n - 1 for n in lengths() if n <= 200]
    for at in range(len(rows)):
        position, head = int(rows.position[at]), int(rows.head[at])
        first = max(0, position + 1 - (window or position + 1))
        keys = server.k[0][0][first : position + 1, head // (6 // KV_HEADS)].double()
        scores = keys @ server.q[0][0][position, head].double() * server.scale
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        assert rows.n[at] == position + 1 - first
        wanted = float(critbeta.critical_beta(scores.float()))
        assert rows.critical_beta[at] == pytest.approx(wanted, rel=1e-3)


def test_layers_that_see_more_than_products_are_left_out_with_a_warning(caplog):
    layers = [Layer(NAMES[0], 6, sinks=True), LAYERS[1]]
    with caplog.at_level(logging.WARNING):
        recorder = Recorder(layers, 256)
    assert "not recorded: layers.0.self_attn: each has learned sinks" in caplog.text
    Server().run(recorder, WHOLE)
    assert set(recorder.rows.layer) == {NAMES[1]}


def test_a_poisoned_row_stays_alone():
    server, recorder = Server(), Recorder(LAYERS, 256)
    server.q[0][0][7, 2] = torch.nan
    server.run(recorder, WHOLE)
    rows = recorder.rows
    assert rows.poisoned.sum() == 1
    at = int(np.flatnonzero(rows.poisoned)[0])
    assert (rows.layer[at], rows.head[at], rows.position[at]) == (NAMES[0], 2, 7)
    assert 'critbeta_poisoned_rows_total{process="r0",layer="layers.0.self_attn"} 1\n' in recorder.metrics()


def test_counters_are_those_of_the_rows():
    prometheus = pytest.importorskip("prometheus_client.parser")
    server, recorder = Server(), Recorder(LAYERS, 256)
    server.q[1][0][15] = 0.0
    for at, steps in enumerate((PIECES[:20], PIECES[20:])):
        server.run(recorder, steps)
        text = recorder.metrics()
        assert text == recorder.metrics()
    families = {family.name: family for family in prometheus.text_string_to_metric_families(text)}
    rows = recorder.rows
    for name in NAMES:
        of = rows.layer == name
        value = {
            kind: [s.value for s in families[kind].samples if s.labels["layer"] == name]
            for kind in ("critbeta_rows", "critbeta_tied_rows")
        }
        assert value["critbeta_rows"] == [of.sum()]
        assert value["critbeta_tied_rows"] == [(rows.ties[of] > 1).sum()]
        for kind, values in {
            "critbeta_operating_ratio": rows.ratio[of],
            "critbeta_relative_entropy": rows.entropy[of] / np.log(rows.n[of]),
        }.items():
            samples = [s for s in families[kind].samples if s.labels["layer"] == name]
            buckets = {float(s.labels["le"]): s.value for s in samples if s.name.endswith("_bucket")}
            assert list(buckets) == sorted(buckets)
            for bound, count in buckets.items():
                # The bounds are printed with six digits.
                assert (values <= bound * (1 - 1e-5)).sum() <= count <= (values <= bound * (1 + 1e-5)).sum()
            total = [s.value for s in samples if s.name.endswith("_sum")]
            assert total == [pytest.approx(values.sum())]
    assert (rows.ties > 1).sum() == 6


def test_an_error_ends_the_recording_with_one_warning(caplog, tmp_path):
    server, recorder = Server(), Recorder(LAYERS, 256, folder=tmp_path)
    server.run(recorder, PIECES[:2])
    before = recorder.recorded
    taken = recorder.begin(server.step(PIECES[2] + [(0, 190, 191)]))
    assert taken is None
    taken = recorder.begin(server.step([(1, 44, 45)]))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            recorder.add(taken, NAMES[0], torch.zeros(1, 6, 64), torch.zeros(3, 7, 2, 64), 1.0)
    assert caplog.text.count("recording has ended") == 1
    assert "k_pages of shape (3, 7, 2, 64): expected pages of 16 keys" in caplog.text
    assert recorder.begin(server.step([(0, 0, 64)])) is None and recorder.recorded == before
    assert 'critbeta_recording{process="r0"} 0' in recorder.metrics()
    # What was recorded before is written.
    recorder.close()
    assert (tmp_path / "metrics-r0.prom").read_text() == recorder.metrics()
    (file,) = tmp_path.glob("rows-*.parquet")
    critbeta.report(file, tmp_path / "report.html")
    assert caplog.text.count("recording has ended") == 1


def test_equal_rows_are_one_row_of_the_limit():
    server, recorder = Server(), Recorder(LAYERS, 256, max_rows=500)
    for _ in range(5):
        server.run(recorder, PIECES)
    assert recorder.recorded == 2 * 6 * (19 + 13)
    server = Server(seed=2)
    server.run(recorder, PIECES)
    assert 500 <= recorder.recorded < 600


def test_two_processes_of_one_name_have_files_of_their_own(tmp_path):
    pytest.importorskip("pandas")
    command = (
        "import sys; sys.path.insert(0, sys.argv[1]); from served import Server; from critbeta.serve import *; "
        "r = Recorder([Layer(f'layers.{n}.self_attn', 6) for n in range(2)], 256, folder=sys.argv[2]); "
        "Server(seed=int(sys.argv[3])).run(r, [[(0, 0, 200), (1, 0, 75)]])"
    )
    here = str(Path(__file__).parent)
    for seed in "12":
        subprocess.run([sys.executable, "-c", command, here, str(tmp_path), seed], check=True)
    # Nobody closed the recorders: the end of a process writes what there is.
    files = list(tmp_path.glob("rows-*-r0.parquet"))
    assert len(files) == 2
    for file in files:
        import pandas

        assert len(pandas.read_parquet(file)) == 2 * 6 * (19 + 13)


def test_rows_are_written_though_few_are_new(tmp_path):
    recorder = Recorder(LAYERS, 256, folder=tmp_path, every=1)
    Server().run(recorder, PIECES[:-20])
    recorder.flush()
    (file,) = tmp_path.glob("rows-*.parquet")
    before = file.stat().st_mtime_ns
    Server().run(recorder, PIECES[-20:])
    assert recorder.recorded > recorder._written
    recorder._when -= 20
    end = time.monotonic() + 20
    while file.stat().st_mtime_ns == before and time.monotonic() < end:
        time.sleep(0.05)
    assert file.stat().st_mtime_ns != before
    recorder.close()


def test_rows_beyond_the_limit_are_only_counted(caplog):
    server, recorder = Server(), Recorder(LAYERS, 256, max_rows=150)
    with caplog.at_level(logging.WARNING):
        server.run(recorder, PIECES)
    assert caplog.text.count("further ones are only counted") == 1
    assert 150 <= recorder.recorded < 300
    counted = [line for line in recorder.metrics().splitlines() if line.startswith("critbeta_rows_total")]
    assert sum(int(line.split()[-1]) for line in counted) == 2 * 6 * (19 + 13)


def test_a_folder_gets_rows_metrics_and_keys(tmp_path):
    server, folder = Server(), tmp_path / "new" / "records"
    recorder = Recorder(LAYERS, 256, folder=folder, name="r3", max_bytes=1 << 22, model="toy")
    server.run(recorder, PIECES)
    recorder.flush()
    (rows,), metrics = folder.glob("rows-*-r3.parquet"), folder / "metrics-r3.prom"
    assert metrics.read_text() == recorder.metrics()
    recorder.close()
    recorder.close()
    assert recorder.error is None and not list(folder.glob(".critbeta-*"))
    critbeta.report(rows, tmp_path / "report.html")
    assert "layers.1.self_attn" in (tmp_path / "report.html").read_text()
    # Each request is a text, though both were computed in many pieces.
    kept = sorted(folder.glob("qk-*-r3*.safetensors"))
    assert len(kept) == 2
    found = {}
    for file in kept:
        for key, values in table(critbeta.diagnose(file).rows).items():
            found.setdefault(key, []).extend(values)
    assert {key: sorted(values) for key, values in found.items()} == rows_of(server)
    recorder.report(tmp_path / "whole.html")
    assert "gap" in (tmp_path / "whole.html").read_text()


def test_pages_that_another_request_gets_begin_another_text():
    server, recorder = Server(lengths=(64, 64), layers=1), Recorder(LAYERS[:1], 256, max_bytes=1 << 22)
    server.tables[1] = server.tables[0]
    server.run(recorder, [[(0, 0, 20)], [(0, 20, 21)], [(1, 0, 40)], [(1, 40, 41)]], NAMES[:1])
    assert recorder._recording.file_count() == 2


def test_several_threads_may_record_and_read_metrics():
    recorder = Recorder(LAYERS, 256)
    servers = [Server(seed=seed) for seed in range(4)]
    threads = [threading.Thread(target=server.run, args=(recorder, PIECES)) for server in servers]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        recorder.metrics()
    for thread in threads:
        thread.join()
    assert recorder.error is None and recorder.recorded == 4 * 2 * 6 * (19 + 13)


@pytest.mark.parametrize(
    "wrong", [dict(per_octave=0), dict(max_rows=0), dict(resolve=-1), dict(max_bytes=-1)]
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Recorder(LAYERS, 256, **wrong)
