#!/bin/sh
# What NVML measures goes into the run: the unchanged program on the simulated device, with a libnvidia-ml.so.1 that
# knows its GPU by the bus id, with one that does not, and with none.
. tests/cudasim/lib.sh
mkdir -p "$work/lib"
${CC:-cc} -shared -fPIC -o "$work/lib/libnvidia-ml.so.1" tests/device/nvml_fake.c || die "cannot build the library"
case=$cases/gqa
go() { # OUT LIBRARY-PATH
    LD_LIBRARY_PATH=$2$sim "$dpoc" train models/dpo-lora.dpo --device=cuda --model $case --data $case/pairs.jsonl \
        --set run.steps=2 --set run.batch=2 --set run.tokens=96 --set pref.rank=4 -o "$1" --overwrite 2> "$work/said" ||
        die "training failed: $(cat "$work/said")"
}
go "$work/run" "$work/lib:"
for figure in gpu/utilization:87 gpu/memory_used_bytes:21474836480 gpu/power_watts:312.5 gpu/temperature_c:61 \
    gpu/sm_clock_mhz:1410 gpu/memory_clock_mhz:1215 gpu/throttled:1 gpu/energy_joules:250; do
    [ "$(grep -c "\"${figure%:*}\":${figure#*:}[,}]" "$work/run/metrics.jsonl")" = 2 ] ||
        die "no ${figure#*:} for ${figure%:*} in: $(cat "$work/run/metrics.jsonl")"
    grep -qaF "${figure%:*}" "$work"/run/events.out.tfevents.* || die "no ${figure%:*} in TensorBoard's file"
done
grep -q '"gpu/energy_joules_total":500[,}]' "$work/run/metrics.jsonl" || die "the energy of the run is not 500 J"
grep -q '"mfu":' "$work/run/metrics.jsonl" || die "no mfu for a device whose rate is known"
grep -q "energy .*0.5 kJ" "$work/said" || die "the end does not name the energy: $(cat "$work/said")"
FAKE_NVML=absent
export FAKE_NVML
go "$work/absent" "$work/lib:"
go "$work/without" ""
for run in absent without; do
    grep -q '"loss":' "$work/$run/metrics.jsonl" || die "$run: nothing was trained"
    grep -q '"[gc]pu/' "$work/$run/metrics.jsonl" && die "$run: figures of a GPU that nothing measured"
done
exit 0
