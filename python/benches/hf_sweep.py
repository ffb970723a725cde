"""Every architecture of transformers that can be built small: what `critbeta.hf` records, and what it makes
of a model, beside the weights that the model's own eager attention returns.

    python python/benches/hf_sweep.py OUT.jsonl [PATTERN]      runs those whose FILE/CONFIG holds PATTERN
    python python/benches/hf_sweep.py --table OUT.jsonl...     prints the record

Each architecture runs in a process of its own. It is tried as it comes, with padding at either end, under an
additive mask of finite numbers, with a cache, and under sdpa. For every row that eager attention computes,
the record must have one with as many keys as have a weight, and with the same entropy, largest weight and
position. Under `fixed:1` the output must keep its bits; under `fixed:2` and `ssmax` it must be the one that
those weights give: w^beta, normalised, times the values.
"""

from __future__ import annotations

import copy
import inspect
import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import critbeta.hf
import hf_tiny
import numpy as np
import torch
import transformers
from hf_eager import TINY, Eager, differences, equal, far, outputs
from hf_tiny import LENGTH, TEXTS
from transformers import PreTrainedModel

SECONDS = 120
LOWEST = float(np.finfo(np.float32).min)


def variants(
    model: PreTrainedModel, given: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any], torch.Tensor | None]]:
    """Yields names, arguments, and which tokens are text."""
    taken = inspect.signature(model.forward).parameters
    yield "plain", given, None
    if (
        "input_ids" not in given
        or "attention_mask" not in taken
        or given["input_ids"].shape != (TEXTS, LENGTH)
    ):
        return
    for name, hidden in (("left padding", slice(0, 4)), ("right padding", slice(LENGTH - 4, LENGTH))):
        mask = torch.ones(TEXTS, LENGTH, dtype=torch.long)
        mask[1, hidden] = 0
        yield name, {**given, "attention_mask": mask}, mask.bool()
    if "position_ids" in taken:
        ids = torch.cat([torch.arange(7), torch.arange(5)])[None]
        yield "packed", {"input_ids": given["input_ids"][:1], "position_ids": ids}, None
    see = torch.ones(LENGTH, LENGTH).tril().bool()
    see[6:, 2] = False
    for low in (LOWEST, -1e9, -1e4):
        yield (
            f"mask of {low:.3g}",
            {**given, "attention_mask": torch.where(see, 0.0, low).expand(TEXTS, 1, -1, -1)},
            None,
        )


def check(
    model: PreTrainedModel, given: dict[str, Any], real: torch.Tensor | None, past: int = 0
) -> dict[str, str]:
    """Returns what agrees, by name of the check."""
    found: dict[str, str] = {}
    eager = Eager(model)
    with torch.no_grad():
        with eager.watching():
            torch.manual_seed(5)
            plain = outputs(model(**given))
        if not eager.calls:
            return {"record": "no call: the interface was not called"}
        if all(weights is None for _, weights in eager.calls):
            return {"record": "no weights: its eager attention returns none"}
        if any(weights is not None and weights.isnan().all() for _, weights in eager.calls):
            return {"record": "no weights: those of its eager attention are NaN"}
        try:
            torch.manual_seed(5)
            with critbeta.hf.record(model, rows=10_000) as rec:
                same = outputs(model(**given))
            wrong = differences(rec, eager, real, past, past > 0 or "position_ids" not in given)
            found["record"] = f"differs: {'; '.join(wrong[:2])}" if wrong else "agrees"
            if not all(map(equal, plain, same)):
                found["record"] = "differs: the output of the recorded model"
        except (ValueError, RuntimeError, TypeError) as error:
            found["record"] = f"refused: {type(error).__name__}: {error}"
        for law, beta in (
            ("fixed:1", None),
            ("fixed:2", lambda n: 2.0),
            ("ssmax:s=0.5", lambda n: 0.5 * n.clamp(min=2).log()),
        ):
            found[law] = rescaled(model, given, real, law, beta, plain)
    return found


def rescaled(model: Any, given: Any, real: Any, law: str, beta: Any, plain: list[torch.Tensor]) -> str:
    try:
        torch.manual_seed(5)
        with critbeta.hf.rescale(model, law):
            ours = outputs(model(**given))
    except (ValueError, RuntimeError, TypeError) as error:
        return f"refused: {type(error).__name__}: {error}"
    wanted, most = plain, 1e-4
    if beta is not None:
        eager, most = Eager(model, beta), 5e-3
        with eager.watching():
            torch.manual_seed(5)
            wanted = outputs(model(**given))
        if eager.unusual:
            return "no weights: its output is not weights times values"
    apart = far(wanted, ours, real, most)
    return f"differs: the output by {apart:.2g} of its deviation" if apart else "agrees"


