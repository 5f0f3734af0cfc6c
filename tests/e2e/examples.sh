#!/bin/sh
# Every numbered example as its header says, for two steps; each at most 60 lines, in `fmt`'s layout.
. tests/e2e/lib.sh
run() { # NAME FILE [flags]: two steps
    name=$1 file=$2
    shift 2
    "$dpoc" train "$file" --set run.steps=2 --quiet -o "$work/$name" "$@" > "$work/log" 2>&1 ||
        die "$file: $(cat "$work/log")"
    [ "$(grep -c '"event":"step"' "$work/$name/metrics.jsonl")" = 2 ] || die "$file: not two steps"
}
tuned=
for file in examples/0*.dpo; do
    name=$(basename "$file" .dpo)
    [ "$(wc -l < "$file")" -le 60 ] || die "$file has more than 60 lines"
    mkdir -p "$work/fmt"
    cp "$file" "$work/fmt/$name.dpo"
    "$dpoc" fmt "$work/fmt/$name.dpo" && cmp "$file" "$work/fmt/$name.dpo" || die "$file is not as fmt writes it"
    case $name in
    03_sft) run "$name" "$file"; tuned=$work/$name/adapter; continue ;;
    04_*) adapter="--adapter tuned=$tuned" ;;
    *) adapter=; "$dpoc" check "$file" > "$work/log" 2>&1 || die "$file: $(cat "$work/log")" ;;
    esac
    run "$name" "$file" $adapter
    # all begin where the reference is: a loss of ln 2 per pair where nothing else is added
    case $name in
    01_* | 04_* | 05_*)
        grep -q '"step":1,.*"loss":0.693147' "$work/$name/metrics.jsonl" || die "$file: the first loss is not ln 2" ;;
    esac
done
run mixture examples/06_mixture.dpo --variant=quantized
grep -q '"fluency"' "$work/02_own_objective/metrics.jsonl" || die "02: its metric is not logged"
"$dpoc" tokens --spec examples/05_own_template.dpo --model examples/demo/model --data examples/05_chats.jsonl --limit 1 \
    > "$work/tokens" 2>&1 || die "05: $(cat "$work/tokens")"
grep -q '^chosen  *1  1  <|end|>' "$work/tokens" || die "05: the template's end is not scored"
