"""`critbeta.serve`: rules for the layers of a server, and rules that are measured on pages of keys."""

import json

import critbeta
import numpy as np
import pytest
from critbeta import Rescaling

torch = pytest.importorskip("torch")

from critbeta.serve import Betas, Layer, Requests, Settings, measured  # noqa: E402
from served import KV_HEADS, D, Server  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

LENGTH = 4096
NAMES = ["model.layers.0.self_attn", "model.layers.1.self_attn"]
LAYERS = [Layer(name, 6) for name in NAMES]
LAWS = ["qwen-logn:train=64", "ssmax:s=0.43,b=-1", "grok2:train=100", "su", "fixed:1.3"]


def calibration(tmp_path, layers=NAMES, heads=6, name="cal.json"):
    """A calibration whose laws all differ, and its file."""
    laws = {
        (layer, h): (0.4 + i + h / 7, 0.3 * h - 0.5) for i, layer in enumerate(layers) for h in range(heads)
    }
    entries = [
        {"layer": layer, "head": head, "resolved": None}
        | {"critical": {"c": c, "xi": xi, "conclusive": head > 0, "interval": [xi, xi]}}
        for (layer, head), (c, xi) in laws.items()
    ]
    path = tmp_path / name
    whole = {"critbeta": "0.1.0", "resolve": 0.0, "exclude_sink": 0, "heads": entries}
    path.write_text(json.dumps(whole))
    return laws, path


def expected(rule, positions, window=None):
    n = np.minimum(positions + 1, window or LENGTH)
    return torch.from_numpy(Rescaling.parse(rule).betas(n, positions).astype(np.float32))


@pytest.mark.parametrize("rule", LAWS)
@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_law_multiplies_a_copy_of_the_queries(rule, window, dtype):
    layer = Layer("a", 6, window=window)
    step = Betas(rule, [layer], LENGTH, dtype=dtype).step(512)
    positions = torch.tensor([0, 1, 5, 63, 64, 99, 100, 1000, LENGTH - 1])
    query = torch.randn(len(positions), 6, D).to(dtype)
    before = query.clone()
    found = step.fill(positions).scale("a", query)
    beta = expected(rule, positions.numpy(), window)
    assert torch.equal(step.of("a")[: len(positions), 0], beta)
    assert torch.equal(found, (query.float() * beta[:, None, None]).to(dtype))
    assert torch.equal(query, before)


def test_identity_returns_the_queries_themselves():
    query = torch.randn(3, 6, D)
    for layer in (Layer("a", 6), Layer("a", 6, softcap=30.0, sinks=True)):
        step = Betas("identity", [layer], LENGTH).step(8).fill(torch.arange(3))
        assert step.scale("a", query) is query and step.of("a") is None


def test_a_calibration_has_a_law_for_each_head_of_each_process(tmp_path):
    laws, path = calibration(tmp_path)
    positions = torch.tensor([0, 1, 6, 500, LENGTH - 1])
    for anchor in ("", ",anchor=512"):
        whole = Betas(f"calibrated:{path}{anchor}", LAYERS, LENGTH)
        assert whole.inconclusive == 2
        step = whole.step(8).fill(positions)
        for (layer, head), (c, xi) in laws.items():
            wanted = expected(f"calibrated:c={c},xi={xi}{anchor}", positions.numpy())
            found = step.of(layer)[:5, head]
            # The one key of the first row has all the weight at any beta.
            torch.testing.assert_close(found[1:], wanted[1:], rtol=1e-6, atol=0)
            assert 0 < found[0] < np.inf
        # Two processes have three heads each.
        for rank in range(2):
            part = [Layer(name, 3, 3 * rank, 6) for name in NAMES]
            of_rank = Betas(f"calibrated:{path}{anchor}", part, LENGTH).step(8).fill(positions)
            for name in NAMES:
                assert torch.equal(of_rank.of(name), step.of(name)[:, 3 * rank : 3 * rank + 3])
        # A stage of a pipeline has one layer, which adapters may have wrapped.
        stage = Betas(f"calibrated:{path}{anchor}", LAYERS[1:], LENGTH, whole=False).step(8).fill(positions)
        assert torch.equal(stage.of(NAMES[1]), step.of(NAMES[1]))