def cached(model: PreTrainedModel, given: dict[str, Any]) -> dict[str, str] | None:
    """Checks the second half of the texts with the cache of the first."""
    taken = inspect.signature(model.forward).parameters
    name = next((name for name in ("past_key_values", "cache") if name in taken), None)
    if (
        model.config.is_encoder_decoder
        or name is None
        or set(given) != {"input_ids"}
        or given["input_ids"].shape != (TEXTS, LENGTH)
    ):
        return None
    ids = given["input_ids"]
    with torch.no_grad():
        cache = getattr(model(input_ids=ids[:, :8], use_cache=True), "past_key_values", None)
    if cache is None:
        return None

    # As `generate` gives them: some models count from 0 at each call (Bamba, transformers 5.24).
    where = {"position_ids": torch.arange(8, LENGTH)[None]} if "position_ids" in taken else {}

    class Again(Mapping):  # type: ignore[type-arg]
        """Arguments with a copy of the cache at each call."""

        def __iter__(self) -> Iterator[str]:
            return iter(["input_ids", name, "use_cache", *where])

        def __len__(self) -> int:
            return 3 + len(where)

        def __getitem__(self, key: str) -> Any:
            known = {"input_ids": ids[:, 8:], name: copy.deepcopy(cache), "use_cache": True, **where}
            return known[key]

    return check(model, Again(), None, past=8)


def milder(model: PreTrainedModel, given: dict[str, Any]) -> PreTrainedModel:
    """Scales queries down until no weight of a visible key is near the smallest numbers, as it would not count."""
    for _ in range(6):
        eager = Eager(model)
        with torch.no_grad(), eager.watching():
            model(**given)
        found = [weights[weights > TINY] for _, weights in eager.calls if weights is not None]
        least = [float(weights.min()) for weights in found if weights.numel()]
        if not least or min(least) > 1e-12:
            break
        hf_tiny.scale_queries(model, 0.5)
    return model


def sweep(kinds: list[type[PreTrainedModel]]) -> dict[str, Any]:
    """Returns what the first class that can be built and run gives."""
    tried: list[str] = []
    last: dict[str, Any] = {}
    for kind in kinds[:4]:
        for level in hf_tiny.LEVELS:
            try:
                model = hf_tiny.built(kind, level, "eager")
            except Exception as error:
                tried.append(f"{kind.__name__} {level}: {type(error).__name__}: {str(error)[-160:]}")
                continue
            given, errors = None, []
            for candidate in hf_tiny.inputs(model):
                try:
                    with torch.no_grad():
                        model(**candidate)
                    given = candidate
                    break
                except Exception as error:
                    errors.append(f"{list(candidate)}: {type(error).__name__}: {str(error)[-120:]}")
            if given is None:
                tried.append(
                    f"{kind.__name__} {level}: does not run: {(errors or ['no inputs are known'])[0]}"
                )
                continue
            model = milder(model, given)
            found: dict[str, Any] = {"class": kind.__name__, "level": level, "inputs": list(given)}
            try:
                critbeta.hf.record(model)
            except ValueError as error:
                return {**found, "refused": str(error)}
            found["checks"] = checks(model, kind, level, given)
            if any(
                check.get("record", "").startswith(("agrees", "differs", "refused"))
                for check in found["checks"].values()
            ):
                return found
            tried.append(f"{kind.__name__}: {found['checks']['plain'].get('record')}")
            last = {"no weights": found["checks"]["plain"].get("record")}
    return {"not built": tried, **{name: value for name, value in last.items()}}


