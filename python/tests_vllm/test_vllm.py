"""critbeta inside vLLM on a CPU with a trained model: rules and records, beside transformers under the same rules."""

import gc
import inspect
import json
import logging

import critbeta
import critbeta.hf
import critbeta.vllm
import numpy as np
import pytest
import torch
from critbeta.serve import Recorder, Settings
from critbeta.vllm import _door
from served import LENGTH, STEPS, generate, model, text, transformer, transformer_says

PROMPTS = [text()[:600], text()[700:740], text()[1000:1300]]
# Rounding moves a log probability by up to 2e-4 here, and the rules move some by 2 to 13 (2026-11-30).
TOLERANCE = 1e-3
CRITICAL = "critical:floor=0.8,cap=1.25"


@pytest.fixture(scope="module")
def base():
    """What vLLM says without critbeta."""
    from vllm.v1.attention import selector
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    with pytest.MonkeyPatch.context() as patch:
        for name in ("CRITBETA_RESCALE", "CRITBETA_RECORD", "CRITBETA_CONFIG"):
            patch.delenv(name, raising=False)
        critbeta.vllm.register()
    assert not AttentionBackendEnum.CPU_ATTN.is_overridden()
    engine = model(enable_prefix_caching=False)
    found = generate(engine, PROMPTS)
    engine.llm_engine.engine_core.shutdown()
    del engine
    gc.collect()
    # vLLM chooses a backend once in a process.
    selector._cached_get_attn_backend.cache_clear()
    return found


@pytest.fixture(scope="module")
def engine(base, tmp_path_factory):
    """vLLM with critbeta, that records."""
    folder = tmp_path_factory.mktemp("records")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRITBETA_RESCALE", "identity")
        file = folder / "settings.json"
        file.write_text(json.dumps({"record": str(folder), "max_bytes": 1 << 30, "per_octave": 8}))
        patch.setenv("CRITBETA_CONFIG", str(file))
        critbeta.vllm.register()
        critbeta.vllm.register()
        engine = model(enable_prefix_caching=True)
        ((_, door),) = _door.Door._known
        yield engine, door, folder
    door.recorder.close()


@pytest.fixture
def under(engine):
    """Answers to prompts under a rule."""
    engine, door, _ = engine

    def answered(rescaling, prompts=PROMPTS, **options):
        # What was cached under another rule has other keys.
        assert engine.reset_prefix_cache()
        door.rescale(rescaling)
        return generate(engine, prompts, **options)

    yield answered
    door.rescale("identity")


def test_identity_and_recording_change_no_bit(base, under):
    assert under("identity") == base


@pytest.fixture(scope="module")
def calibration(engine, base):
    """The laws of the heads in the records of the prompts."""
    _, door, folder = engine
    path = folder / "cal.json"
    door.recorder.rows.to_calibration(path)
    return f"calibrated:{path},anchor=256"


def agree(found, rescaling):
    """Compares with transformers under the same rule. Returns how far log probabilities moved."""
    moved = 0.0
    for (ids, scores, _), prompt in zip(found, PROMPTS):
        plain, _ = transformer_says(ids, len(prompt))
        with critbeta.hf.rescale(transformer(), rescaling):
            wanted, answer = transformer_says(ids, len(prompt))
        assert ids[len(prompt) :] == answer and len(answer) == STEPS
        torch.testing.assert_close(torch.tensor(scores), wanted, rtol=0, atol=TOLERANCE)
        moved = max(moved, float((wanted - plain).abs().max()))
    return moved


@pytest.mark.parametrize("rescaling", ["qwen-logn:train=64", "fixed:1.3", "ssmax:s=0.2"])
def test_a_law_is_that_of_transformers(under, rescaling):
    assert agree(under(rescaling), rescaling) > 0.5


@pytest.mark.filterwarnings("ignore:.*inconclusive")
def test_a_calibration_is_that_of_transformers(under, calibration):
    assert agree(under(calibration), calibration) > 0.5


def test_a_measured_rule_is_that_of_transformers(under):
    # With resolve=0.69, noise of 1e-6 in the weights moves log probabilities by 0.2; here by 2e-4
    # (2026-11-30).
    assert agree(under(CRITICAL), CRITICAL) > 0.5


@pytest.mark.parametrize("rescaling", ["qwen-logn:train=64", CRITICAL])
def test_cached_prefixes_keep_a_rule_exact(under, engine, rescaling):
    first = under(rescaling, PROMPTS[:1], steps=8, scores=False)
    again = generate(engine[0], PROMPTS[:1], steps=8, scores=False)
    assert (first[0][2], again[0][2]) == (0, 512)
    assert first[0][0] == again[0][0]
    np.testing.assert_allclose(first[0][1], again[0][1], atol=TOLERANCE)