def test_a_stage_takes_its_own_layers_of_a_calibration(tmp_path):
    _, path = calibration(tmp_path)
    inner = Layer(f"language_model.{NAMES[1]}", 6)
    for whole, layers in [(False, [inner]), (False, LAYERS[:1]), (True, LAYERS)]:
        assert Betas(f"calibrated:{path}", layers, LENGTH, whole=whole).step(1).of(layers[0].name) is not None
    with pytest.raises(ValueError, match="which the model does not have"):
        Betas(f"calibrated:{path}", LAYERS[:1], LENGTH)
    with pytest.raises(ValueError, match="does not cover other"):
        Betas(f"calibrated:{path}", [Layer("other", 6)], LENGTH, whole=False)


def test_a_step_stays_where_it_is_and_waits_for_nothing(tmp_path):
    _, path = calibration(tmp_path)
    for rule in (LAWS[0], f"calibrated:{path}"):
        step = Betas(rule, LAYERS, LENGTH).step(16)
        place = step.of(NAMES[1]).data_ptr()
        for positions in (torch.arange(9), torch.arange(4) + 900):
            assert step.fill(positions).of(NAMES[1]).data_ptr() == place
        # What fills up a captured batch may have any position.
        step.fill(torch.tensor([-7, 0, 3, 1 << 40]))
        assert step.of(NAMES[1]).isfinite().all()
        query = torch.randn(20, 6, D)
        with pytest.raises(ValueError, match=r"positions of shape \(20,\): expected at most 16 tokens"):
            step.fill(torch.arange(20))
        # A fake tensor has no values: whatever waits for one raises.
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = mode.from_tensor(query[:9])
            assert step.fill(mode.from_tensor(torch.arange(9))).scale(NAMES[0], fake).shape == (9, 6, D)


def test_a_rule_that_cannot_apply_is_refused_by_the_name_of_the_layer(tmp_path):
    _, path = calibration(tmp_path)
    gap, more = (
        calibration(tmp_path, heads=5, name="five.json")[1],
        calibration(tmp_path, ["x"], 6, "x.json")[1],
    )
    for layer, rule, message in [
        (Layer("a", 6, softcap=50.0), LAWS[0], r"cannot be applied to a, which has a softcap \(50\)"),
        (Layer("a", 6, sinks=True), LAWS[0], "cannot be applied to a, which has learned sinks"),
        (Layer("a", 6, alibi=True), "critical:cap=8", "cannot be applied to a, which has ALiBi"),
        (Layer("a", 6, decoder=False), LAWS[0], "cannot be applied to a, which is no decoder"),
        (Layer("a", 6, chunks=True), LAWS[0], "cannot be applied to a, which attends within chunks"),
        (Layer("a", 6), "critical", "a: critical:ratio=1 gives a row with a tied maximum beta = inf"),
        (Layer("a", 6), "fixed:1e5", r"a: beta = 100000.0 for head 0, expected at most 65504"),
        (Layer("a", 6), "soft", "soft"),
        (
            Layer("a", 6),
            f"calibrated:{path}",
            "layers.0.self_attn, model.layers.1.self_attn, which the model",
        ),
        (Layer(NAMES[0], 6), f"calibrated:{gap}", "which the model does not have"),
        (Layer("x", 7), f"calibrated:{more}", "of x it does not cover heads 6"),
    ]:
        with pytest.raises(ValueError, match=message):
            Betas(rule, [layer], LENGTH, dtype=torch.float16)
    with pytest.raises(ValueError, match=f"does not cover {NAMES[1]}: calibrate the whole model"):
        half = calibration(tmp_path, NAMES[:1], 6, "half.json")[1]
        Betas(f"calibrated:{half}", LAYERS, LENGTH)
    with pytest.raises(TypeError, match="rescaling is list: expected the text of one rule for all requests"):
        Betas(["identity", "fixed:2"], LAYERS, LENGTH)
    with pytest.raises(OSError, match="nothing.json"):
        Betas("calibrated:nothing.json", LAYERS, LENGTH)
    for wrong in (dict(heads=0), dict(heads=6, first=1, total=6), dict(heads=6, window=0)):
        with pytest.raises(ValueError, match="a: .*expected at least"):
            Layer("a", **wrong)


