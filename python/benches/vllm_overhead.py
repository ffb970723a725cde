"""What critbeta adds to a decoding step of vLLM on a CPU. It needs the environment of scripts/vllm-test.sh:

    vllm_overhead.py MODEL [SEQUENCES [STEPS [ROUNDS]]]

Rules take turns from one step to the next in one engine, and `off` is vLLM's own classes. Recording costs
at some lengths only, so that whole answers take turns: from 512 to 512 + STEPS tokens, with rows recorded
and without. Each line is the median over turns of time / time of `off` beside it, with the middle half.
"""

import os
import statistics
import sys
import tempfile
import time

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "VLLM_PLUGINS": "none", "CRITBETA_RESCALE": "identity"}
PROMPT = 512


def main(folder, sequences=1, steps=256, rounds=5):
    sequences, steps, rounds = int(sequences), int(steps), int(rounds)
    import critbeta.vllm
    from critbeta.serve import Recorder
    from critbeta.vllm._door import Door

    critbeta.vllm.register()
    from vllm import LLM, SamplingParams

    sizes = dict(max_model_len=2048, max_num_batched_tokens=PROMPT, max_num_seqs=8)
    engine = LLM(folder, dtype="float32", enforce_eager=True, enable_prefix_caching=False, **sizes).llm_engine
    ((_, door),) = Door._known
    backend = critbeta.vllm.CPU_ATTN
    owners = [(backend.get_impl_cls(), "forward"), (backend.get_builder_cls(), "build")]
    ours = [getattr(owner, name) for owner, name in owners]
    asked = SamplingParams(temperature=0, max_tokens=steps, ignore_eos=True)
    ids = [(7 * at) % 4000 + 1000 for at in range(PROMPT)]

    def begin(tag):
        for number in range(sequences):
            tokens = ids[number:] + ids[:number]
            engine.add_request(f"{tag}-{number}", {"prompt_token_ids": tokens}, asked)
        # Prompts are read, and the first tokens are there.
        for _ in range(sequences + 1):
            engine.step()

    def use(betas, on=True):
        for (owner, name), own in zip(owners, ours):
            if on:
                setattr(owner, name, own)
            elif name in vars(owner):
                delattr(owner, name)
        door.betas = betas

    rules = {"identity": None, "qwen-logn:train=64": None}
    with tempfile.TemporaryDirectory() as records:
        door.recorder = recorder = Recorder(door.layers, 2048)
        begin("rows")
        while engine.has_unfinished_requests():
            engine.step()
        recorder.rows.to_calibration(f"{records}/cal.json")
        rules[f"calibrated:{records}/cal.json"] = None
        for rule in rules:
            door.rescale(rule)
            rules[rule] = door.betas
    door.recorder = None
    turns = [("off", None), *rules.items()]
    times = {name: [] for name, _ in turns}
    for number in range(rounds):
        begin(f"rules-{number}")
        at = 0
        while engine.has_unfinished_requests():
            name, betas = turns[at % len(turns)]
            use(betas, name != "off")
            start = time.perf_counter()
            engine.step()
            times[name].append(time.perf_counter() - start)
            at += 1
    print(f"{sequences} sequences, {PROMPT} to {PROMPT + steps} tokens, {os.cpu_count()} cores")
    print(f"a step is {1e3 * statistics.median(times['off']):.2f} ms")
    for name in rules:
        show(name.partition(":/")[0], [a / b for a, b in zip(times[name], times["off"])])

    ratios, recorded = [], 0
    for number in range(rounds):
        spent = {}
        for name in ("off", "record") if number % 2 else ("record", "off"):
            door.recorder = Recorder(door.layers, 2048) if name == "record" else None
            use(None, name == "record")
            begin(f"{name}-{number}")
            start = time.perf_counter()
            while engine.has_unfinished_requests():
                engine.step()
            if door.recorder is not None:
                recorded = door.recorder.recorded
            spent[name] = time.perf_counter() - start
        ratios.append(spent["record"] / spent["off"])
    show(f"recording ({recorded} rows)", ratios)


def show(name, ratios):
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"{name:32} {middle:.4f}  ({low:.4f} to {high:.4f}, {len(ratios)} turns)")


if __name__ == "__main__":
    main(*sys.argv[1:])
