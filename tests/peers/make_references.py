"""Makes tests/num/references.json: DPO against every kind of reference, in double precision.

    python tests/peers/make_references.py

Model, pairs and adapter are those of tests/num/cases/gqa; the second adapter, "sft", is tied_as_head's (its
shapes are the same), the other checkpoint head_dim (another width, the same vocabulary).  Per case: log-probs of
all pairs at the start, and three AdamW steps of four pairs at a rate of 1e-2.
"""
import json
import os

import torch

import reference

CASES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "num", "cases")


def adapter_of(case):
    return reference.load_adapter(os.path.join(CASES, case, "adapter"))


def added(*adapters):
    """Adapters side by side as one: their outputs add."""
    return {m: (torch.cat([a[m][0] for a in adapters]), torch.cat([a[m][1] * a[m][2] for a in adapters], 1), 1.0)
            for m in adapters[0]}


def frozen(adapter):
    return {m: (a.detach().clone(), b.detach().clone(), s) for m, (a, b, s) in adapter.items()}


def run(pairs, parameters, policy, ref):
    """policy() and ref() give (model, adapter); both are asked anew for each log-prob."""
    def logp(which, p, side):
        model, adapter = which()
        return model.logp(p["prompt_ids"], p[side + "_ids"], adapter)

    class Frozen:
        @staticmethod
        def ref(p, side):
            return logp(ref, p, side).detach() if ref else torch.tensor(0.0)

    rows = []
    with torch.no_grad():
        for p in pairs:
            row = {"chosen_tokens": len(p["chosen_ids"]), "rejected_tokens": len(p["rejected_ids"])}
            for side in ("chosen", "rejected"):
                row["logp_" + side] = logp(policy, p, side).item()
                if ref:
                    row["ref_logp_" + side] = logp(ref, p, side).item()
            rows.append(row)
    steps = reference.train(Frozen, pairs, parameters, lambda p, side: logp(policy, p, side), 3, 4, lambda s: 1e-2)
    return {"per_pair": rows, "train": steps}


def leaves(adapter):
    return [t for a in adapter.values() for t in a[:2]]


def main():
    torch.set_default_dtype(reference.F64)
    pairs = [json.loads(line) for line in open(os.path.join(CASES, "gqa", "pairs.jsonl"))]
    base = reference.Model(os.path.join(CASES, "gqa"))
    other = reference.Model(os.path.join(CASES, "head_dim"))
    sft = frozen(adapter_of("tied_as_head"))
    out = {}

    def case(name, both, ref):
        """A policy of base + pref, with `both` base + sft + pref; ref(pref as it started)."""
        pref = adapter_of("gqa")
        start = frozen(pref)
        whole = (lambda: (base, added(sft, pref))) if both else (lambda: (base, pref))
        out[name] = run(pairs, leaves(pref), whole, ref(start))

    case("base", False, lambda start: lambda: (base, None))
    case("base_and_other", False, lambda start: lambda: (base, sft))
    case("stacked", True, lambda start: lambda: (base, sft))
    case("start", False, lambda start: lambda: (base, start))
    case("stacked_start", True, lambda start: lambda: (base, added(sft, start)))
    case("other", False, lambda start: lambda: (other, None))
    case("none", False, lambda start: None)
    for name in ("full_start", "full_other"):
        full = reference.Model(os.path.join(CASES, "gqa"))
        parameters = [w.requires_grad_() for w in full.weights.values()]
        frozen_model = base if name == "full_start" else other
        out[name] = run(pairs, parameters, lambda: (full, None), lambda: (frozen_model, None))
    with open(os.path.join(CASES, "..", "references.json"), "w") as f:
        json.dump(out, f, indent=1)
        f.write("\n")


main()
