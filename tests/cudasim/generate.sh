#!/bin/sh
# Answers over the KV cache on the simulated device: the figures of Hugging Face's models, in pieces, together, in bf16.
. tests/cudasim/lib.sh
on_sim "$BUILD/tests/num/test_generate" || die "not the known answers"
