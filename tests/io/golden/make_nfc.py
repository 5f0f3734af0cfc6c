#!/usr/bin/env python3
"""Makes nfc.json: strings of letters, marks, Hangul and their NFC by Python's unicodedata.
Run in this directory."""
import json, random, sys, unicodedata as u
rng = random.Random(11)
marks = [c for c in map(chr, range(0x300, sys.maxunicode)) if u.combining(c)]
composed = [c for c in map(chr, range(0xC0, sys.maxunicode)) if u.decomposition(c) and not u.decomposition(c).startswith("<")]
letters = list("aeioucnsAEO ") + [chr(x) for x in (0x1100, 0x1161, 0x11A8, 0x11A7, 0xAC00, 0xAC01, 0xD7A3, 0x1112, 0x1175, 0x11C2, 0x3042, 0x3099, 0x4F60)]
near = [chr(x) for x in (0x300, 0x301, 0x302, 0x303, 0x308, 0x323, 0x327, 0x328, 0x345, 0x338, 0x304, 0x307)]
texts = ["", "plain", "\u1e9b\u0323", "\u0344", "\u2126\u212b", "\uac00\u11a7\u11a8", "a\u0315\u0300\u05ae\u0062", "\u0f71\u0f72\u0f74"]
for _ in range(400):
    texts.append("".join(rng.choice(rng.choice([letters, letters, near, near, marks, composed])) for _ in range(rng.randrange(1, 12))))
texts.append("e" + "\u0323\u0301" * 300 + "x")
json.dump([[t, u.normalize("NFC", t)] for t in texts], open("nfc.json", "w"), separators=(",", ":"))
