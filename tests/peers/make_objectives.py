"""Makes tests/num/objectives.json: loss and gradient norm of every shipped objective, in double precision.

    python tests/peers/make_objectives.py

One optimizer step over all pairs of tests/num/cases/gqa, policy = base + adapter, reference = base.  Losses
are written from TRL's code and the papers (see models/objectives/ for which), not from the .dpo files;
gradients are PyTorch's.
"""
import json
import os

import torch
from torch.nn.functional import logsigmoid as ls

import reference

HERE = os.path.dirname(os.path.abspath(__file__))
CASE = os.path.join(HERE, "..", "num", "cases", "gqa")
sg = torch.sigmoid


class Side:
    """One side of all pairs: token log-probs of policy and reference, and what is made of them."""

    def __init__(self, model, pairs, adapter, key):
        self.token, self.ref_token, self.log_p2 = [], [], []
        for p in pairs:
            prompt, answer = p["prompt_ids"], p[key]
            for weights, out in ((adapter, self.token), (None, self.ref_token)):
                rows = model.logits((prompt + answer)[:-1], weights)[len(prompt) - 1:].log_softmax(-1)
                out.append(rows[torch.arange(len(answer)), torch.tensor(answer)])
                if weights is not None:
                    self.log_p2.append(torch.logsumexp(2 * rows, -1))
        self.logp = torch.stack([t.sum() for t in self.token])
        self.ref = torch.stack([t.sum() for t in self.ref_token]).detach()
        self.len = torch.tensor([float(len(t)) for t in self.token], dtype=reference.F64)
        self.ratio = self.logp - self.ref

    def nll(self):
        return -self.logp.sum() / self.len.sum()


def objectives(w, l):
    b = 0.1
    u = b * (w.ratio - l.ratio)
    odds = lambda s: s.logp / s.len - torch.log1p(-torch.exp(s.logp / s.len))
    kl = lambda score, beta=b: -ls(beta * (score(w.ratio) - score(l.ratio)))
    smooth = lambda x, e: -(1 - e) * ls(x) - e * ls(-x)
    alpha_score = lambda r: torch.exp(torch.clamp(-0.5 * r, max=80)) / -0.5

    def ld(alpha):
        def cut(side, tokens, i):
            k = int(min(w.len[i], l.len[i]))
            return tokens[i][:k].sum() + alpha * tokens[i][k:].sum()
        each = lambda s: torch.stack([cut(s, s.token, i) - cut(s, s.ref_token, i).detach()
                                      for i in range(len(s.token))])
        return -ls(b * (each(w) - each(l)))

    def wpo(most=None):
        trust = lambda s: torch.stack([torch.exp((t - q).mean()) for t, q in zip(s.token, s.log_p2)]).detach()
        weight = trust(w) * trust(l)
        return (weight if most is None else torch.clamp(weight, max=most)) * -ls(u)

    def kto_pair():  # TRL 0.8
        kl_w, kl_l = w.ratio.mean().clamp(min=0), l.ratio.mean().clamp(min=0)
        return torch.cat([1 - sg(b * (w.ratio - kl_l)), 1 - sg(b * (kl_w - l.ratio))])

    def bent(s, a=0.25):
        return (1 - torch.exp(s.logp / s.len).pow(-a)) / a

    shift = torch.cat([b * w.ratio, b * l.ratio]).mean().detach()
    bco = -ls(b * w.ratio) - ls(-b * l.ratio)
    mean_gap = w.logp / w.len - l.logp / l.len
    m = sg(0.05 * (w.ratio - l.ratio) / 0.05)
    disco = 0.05 * (w.ratio - l.ratio)
    return {
        "dpo": -ls(u), "cdpo": smooth(u, 0.1), "robust": (-0.9 * ls(u) + 0.1 * ls(-u)) / 0.8,
        "ipo": (w.ratio / w.len - l.ratio / l.len - 1 / (2 * b)) ** 2,
        "hinge": torch.relu(1 - u), "sigmoid_norm": -ls(b * (w.ratio / w.len - l.ratio / l.len)),
        "simpo": -ls(2 * mean_gap - 1),
        "orpo": -w.logp / w.len - 0.1 * ls(odds(w) - odds(l)),
        "cpo": -ls(b * (w.logp - l.logp)).mean() + w.nll(), "rpo": -ls(u).mean() + w.nll(), "sft": w.nll(),
        "sppo": (w.ratio - 5) ** 2 + (l.ratio + 5) ** 2,
        "nca": -ls(b * w.ratio) - 0.5 * ls(-b * w.ratio) - 0.5 * ls(-b * l.ratio),
        "bco": bco, "bco_shift": -ls(b * w.ratio - shift) - ls(-(b * l.ratio - shift)),
        "kto_pair": kto_pair(), "mpo": (0.8 * -ls(u) + 0.2 * bco).mean() + w.nll(),
        "rpo_old": -ls(u).mean() + w.nll(), "wpo_old": wpo(1), "dpo_reference_free": -ls(b * (w.logp - l.logp)),
        "alphapo": -ls(2.5 * (bent(w) - bent(l)) - 0.5), "cpo_simpo": -ls(2 * mean_gap - 1).mean() + w.nll(),
        "cpo_hinge": torch.relu(1 - b * (w.logp - l.logp)).mean() + w.nll(),
        "cpo_ipo": ((mean_gap - 1 / (2 * b)) ** 2).mean() + w.nll(),
        "apo_zero": 1 - sg(b * w.ratio) + sg(b * l.ratio), "apo_down": sg(b * w.ratio) + 1 - sg(u),
        "discopop": (1 - m) * -ls(disco) + m * torch.exp(-disco),
        "exo": sg(u) * (ls(u) - torch.log(torch.tensor(0.999))) + sg(-u) * (ls(-u) - torch.log(torch.tensor(0.001))),
        "aot": smooth(b * ((w.logp - l.logp).sort()[0] - (w.ref - l.ref).sort()[0]), 0),
        "aot_unpaired": smooth(b * (w.ratio.sort()[0] - l.ratio.sort()[0]), 0),
        "dpo_forward_kl": kl(lambda r: -torch.exp(-r)), "dpo_js": kl(ls), "dpo_alpha": kl(alpha_score),
        "ld_dpo": ld(0.5), "rdpo": -ls(u - 0.005 * (w.len - l.len)),
        "dpop": -ls(u - b * 5 * torch.relu(w.ref - w.logp)), "wpo": wpo(),
        "slic": torch.relu(1 - w.logp + l.logp).mean() + 0.1 * w.nll(),
    }


def main():
    torch.set_default_dtype(reference.F64)
    model = reference.Model(CASE)
    adapter = reference.load_adapter(os.path.join(CASE, "adapter"))
    leaves = [t for a in adapter.values() for t in a[:2]]
    pairs = [json.loads(line) for line in open(os.path.join(CASE, "pairs.jsonl"))]
    w, l = (Side(model, pairs, adapter, k) for k in ("chosen_ids", "rejected_ids"))
    out = {}
    for name, loss in objectives(w, l).items():
        loss = loss.mean()
        grads = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
        norm = sum(g.pow(2).sum() for g in grads if g is not None).sqrt()
        out[name] = {"loss": loss.item(), "grad_norm": norm.item()}
    with open(os.path.join(CASE, "..", "..", "objectives.json"), "w") as f:
        json.dump(out, f, indent=1, sort_keys=True)
        f.write("\n")


main()
