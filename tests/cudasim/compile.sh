#!/bin/sh
# compile for a GPU that is not there, with the real NVRTC: Llama-3-8B from its config.json alone.  Plan,
# sources, cubins, a table of kernels; at most 15 s of two cores without a cache, 2 s with one; kernels do not
# grow with depth; none spills.
: "${BUILD:=build}"
. tests/e2e/lib.sh
export DPOC_CACHE_DIR=$work/cache
unset LD_LIBRARY_PATH
"$dpoc" doctor > "$work/doctor"
grep -q "^found    nvrtc" "$work/doctor" || { echo "libnvrtc is not installed"; exit 77; }

config() { # LAYERS
    mkdir -p "$work/model$1"
    cat > "$work/model$1/config.json" <<END
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
 "num_hidden_layers": $1, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
 "max_position_embeddings": 8192, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "hidden_act": "silu",
 "tie_word_embeddings": false, "torch_dtype": "bfloat16", "bos_token_id": 128000, "eos_token_id": 128001}
END
}
# seconds = what all commands so far took of processors (user and system).  Not in a subshell: it has its own.
spent() {
    times > "$work/times"
    seconds=$(tail -n 1 "$work/times" | tr 'ms' '  ' | awk '{ print int($1 * 60 + $2 + $3 * 60 + $4 + 0.5) }')
}
build() { # LAYERS ARCH
    "$dpoc" compile models/llama3-8b-qlora.dpo --model "$work/model$1" --arch=$2 -o "$work/$1-$2" 2> "$work/said" ||
        { cat "$work/said"; die "compile of $1 layers for $2: exit $?"; }
}

config 32
config 4
spent; before=$seconds
build 32 sm_80
spent; cold=$((seconds - before))
build 32 sm_80
spent; warm=$((seconds - before - cold))
[ $cold -le 30 ] || die "$cold s of processors to compile; 2 x 15 s at most"
[ $warm -le 2 ] || die "$warm s of processors with everything in the cache; 2 s at most"

out=$work/32-sm_80
for f in plan.json kernels.txt; do [ -s "$out/$f" ] || die "no $f"; done
awk 'NR > 1 { n++; if (!($3 > 0)) bad = bad " " $1; if ($4 + $5 > 0) spills = spills " " $1 "(" $2 ")"
              if ((getline line < (out "/" $8)) < 0) lost = lost " " $8 }
     END { if (n < 20) print "only " n " kernels"
           if (bad) print "no registers:" bad
           if (spills) print "stack or spills:" spills
           if (lost) print "no file:" lost }' out="$out" "$out/kernels.txt" > "$work/table"
[ -s "$work/table" ] && { cat "$work/table"; die "the table of kernels"; }
for k in $(awk 'NR > 1 { print $1 }' "$out/kernels.txt"); do
    [ -s "$out/$k.cu" ] || die "no source of $k"
done

build 4 sm_80
[ "$(wc -l < "$out/kernels.txt")" -eq "$(wc -l < "$work/4-sm_80/kernels.txt")" ] ||
    die "kernels grow with depth: $(wc -l < "$out/kernels.txt"), $(wc -l < "$work/4-sm_80/kernels.txt")"
build 4 sm_90
awk 'NR > 1 && $5 > 0 { bad = bad " " $1 "(" $2 ")" } END { if (bad) { print "spills on sm_90:" bad; exit 1 } }' \
    "$work/4-sm_90/kernels.txt" || die "the table of kernels"

# Every entry is known to `cache`, which removes them.
files=$(ls "$DPOC_CACHE_DIR" | wc -l)
"$dpoc" cache list | tail -n 1 | grep -q " $files files" || die "cache list does not count $files files"
"$dpoc" cache clear > /dev/null
[ -z "$(ls "$DPOC_CACHE_DIR")" ] || die "cache clear left files"
echo "cold $cold s, warm $warm s of processors"
