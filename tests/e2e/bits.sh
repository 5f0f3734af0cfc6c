#!/bin/sh
# Same seed, same bits: two runs, and runs at 1 and 2 threads; dropout included.
. tests/e2e/lib.sh
for extra in "" "--set pref.dropout=0.2" "--set graph.compute=bf16"; do
    i=0
    for threads in 1 2 2; do
        i=$((i + 1))
        train_case gqa "$work/run$i" --overwrite --threads=$threads --set run.steps=8 $extra || die "training failed ($extra)"
        plain_metrics "$work/run$i/metrics.jsonl" > "$work/metrics$i"
        [ $i = 1 ] && continue
        cmp -s "$work/metrics1" "$work/metrics$i" || die "metrics differ at $threads threads ($extra)"
        cmp -s "$work/run1/adapter/adapter_model.safetensors" "$work/run$i/adapter/adapter_model.safetensors" ||
            die "adapters differ at $threads threads ($extra)"
    done
done
