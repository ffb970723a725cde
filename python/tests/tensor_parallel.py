"""Runs in each of two processes, for test_hf_parallel.py: models whole, and the same models split by heads."""

import json
import sys

import critbeta.hf
import torch
import torch.distributed as dist
import transformers
from hf_models import tiny, tokens
from transformers.distributed import DistributedConfig

WIDE = dict(num_attention_heads=8, num_key_value_heads=4, hidden_size=64)
MODELS = {
    "llama": ("llama", {}),
    "mistral": ("mistral", WIDE),
    "gemma2": ("gemma2", {}),
    "no-gqa": ("qwen2", dict(num_key_value_heads=6)),
}
LAWS = ["ssmax:s=0.43", "critical:resolve=1.2,cap=8", "calibrated:{}"]


def of_heads(model, x):
    with critbeta.hf.record(model, rows=100) as rec, torch.no_grad():
        model(x)
    rows = rec.rows
    entropy = {head: float(rows.entropy[rows.head == head].sum()) for head in sorted(set(rows.head.tolist()))}
    return rec, entropy


def split(name, folder):
    rank, found = dist.get_rank(), {}
    kind, changed = MODELS[name]
    whole, x = tiny(kind, **changed), tokens(1, 60)
    rec, found["whole"] = of_heads(whole, x)
    calibration = f"{folder}/calibration.json"
    if rank == 0:
        rec.rows.to_calibration(calibration)
        whole.save_pretrained(f"{folder}/model")
    dist.barrier()
    kept = dict(attn_implementation=whole.config._attn_implementation, dtype=torch.float32)
    plan = {"distributed_config": DistributedConfig(tp_size=2, tp_plan="auto")}
    model = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/model", **plan, **kept).eval()
    rec, found["split"] = of_heads(model, x)
    rec.rows.to_parquet(f"{folder}/rows-{rank}.parquet")
    rec.rows.to_calibration(f"{folder}/calibration-{rank}.json")
    try:
        rec.save(f"{folder}/kept.safetensors")
    except RuntimeError as error:
        found["save"] = str(error)
    rec.report(f"{folder}/report-{rank}.html")
    dist.barrier()
    merged = f"{folder}/merged.json"
    if rank == 0:
        parts = [json.load(open(f"{folder}/calibration-{number}.json")) for number in (0, 1)]
        heads = [head for part in parts for head in part["heads"]]
        json.dump({**parts[0], "heads": heads}, open(merged, "w"))
    dist.barrier()
    found["apart"] = {}
    for law in [*LAWS, f"calibrated:{merged}"]:
        law = law.format(calibration)
        logits = []
        for of in (whole, model):
            with critbeta.hf.rescale(of, law), torch.no_grad():
                logits.append(of(x).logits)
        found["apart"][law] = float((logits[0] - logits[1]).abs().max() / logits[0].std())
    json.dump(found, open(f"{folder}/found-{rank}.json", "w"))
    dist.barrier()


def main():
    dist.init_process_group("gloo")
    for name in MODELS:
        split(name, f"{sys.argv[1]}/{name}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