def checks(
    model: PreTrainedModel, kind: type[PreTrainedModel], level: str, given: dict[str, Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, arguments, real in variants(model, given):
        try:
            with torch.no_grad():
                model(**arguments)
        except Exception as error:
            found[name] = {"model": f"{type(error).__name__}: {str(error)[-100:]}"}
            continue
        found[name] = check(model, arguments, real)
    try:
        with_cache = cached(model, given)
        if with_cache is not None:
            found["cache"] = with_cache
    except Exception as error:
        found["cache"] = {"model": f"{type(error).__name__}: {str(error)[-100:]}"}
    try:
        other = hf_tiny.built(kind, level, "sdpa")
        other.load_state_dict(model.state_dict())
    except Exception as error:
        return {**found, "sdpa": {"model": f"{type(error).__name__}: {str(error)[-100:]}"}}
    for name, arguments, real in list(variants(model, given))[:3]:
        if "model" in found[name] or found[name]["record"].startswith("no"):
            continue
        eager = Eager(model)
        with torch.no_grad(), eager.watching():
            torch.manual_seed(5)
            wanted = outputs(model(**arguments))
        try:
            torch.manual_seed(5)
            with torch.no_grad(), critbeta.hf.record(other, rows=10_000) as rec:
                same = outputs(other(**arguments))
            if far(wanted, same, real, 5e-3):
                found[f"sdpa, {name}"] = {"model": "its output under sdpa is another one"}
                continue
            wrong = differences(rec, eager, real, 0, True)
            found[f"sdpa, {name}"] = {"record": f"differs: {'; '.join(wrong[:2])}" if wrong else "agrees"}
        except (ValueError, RuntimeError, TypeError) as error:
            found[f"sdpa, {name}"] = {"record": f"refused: {type(error).__name__}: {error}"}
    return found


def in_a_process(name: str, kinds: list[type[PreTrainedModel]]) -> dict[str, Any]:
    """Runs `sweep` in a process, which may end as it likes."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        # Seconds of CPU time: other processes may be busy.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            found = sweep(kinds)
        except BaseException:
            found = {"broken": traceback.format_exc()[-600:]}
        with os.fdopen(write, "w") as file:
            file.write(json.dumps(found))
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    _, status = os.waitpid(process, 0)
    return (
        json.loads(text)
        if text
        else {"not built": [f"its process ended with {status} within {SECONDS} s of CPU time"]}
    )


def outcome(found: dict[str, Any]) -> tuple[str, str]:
    """Returns the kind of result of an architecture, and its reason."""
    if "refused" in found:
        return "refused", found["refused"].partition(", ")[2].partition(". ")[0]
    if "checks" not in found:
        known = found.get("no weights") or found.get("broken") or " ".join(found.get("not built", ["?"])[:1])
        return "no weights" if "no weights" in found else "not built", known
    texts = {f"{name}, {of}": text for name, check in found["checks"].items() for of, text in check.items()}
    for kind in ("differs", "refused"):
        of_kind = [
            (name, text) for name, text in texts.items() if text.startswith(kind) and ", model" not in name
        ]
        if of_kind:
            return kind, f"{of_kind[0][0]}: {of_kind[0][1].partition(': ')[2]}"
    return "agrees", ""


def table(paths: list[str]) -> None:
    """Prints the record of one or several runs; a later line of an architecture holds."""
    lines = [json.loads(line) for path in paths for line in open(path, encoding="utf-8")]
    found = {line["architecture"]: line for line in lines}
    by_kind: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for name, line in sorted(found.items()):
        kind, reason = outcome(line)
        by_kind.setdefault(kind, []).append((name, reason, line))
    checks = [check for line in found.values() for check in line.get("checks", {}).values()]
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    print(f"{len(found)} architectures (file/configuration):")
    for kind in ("agrees", "refused", "no weights", "not built", "differs"):
        print(f"  {kind}: {len(by_kind.get(kind, []))}")
    agree = Counter(of for check in checks for of, text in check.items() if text == "agrees")
    print("checks that agree: " + ", ".join(f"{of} {count}" for of, count in agree.items()))
    for kind in ("differs", "refused", "no weights", "not built", "agrees"):
        print(f"\n{kind}")
        for name, reason, line in by_kind.get(kind, []):
            of = ", ".join(
                name for name, check in line.get("checks", {}).items() if check.get("record") == "agrees"
            )
            text = f"{line['class']}, {line['level']}: {of}" if kind == "agrees" else reason
            print(f"  {name}: {' '.join(text.split())[:200]}")


def main() -> None:
    if sys.argv[1] == "--table":
        return table(sys.argv[2:])
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    to, pattern = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
    with open(to, "w", encoding="utf-8") as file:
        for name, kinds in hf_tiny.architectures(pattern).items():
            start = time.monotonic()
            found = in_a_process(name, kinds)
            file.write(
                json.dumps({"architecture": name, "seconds": round(time.monotonic() - start, 1), **found})
                + "\n"
            )
            file.flush()


if __name__ == "__main__":
    main()
