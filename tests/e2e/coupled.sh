#!/bin/sh
# Objectives that cross pairs, in three micro-batches and in one: the same losses and gradients to rounding, dropout
# and recompute included; bits that hang on nothing else; resume; evaluation in batches as training sees them.
. tests/e2e/lib.sh
spec() { # spec NAME: the generic run with another objective, read from stdin
    { cat; sed '/^objective/,/^}/d' models/dpo-lora.dpo; } > "$work/$1.dpo"
}
echo 'use "objectives/aot.dpo"' | spec aot
# A pair's value at its tokens, a variance over the step, a likelihood per token.
spec own << 'EOF'
objective own(beta = 0.1) {
    reward(side) = beta * (logp(policy, side) - logp(reference, side))
    gap = reward(chosen) - reward(rejected)
    sharp = sum(token_logp(policy, chosen) * sigmoid(gap))
    variance = batch_mean(gap * gap) - batch_mean(gap) * batch_mean(gap)
    nll = batch_mean(-token_logp(policy, chosen))
    loss = batch_mean(-log_sigmoid(gap - batch_mean(gap)) - 0.01 * sharp) + sqrt(variance + 1e-3) + 0.1 * nll
    metric gap_variance = variance
}
EOF
# One answer a pair; and a column of the data, lengths, a value held still.
spec one << 'EOF'
objective one {
    x = logp(policy, chosen) / len(chosen)
    loss = pow(max(sort(x) - batch_mean(x), 0) + 0.1, 2) - 0.1 * x
}
EOF
spec column << 'EOF'
objective column(beta = 0.1) {
    gain(side) = logp(policy, side) - logp(reference, side)
    gap = pair.share * beta * (gain(chosen) - gain(rejected))
    loss = -log_sigmoid(gap - stop(batch_mean(gap))) * len(chosen) / len(rejected)
}
EOF
sed 's/}$/,"share":0.5}/; 2,3s/0.5}$/2}/' $cases/gqa/pairs.jsonl > "$work/pairs.jsonl"
data="--model $cases/gqa --data $work/pairs.jsonl --device=cpu --quiet --set graph.compute=fp32"
lora="--adapter $cases/gqa/adapter --set pref.rank=4 --set pref.alpha=8 --set run.batch=6"
# steps NAME OUT [flags]: "loss grad_norm" of each of four steps
steps() {
    name=$1 out=$work/$2
    shift 2
    "$dpoc" train "$work/$name.dpo" $data $lora --set run.steps=4 --set run.warmup=0 --set run.lr=1e-2 -o "$out" \
        --overwrite "$@" 2> "$work/log" || { cat "$work/log"; die "training failed: $name $*"; }
    sed -nE '/"step"/s/.*"grad_norm":([0-9.e-]+).*"loss":([0-9.e-]+).*/\2 \1/p' "$out/metrics.jsonl"
}
# near A B: within 1e-5 of fp32 sums in another order, over four steps
near() {
    paste "$1" "$2" | awk '{ for (i = 1; i <= 2; i++) { d = $i - $(i + 2); if (d < 0) d = -d
        if (d > 1e-5 * ($i > 1 ? $i : 1)) bad = 1 } n++ } END { exit bad || n != 4 }'
}
for name in one column aot own; do
    steps $name whole --set run.tokens=2k > "$work/whole.txt"
    steps $name micro --set run.tokens=64 > "$work/micro.txt"
    near "$work/whole.txt" "$work/micro.txt" || die "$name: micro-batches change the result"
done
for name in aot own; do
    steps $name drop --set run.tokens=2k --set pref.dropout=0.3 > "$work/drop.txt"
    steps $name drop-micro --set run.tokens=64 --set pref.dropout=0.3 --threads=1 > "$work/drop-micro.txt"
    near "$work/drop.txt" "$work/drop-micro.txt" || die "$name: the masks of score and micro differ"
done
steps own cached --set run.tokens=64 --set graph.ref=cached > "$work/cached.txt"
near "$work/whole.txt" "$work/cached.txt" || die "log-probs of the reference kept are others"
near "$work/drop.txt" "$work/whole.txt" && die "dropout does nothing"
steps own twice --set run.tokens=64 --set pref.dropout=0.3 --threads=2 --eval-data $cases/gqa/pairs.jsonl \
    --set run.eval_every=1 > "$work/twice.txt"
