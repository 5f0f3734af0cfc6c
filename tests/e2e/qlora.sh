#!/bin/sh
# The notebook (models/llama3-8b-qlora.dpo) from check to answers: a small random Llama with Llama-3's own tokenizer
# and vocabulary, real Orca pairs, NF4, 50 steps of 8 pairs in bf16, merge in fp16, generation before and after.
# Less than the notebook's: the model (2 layers of 64), and lengths 16/32 instead of 512/1024, for time.
. tests/e2e/lib.sh
data=../shared/data
for f in llama3_tokenizer/tokenizer.json orca_dpo_openai_format/validation.jsonl \
    llama3_chat_templates/Llama-3-8B-Instruct.jinja; do
    [ -f $data/$f ] || { echo "no $data/$f"; exit 77; }
done
file=models/llama3-8b-qlora.dpo
pairs=$data/orca_dpo_openai_format/validation.jsonl
model=$work/model
mkdir -p "$model"
cp $data/llama3_tokenizer/tokenizer*.json "$model/"
cp $data/llama3_chat_templates/Llama-3-8B-Instruct.jinja "$model/chat_template.jinja"
chmod u+w "$model"/*
cat > "$model/config.json" <<'END'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
 "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128256,
 "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu", "tie_word_embeddings": false,
 "max_position_embeddings": 8192, "bos_token_id": 128000, "eos_token_id": 128009, "torch_dtype": "bfloat16"}
END

# ---- random weights: what a run of no rate leaves
cat > "$work/fresh.dpo" <<'END'
use "llama3.dpo"
use "objectives/sft.dpo"
base = auto
policy = base
train base
run { steps = 1  lr = 0 }
END
"$dpoc" train "$work/fresh.dpo" --model "$model" --random-weights --data $pairs --set data.limit=1 --quiet \
    --set data.max_length=16 --set data.truncation=keep_end --set run.tokens=64 -o "$work/fresh" 2> "$work/err" ||
    die "no random weights: $(cat "$work/err")"
mv "$work/fresh/model/model.safetensors" "$model/"
rm -rf "$work/fresh"

# ---- what is known before the run
"$dpoc" check $file --model "$model" --data $pairs > "$work/check" 2>&1 || die "check: $(cat "$work/check")"
grep -q 'OpenAI; 284 kept of 284 read' "$work/check" || die "check does not say what it read: $(cat "$work/check")"
"$dpoc" plan $file --model "$model" --json > "$work/plan" || die "plan failed"
# rank 16 on seven projections of two layers: 16 (in + out) each
# q 64+64, k and v 64+32, o 64+64, gate and up 64+128, down 128+64: 1024 rows, so 2 x 16 x 1024
grep -q '"trainable": *32768' "$work/plan" || die "not 32768 trained: $(grep -o '"trainable"[^,}]*' "$work/plan")"
grep -q '"fits": *true' "$work/plan" || die "does not fit"

# ---- the run
set="--set data.max_prompt=16 --set data.max_length=32 --set run.tokens=1024 -Wno-truncated"
"$dpoc" train $file --model "$model" --data $pairs $set -o "$work/run" > "$work/out" 2> "$work/err" ||
    die "training: $(tail -n 5 "$work/err")"
grep -q 'OpenAI; 284 kept of 284 read' "$work/err" || die "the run does not say what it read"
metrics=$work/run/metrics.jsonl
value() { # STEP NAME
    grep "\"event\":\"step\",\"step\":$1," "$metrics" | sed -E "s,.*\"$2\":([-0-9.e+]+).*,\1,"
}
[ "$(grep -c '"event":"step"' "$metrics")" = 50 ] || die "not 50 steps"
for name in loss grad_norm learning_rate epoch rewards/chosen rewards/rejected rewards/accuracies rewards/margins \
    logps/chosen logps/rejected logits/chosen logits/rejected entropy mean_token_accuracy num_tokens length_gap; do
    [ -n "$(value 50 $name)" ] || die "no $name"
done
# ln 2 while B is 0; cosine over 50 steps with 10 of warm-up: 0, .., the highest, half of it in the middle
awk -v first="$(value 1 loss)" -v lr1="$(value 1 learning_rate)" -v lr11="$(value 11 learning_rate)" \
    -v lr31="$(value 31 learning_rate)" 'BEGIN { d = first - log(2); if (d < 0) d = -d
     exit !(d < 1e-6 && lr1 == 0 && lr11 == 5e-5 && lr31 > 2.4999e-5 && lr31 < 2.5001e-5) }' ||
    die "loss $(value 1 loss), rates $(value 1 learning_rate) $(value 11 learning_rate) $(value 31 learning_rate)"
grep -q '"event":"eval","step":50' "$metrics" || die "no evaluation of the 2 % held out"

# ---- the adapter: better than chance on what it was trained on, in PEFT's names
"$dpoc" eval $file --model "$model" --data $pairs $set --set data.limit=64 --adapter "$work/run/adapter" --json --quiet \
    > "$work/eval" || die "eval failed"
sed -E 's/.*"loss": ?([0-9.e-]+).*"rewards\/margins": ?([-0-9.e]+).*/\1 \2/; 1q' "$work/eval" > "$work/figures"
awk '{ exit !($1 < 0.6931 && $2 > 0) }' "$work/figures" || die "loss and margin after: $(cat "$work/figures")"
grep -q '"r": *16' "$work/run/adapter/adapter_config.json" || die "not r = 16"

# ---- merged in fp16 into the base as the file has it, with all that another tool needs beside it
"$dpoc" export "$work/run" --format=merged --dtype=fp16 --base=original -o "$work/merged" > "$work/merge" 2>&1 ||
    die "export: $(tail -n 5 "$work/merge")"
for f in config.json tokenizer.json tokenizer_config.json; do [ -f "$work/merged/$f" ] || die "merged: no $f"; done
grep -q 'quantization_config' "$work/merged/config.json" && die "the merged model says that it is quantized"
"$dpoc" export "$work/run" --format=gguf-lora -o "$work/adapter.gguf" --quiet || die "export to GGUF failed"

# ---- answers: base, adapter, merged; the same prompt
ask='Name three fruits.'
"$dpoc" generate --model "$model" --spec $file --adapter "$work/run/adapter" --before --prompt "$ask" --max-tokens 8 \
    --quiet > "$work/answers" 2> "$work/err" || die "generate: $(cat "$work/err")"
grep -q '^before:' "$work/answers" && grep -q '^after:' "$work/answers" || die "answers: $(cat "$work/answers")"
"$dpoc" generate --model "$work/merged" --prompt "$ask" --max-tokens 8 --quiet > "$work/after" 2> "$work/err" ||
    die "generate of the merged model: $(cat "$work/err")"
[ -s "$work/after" ] || die "the merged model says nothing"
rm -rf "$model" "$work/merged" # 100 MB
