#!/bin/sh
# Faults on the simulated device: every function of the driver, NVRTC and cuBLASLt that a run calls fails at its first,
# a middle and its last call.  The run ends in a message and exit 3, 4, 5 or 70, never in a crash or a wait; what was
# written before stays, and the run goes on from it to the same bits.
. tests/cudasim/lib.sh
export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0 # what a library refuses to destroy stays
mkdir -p "$work/model"
cat > "$work/model/config.json" << END
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16, "intermediate_size": 16,
 "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 40,
 "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
 "tie_word_embeddings": false}
END
for i in 1 2 3 4; do
    echo "{\"prompt_ids\":[1,$i,5],\"chosen_ids\":[$((i + 6)),8,2],\"rejected_ids\":[9,$((i + 10))]}"
done > "$work/pairs.jsonl"
model=$work/model pairs=$work/pairs.jsonl
run() { # run OUT [flags]
    out=$1
    shift
    on_sim timeout 20 "$dpoc" train models/dpo-lora.dpo --device=cuda --model "$model" --random-weights \
        --data "$pairs" --quiet -o "$out" --set pref.rank=2 --set run.batch=2 --set run.tokens=128 \
        --set run.steps=3 --set run.save_every=1 --set run.keep=9 --set graph.capture=on "$@"
}
run "$work/whole" || die "the run without faults failed"
export CUDASIM_TRACE=$work/trace
run "$work/traced" || die "the traced run failed"
unset CUDASIM_TRACE
# Tidying up is tried once a function. Not NVRTC's questions: where they fail, the next NVRTC of the machine is taken, and
# one that is real has nothing to say to a simulated device.
awk '{ sub(/_v2$/, "", $1); n[$1]++ }
    END { for (f in n) { if (f ~ /^nvrtc(Version|Get.*Archs)/) continue
        print f, 1
        if (f ~ /Destroy|Free|Unload|Release/) continue
        if (n[f] > 2) print f, int((n[f] + 1) / 2)
        if (n[f] > 1) print f, n[f] } }' "$work/trace" | sort > "$work/faults"
# Every second fault, from the first or the second on; says what ends badly.
lane() {
    whole=$work/whole
    work=$work/lane$1
    mkdir -p "$work"
    while read -r function call; do
        rm -rf "$work/run"
        CUDASIM_FAIL=$function:$call run "$work/run" 2> "$work/err"
        rc=$?
        case $rc in
        0) # a function that tidies up, or one that the program can do without
            same_run "$whole" "$work/run" || echo "$function:$call: other bits"
            continue
            ;;
        3 | 4 | 5 | 70) [ -s "$work/err" ] || echo "$function:$call: exit $rc without a message" ;;
        *) echo "$function:$call: exit $rc: $(head -n 3 "$work/err")" && continue ;;
        esac
        ls -d "$work"/run/checkpoint-* > /dev/null 2>&1 || continue # nothing was written yet
        [ "$call" -gt 2 ] || continue
        run "$work/run" --resume 2> "$work/err" || { echo "$function:$call: cannot resume: $(head -n 2 "$work/err")" && continue; }
        same_run "$whole" "$work/run" || echo "$function:$call: resumed to other bits"
    done
}
sed -n '1~2p' "$work/faults" | lane 1 > "$work/wrong1" 2>&1 &
sed -n '2~2p' "$work/faults" | lane 2 > "$work/wrong2" 2>&1
wait
n=$(wc -l < "$work/faults")
cat "$work"/wrong?
[ "$n" -ge 50 ] || die "only $n faults"
[ ! -s "$work/wrong1" ] && [ ! -s "$work/wrong2" ] || die "faults end badly"
echo "$n faults end cleanly"
