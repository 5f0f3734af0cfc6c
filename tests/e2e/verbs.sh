#!/bin/sh
# What a person types first: the starter file is right as it stands and with all that it mentions switched on;
# flags that a verb cannot use and verbs that there are not are refused with what there is;
# shells complete verbs, flags of a verb, and values that are a choice.
. tests/e2e/lib.sh
dpoc=$(realpath "$dpoc")
model=$(realpath $cases/gqa)
says() { grep -q -- "$1" "$work/err" || die "no '$1' in: $(cat "$work/err")"; }

(cd "$work" && "$dpoc" init mine) > "$work/out" || die "init failed"
[ "$(cat "$work/out")" = mine.dpo ] || die "init says $(cat "$work/out")"
(cd "$work" && "$dpoc" init mine) 2> "$work/err" && die "init wrote over a file"
says "exists already"
"$dpoc" fmt --check "$work/mine.dpo" || die "the starter is not formatted"
"$dpoc" check "$work/mine.dpo" --model "$model" > /dev/null 2> "$work/err" || die "the starter is wrong: $(cat "$work/err")"
# settings that stand there as comments
sed -E 's/^( *)# ((quantize|like|optimizer|graph) )/\1\2/' "$work/mine.dpo" > "$work/all.dpo"
[ "$(diff "$work/mine.dpo" "$work/all.dpo" | grep -c '^>')" = 4 ] || die "four lines are comments"
"$dpoc" check "$work/all.dpo" --model "$model" > /dev/null 2> "$work/err" || die "what it mentions is wrong: $(cat "$work/err")"

# a file whose frozen adapter is named on the command line can be planned before it is trained
"$dpoc" plan examples/04_dpo_after_sft.dpo 2> "$work/err" > /dev/null && die "an adapter that is nowhere"
says "neither trained nor loaded"
"$dpoc" plan models/dpo-lora.dpo --model "$model" --adapter "$model/adapter" --set pref.rank=4 --set pref.alpha=8 \
    > /dev/null 2> "$work/err" || die "plan with an adapter: $(cat "$work/err")"

refused() { "$dpoc" "$@" > "$work/out" 2> "$work/err"; [ $? = 2 ] || die "taken: $*"; [ -s "$work/out" ] && die "$*: said on stdout"; return 0; }
refused settings -o "$work/x"
says "unknown flag"
refused check "$work/mine.dpo" --dump-after=all
refused trian "$work/mine.dpo"
says "did you mean 'train'"
refused help
says "lists the verbs"
for verb in $("$dpoc" -h | sed -n 's/^  \([a-z]*\) .*/\1/p'); do
    "$dpoc" $verb -h > "$work/out" 2> "$work/err" || die "$verb -h"
    grep -q "^usage: dpoc $verb" "$work/out" || die "$verb -h names another verb"
    [ -s "$work/err" ] && die "$verb -h: said on stderr"
done

"$dpoc" doctor --cc=no-such-compiler > "$work/out" 2>&1 && die "a compiler that there is not"
grep -q "missing  cpu .*no-such-compiler" "$work/out" || die "doctor does not name the compiler: $(cat "$work/out")"

for shell in bash zsh fish; do
    "$dpoc" completion $shell > "$work/completion.$shell" || die "completion $shell"
    ! command -v $shell > /dev/null || $shell -n "$work/completion.$shell" || die "$shell does not read it"
done
# complete WORD..: what bash offers for the last word, the others being before it
complete() {
    bash -c '. "$0"; COMP_WORDS=(dpoc "$@"); COMP_CWORD=$#; cd "$(dirname "$0")"; _dpoc; echo ${COMPREPLY[@]}' "$work/completion.bash" "$@"
}
offers() { want=$1; shift; got=$(complete "$@"); [ "$got" = "$want" ] || die "$*: '$got', not '$want'"; }
offers "export" ex
offers "--data= --device= --debug= --dump-after= --dump-dir=" eval x.dpo --d
offers "" settings --mod
offers "cpu cuda" train --device = c
offers "merged" export RUN --format me
offers "mine.dpo" check mi
offers "list" cache l
[ "$(complete view --only =)" = "$("$dpoc" passes | sed -n 's/^ *[0-9]*  \([a-z0-9]*\) .*/\1/p' | tr '\n' ' ' | sed 's/ $//')" ] || die "--only offers $(complete view --only =)"
grep -q "from.* train .* -l model" "$work/completion.fish" || die "fish: no --model"
refused completion
exit 0
