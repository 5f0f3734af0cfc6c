#!/bin/sh
# The README's walk-through, line by line as it stands there; what examples/README.md says of settings exists.
# Its second block wants transformers and PEFT, and runs where python3 has them.
. tests/e2e/lib.sh
case $dpoc in /*) ;; *) dpoc=$PWD/$dpoc ;; esac
mkdir -p "$work/build"
ln -s "$PWD/examples" "$PWD/models" "$work/"
ln -s "$dpoc" "$work/build/dpoc"
block() { # N: the N-th block of shell lines
    awk -v n="$1" '/^```/ { on = 0 } on { print } /^```sh/ { on = ++k == n }' README.md
}
block 1 > "$work/walk.sh"
[ "$(grep -c '^build/dpoc' "$work/walk.sh")" -ge 9 ] || die "the walk-through is not where it was"
command -v python3 > /dev/null || sed -i '/^python3/d' "$work/walk.sh"
(cd "$work" && sh -eu walk.sh) > "$work/out" 2> "$work/err" ||
    die "the walk-through: $(tail -n 5 "$work/out" "$work/err")"
grep -A9 '^before:' "$work/out" | grep -q '^after:.*hallway' || die "not the answer: $(grep -A9 '^before:' "$work/out")"
for f in RUN/adapter/adapter_model.safetensors RUN/report.html MERGED/model.safetensors adapter.gguf; do
    [ -s "$work/$f" ] || die "no $f"
done
ls "$work"/RUN/events.out.tfevents.* > /dev/null || die "no TensorBoard events"
if python3 -c 'import peft, transformers' 2> /dev/null; then
    block 2 > "$work/serve.sh"
    (cd "$work" && HF_HUB_OFFLINE=1 sh -eu serve.sh) > "$work/out" 2> "$work/err" ||
        die "PEFT: $(tail -n 3 "$work/err")"
    grep -q hallway "$work/out" || die "PEFT answers: $(cat "$work/out")"
fi
"$dpoc" settings > "$work/settings"
for key in $(grep -o '\<\(data\|run\|graph\)\.[a-z_0-9]\+' README.md examples/README.md | sed 's/.*://' | sort -u); do
    grep -q "^$key[ .]" "$work/settings" || die "no setting $key"
done
for name in $(grep -o '`[a-z0-9][a-z_0-9]*\.dpo`' examples/README.md | tr -d '`' | sort -u); do
    [ -f "examples/$name" ] || [ -f "models/$name" ] || [ -f "models/objectives/$name" ] || die "no file $name"
done
