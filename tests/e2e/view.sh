#!/bin/sh
# `view --html`: the page is well-formed and whole, shows what dumps show after every pass, the source as it is,
# one layer of each kind; and looking changes nothing.
. tests/e2e/lib.sh
checker=$BUILD/tests/io/test_svg
[ -x "$checker" ] || die "$checker is not built"
view() { file=$1 dir=$2 page=$3; shift 3; "$dpoc" view "$file" --model "$dir" --html="$page" "$@" 2> "$work/err" || die "view: $(cat "$work/err")"; }
unescape() { sed -e 's/&#60;/</g' -e 's/&#62;/>/g' -e 's/&#34;/"/g' -e "s/&#39;/'/g" -e 's/&#38;/\&/g'; }
# the page from the tag with id $2 on, up to the end of the section
section() { sed -n "/<section id=\"$2\"/,/<\/section>/p" "$1"; }

whole() {
    "$checker" "$1" || die "$1 is not well-formed"
    grep -oE ' id="[^"]*"' "$1" | cut -d'"' -f2 | sort > "$work/ids"
    [ -z "$(uniq -d "$work/ids")" ] || die "ids twice: $(uniq -d "$work/ids" | head -3)"
    { grep -oE '(href="#|aria-labelledby="|data-s=")[^"]*"' "$1" | sed -e 's/"$//' -e 's/.*["#]//'
      grep -oE 'data-o="[^"]*"' "$1" | cut -d'"' -f2 | tr ' ' '\n' | sed 's/^/o/'; } | sort -u > "$work/refs"
    [ "$(wc -l < "$work/refs")" -gt 20 ] || die "nothing is referred to"
    [ -z "$(comm -23 "$work/refs" "$work/ids")" ] || die "ids that are not there: $(comm -23 "$work/refs" "$work/ids" | head -3)"
    grep -qE '(src|href)="[^#]' "$1" && die "it needs more than itself"
    grep -qE 'https?://|@import|url\(' "$1" && die "it names another place"
    return 0
}

# A file whose comment and text need escaping, on a model of two layers, which are not alike.
sed '1s/^/# <b>tags \& "quotes"<\/b> it'"'"'s all text\n/' models/dpo-lora.dpo > "$work/odd.dpo"
view "$work/odd.dpo" $cases/gqa "$work/a.html"
view "$work/odd.dpo" $cases/gqa "$work/b.html"
cmp "$work/a.html" "$work/b.html" || die "two pages of one file differ"
whole "$work/a.html"
section "$work/a.html" source | sed -n '/<h3>.*odd.dpo/,/<\/ol>/p' | sed -n 's/<li id="s[0-9]*-[0-9]*">\(.*\)<\/li>/\1/p' | unescape > "$work/lines"
cmp "$work/odd.dpo" "$work/lines" || die "the source is not shown as it is"
grep -q 'layers .* are shown' "$work/a.html" && die "two layers that differ, and one is left out"

# Dumps are made without a page: the same values after every pass.
"$dpoc" plan "$work/odd.dpo" --model $cases/gqa --dump-after=all --dump-dir="$work/dumps" > /dev/null 2>&1 || die "plan failed"
i=0
for dump in "$work"/dumps/train.*.ir; do
    i=$((i + 1))
    grep -E '^%[0-9]+ = ' "$dump" | sed -E 's/ : .*//' | cut -c1-60 | sort > "$work/want"
    section "$work/a.html" p$i > "$work/column"
    if grep -q 'Nothing changes here' "$work/column"; then
        cmp "$work/want" "$work/got" || die "$dump: something changes"
    else
        sed -nE 's/<li id="n[0-9]+-[0-9]+"[^>]*>(.*)<\/li>/\1/p' "$work/column" | unescape | sed -E 's/ : .*//' | cut -c1-60 | sort > "$work/got"
        cmp "$work/want" "$work/got" || die "column $i is not $dump"
    fi
    groups=$(grep -cE '^group [0-9]+ [a-z]+ (kern|gemm|custom)' "$dump")
    row=$(grep "<a href=\"#p$i\">" "$work/a.html" | sed -E -e 's/<[^>]*>/ /g')
    set -- $row
    [ "$2" = "$(wc -l < "$work/want")" ] || die "nodes of $1: $2"
    [ $(($3 + $4 + $5)) = "$groups" ] || die "groups of $1: $3 + $4 + $5, not $groups"
done
[ $i = 15 ] || die "$i dumps"

# Six layers: those in the middle are alike, and one of them is shown.
sed 's/"num_hidden_layers": 2/"num_hidden_layers": 6/' $cases/gqa/config.json > "$work/config.json"
view models/dpo-lora.dpo "$work" "$work/deep.html"
whole "$work/deep.html"
grep -qE 'Of 6 layers [345] are shown' "$work/deep.html" || die "layers: $(grep -o 'Of .* shown' "$work/deep.html")"
grep -q 'are like it' "$work/deep.html" || die "nothing said about those left out"
"$dpoc" view models/dpo-lora.dpo --model $cases/gqa --html="$work/no/such/dir.html" 2> "$work/err"
[ $? = 5 ] || die "a place that cannot be written"
"$dpoc" view models/dpo-lora.dpo --model $cases/gqa --arch=sm_1 --html="$work/no.html" 2> "$work/err"
[ $? = 2 ] && grep -q "known: cpu, sm_80" "$work/err" || die "an unknown architecture"
[ -e "$work/no.html" ] && die "a page of nothing"
exit 0
