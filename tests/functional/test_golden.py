"""Every formula against reference numbers that share no code with this library, in float64 and float32."""

import json
import math

import pytest

from tests.gates.gate_sources import ROOT
from tests.support.golden_adapter import FAMILIES

CASES = {
    c["id"]: c for c in json.loads((ROOT / "tests" / "support" / "golden_shared.json").read_text("utf-8"))["cases"]
}


def flat(x):
    x = x.detach().tolist() if hasattr(x, "detach") else x
    return [v for y in x for v in flat(y)] if isinstance(x, list | tuple) else [float(x)]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_every_expected_number_is_reproduced(name, dtype, monkeypatch):
    monkeypatch.setenv("GOLDEN_DTYPE", dtype)
    case = CASES[name]
    got = FAMILIES[case["family"]](case["inputs"], case["params"], name)
    assert not set(case["expected"]) - set(got)
    for key, expected in case["expected"].items():
        want, have = flat(expected), flat(got[key])
        assert len(want) == len(have), key
        for w, h in zip(want, have, strict=True):
            assert math.isfinite(h), key
            assert abs(h - w) <= case["tol"][dtype] * max(1.0, abs(w)), key


def test_every_family_has_an_answer_and_every_answer_a_case():
    assert {case["family"] for case in CASES.values()} == set(FAMILIES)
