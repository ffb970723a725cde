"""Measured rules of `critbeta.serve` and of the door to vLLM on a device: a GPU or the simulator
(`device.py`). No server runs here."""

from types import SimpleNamespace

import numpy as np
import pytest
from device import HAS_GPU, Device
from served import KV_HEADS, D, Server

torch = pytest.importorskip("torch")
from critbeta import _cuda_pages  # noqa: E402
from critbeta.serve import Betas, Layer, OnDevice, Requests, measured  # noqa: E402
from critbeta.serve import _requests  # noqa: E402
from critbeta.vllm import _door  # noqa: E402

NAME = "layers.0.self_attn"
CHUNKS = [(0, 150, 169), (1, 0, 9), (0, 20, 21)]
RULES = ["critical:cap=8", "critical:ratio=0.7,resolve=0.69,cap=4", "velickovic"]


def no_tables():
    raise AssertionError("the host read the tables")


def cache(server):
    """Pages of keys and values as vLLM has them on a GPU: [pages, kv_heads, page, 2 head_dim]."""
    keys = server.keys(0).permute(0, 2, 1, 3)
    return torch.cat([keys, torch.full_like(keys, torch.nan)], -1)


def prepared(put, chunks, dtype=torch.float32, beyond=0):
    """Returns the requests of a step on the device, its queries and its cache; then those of the CPU."""
    server = Server(layers=1, dtype=dtype)
    server.step([(0, 0, 168), (1, 0, 8)])
    on_cpu, query = server.step(chunks), server.query(0, chunks)
    tables = torch.from_numpy(server.tables[[of for of, _, _ in chunks]])
    lens = torch.tensor([end for _, _, end in chunks], dtype=torch.int32)
    starts = [start + beyond for start in on_cpu.starts]
    requests = Requests(starts, on_cpu.counts, no_tables, server.page, OnDevice(put(tables), put(lens)))
    return (requests, put(query), put(cache(server))), (on_cpu, query, server.keys(0)), server.scale