def test_records_are_those_of_transformers(engine, under):
    _, door, _ = engine
    before = door.recorder.recorded
    prompt = text()[2000:2300]
    ((ids, _, _),) = under("identity", [prompt])
    rows = door.recorder._recording.rows(before)
    served = critbeta.Stats(rows, (len(rows),))
    with torch.no_grad(), critbeta.hf.record(transformer(), rows=LENGTH) as rec:
        transformer()(torch.tensor([ids[:-1]]))
    place = {key: at for at, key in enumerate(zip(rec.rows.layer, rec.rows.head, rec.rows.position))}
    at = [place[key] for key in zip(served.layer, served.head, served.position)]
    lengths = {round(8 * 2 ** (k / 8)) for k in range(99)}
    assert {int(n) for n in served.n} == {n for n in lengths if n <= 363}
    assert len(at) == 30 * 9 * len(set(served.n.tolist())) and len(set(at)) == len(at)
    assert max(served.n) > 300, "some rows are of decoding steps"
    np.testing.assert_array_equal(served.n, rec.rows.n[at])
    np.testing.assert_array_equal(served.ties, rec.rows.ties[at])
    # 1 / Lambda is the smallest gap / log rank, which moves by the rounding of a gap / log 2.
    for name in ("max", "ratio", "entropy", "max_weight"):
        found, wanted = getattr(served, name), getattr(rec.rows, name)[at]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE, err_msg=name)
    # Where two ranks attain it to rounding, either is the contact: 2 of 11,880 rows (2026-11-30).
    assert (served.contact_rank != rec.rows.contact_rank[at]).mean() < 1e-3


def test_the_files_hold_what_was_recorded(engine, under, tmp_path):
    _, door, folder = engine
    under("qwen-logn:train=64", [text()[3000:3100]], steps=4)
    recorder = door.recorder
    assert recorder.error is None
    recorder.flush()
    (file,) = folder.glob("rows-*-dp0-r0.parquet")
    critbeta.report(file, tmp_path / "report.html")
    assert "model.layers.29.self_attn" in (tmp_path / "report.html").read_text()
    metrics = (folder / "metrics-dp0-r0.prom").read_text()
    assert 'critbeta_rows_total{process="dp0-r0",layer="model.layers.0.self_attn"}' in metrics
    # Rows are bit for bit those of the queries and keys beside them.
    kept = recorder.save(tmp_path / "qk.safetensors")
    columns = ("position", "head", "n", "max", "critical_beta", "contact_rank", "entropy")
    table = lambda rows: sorted(zip(rows.layer, *(getattr(rows, name).tolist() for name in columns)))
    again = [row for path in kept for row in table(critbeta.diagnose(path).rows)]
    assert sorted(again) == table(recorder.rows)


def test_metrics_stand_in_the_registry_of_the_server(engine):
    from prometheus_client import REGISTRY, generate_latest

    engine[1].recorder.flush()
    shown = generate_latest(REGISTRY).decode()
    assert 'critbeta_operating_ratio_count{layer="model.layers.3.self_attn",process="dp0-r0"}' in shown


def test_a_record_that_fails_ends_and_no_request_does(engine, under, base, monkeypatch, caplog):
    _, door, _ = engine
    wrong = Recorder(door.layers, LENGTH)
    monkeypatch.setattr(door, "recorder", wrong)
    monkeypatch.setattr(_door, "_keys", lambda *_: 1 / 0)
    with caplog.at_level(logging.WARNING):
        assert under("identity") == base
    assert isinstance(wrong.error, ZeroDivisionError) and caplog.text.count("recording has ended") == 1


def test_rules_that_cannot_apply_are_refused_with_the_layer(engine):
    _, door, _ = engine
    for rule, message in [
        ("fixed:1e39", r"model.layers.0.self_attn: beta = 1e\+39"),
        ("critical", "model.layers.0.self_attn: .*give it a cap"),
        ("calibrated:c=1", "xi is missing"),
    ]:
        with pytest.raises(ValueError, match=message):
            door.rescale(rule)


def test_another_vllm_ends_in_a_message_that_names_what_moved(monkeypatch):
    from vllm.v1.attention.backends import cpu_attn

    def forward(self, layer, q, key, value, kv_cache, attn_metadata, output):
        """Has another name for the queries."""

    monkeypatch.setattr(cpu_attn.CPUAttentionBackendImpl, "forward", forward)
    version = "critbeta.vllm was tested with vllm 0.32.0, and this is"
    with pytest.raises(
        RuntimeError, match=rf"{version}.*forward: takes \(layer, q, .*expected \(layer, query"
    ):
        critbeta.vllm._backend("CPU_ATTN", "CPU_ATTN")
    monkeypatch.delattr(cpu_attn, "CPUAttentionMetadataBuilder")
    with pytest.raises(RuntimeError, match=f"{version}.*CPUAttentionMetadataBuilder: it is not there"):
        critbeta.vllm._backend("CPU_ATTN", "CPU_ATTN")


