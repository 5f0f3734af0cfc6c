#!/bin/sh
# Whole steps on the simulated device against the evaluator that rounds every node, in bf16: a model with heads of
# 64, tensor cores or plain kernels, values recomputed, one kernel per op.
. tests/cudasim/lib.sh
mkdir -p "$work/model"
cat > "$work/model/config.json" << END
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 96,
 "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 301,
 "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
 "tie_word_embeddings": false}
END
for flags in "" "--safe" "--set graph.prefix=off --set graph.fuse=off"; do
    on_sim "$dpoc" verify models/dpo-lora.dpo --device=cuda --model "$work/model" --random-weights --quiet \
        --set pref.rank=4 --set run.tokens=256 --set graph.compute=bf16 $flags > "$work/verify" ||
        die "bf16 $flags: $(cat "$work/verify")"
    tail -n 1 "$work/verify"
done
