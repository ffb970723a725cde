"""The text of each row over caches, beams, blocks and copies: saved files hold the measured rows."""

import copy

import critbeta
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import critbeta.hf  # noqa: E402
from safetensors.torch import load_file  # noqa: E402


@pytest.fixture
def model():
    torch.manual_seed(1)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, vocab_size=97)
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    return transformers.LlamaForCausalLM(config).eval()


def tokens(rows, n, seed=0):
    return torch.randint(3, 97, (rows, n), generator=torch.Generator().manual_seed(seed))


def prompt_twice(model):
    cache = model(tokens(1, 12), use_cache=True).past_key_values
    for seed in (1, 2):
        model(tokens(1, 9, seed), past_key_values=copy.deepcopy(cache))


def two_prefilled(model):
    caches = [model(tokens(1, 12, seed), use_cache=True).past_key_values for seed in (1, 2)]
    for seed, cache in enumerate(caches):
        model(tokens(1, 9, seed), past_key_values=cache)


def rolled_back(model):
    cache = model(tokens(1, 20), use_cache=True).past_key_values
    cache.crop(-5)
    model(tokens(1, 9, 1), past_key_values=cache)


def beams(model):
    model.generate(tokens(1, 12), num_beams=3, max_new_tokens=8, do_sample=False)


def decoded(model):
    model.generate(tokens(2, 12), max_new_tokens=20, min_new_tokens=20, do_sample=False)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("run", [prompt_twice, two_prefilled, rolled_back, beams, decoded])
def test_saved_files_hold_the_measured_rows(model, tmp_path, run):
    with torch.no_grad(), critbeta.hf.record(model) as recorder:
        run(model)
    assert_saved(recorder, tmp_path)


def test_a_second_block_records_other_texts(model, tmp_path):
    recorder = critbeta.hf.record(model)
    for seed in (1, 2):
        with torch.no_grad(), recorder:
            model(tokens(1, 20, seed))
    assert len(assert_saved(recorder, tmp_path)) == 2


def assert_saved(recorder, folder):
    files = recorder.save(folder / "qk.safetensors")
    measured = []
    for file in files:
        tensors = load_file(file)
        for layer in {name.rsplit(".", 1)[0] for name in tensors}:
            q, k, positions = (tensors[f"{layer}.{part}"] for part in ("q", "k", "positions"))
            found = critbeta.diagnose(q=q, k=k, positions=positions, layer=layer).rows
            measured.append(found.critical_beta.ravel())
    assert np.array_equal(np.sort(np.concatenate(measured)), np.sort(recorder.rows.critical_beta))
    return files


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_padding_before_a_static_cache_is_no_text(model, tmp_path):
    given, mask = tokens(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    with torch.no_grad(), critbeta.hf.record(model) as recorder:
        static = dict(cache_implementation="static", disable_compile=True)
        model.generate(given, attention_mask=mask, max_new_tokens=4, do_sample=False, **static)
    assert recorder.rows.n.min() == 1 and len(assert_texts(recorder, tmp_path)) == 2


def assert_texts(recorder, folder):
    files = recorder.save(folder / "static.safetensors")
    numbers = set()
    for file in files:
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            numbers.add(opened.metadata()["text"])
    return numbers


def test_a_copy_is_neither_recorded_nor_rescaled(model):
    given = tokens(1, 20)
    with torch.no_grad():
        plain = model(given).logits
        with critbeta.hf.rescale(model, "fixed:2"), critbeta.hf.record(model) as recorder:
            copied = copy.deepcopy(model)
            count = recorder.recorded
            assert torch.equal(copied(given).logits, plain) and recorder.recorded == count
            model(given)
        assert torch.equal(copied(given).logits, plain)
        with critbeta.hf.rescale(copied, "fixed:2"):
            assert not torch.equal(copied(given).logits, plain)


def test_checkpointed_gradients_of_an_earlier_forward_pass_keep_its_padding(model):
    given, mask, others = tokens(2, 20), torch.ones(2, 20, dtype=torch.long), tokens(2, 20, 3)
    mask[0, :8] = 0

    def gradient():
        model.zero_grad()
        loss = model(given, attention_mask=mask).logits[mask == 1].logsumexp(-1).sum()
        other = model(others, attention_mask=torch.ones_like(mask)).logits.sum()
        (loss + 0 * other).backward()
        return model.model.layers[0].self_attn.q_proj.weight.grad.clone()

    model.train()
    with critbeta.hf.rescale(model, "qwen-logn:train=4"):
        expected = gradient()
        model.activation_checkpointing_enable(dict(use_reentrant=False))
        found = gradient()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_negative_positions_of_padding(model):
    torch.manual_seed(1)
    sizes = dict(vocab_size=97, hidden_size=32, ffn_dim=48, word_embed_proj_dim=32)
    config = transformers.OPTConfig(**sizes, num_hidden_layers=2, num_attention_heads=4)
    model = transformers.OPTForCausalLM(config).eval()
    given, mask = tokens(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[0, :4] = 0
    with torch.no_grad(), critbeta.hf.rescale(model, "qwen-logn:train=4"):
        padded = model(given, attention_mask=mask).logits[0, 4:]
        alone = model(given[:1, 4:], attention_mask=mask[:1, 4:]).logits[0]
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)


def test_saved_files_of_an_earlier_run_are_gone(model, tmp_path):
    from safetensors.torch import save_file

    several, one, other = critbeta.hf.record(model), critbeta.hf.record(model), critbeta.hf.record(model)
    with torch.no_grad():
        for seed in (1, 2, 3):
            with several:
                model(tokens(1, 20, seed))
        with one:
            model(tokens(1, 20, 4))
        with other:
            for seed in (5, 6):
                model(tokens(1, 20, seed))
    names = lambda: sorted(path.name for path in tmp_path.iterdir())  # noqa: E731
    mine = {"model": "mine", "text": "0"}
    kept = {"qk-7.safetensors": mine, "qk-8.safetensors": None, "qk-a.safetensors": None}
    for name, metadata in kept.items():
        save_file({"x": torch.zeros(2)}, tmp_path / name, metadata=metadata)
    (tmp_path / "qk-9.safetensors").write_text("no safetensors")
    one.save(tmp_path / "qk-6.safetensors")
    other.save(tmp_path / "qkv.safetensors")
    others = [name for name in names() if name.startswith("qkv")]
    theirs = sorted([*kept, "qk-9.safetensors", "qk-6.safetensors", *others])
    assert names() == theirs
    for run in (several, one, several, other, one):
        files = run.save(tmp_path / "qk.safetensors")
        assert names() == sorted([*theirs, *(path.name for path in files)])
        assert all(path.exists() for path in files)


def test_numbered_files_never_replace_those_of_another_recording(model, tmp_path):
    one, two = critbeta.hf.record(model), critbeta.hf.record(model)
    with torch.no_grad():
        with one:
            model(tokens(1, 20, 1))
        with two:
            for seed in (2, 3):
                model(tokens(1, 20, seed))
    one.save(tmp_path / "b-0.safetensors")
    before = (tmp_path / "b-0.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="b-0.safetensors is no file of an earlier save"):
        two.save(tmp_path / "b.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["b-0.safetensors"]
    assert (tmp_path / "b-0.safetensors").read_bytes() == before
