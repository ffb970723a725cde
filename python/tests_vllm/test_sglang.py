"""critbeta inside SGLang: its real registry of hooks and its real attention layer, with a stand-in for its
engine.

SGLang's engine does not run on this CPU. `sglang` itself would import all of it, so that an empty package
stands in its place, and its modules are found where they are.
"""

import importlib
import json
import logging
import os
import sys
import types
from types import SimpleNamespace as Given

import critbeta
import critbeta.sglang
import numpy as np
import pytest
import torch

SITE = os.environ.get("CRITBETA_TEST_SGLANG")
pytestmark = pytest.mark.skipif(SITE is None, reason="CRITBETA_TEST_SGLANG names no folder with SGLang")
HEADS, KV_HEADS, D, LAYERS, ROOM = 6, 2, 64, 2, 300
RULE = "qwen-logn:train=16"


@pytest.fixture(scope="module")
def sglang():
    """SGLang's modules of hooks and layers."""
    sys.path.insert(0, SITE)
    package = types.ModuleType("sglang")
    package.__path__ = [f"{SITE}/sglang"]
    sys.modules["sglang"] = package
    ranks = types.ModuleType("sglang.srt.layers.dp_attention")
    ranks.get_attention_tp_rank, ranks.get_attention_tp_size = lambda: 0, lambda: 1
    found = importlib.import_module("sglang.srt.layers.radix_attention")
    stages = types.ModuleType("sglang.srt.distributed")
    stages.get_pp_group = lambda: Given(world_size=1)
    sys.modules[ranks.__name__], sys.modules[stages.__name__] = ranks, stages
    hooks = importlib.import_module("sglang.srt.plugins.hook_registry")
    yield Given(layers=found, hooks=hooks, ranks=ranks, plain=found.RadixAttention)
    sys.path.remove(SITE)


class Engine:
    """What SGLang's backend is to a layer: pools, and attention that keeps the queries it was given."""

    def __init__(self, requests=3):
        torch.manual_seed(1)
        slots = torch.randperm(requests * ROOM + 5)
        table = slots[: requests * ROOM].view(requests, ROOM).int()
        self.req_to_token_pool = Given(req_to_token=table)
        self.keys = torch.full((LAYERS, len(slots), KV_HEADS, D), torch.nan)
        self.token_to_kv_pool = Given(get_key_buffer=lambda layer: self.keys[layer])
        self.queries = []

    def forward(self, q, k, v, layer, batch, save_kv_cache=True, **kwargs):
        self.queries.append(q)
        self.keys[layer.layer_id, batch.out_cache_loc] = k
        return q


class Mode:
    """A forward mode: `decode` or `extend`."""

    def __init__(self, name):
        self.name = name

    def __getattr__(self, name):
        return lambda *_: name == f"is_{self.name}"


def batch(engine, chunks):
    """A batch that computes `chunks`: (request, first token, end) each."""
    table = engine.req_to_token_pool.req_to_token
    rows = [table[request, start:end] for request, start, end in chunks]
    positions = [torch.arange(start, end) for _, start, end in chunks]
    return Given(
        forward_mode=Mode("decode" if all(end - start == 1 for _, start, end in chunks) else "extend"),
        positions=torch.cat(positions),
        seq_lens=torch.tensor([end for *_, end in chunks]),
        req_pool_indices=torch.tensor([request for request, *_ in chunks]),
        extend_prefix_lens_cpu=[start for _, start, _ in chunks],
        extend_seq_lens_cpu=[end - start for _, start, end in chunks],
        out_cache_loc=torch.cat(rows).long(),
        mha_return_lse=False,
        global_num_token_non_padded_cpu=None,
    )


@pytest.fixture
def engine(sglang, monkeypatch):
    found = Engine()
    context = importlib.import_module("sglang.srt.model_executor.forward_context")
    for module in (sglang.layers, context):
        monkeypatch.setattr(module, "get_attn_backend", lambda: found)
    return found


@pytest.fixture
def hooked(sglang, monkeypatch):
    """Registers the door under a rule as SGLang does, and takes it out again."""
    registry = sglang.hooks.HookRegistry
    plain = sglang.plain.__init__, sglang.plain.forward

    def register(rescaling):
        monkeypatch.setenv("CRITBETA_RESCALE", rescaling)
        critbeta.sglang.register()
        registry.apply_hooks()
        return sglang.layers.RadixAttention

    yield register
    sglang.plain.__init__, sglang.plain.forward = plain
    registry._hooks.clear()
    registry._patched.clear()


def layers(kind, **options):
    prefix = "model.layers.{}.self_attn.attn"
    made = [
        kind(HEADS, D, D**-0.5, KV_HEADS, layer_id=n, prefix=prefix.format(n), **options)
        for n in range(LAYERS)
    ]
    return made