cmp "$work/drop-micro.txt" "$work/twice.txt" || die "threads or evaluations change bits"
least=$("$dpoc" plan "$work/own.dpo" --model $cases/gqa --set pref.rank=4 --set run.batch=6 --set run.tokens=64 \
    --set pref.dropout=0.3 --memory=1MiB --json | grep -oE '"peak_bytes": ?[0-9]+' | grep -oE '[0-9]+$')
steps own tight --set run.tokens=64 --set pref.dropout=0.3 --memory=$((least + 32768)) > "$work/tight.txt"
cmp "$work/drop-micro.txt" "$work/tight.txt" || die "recompute changes bits"
steps own unbroken --set run.tokens=64 --set pref.dropout=0.3 --set run.save_every=2 > /dev/null
cp -r "$work/unbroken" "$work/broken"
rm -r "$work/broken/checkpoint-4" "$work/broken/adapter"
"$dpoc" train "$work/own.dpo" $data $lora --set run.tokens=64 --set pref.dropout=0.3 --set run.steps=4 --set run.save_every=2 \
    --set run.warmup=0 --set run.lr=1e-2 -o "$work/broken" --resume 2> "$work/log" || die "resume failed"
cmp "$work/broken/adapter/adapter_model.safetensors" "$work/tight/adapter/adapter_model.safetensors" ||
    die "a resumed run is another"

"$dpoc" verify "$work/own.dpo" $data --set pref.rank=4 --set run.tokens=64 > "$work/log" 2>&1 ||
    { cat "$work/log"; die "the device's gradients are not the evaluator's"; }

# A loss that divides by its own, or that is cut off, keeps as little for its backward as any other.
for name in dpo rpo aot; do
    echo "use \"objectives/$name.dpo\"" | spec kept
    "$dpoc" plan "$work/kept.dpo" --model $cases/gqa --set pref.rank=4 --arch=sm_80 --json 2> "$work/log" |
        grep -oE '"activation": ?[0-9]+' | grep -oE '[0-9]+$'
done > "$work/kept.txt"
awk 'NR == 1 { least = $1 } $1 > 1.01 * least { bad = 1 } END { exit bad || NR != 3 }' "$work/kept.txt" ||
    die "activations of dpo, rpo, aot: $(tr '\n' ' ' < "$work/kept.txt")"

# Batches of run.batch pairs, the last one smaller; the mean over pairs.
loss_of() { # loss_of PAIRS [flags]
    file=$1
    shift
    "$dpoc" eval "$work/own.dpo" --model $cases/gqa --data "$file" --device=cpu --quiet --json --set graph.compute=fp32 \
        $lora --set run.tokens=64 "$@" 2> "$work/log" | grep -oE '"loss":[-0-9.e]+' | cut -d: -f2
}
head -n 4 $cases/gqa/pairs.jsonl > "$work/first.jsonl"
tail -n +5 $cases/gqa/pairs.jsonl > "$work/last.jsonl"
echo "$(loss_of $cases/gqa/pairs.jsonl --set run.batch=4) $(loss_of "$work/first.jsonl" --set run.batch=4)" \
    "$(loss_of "$work/last.jsonl" --set run.batch=4) $(loss_of $cases/gqa/pairs.jsonl) $(head -n 1 "$work/whole.txt")" |
    awk '{ d = $1 - (4 * $2 + 2 * $3) / 6; e = $4 - $5; exit NF != 6 || d * d > 1e-10 || e * e > 1e-10 }' ||
    die "evaluation is not the mean over batches"

# A token's value that depends on other pairs can't be cut off: one micro-batch, or a message that says what to do.
spec tokens << 'EOF'
objective tokens {
    each = token_logp(policy, chosen) - token_logp(reference, chosen)
    loss = -log_sigmoid(each - batch_mean(each)) + 0 * len(rejected) * logp(policy, rejected)
}
EOF
steps tokens one --set run.tokens=2k > /dev/null
for verb in "train -o $work/no" eval; do
    "$dpoc" $verb "$work/tokens.dpo" $data $lora --set run.tokens=64 > "$work/out" 2>&1 && die "$verb took it"
    grep -q "raise run.tokens or lower run.batch" "$work/out" || die "$verb does not say what to do"
done
exit 0
