#!/bin/sh
# peak_bytes is what a run allocates, seen from outside: one mapping of exactly that size, and beside it only
# what does not belong to a plan (the program's own data, generated code, the library's tables).
. tests/e2e/lib.sh
ldd "$dpoc" | grep -q libasan && { echo "a sanitizer brings its own allocator"; exit 77; }
${CC:-cc} -std=gnu11 -O1 -fPIC -shared -w -o "$work/watch.so" tests/device/watch.c -ldl || die "watch.c does not compile"
flags="--set pref.rank=4 --set pref.alpha=8 --set run.tokens=1024 --set run.batch=4 --memory=1GiB"
said=$("$dpoc" plan models/dpo-lora.dpo --model $cases/gqa --json $flags | grep -oE '"peak_bytes": ?[0-9]+' | grep -oE '[0-9]+$')
[ -n "$said" ] || die "plan failed"
train_case gqa "$work/warm" --set run.steps=1 $flags || die "training failed" # fills the kernel cache
DPOC_WATCH=$work/seen LD_PRELOAD=$work/watch.so train_case gqa "$work/run" --set run.steps=2 $flags ||
    die "training under watch failed"
read -r largest heap resident < "$work/seen"
echo "peak_bytes $said; largest mapping $largest, heap beside it $heap, resident at most $resident"
[ "$largest" = "$said" ] || die "the arena is not peak_bytes"
# beside the arena: the spec, the plan, kernels' text, data, oneDNN's tables; 4 MiB while weights are read
[ "$heap" -lt 12000000 ] || die "too much in the heap beside the arena"
# and the program and its libraries (oneDNN alone is 30 MB of file), code generated at run time
[ $((resident - largest)) -lt 40000000 ] || die "too much resident beside the arena"