def step(engine, made, chunks, seed=0, by_name=False):
    """Runs a batch through all layers, as an argument by its name for some models. Returns queries and keys."""
    given, of = batch(engine, chunks), []
    torch.manual_seed(seed)
    for layer in made:
        tokens = len(given.positions)
        q, k = torch.randn(tokens, HEADS * D), torch.randn(tokens, KV_HEADS * D)
        before = q.clone()
        layer(q, k, k, forward_batch=given) if by_name else layer(q, k, k, given)
        assert torch.equal(q, before)
        of.append((q, k))
    return of


STEPS = [
    [(0, 0, 40), (2, 0, 9)],
    [(0, 40, 41), (2, 9, 10)],
    [(1, 0, 30)],
    [(1, 30, 31), (2, 10, 11), (0, 41, 42)],
]


def test_nothing_is_registered_without_a_rule(sglang, monkeypatch, caplog):
    for name in ("CRITBETA_RESCALE", "CRITBETA_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CRITBETA_RECORD", "somewhere")
    with caplog.at_level(logging.WARNING):
        critbeta.sglang.register()
    assert not sglang.hooks.HookRegistry._hooks
    assert "record=somewhere is left alone: SGLang records by its option --forward-hooks" in caplog.text


def test_the_backend_gets_scaled_queries(hooked, engine):
    made = layers(hooked(RULE))
    for number, chunks in enumerate(STEPS):
        engine.queries.clear()
        given = step(engine, made, chunks, number)
        n = np.concatenate([np.arange(start, end) for _, start, end in chunks]) + 1
        beta = torch.from_numpy(critbeta.Rescaling.parse(RULE).betas(n, n - 1).astype(np.float32))
        for (q, _), found in zip(given, engine.queries):
            assert torch.equal(found, (q.view(-1, HEADS, D) * beta[:, None, None]).view_as(q))


def test_a_calibration_is_that_of_each_layer_and_head(hooked, engine, tmp_path):
    names = [f"model.layers.{n}.self_attn" for n in range(LAYERS)]
    laws = {(name, h): (1 + at + h / 9, 0.1 * h) for at, name in enumerate(names) for h in range(HEADS)}
    heads = [
        {"layer": name, "head": h, "resolved": None}
        | {"critical": {"c": c, "xi": xi, "conclusive": True, "interval": None}}
        for (name, h), (c, xi) in laws.items()
    ]
    path = tmp_path / "cal.json"
    path.write_text(json.dumps({"critbeta": "0.1.0", "resolve": 0.0, "exclude_sink": 0, "heads": heads}))
    made = layers(hooked(f"calibrated:{path}"))
    given = step(engine, made, [(0, 7, 8), (1, 99, 100)])
    for name, (q, _), found in zip(names, given, engine.queries):
        for token, n in enumerate((8, 100)):
            for head in range(HEADS):
                c, xi = laws[name, head]
                at = (token, slice(D * head, D * head + D))
                torch.testing.assert_close(found[at], q[at] * c * np.log(n) ** xi)


def test_a_captured_batch_gets_new_betas_when_it_runs_again(hooked, engine):
    made = layers(hooked(RULE))
    given = batch(engine, [(0, 40, 41)])
    for at in (40, 200):
        given.positions.fill_(at)
        q, k = torch.ones(1, HEADS * D), torch.ones(1, KV_HEADS * D)
        for layer in made:
            layer(q, k, k, given)
        wanted = critbeta.Rescaling.parse(RULE).beta(at + 1)
        torch.testing.assert_close(engine.queries[-1], q * wanted)


def test_rules_that_cannot_apply_are_refused_when_the_model_is_made(hooked, engine, monkeypatch):
    plugins = importlib.import_module("sglang.srt.plugins")
    for rule, message in [
        ("soft", "soft"),
        ("critical:cap=8", "only after attention"),
        ("calibrated:none.json", "none.json"),
    ]:
        monkeypatch.setenv("CRITBETA_RESCALE", rule)
        # SGLang's own loader logs other exceptions, and goes on.
        monkeypatch.setattr(plugins, "_plugins_loaded", False)
        with pytest.raises(SystemExit, match=message):
            plugins.load_plugins()
    attention = hooked(RULE)
    with pytest.raises(
        ValueError, match=r"cannot be applied to model.layers.0.self_attn, which has a softcap \(30\)"
    ):
        layers(attention, logit_cap=30.0)
    with pytest.raises(ValueError, match="which is no decoder"):
        layers(attention, is_cross_attention=True)
    made, given = layers(attention), batch(engine, [(0, 0, 1)])
    with pytest.raises(ValueError, match=r"model.layers.0.self_attn, which has learned sinks \(sinks\)"):
        made[0](
            torch.ones(1, HEADS * D), torch.ones(1, KV_HEADS * D), torch.ones(1, KV_HEADS * D), given, sinks=1
        )


def test_sglang_finds_the_door_by_its_entry_point(sglang, hooked, engine, monkeypatch):
    monkeypatch.setenv("CRITBETA_RESCALE", RULE)
    plugins = importlib.import_module("sglang.srt.plugins")
    monkeypatch.setattr(plugins, "_plugins_loaded", False)
    plugins.load_plugins()
    step(engine, layers(hooked("identity")), [(0, 40, 41)])
    assert len(engine.queries) == LAYERS


