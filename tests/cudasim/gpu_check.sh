#!/bin/sh
# gpu-check itself: its script on the simulated device at tiny shapes, and where there is no GPU.
. tests/cudasim/lib.sh
if env -u DPOC_CACHE_DIR tests/gpu/check -o "$work/none" > "$work/out" 2>&1; then
    echo "there is a GPU here"
else
    rc=$?
    [ $rc = 3 ] || nvidia-smi > /dev/null 2>&1 || die "exit $rc, not 3, without a GPU: $(cat "$work/out")"
fi
tests/gpu/check --simulated --only=doctor,verify,sanitizer,bench-80,bench-40,peer -o "$work/check" > "$work/out" 2>&1 ||
    die "$(cat "$work/out" "$work/check/log/"*.txt)"
for what in '"card": "simulated' '"bench-80"' '"capture"' '"kernels": \['; do
    grep -q "$what" "$work/check/report.json" || die "report.json has no $what"
done
grep -q '^| no_prefix |' "$work/check/report.md" || die "report.md has no table: $(cat "$work/check/report.md")"
if command -v python3 > /dev/null && python3 -c 'import torch, transformers, peft' 2> /dev/null; then
    grep -q '^| PyTorch + PEFT, ' "$work/check/report.md" || die "no peer in report.md"
fi
cat "$work/out"
