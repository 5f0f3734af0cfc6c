#!/bin/sh
# A run keeps which algorithms multiplied: going on asks the library for no others, although the cache has forgotten
# them, and ends with the same bits.
. tests/cudasim/lib.sh
flags="--device=cuda --set run.steps=4 --set run.save_every=2 --set graph.compute=bf16"
on_sim train_case gqa "$work/whole" $flags || die "the unbroken run failed"
grep -q "^Simulated .*cuBLASLt .* x .* x .* bf16 " "$work/whole/choices.txt" || die "no choices were kept"
cp -r "$work/whole" "$work/broken"
rm -r "$work/broken/checkpoint-4" "$work/broken/adapter" "$DPOC_CACHE_DIR/gemm_choices"
CUDASIM_TRACE=$work/trace on_sim train_case gqa "$work/broken" --resume $flags || die "going on failed"
grep -q "^cublasLtMatmul$" "$work/trace" || die "nothing was multiplied"
grep "^cublasLtMatmulAlgoGetHeuristic" "$work/trace" && die "an algorithm was chosen anew"
for f in adapter/adapter_model.safetensors checkpoint-4/state.safetensors choices.txt; do
    cmp "$work/whole/$f" "$work/broken/$f" || die "$f differs"
done

# A file that was changed by hand is said and not taken.
sed 's/^Simulated A100/Simulated B100/' "$work/whole/choices.txt" > "$work/broken/choices.txt"
rm -r "$work/broken/checkpoint-4" "$work/broken/adapter"
on_sim train_case gqa "$work/broken" --resume $flags 2> "$work/err" || die "going on with a damaged file failed"
grep -q "choices.txt: is damaged" "$work/err" || die "a changed file is not noticed"

# In bf16 the policy's products are stored as f32, to add what LoRA adds, the reference's as bf16; the library
# proposes other algorithms for these.  While LoRA adds nothing both are still the same numbers: the loss is ln 2.
on_sim "$dpoc" train examples/demo/concise.dpo --quiet -o "$work/demo" --set run.steps=1 --set run.batch=1 \
    --set run.tokens=256 --set graph.compute=bf16 || die "training in bf16 failed"
begins_at_ln_2 "$work/demo" || die "see above"