def test_layers_whose_keys_or_queries_are_out_of_reach_are_refused_at_the_start(engine, monkeypatch, caplog):
    _, door, _ = engine
    name, module = next(iter(door._modules.items()))
    door.rescale(CRITICAL)
    monkeypatch.setattr(door, "recorder", Recorder(door.layers, LENGTH))
    monkeypatch.setattr(module, "isa", "amx")
    with pytest.raises(
        ValueError, match="cannot be measured on model.layers.0.self_attn, which has its keys pack"
    ):
        door.check_keys([name])
    door.rescale("qwen-logn:train=64")
    with caplog.at_level(logging.WARNING):
        door.check_keys([name])
    assert "not recorded: model.layers.0.self_attn: each has its keys packed for 'amx'" in caplog.text
    monkeypatch.setattr(module, "kv_cache_torch_dtype", torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=f"cannot be applied to {name}, which has a cache of"):
        door.rescale("fixed:2")
    monkeypatch.undo()
    monkeypatch.setattr(module, "impl", object())
    with pytest.raises(ValueError, match=f"cannot be applied to {name}, which has the backend object"):
        door.rescale("fixed:2")
    monkeypatch.undo()
    monkeypatch.setattr(module, "attention_chunk_size", 64, raising=False)
    assert _door._layer(module, 0, 1).chunks


def test_speculative_decoding_is_not_recorded(engine, monkeypatch, caplog):
    config, door = _door.Door._known[0]
    monkeypatch.setattr(door, "recorder", None)
    monkeypatch.setattr(config, "speculative_config", object())
    with caplog.at_level(logging.WARNING):
        door._begin(Settings(record="nowhere"), config)
    assert door.recorder is None and "not recorded: speculative decoding" in caplog.text


def test_positions_follow_from_lengths_where_there_are_none():
    from types import SimpleNamespace

    begins = torch.tensor([0, 3, 4, 9], dtype=torch.int32)
    common = SimpleNamespace(positions=None, num_reqs=3, num_actual_tokens=9, query_start_loc=begins)
    common.seq_lens = torch.tensor([3, 100, 25], dtype=torch.int32)
    assert _door._positions(common).tolist() == [0, 1, 2, 99, 20, 21, 22, 23, 24]
    common.positions = torch.arange(4)
    assert _door._positions(common) is common.positions


@pytest.mark.parametrize("name", ["FLASH_ATTN", "TRITON_ATTN", "CRITBETA"])
def test_backends_of_a_gpu_are_subclasses_of_vllms_own(name):
    found = getattr(critbeta.vllm, name)
    base = found.__mro__[1]
    assert found.get_name() == name and base.get_name() == ("FLASH_ATTN" if name == "CRITBETA" else name)
    impl, builder = found.get_impl_cls(), found.get_builder_cls()
    assert issubclass(impl, base.get_impl_cls()) and issubclass(builder, base.get_builder_cls())
    assert impl.forward is not base.get_impl_cls().forward
    assert tuple(inspect.signature(impl.forward).parameters)[1:8] == critbeta.vllm._FORWARD


def test_no_backend_leaves_a_rule_out(engine, monkeypatch):
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    # On this CPU, the backends of latent attention would have been chosen without a word.
    for name in ("CPU_MLA", "AMX_MLA", "FLEX_ATTENTION"):
        with pytest.raises(ImportError, match=f"critbeta.vllm has no door to {name}"):
            AttentionBackendEnum[name].get_class()
    # flashinfer is not installed, which vLLM sees as before.
    with pytest.raises(ImportError, match="flashinfer"):
        critbeta.vllm.FLASHINFER
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    monkeypatch.setattr(Settings, "from_environment", lambda: Settings("su"))
    try:
        critbeta.vllm.register()
        assert AttentionBackendEnum["FLASH_ATTN"].get_class() is critbeta.vllm.FLASH_ATTN
        assert AttentionBackendEnum["CRITBETA"].get_class() is critbeta.vllm.CRITBETA
    finally:
        monkeypatch.undo()
        critbeta.vllm.register()


def test_a_backend_that_is_none_is_refused(monkeypatch):
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    monkeypatch.setattr(Settings, "from_environment", lambda: Settings("su", backend="FLEX"))
    with pytest.raises(
        ValueError, match="backend 'FLEX': expected one of FLASH_ATTN, TRITON_ATTN, FLASHINFER"
    ):
        critbeta.vllm.register()
