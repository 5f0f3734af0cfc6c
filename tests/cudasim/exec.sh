#!/bin/sh
# Prefetching, sharing, recording, recompute, lazy streams and waiting after every step change no bit of a run on the device, and
# each of them happened; a device that fails leaves a checkpoint to go on from; plans fit the memory that is there.
. tests/cudasim/lib.sh
file=tests/pass/quantized.dpo model=examples/demo/model
run() { # OUT [flags]: three steps on the same two pairs, so that the second repeats the first's sizes
    out=$1
    shift
    on_sim "$dpoc" train $file --model $model --data examples/demo/pairs.jsonl --quiet -o "$work/$out" \
        --set run.steps=3 --set run.batch=2 --set data.limit=2 --set run.shuffle=off --set run.lr=1e-2 \
        --set run.save_every=1 --set run.tokens=256 --set graph.reserve=1MiB "$@" 2> "$work/$out.err"
}
calls() { grep -c "^$2" "$work/$1.trace"; } # RUN FUNCTION
same() { same_run "$work/plain" "$work/$1" || die "$1 differs from plain"; }

CUDASIM_TRACE=$work/plain.trace run plain --set graph.prefetch=off || die "plain: $(cat "$work/plain.err")"
CUDASIM_TRACE=$work/prefetch.trace run prefetch || die "prefetch: $(cat "$work/prefetch.err")"
same prefetch
[ "$(calls plain cuStreamWaitEvent)" -eq 0 ] || die "the second stream was used without prefetching"
hard= # a hard build watches memory step by step: nothing runs aside, nothing is recorded
ldd "$dpoc" | grep -q libasan && hard=1
[ "$hard" ] || [ "$(calls prefetch cuStreamWaitEvent)" -gt 20 ] || die "the second stream was not used"
run apart --set graph.share=off || die "apart: $(cat "$work/apart.err")"
same apart
CUDASIM_TRACE=$work/capture.trace CUDASIM_LAZY=1 run capture --set graph.capture=on ||
    die "capture: $(cat "$work/capture.err")"
same capture
# step, micro and update: recorded in the second optimizer step, replayed in it and in the third
[ "$hard" ] || { [ "$(calls capture cuGraphInstantiate)" -eq 3 ] && [ "$(calls capture cuGraphLaunch)" -eq 6 ]; } ||
    die "recorded $(calls capture cuGraphInstantiate), replayed $(calls capture cuGraphLaunch)"
run sync --debug=sync || die "sync: $(cat "$work/sync.err")"
same sync

# The least memory that --memory can name: recompute, and no prefetching.
least=$("$dpoc" plan $file --model $model --arch=sm_80 --set run.tokens=256 --set graph.reserve=1MiB \
    --memory=4MiB 2>&1 | sed -n 's/^help: .--memory=\([0-9]*MiB\).*/\1/p')
[ -n "$least" ] || die "plan does not say what would fit"
CUDASIM_MEMORY=$least run tight || die "tight: $(cat "$work/tight.err")"
same tight
CUDASIM_MEMORY=$((${least%MiB} - 1))MiB run less && die "less than the least was enough"
[ $? -eq 4 ] && grep -q "the plan needs" "$work/less.err" || die "less: $(cat "$work/less.err")"
CUDASIM_MEMORY=1MiB run none --memory="$least" # the plan fits what was asked for, the device has less
[ $? -eq 4 ] && grep -q "out of memory" "$work/none.err" && grep -q "activation train%" "$work/none.err" &&
    grep -q -- "--memory=[0-9]*MiB," "$work/none.err" ||
    die "none: $(cat "$work/none.err")"

# The device fails in the second step.
CUDASIM_FAIL=cuLaunchKernel:$(($(calls prefetch cuLaunchKernel) / 2)) run failed
[ $? -ne 0 ] && grep -q "checkpoint-[12] is intact: --resume" "$work/failed.err" || die "failed: $(cat "$work/failed.err")"
run failed --resume || die "going on: $(cat "$work/failed.err")"
cmp "$work/failed/adapter/adapter_model.safetensors" "$work/plain/adapter/adapter_model.safetensors" ||
    die "the run that went on differs"
