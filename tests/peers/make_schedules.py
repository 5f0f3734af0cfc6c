"""Makes tests/num/schedules.json: the rates of transformers' own schedules (5.23), step by step.

    python tests/peers/make_schedules.py
"""
import json
import os

import torch
from transformers import get_scheduler

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "num", "schedules.json")
NAMES = "linear cosine constant constant_with_warmup cosine_with_restarts polynomial inverse_sqrt".split()


def rates(name, peak, warmup, total, more):
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=peak)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    out = []
    for _ in range(total + more):
        out.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return out


with open(OUT, "w") as f:
    rows = [json.dumps({"name": name, "peak": peak, "warmup": warmup, "total": total,
                        "rates": rates(name, peak, warmup, total, more=3)})
            for name in NAMES for peak, warmup, total in ((1e-4, 0, 10), (5e-5, 4, 13), (2e-3, 5, 6))]
    f.write("[" + ",\n".join(rows) + "]\n")
