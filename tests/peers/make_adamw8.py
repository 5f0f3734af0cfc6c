"""Makes tests/plan/adamw8.json: five steps of bitsandbytes' 8-bit AdamW on two tensors, one too small to be coded.

    python tests/peers/make_adamw8.py        (bitsandbytes 0.50.2, torch; the CPU is enough)

The step is the arithmetic of its CUDA kernel (kOptimizerStatic8bit2StateBlockwise: the map's binary search with
midpoints, codes that keep a negative sign) over its own tables, in float32, with torch's order of weight decay.  Its
CPU version is not taken: it codes with a table that misses the nearest number in 5 to 12 of 100 cases (0.50.2).

Parameters and gradients are numbers both sides make from the same integers (number() here and in
tests/plan/test_adamw8.c).  Kept: every 37th parameter after each step, and at the end the codes of both
moments there and the magnitudes of all blocks.
"""
import json
import os

import torch
from bitsandbytes.functional import create_dynamic_map

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "plan", "adamw8.json")
SMALL, LARGE, STEPS, EVERY, BLOCK = 1024, 4800, 5, 37, 256
LR, B1, B2, EPS, DECAY = 1e-2, 0.9, 0.999, 1e-8, 0.1


def number(i, stream):
    h = (i * 2654435761 + stream * 40503 + 12345) % 2**32
    h = (h ^ (h >> 15)) * 2246822519 % 2**32
    h = (h ^ (h >> 13)) * 3266489917 % 2**32
    return ((h >> 8) - 2**23) / 2**23 * 10.0 ** -(h % 5)


def tensor(begin, n, stream):
    return torch.tensor([number(begin + i, stream) for i in range(n)], dtype=torch.float32)


def code_of(table, x):
    """dQuantize of kernels.cu for one float."""
    pivot, upper, lower = 127, 255, 0
    high, low, value = 1.0, -1.0, table[127]
    i = 64
    while i:
        if x > value:
            lower, low, pivot = pivot, value, pivot + i
        else:
            upper, high, pivot = pivot, value, pivot - i
        value = table[pivot]
        i >>= 1
    high = table[upper] if upper == 255 else high
    low = table[lower] if lower == 0 else low
    if x > value:
        return upper if x > (high + value) * 0.5 else pivot
    return lower if x < (low + value) * 0.5 else pivot


class Moment:
    def __init__(self, n, signed):
        self.table, self.signed = create_dynamic_map(signed=signed), signed
        self.codes, self.absmax = torch.zeros(n, dtype=torch.long), torch.zeros((n + BLOCK - 1) // BLOCK)

    def scale(self):
        return self.absmax.repeat_interleave(BLOCK)[:len(self.codes)]

    def value(self):
        return self.table[self.codes] * self.scale()

    def keep(self, x):
        self.absmax = torch.stack([b.abs().max() for b in x.split(BLOCK)])
        table = self.table.tolist()
        self.codes = torch.tensor([code_of(table, y) for y in (x / self.scale()).tolist()])
        if self.signed:
            self.codes -= ((x < 0) & (self.table[self.codes] >= 0)).long()


def step(p, g, m, v, t):
    m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
    root = (v.sqrt() / (1 - B2**t) ** 0.5) + EPS
    return p * (1 - LR * DECAY) - LR / (1 - B1**t) * m / root, m, v


small, large = tensor(0, SMALL, 0), tensor(SMALL, LARGE, 0)
m, v, m8, v8 = torch.zeros(SMALL), torch.zeros(SMALL), Moment(LARGE, True), Moment(LARGE, False)
steps = []
for t in range(1, STEPS + 1):
    small, m, v = step(small, tensor(0, SMALL, t), m, v, t)
    large, a, b = step(large, tensor(SMALL, LARGE, t), m8.value(), v8.value(), t)
    m8.keep(a)
    v8.keep(b)
    steps.append(torch.cat([small, large])[::EVERY].tolist())
json.dump({"small": SMALL, "large": LARGE, "every": EVERY, "lr": LR, "weight_decay": DECAY, "params": steps,
           "m8": m8.codes[::EVERY].tolist(), "v8": v8.codes[::EVERY].tolist(),
           "m8.absmax": m8.absmax.tolist(), "v8.absmax": v8.absmax.tolist()}, open(OUT, "w"))