@pytest.mark.parametrize("window", [None, 33])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("chunks", [CHUNKS, [(0, 168, 169), (1, 8, 9)]], ids=["prompts", "decoding"])
def test_a_measured_rule_has_the_betas_of_the_cpu(chunks, rule, window):
    layer = Layer(NAME, 6, window=window)
    rules = Betas(rule, [layer], 4096).measured[NAME]
    with Device() as put:
        (requests, query, kv_cache), on_cpu, scale = prepared(put, chunks, beyond=3)
        found = measured(rules, layer, requests, query, kv_cache.transpose(1, 2)[..., :D], scale)
    expected = measured(rules, layer, *on_cpu, scale)
    assert found.dtype == torch.float32 and found.is_cuda == HAS_GPU
    rtol = 1e-6 if rule == "velickovic" else 0
    torch.testing.assert_close(found.cpu(), expected.float(), rtol=rtol, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_step_scales_a_copy_of_the_queries_by_betas_that_it_owns(dtype):
    betas = Betas(RULES[1], [Layer(NAME, 6)], 4096, dtype=dtype, device="cuda" if HAS_GPU else "cpu")
    step = betas.step(64)
    place = step._measured.data_ptr()
    for chunks in (CHUNKS, [(0, 168, 169), (1, 8, 9)]):
        with Device() as put:
            (requests, query, kv_cache), on_cpu, scale = prepared(put, chunks, dtype)
            keys, tokens = kv_cache.transpose(1, 2)[..., :D], sum(requests.counts)
            # What fills up a batch has no request, and stays.
            padded = torch.cat([query, query[:2]])
            before = padded.clone()
            scaled = step.measure(NAME, padded, requests, keys, scale)
            beta = step._measured[: tokens * 6].view(tokens, 6)
            assert step._measured.data_ptr() == place and (beta >= 0).all()
            wanted = measured(betas.measured[NAME], betas.layers[NAME], requests, query, keys, scale)
            assert torch.equal(beta, wanted)
            assert torch.equal(scaled[:tokens], (query * beta[..., None]).to(dtype))
            assert torch.equal(scaled[tokens:], query[:2]) and torch.equal(padded, before)
            with pytest.raises(ValueError, match=r"query of shape \(1, 6, 64\) and .* tokens of requests"):
                step.measure(NAME, query[:1], requests, keys, scale)
        near = measured(betas.measured[NAME], betas.layers[NAME], *on_cpu, scale)
        torch.testing.assert_close(beta.cpu().double(), near, rtol=2e-3, atol=0)


def test_each_head_may_have_a_rule_of_its_own():
    rules = [Betas(rule, [Layer(NAME, 6)], 4096).measured[NAME][0] for rule in RULES[:2]]
    rules, layer = rules[:1] * 4 + rules[1:] * 2, Layer(NAME, 6)
    with Device() as put:
        (requests, query, kv_cache), on_cpu, scale = prepared(put, CHUNKS)
        found = measured(rules, layer, requests, query, kv_cache.transpose(1, 2)[..., :D], scale)
    assert torch.equal(found.cpu(), measured(rules, layer, *on_cpu, scale).float())


@pytest.mark.parametrize("room", [0, 16 * 6 * 168 * 4, 32 << 20])
def test_sequences_that_differ_share_a_call_while_their_scores_fit(room, monkeypatch):
    chunks = [(0, 150, 169), (0, 20, 21), (1, 0, 1), (0, 0, 40), (1, 5, 9)]
    rules, calls = Betas(RULES[1], [Layer(NAME, 6)], 4096).measured[NAME], []
    betas = _cuda_pages.betas

    def recorded(given, most, out, each):
        ragged = None if given.q_lens is None else len(given.q_lens)
        calls.append((len(given.lens), len(given.q), ragged, each, most))
        betas(given, most, out, each)

    monkeypatch.setattr(_requests, "_SCORE_BYTES", room)
    monkeypatch.setattr(_cuda_pages, "betas", recorded)
    with Device() as put:
        (requests, query, kv_cache), on_cpu, scale = prepared(put, chunks)
        found = measured(rules, Layer(NAME, 6), requests, query, kv_cache.transpose(1, 2)[..., :D], scale)
    assert torch.equal(found.cpu(), measured(rules, Layer(NAME, 6), *on_cpu, scale).float())
    # Parts of 8, 8, 3, 1, 1, 8, 8, 8, 8, 8 and 4 tokens, and the most keys of each call.
    assert calls == {
        0: [
            (2, 16, None, 8, 166),
            (1, 3, None, 3, 169),
            (2, 2, None, 1, 21),
            (5, 40, None, 8, 40),
            (1, 4, None, 4, 9),
        ],
        16 * 6 * 168 * 4: [(2, 16, None, 8, 166), (3, 5, 3, 1, 169), (6, 44, 6, 1, 40)],
        32 << 20: [(11, 65, 11, 1, 169)],
    }[room]


def test_requests_without_a_token_in_this_step_are_left_out():
    layer, rules = Layer(NAME, 6), Betas(RULES[0], [Layer(NAME, 6)], 4096).measured[NAME]
    chunks = [(0, 150, 169), (1, 9, 9), (1, 0, 9)]
    with Device() as put:
        (requests, query, kv_cache), on_cpu, scale = prepared(put, chunks)
        found = measured(rules, layer, requests, query, kv_cache.transpose(1, 2)[..., :D], scale)
    assert torch.equal(found.cpu(), measured(rules, layer, *on_cpu, scale).float())


def test_a_nan_stays_in_its_row():
    layer, rules = Layer(NAME, 6), Betas(RULES[0], [Layer(NAME, 6)], 4096).measured[NAME]
    with Device() as put:
        (requests, query, kv_cache), _, scale = prepared(put, CHUNKS)
        query[5, 2] = torch.nan
        found = measured(rules, layer, requests, query, kv_cache.transpose(1, 2)[..., :D], scale)
    assert found.isnan().nonzero().tolist() == [[5, 2]]


def test_a_law_is_not_measured():
    step = Betas("su", [Layer(NAME, 6)], 4096).step(64)
    with Device() as put:
        (requests, query, kv_cache), _, scale = prepared(put, CHUNKS)
        with pytest.raises(ValueError, match=f"su is not measured on {NAME}: expected a call of scale"):
            step.measure(NAME, query, requests, kv_cache.transpose(1, 2)[..., :D], scale)


def test_requests_that_only_the_host_has_are_refused():
    layer, rules = Layer(NAME, 6), Betas(RULES[0], [Layer(NAME, 6)], 4096).measured[NAME]
    with Device() as put:
        (_, query, kv_cache), (on_cpu, *_), scale = prepared(put, CHUNKS)
        with pytest.raises(ValueError, match="queries are on a GPU and the requests are not: .*on_device"):
            measured(rules, layer, on_cpu, query, kv_cache.transpose(1, 2)[..., :D], scale)


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU here")
def test_without_kernels_a_measured_rule_does_not_begin():
    for rule in RULES:
        with pytest.raises(RuntimeError, match="no kernels for cuda"):
            Betas(rule, [Layer(NAME, 6)], 64, device="cuda:0")


def common(put, chunks):
    """What vLLM tells the builder of a step."""
    server = Server(layers=1)
    begins = np.cumsum([0] + [end - start for _, start, end in chunks])
    lens = torch.tensor([end for _, _, end in chunks] + [0], dtype=torch.int32)
    tables = torch.from_numpy(server.tables[[of for of, _, _ in chunks] + [0]])
    return SimpleNamespace(
        num_reqs=len(chunks),
        seq_lens=put(lens),
        seq_lens_cpu_upper_bound=lens + 2,
        query_start_loc_cpu=torch.from_numpy(np.append(begins, begins[-1])).int(),
        block_table_tensor=put(tables),
    )


def test_the_door_to_vllm_measures_without_the_host():
    layer = SimpleNamespace(layer_name=f"{NAME}.attn", head_size=D, impl=SimpleNamespace(scale=D**-0.5))
    betas = Betas(RULES[1], [Layer(NAME, 6)], 4096, device="cuda" if HAS_GPU else "cpu")
    with Device() as put:
        (requests, query, kv_cache), on_cpu, scale = prepared(put, CHUNKS)
        found = _door._requests(common(put, CHUNKS), requests.page)
        assert found.counts == requests.counts and len(found.on_device.tables) == len(CHUNKS)
        found._read_tables = no_tables
        state = _door.State(None, betas.step(64), None, found)
        scaled = state.scaled(layer, query, kv_cache)
    beta = measured(betas.measured[NAME], betas.layers[NAME], *on_cpu, scale).float()
    assert torch.equal(scaled.cpu(), on_cpu[1] * beta[..., None])
    assert kv_cache.shape[1] == KV_HEADS


def test_keys_that_are_split_over_processes_are_not_measured():
    door = object.__new__(_door.Door)
    door.layers, door.length, door.device, door._dtype = [Layer(NAME, 6)], 64, "cpu", torch.float32
    door._whole, door._modules, door._fast_prefill, door._splits_keys = True, {}, False, True
    with pytest.raises(ValueError, match="critical:.*cannot be measured where context parallelism splits"):
        door.rescale(RULES[0])
    door.rescale("su")
    assert door.betas.rescaling == "su"


def test_layers_that_no_kernel_measures_are_refused_at_the_start():
    door = object.__new__(_door.Door)
    door.betas, door.recorder, door._dtype = Betas(RULES[0], [Layer(NAME, 6)], 64), None, torch.bfloat16
    door.betas.device = torch.device("cuda")
    separate = SimpleNamespace(forward_includes_kv_cache_update=False)
    module = SimpleNamespace(layer_name=f"{NAME}.attn", attn_backend=separate)
    door._modules = {f"{NAME}.attn": module}
    for change, message in [
        ({"kv_cache_torch_dtype": torch.float16}, "has a cache of torch.float16: expected the torch.bfloat16"),
        ({"attn_backend": SimpleNamespace()}, "writes the keys of a step within its own kernel"),
        ({}, None),
    ]:
        module.__dict__.update({"kv_cache_torch_dtype": torch.bfloat16, "attn_backend": separate} | change)
        if message is None:
            door.check_keys([f"{NAME}.attn"])
            continue
        with pytest.raises(ValueError, match=f"cannot be measured on {NAME}, which {message}"):
            door.check_keys([f"{NAME}.attn"])
