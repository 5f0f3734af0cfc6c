# compare.sh: comparing runs by what they wrote; sourced.  Uses $work for scratch files.

# The numbers of one key, a line a step: steps METRICS KEY
steps() {
    grep '"event":"step"' "$1" | sed -nE "s,.*\"$2\":([-0-9.e+]+).*,\1,p"
}
# Each number of B is near A's, within rel |a| + abs: near A B REL ABS WHAT
near() {
    paste "$1" "$2" | awk -v rel="$3" -v most="$4" -v what="$5" '
        NF != 2 { print what ": " NF " numbers in line " NR; bad = 1; exit }
        { d = $1 - $2; a = $1 < 0 ? -$1 : $1; if (d < 0) d = -d
          if (!(d <= rel * a + most)) { print what " in step " NR ": " $2 ", should be " $1; bad = 1; exit } }
        END { if (NR == 0) print what ": nothing"; exit bad || NR == 0 }'
}
# The first issue promises, step by step, for fp32: loss and gradient norm within 1e-3 of themselves, rewards within
# 1e-3 of themselves + beta 1e-5 (|logp| + |ref|).  near_run A B [SUM: |logp| + |ref|, 0 where not given]
near_run() {
    for key in loss grad_norm rewards/chosen rewards/rejected; do
        steps "$1/metrics.jsonl" $key > "$work/near.a"
        steps "$2/metrics.jsonl" $key > "$work/near.b"
        case $key in rewards*) most=$(awk -v s="${3:-0}" 'BEGIN { print 1e-7 + 0.1 * 1e-5 * s }') ;; *) most=1e-7 ;; esac
        near "$work/near.a" "$work/near.b" 1e-3 "$most" $key || return 1
    done
}
# Two runs agree in every bit: same_run A B
same_run() {
    for r in "$1" "$2"; do
        sed -E -e 's,"(time|tokens_per_second|step_time_ms|mfu|(train|eval)_(runtime|[a-z]+_per_second))":[-0-9.e+]+\,?,,g' \
            -e 's,"(memory_bytes|peak_bytes|[cg]pu/[a-z_]+)":[-0-9.e+]+\,?,,g' -e 's/"device":"[^"]*",//' \
            "$r/metrics.jsonl" > "$work/same.$([ "$r" = "$1" ] && echo a || echo b)"
    done
    cmp "$work/same.a" "$work/same.b" &&
        cmp "$1/adapter/adapter_model.safetensors" "$2/adapter/adapter_model.safetensors"
}
# While LoRA adds nothing, policy and reference are the same numbers: the first loss is ln 2, in bf16 too, where the
# policy's products are stored as f32 and the reference's as bf16.  begins_at_ln_2 RUN
begins_at_ln_2() {
    steps "$1/metrics.jsonl" loss | awk 'NR == 1 { d = $1 - log(2); if (d < 0) d = -d; bad = !(d <= 2 ^ -24)
          if (bad) print "the first loss is " $1 ", not ln 2: policy and reference differ" }
        END { exit bad || NR == 0 }'
}
