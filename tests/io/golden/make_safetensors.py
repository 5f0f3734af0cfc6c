#!/usr/bin/env python3
"""Makes hf.safetensors with the `safetensors` package (needs torch): mixed types, a scalar, an empty tensor,
metadata.  test_safetensors.c reads it and must write the same bytes.  Run in this directory."""
import torch
from safetensors.torch import save_file
x = torch.arange(12, dtype=torch.float32) / 8 - 0.5
save_file({"b.weight": x.reshape(3, 4), "a.weight": x.reshape(4, 3).to(torch.bfloat16),
           "c.half": x[:5].to(torch.float16), "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 7),
           "codes": torch.arange(9, dtype=torch.uint8), "long": torch.tensor([-1, 2 ** 40]),
           "na\u00efve \"name\"": torch.tensor([1.0], dtype=torch.float64)},
          "hf.safetensors", metadata={"format": "pt"})