def test_a_draft_in_the_same_process_has_betas_of_its_own(hooked, engine):
    attention = hooked(RULE)
    made = layers(attention)
    draft = layers(attention, sliding_window_size=15)[0]
    given = batch(engine, [(0, 199, 200)])
    q, k = torch.ones(1, HEADS * D), torch.ones(1, KV_HEADS * D)
    for layer in (made[0], draft, made[1]):
        layer(q, k, k, given)
    law = critbeta.Rescaling.parse(RULE)
    wanted = [law.beta(200), law.beta(16, 199), law.beta(200)]
    for found, beta in zip(engine.queries, wanted):
        torch.testing.assert_close(found, q * beta)


def test_windows_count_the_own_key(sglang):
    made = layers(sglang.plain, sliding_window_size=15)
    assert critbeta.sglang._layer(made[0], "a").window == 16
    assert critbeta.sglang._layer(layers(sglang.plain)[0], "a").window is None


@pytest.mark.parametrize("rule, by_name", [(None, False), (RULE, False), (None, True)])
def test_the_hook_records_rows_before_the_rule(sglang, hooked, engine, tmp_path, rule, by_name):
    manager = importlib.import_module("sglang.srt.model_executor.hook_manager")
    model = torch.nn.Module()
    made = layers(hooked(rule) if rule else sglang.plain)
    for number, layer in enumerate(made):
        parent = torch.nn.Module()
        parent.attn = layer
        model.add_module(str(number), parent)
    spec = {"name": "critbeta", "target_modules": ["*.attn"], "hook_factory": "critbeta.sglang:recorder"}
    manager.register_forward_hooks(model, [spec | {"config": {"record": str(tmp_path), "per_octave": 8}}])
    (hook,) = {hook for layer in made for hook in layer._forward_hooks.values()}
    q, k = [torch.zeros(LAYERS, 3, 60, heads, D) for heads in (HEADS, KV_HEADS)]
    if by_name:
        # The first call shows where the batch is.
        step(engine, made, [(1, 200, 201)], by_name=True)
    for number, chunks in enumerate(STEPS):
        given, first = step(engine, made, chunks, number, by_name), 0
        for request, start, end in chunks:
            for layer, (of_q, of_k) in enumerate(given):
                q[layer, request, start:end] = of_q[first : first + end - start].view(-1, HEADS, D)
                k[layer, request, start:end] = of_k[first : first + end - start].view(-1, KV_HEADS, D)
            first += end - start
    recorder = hook.__self__._recorder
    assert recorder.error is None
    rows = recorder.rows
    found = {
        (rows.layer[at], int(rows.head[at]), int(rows.position[at]), float(rows.critical_beta[at]))
        for at in range(len(rows))
    }
    wanted, taken = set(), {round(8 * 2 ** (at / 8)) - 1 for at in range(60)}
    for layer in range(LAYERS):
        for request, length in enumerate((42, 31, 11)):
            at = np.array([position for position in range(length) if position in taken])
            keys = k[layer, request, :length].transpose(0, 1)
            of = critbeta.diagnose(q=q[layer, request, at].transpose(0, 1), k=keys, positions=at).rows
            for head, row in np.ndindex(of.n.shape):
                name = f"model.layers.{layer}.self_attn"
                wanted.add((name, head, int(of.position[head, row]), float(of.critical_beta[head, row])))
    assert found == wanted and len(rows) == len(wanted)
    recorder.close()
    assert list(tmp_path.glob("rows-*.parquet"))


def test_a_record_that_fails_ends_and_no_request_does(sglang, engine, tmp_path, caplog):
    made = layers(sglang.plain)
    hook = critbeta.sglang.recorder({"record": str(tmp_path)})
    for layer in made:
        layer.register_forward_hook(hook)
    engine.token_to_kv_pool.get_key_buffer = lambda layer: 1 / 0
    with caplog.at_level(logging.WARNING):
        for chunks in STEPS:
            step(engine, made, chunks)
    assert caplog.text.count("recording has ended") == 1
    hook.__self__._recorder.close()


def test_another_sglang_ends_in_a_message_that_names_what_moved(sglang, monkeypatch):
    monkeypatch.setenv("CRITBETA_RESCALE", RULE)

    def forward(self, query, k, v, forward_batch):
        """Has another name for the queries."""

    monkeypatch.setattr(sglang.plain, "forward", forward)
    version = "critbeta.sglang was tested with sglang 0.5.23, and this is"
    with pytest.raises(SystemExit, match=rf"{version}.*forward: takes \(query, k, .*expected \(q, k"):
        critbeta.sglang.register()
    with pytest.raises(ValueError, match="config has no record"):
        critbeta.sglang.recorder({})
    with pytest.raises(TypeError, match="config of --forward-hooks: max_rows is float, expected int"):
        critbeta.sglang.recorder({"record": "x", "max_rows": 1.5})
