#!/usr/bin/env python3
"""Writes nfc_decompose.def, nfc_compose.def and nfc_class.def beside itself: Unicode's canonical
decompositions (one step), compositions and combining classes."""
import os, sys, unicodedata as u

def write(name, what, kind, items):
    out = open(os.path.join(os.path.dirname(os.path.abspath(__file__)), name), "w")
    print(f"/* {name}: {what};\n * Unicode {u.unidata_version}, written by nfc.py. */", file=out)
    line = ""
    for item in items:
        text = f"{kind}({','.join(item)})"
        if len(line) + len(text) + 1 > 100: print(line, file=out); line = ""
        line += (" " if line else "") + text
    print(line, file=out)

chars = [c for c in map(chr, range(sys.maxunicode + 1)) if not 0xD800 <= ord(c) <= 0xDFFF and not 0xAC00 <= ord(c) <= 0xD7A3]
h = lambda x: f"0x{x:X}"
one = {c: [int(x, 16) for x in u.decomposition(c).split()] for c in chars
       if u.decomposition(c) and not u.decomposition(c).startswith("<")}
write("nfc_decompose.def", "D(code, first, second or 0) by code, Hangul is computed", "D", [(h(ord(c)), h(d[0]), h(d[1]) if len(d) > 1 else "0") for c, d in sorted(one.items())])
write("nfc_compose.def", "C(first, second, code) by first and second", "C", [tuple(map(h, (*d, ord(c)))) for d, c in sorted((d, c) for c, d in one.items()
           if len(d) == 2 and u.normalize("NFC", chr(d[0]) + chr(d[1])) == c)])
runs = []
for c in chars:
    k = u.combining(c)
    if not k: continue
    if runs and runs[-1][1] == ord(c) - 1 and runs[-1][2] == k: runs[-1][1] = ord(c)
    else: runs.append([ord(c), ord(c), k])
write("nfc_class.def", "K(from, to, combining class that is not 0)", "K", [(h(a), h(b), str(k)) for a, b, k in runs])