@pytest.mark.parametrize("rule", ["critical:cap=8", "critical:ratio=0.7,resolve=0.69,cap=4", "velickovic"])
@pytest.mark.parametrize("window", [None, 33])
def test_a_measured_rule_has_the_beta_of_each_row(rule, window):
    server = Server(layers=1)
    chunks = [(0, 150, 169), (1, 0, 9), (0, 20, 21)]
    server.step([(0, 0, 150)])
    requests, query = server.step(chunks), server.query(0, chunks)
    layer = Layer("layers.0.self_attn", 6, window=window)
    betas = Betas(rule, [layer], LENGTH)
    assert list(betas.measured) == [layer.name] and betas.step(64).scale(layer.name, query) is query
    found = measured(betas.measured[layer.name], layer, requests, query, server.keys(0), server.scale)
    scaled = betas.step(64).measure(layer.name, query, requests, server.keys(0), server.scale)
    assert torch.equal(scaled, (query * found[..., None]).to(query.dtype))
    token = 0
    for request, start, end in chunks:
        for at in range(start, end):
            first = max(0, at + 1 - (window or at + 1))
            keys = server.k[0][request][first : at + 1].double()
            for head in range(6):
                row = (keys[:, head // (6 // KV_HEADS)] @ query[token, head].double()) * server.scale
                _, stats = critbeta.softmax(row.float(), rule, positions=at, return_stats=True)
                assert float(found[token, head]) == pytest.approx(float(stats.beta), rel=2e-4), (at, head)
            token += 1
    assert token == len(found)


def test_a_nan_stays_in_its_row_under_a_measured_rule():
    server = Server(layers=1)
    server.q[0][0][150, 2] = torch.nan
    requests, query = server.step([(0, 0, 169)]), server.query(0, [(0, 0, 169)])
    layer = Layer("layers.0.self_attn", 6)
    rules = [Rescaling.parse("critical:cap=8")]
    found = measured(rules, layer, requests, query, server.keys(0), server.scale)
    assert found.isnan().nonzero().tolist() == [[150, 2]]


def test_settings_come_from_the_environment_and_a_file(tmp_path):
    assert Settings.from_environment({}).is_empty
    assert Settings.from_environment({"CRITBETA_RESCALE": "", "CRITBETA_RECORD": ""}).is_empty
    file = tmp_path / "critbeta.json"
    file.write_text('{"rescale": "su", "record": "out", "per_octave": 8, "every": 5, "max_bytes": 1000}')
    found = Settings.from_environment({"CRITBETA_CONFIG": str(file), "CRITBETA_RESCALE": "fixed:2"})
    assert found == Settings("fixed:2", "out", per_octave=8, every=5, max_bytes=1000)
    for text, kind, message in [
        ('{"rescal": "su"}', ValueError, "'rescal' is no setting: expected rescale, record"),
        ('{"rescale": ["su", "identity"]}', TypeError, "rescale is list, expected str: one rule for all"),
        ('{"per_octave": 1.5}', TypeError, "per_octave is float, expected int"),
        ('{"max_rows": true}', TypeError, "max_rows is bool, expected int"),
        ('{"per_octave": 0}', ValueError, "per_octave is 0: expected 1 to 1e\\+06"),
        ('{"every": 1e300}', ValueError, "every is 1e\\+300: expected 1 to 1e\\+06"),
        ('{"record": ""}', ValueError, "expected the name of a folder"),
        ("[1]", TypeError, "found list, expected an object"),
        ("{", ValueError, "expected JSON"),
    ]:
        file.write_text(text)
        with pytest.raises(kind, match=message):
            Settings.from_environment({"CRITBETA_CONFIG": str(file)})
    with pytest.raises(OSError, match="none.json"):
        Settings.from_environment({"CRITBETA_CONFIG": str(tmp_path / "none.json")})
    with pytest.raises(ValueError, match="2 starts, 1 counts, pages of 16 keys"):
        Requests([0, 1], [1], lambda: np.zeros((1, 1), np.int32), 16)
