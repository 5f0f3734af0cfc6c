#!/bin/sh
# Every kind of kernel on the simulated device against the evaluator, and with the CPU's bits where they are generated.
. tests/cudasim/lib.sh
on_sim "$BUILD/tests/gpu/test_kernels" --device=cuda --seed=2 --cases=6
