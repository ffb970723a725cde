"""Rescalings, laws and families."""

import copy
import math
import pickle

import critbeta
import numpy as np
import pytest


def test_rescalings_round_trip():
    for text in [
        *("identity", "fixed:1.3", "ssmax:s=0.43,b=-2", "critical:ratio=1,resolve=0.69,floor=0.5,cap=8"),
        *("calibrated:c=1.5,xi=0.61,anchor=8192", "velickovic"),
    ]:
        rule = critbeta.Rescaling.parse(text)
        assert str(rule) == text and repr(rule) == f'Rescaling.parse("{text}")'
        again = critbeta.Rescaling.parse(str(rule))
        assert again == rule and hash(again) == hash(rule) and rule != critbeta.Rescaling.parse("fixed:7")
        assert pickle.loads(pickle.dumps(rule)) == rule == copy.deepcopy(rule)
    assert str(critbeta.Rescaling.parse("critical:cap=8")) == "critical:ratio=1,cap=8"
    assert critbeta.Rescaling.parse("identity") != "identity"
    # Two rescalings are equal if their texts are.
    zeros = [critbeta.Rescaling.parse(text) for text in ("fixed:0", "fixed:-0")]
    assert (zeros[0] == zeros[1]) == (str(zeros[0]) == str(zeros[1])) == (hash(zeros[0]) == hash(zeros[1]))


def test_betas_are_the_published_ones():
    beta = lambda spec, *args, **given: critbeta.Rescaling.parse(spec).beta(*args, **given)  # noqa: E731
    assert beta("su", 512) == 1 and beta("ssmax:s=0.43", 1024) == pytest.approx(0.43 * math.log(1024))
    assert beta("qwen-logn:train=8192", 8192**2) == pytest.approx(2)
    assert beta("qwen-logn:train=8192", 8192**2, position=5) == 1
    assert beta("critical:ratio=2", 9, critical=2.5) == 5 and math.isnan(beta("critical:ratio=2", 9))
    assert critbeta.Rescaling.parse("critical:resolve=0.5").resolve == 0.5
    assert critbeta.Rescaling.parse("su").resolve is None
    assert critbeta.Rescaling.parse("velickovic").needs_entropy


def test_every_law_parses_with_its_examples():
    names = [law.name for law in critbeta.laws]
    assert len(set(names)) == len(names) >= 11 and "ssmax" in names
    for law in critbeta.laws:
        given = ",".join(f"{p['name']}={p['example']}" for p in law.parameters)
        rule = critbeta.Rescaling.parse(f"{law.name}:{given}" if given else law.name)
        assert math.isfinite(rule.beta(4096, entropy=2.0)) and law.formula and law.convention and law.source
        required = any(p["default"] is None for p in law.parameters)
        if required:
            with pytest.raises(ValueError, match="is missing"):
                critbeta.Rescaling.parse(law.name)
        assert law.name in repr(law)
        assert pickle.loads(pickle.dumps(law)) == law == copy.deepcopy(law) == critbeta.Law.named(law.name)
        assert hash(copy.copy(law)) == hash(law) and sum(law == other for other in critbeta.laws) == 1
    with pytest.raises(ValueError, match='unknown law "log"; expected chen'):
        critbeta.Law.named("log")


def test_families_have_their_known_critical_beta():
    assert [family.name for family in critbeta.families][:2] == ["simplex", "gaussian"]
    exact = 0
    for family in critbeta.families:
        parsed = critbeta.Family.parse(str(family))
        assert parsed == family and hash(family) == hash(parsed)
        assert pickle.loads(pickle.dumps(family)) == family == copy.deepcopy(family)
        row = family.draw(1000, seed=5)
        assert row.dtype == np.float32 and row.shape == (1000,)
        assert row.tobytes() == family.draw(1000, seed=5).tobytes()
        growth = family.growth
        if growth and growth["factor"] is not None and growth["power"] == 0:
            expected = growth["factor"] * math.log(1000) ** growth["log_power"]
            assert critbeta.critical_beta(row) == pytest.approx(expected, rel=2.0**-23), family
            exact += 1
    assert exact == 4
    assert critbeta.Family.parse("gaussian").draw(0).shape == (0,)


def test_every_public_name_is_documented():
    for name in critbeta.__all__:
        thing = getattr(critbeta, name)
        assert name in ("__version__", "families", "laws") or thing.__doc__, name
    for kind in (critbeta.Rescaling, critbeta.Law, critbeta.Family):
        for name in dir(kind):
            assert name.startswith("_") or getattr(kind, name).__doc__, (kind, name)
