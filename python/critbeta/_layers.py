"""The layers and heads that a calibration names, and those of a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from ._core import Rescaling, head_rescalings


def in_words(names: list[str]) -> str:
    """Returns up to eight names, and how many more there are."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def calibrated(rescaling: str) -> tuple[dict[str, dict[int, Rescaling]], int] | None:
    """Returns the rules of `calibrated:FILE` by layer and head, and how many of them are inconclusive. It
    returns None for the text of one rule for all heads.

    Raises ValueError for a text that is no rule, and OSError for a file that cannot be read.
    """
    found = head_rescalings(rescaling)
    if found is None:
        return None
    rules: dict[str, dict[int, Rescaling]] = {}
    for layer, head, rule in found[0]:
        rules.setdefault(layer, {})[head] = rule
    return rules, found[1]


def are_same(name: str, own: str) -> bool:
    """Says whether one name of a layer ends in the other, as where a model is within another."""
    return f".{own}".endswith(f".{name}") or f".{name}".endswith(f".{own}")


def own_names(
    rescaling: str, names: Iterable[str], layers: Collection[str], module_of: Callable[[str], str] = str
) -> dict[str, str]:
    """Returns what the model itself calls the layers `names` of a calibration: one of `layers`. The model may
    be one within the one that was calibrated, or around it, as adapters put one: then one name ends in the
    other. `module_of` leaves out of a name what only a calibration has.

    Raises ValueError for layers that the model does not have, and where the model has none of them.
    """
    names, found = list(names), dict[str, str]()
    for name in names:
        module = module_of(name)
        ends = [own for own in layers if are_same(module, own)]
        exact = [own for own in ends if own == module]
        if len(exact or ends) == 1:
            found[name] = (exact or ends)[0] + name[len(module) :]
    unknown = [name for name in names if name not in found]
    taken = list(found.values())
    unknown += [name for name in found if taken.count(found[name]) > 1]
    # Layers that never run need no laws, such as the cross-attention of a decoder that is alone.
    if unknown or not found:
        missing = [name for name in layers if name not in taken]
        faults = [f"has laws of {in_words(unknown)}, which the model does not have"] if unknown else []
        faults += [f"does not cover {in_words(missing)}"] if missing else []
        expected = "expected the layers that hf.record names"
        raise ValueError(f"{rescaling}: {' and '.join(faults)}: {expected}")
    return found


def check_heads(rescaling: str, layer: str, rules: Collection[int], heads: int | None) -> None:
    """Raises ValueError unless `rules` are those of the heads 0 to `heads` - 1."""
    count = len(rules) if heads is None else heads
    missing = [str(head) for head in range(count) if head not in rules]
    unknown = [str(head) for head in sorted(rules) if head >= count]
    if missing or unknown:
        found = f"does not cover heads {in_words(missing)}"
        found = found if missing else f"has laws of heads {in_words(unknown)}"
        expected = f"expected one law for each of its {count} heads"
        raise ValueError(f"{rescaling}: of {layer} it {found}: {expected}")
