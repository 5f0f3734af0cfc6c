"""Figures for tests/front/test_layers.c: the model of tests/front/odd/odd.dpo in numpy, double precision.

Written from the model's description, not from dpoc.  Every weight is a formula of its name (see `weight`), so no
checkpoint is needed.  Prints figures.json.
"""
import json
import math

import numpy as np

DIM, DEPTH, HEADS, VOCAB, EPS, WIDE, NEAR, SCALE = 12, 3, 3, 23, 1e-5, 3, 3, 0.5
PROMPT, CHOSEN, REJECTED = [3, 17, 5, 9, 22, 1], [4, 8, 15, 16, 2], [7, 0, 19]


def weight(name, *shape):
    seed = sum((i + 1) * ord(c) for i, c in enumerate(name)) % 1000
    i = np.arange(int(np.prod(shape)), dtype=np.float64)
    return (0.4 * np.sin(seed + 1.7 * i + 0.013 * i * i)).reshape(shape)


def layernorm(x, name):
    c = x - x.mean(-1, keepdims=True)
    c = c / np.sqrt((c * c).mean(-1, keepdims=True) + EPS)
    return c * weight(name + ".weight", DIM) + weight(name + ".bias", DIM)


def headnorm(x, name):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight(name + ".scale.weight", DIM // HEADS)


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attention(x, name, window):
    n, size = len(x), DIM // HEADS
    y = x @ weight(name + ".qkv.weight", 3 * DIM, DIM).T + weight(name + ".qkv.bias", 3 * DIM)
    q, k, v = (y[:, j * DIM:(j + 1) * DIM].reshape(n, HEADS, size) for j in range(3))
    q, k = headnorm(q, name + ".q"), headnorm(k, name + ".k")
    out = np.zeros((n, HEADS, size))
    for h in range(HEADS):
        for i in range(n):
            first = max(0, i - window + 1) if window else 0
            s = k[first:i + 1, h] @ q[i, h] / size
            p = np.exp(s - s.max())
            out[i, h] = (p / p.sum()) @ v[first:i + 1, h]
    return out.reshape(n, DIM) @ weight(name + ".out.weight", DIM, DIM).T


def mlp(x, name):
    x = gelu(x @ weight(name + ".up.weight", WIDE * DIM, DIM).T + weight(name + ".up.bias", WIDE * DIM))
    return x @ weight(name + ".down.weight", DIM, WIDE * DIM).T + weight(name + ".down.bias", DIM)


def logits(ids):
    wte = weight("wte.weight", VOCAB, DIM)
    x = wte[ids] * math.sqrt(DIM) + weight("wpe.weight", 40, DIM)[:len(ids)]
    for i in range(DEPTH):
        h = layernorm(x, f"h.{i}.ln")
        x = x + attention(h, f"h.{i}.attn", NEAR if i % 2 else 0) + mlp(h, f"h.{i}.mlp")
    return layernorm(x, "ln_f") @ wte.T * SCALE


def logp(answer):
    ids = PROMPT + answer
    out = logits(ids)
    total = 0.0
    for i, target in enumerate(answer):
        row = out[len(PROMPT) + i - 1]
        total += row[target] - row.max() - math.log(np.exp(row - row.max()).sum())
    return total


print(json.dumps({"prompt_ids": PROMPT, "chosen_ids": CHOSEN, "rejected_ids": REJECTED,
                  "logp_chosen": logp(CHOSEN), "logp_rejected": logp(REJECTED)}))
