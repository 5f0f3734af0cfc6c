# Every command a person needs:
#   make          build/dpoc                     make demo     install what is missing, build, train a tiny model
#   make test     all tests (<= 6 minutes)       make hard     the tests under ASan and UBSan
#   make fuzz     the readers under libFuzzer    make bench    variants and peers, interleaved
#   make deps     what the build needs           make install  PREFIX=/usr/local
#   make golden   rewrite golden files           make lines    files, functions and columns over the limits
#   make gpu-check   proves and measures the CUDA device, where there is a GPU
#   make bundle      what gpu-check needs, to be carried to a machine that cannot build

BUILD   ?= build
PREFIX  ?= /usr/local
CC      ?= cc
OPT     ?= -O2 -g
# Warnings are errors with the compilers we build with (gcc 11, 12, clang 14); a newer one may warn of
# something new, and that must not stop the person who builds with it.
KNOWN   := $(filter 11 12 14,$(firstword $(subst ., ,$(shell $(CC) -dumpversion 2>/dev/null))))
WARN    := -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion $(if $(KNOWN),-Werror)
TEST_WARN := -Wno-unused-parameter -Wno-format-truncation
# Arithmetic is never contracted: rounding happens where the graph says.
CFLAGS  += -std=c11 -D_GNU_SOURCE $(OPT) $(WARN) -ffp-contract=off -fopenmp -I. -I$(BUILD) $(EXTRA)
# Several processes (runtime/job/ranks.c): where OpenMPI's mpicc is found; MPICC= builds without.
MPICC   ?= mpicc
MPI_CC  := $(if $(MPICC),$(shell $(MPICC) --showme:compile 2>/dev/null))
MPI_LD  := $(if $(MPI_CC),$(shell $(MPICC) --showme:link 2>/dev/null))
LDLIBS  := $(MPI_LD) -ljansson -lpcre2-8 -lz -ldnnl -ldl -lm -fopenmp -rdynamic

COMPILER := $(filter-out compiler/main.c,$(wildcard compiler/*.c))
RUNTIME  := $(wildcard runtime/*.c runtime/io/*.c runtime/job/*.c)
GRAMMAR  := $(BUILD)/grammar/dpo.tab.c $(BUILD)/grammar/dpo.lex.c
EMBED    := $(wildcard models/*.dpo models/objectives/*.dpo kernels/cpu/*.h kernels/cuda/*.cuh kernels/*.h compiler/view_page.*)
OBJ      := $(patsubst %.c,$(BUILD)/%.o,$(COMPILER) $(RUNTIME)) $(patsubst %.c,%.o,$(GRAMMAR)) $(BUILD)/embed.o
LIB      := $(BUILD)/libdpoc.a
TESTS    := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/*/test_*.c))
VERSION  := 0.1.0
Q        := $(if $(V),,@)
say      = $(if $(V),,@echo "  $(1)")

all: $(BUILD)/dpoc

$(BUILD)/dpoc: $(BUILD)/compiler/main.o $(LIB)
	$(call say,link $@)
	$(Q)$(CC) $(CFLAGS) -o $@ $< $(LIB) $(LDLIBS)

$(LIB): $(OBJ)
	$(Q)rm -f $@ && ar rcs $@ $^

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(call say,cc $<)
	$(Q)$(CC) $(CFLAGS) -DVERSION='"$(VERSION)"' -MMD -MP -c -o $@ $<

# Built again when MPI comes or goes.
$(shell mkdir -p $(BUILD); echo '$(MPI_CC)' | cmp -s - $(BUILD)/mpi.txt || echo '$(MPI_CC)' > $(BUILD)/mpi.txt)
$(BUILD)/runtime/job/ranks.o: $(BUILD)/mpi.txt
$(BUILD)/runtime/job/ranks.o: CFLAGS += $(if $(MPI_CC),-DDPOC_MPI $(patsubst -I%,-isystem %,$(MPI_CC)))

# The scanner and parser: generated text answers to their own authors' warnings.
$(BUILD)/grammar/dpo.tab.c: grammar/dpo.y
	@mkdir -p $(@D)
	$(call say,bison $<)
	$(Q)bison -Wall -Wcounterexamples -Werror -d -o $@ $<
$(BUILD)/grammar/dpo.lex.c: grammar/dpo.l $(BUILD)/grammar/dpo.tab.c
	$(call say,flex $<)
	$(Q)flex -o $@ $<
$(BUILD)/grammar/%.o: $(BUILD)/grammar/%.c
	$(Q)$(CC) $(CFLAGS) -Wno-conversion -Wno-shadow -Wno-unused-function -MMD -MP -c -o $@ $<
$(patsubst %.c,$(BUILD)/%.o,$(COMPILER)): | $(BUILD)/grammar/dpo.tab.c

# models/ and kernels/ travel inside the binary.
$(BUILD)/embed.S: $(EMBED) Makefile
	@mkdir -p $(@D)
	@{ n=0; echo '.section .rodata'; \
	for f in $(EMBED); do echo "embed_name_$$n: .asciz \"$$f\""; \
	  echo "embed_data_$$n: .incbin \"$$f\""; echo "embed_end_$$n: .byte 0"; n=$$((n+1)); done; \
	echo '.section .data.rel.ro,"aw"'; echo '.balign 8'; echo '.globl embed_table'; echo 'embed_table:'; i=0; \
	while [ $$i -lt $$n ]; do echo ".quad embed_name_$$i, embed_data_$$i, embed_end_$$i - embed_data_$$i"; i=$$((i+1)); done; \
	echo '.quad 0, 0, 0'; echo '.section .note.GNU-stack,"",@progbits'; } > $@
$(BUILD)/embed.o: $(BUILD)/embed.S
	$(Q)$(CC) -c -o $@ $<

$(BUILD)/tests/%: tests/%.c $(LIB)
	@mkdir -p $(@D)
	$(call say,cc $<)
	$(Q)$(CC) $(CFLAGS) $(TEST_WARN) -MMD -MP -o $@ $< $(LIB) -lcmocka $(LDLIBS)

# The simulated CUDA device (tests/cudasim): needs NVIDIA's headers, from a toolkit or a wheel.  Without them it
# is not built, and the tests that want it skip.
CUDA_H      := $(firstword $(wildcard $(CUDA_HOME)/include/cuda.h /usr/local/cuda*/include/cuda.h))
CUDASIM     := $(if $(CUDA_H),$(patsubst %,$(BUILD)/cudasim/%,libcuda.so.1 libnvrtc.so.13 \
                 $(if $(wildcard tests/cudasim/cublaslt*.cpp),libcublasLt.so.13)))
CUDASIM_CXX := $(CXX) -std=c++17 -O2 -g -Wall -Wextra -fPIC -shared -pthread -I$(dir $(CUDA_H)) -Itests/cudasim
CUDASIM_H   := $(wildcard tests/cudasim/*.h)
$(BUILD)/cudasim/libcuda.so.1: $(wildcard tests/cudasim/cuda*.cpp) tests/cudasim/fiber.cpp $(CUDASIM_H)
	@mkdir -p $(@D)
	$(call say,c++ $@)
	$(Q)$(CUDASIM_CXX) -Wl,-soname,$(@F) -Wl,-z,nodelete -o $@ $(filter %.cpp,$^) -ldl
$(BUILD)/cudasim/shim.txt: tests/cudasim/abi.h tests/cudasim/shim.h $(wildcard tests/cudasim/ptx.h)
	@mkdir -p $(@D)
	$(Q)cat $^ > $@
$(BUILD)/cudasim/libnvrtc.so.13: tests/cudasim/nvrtc.cpp $(BUILD)/cudasim/shim.txt $(CUDASIM_H)
	$(call say,c++ $@)
	$(Q)$(CUDASIM_CXX) -DCUDASIM_SHIM='"$(BUILD)/cudasim/shim.txt"' -Wl,-soname,$(@F) -o $@ $<
$(BUILD)/cudasim/libcublasLt.so.13: $(wildcard tests/cudasim/cublaslt*.cpp) $(BUILD)/cudasim/libcuda.so.1 $(CUDASIM_H)
	$(call say,c++ $@)
	$(Q)$(CUDASIM_CXX) -O3 -march=native -Wl,-soname,$(@F) -Wl,-rpath,'$$ORIGIN' -o $@ $(filter %.cpp %.so.1,$^)
cudasim: $(CUDASIM)

test: all $(TESTS) $(CUDASIM) $(BUILD)/tests/gpu/report
	@BUILD=$(BUILD) tests/run $(TESTS)

# tests/gpu/README.md.  The bundle's programs look for libraries beside themselves.
GPU_TOOLS := tests/gpu/test_kernels tests/gpu/test_gemm tests/gpu/test_quantize tests/gpu/report \
             tests/cudasim/test_ptx tests/cudasim/test_attention
BUNDLE    := $(addprefix $(BUILD)/bundle/,dpoc $(GPU_TOOLS))
gpu-check: all $(addprefix $(BUILD)/,$(GPU_TOOLS))
	BUILD=$(BUILD) tests/gpu/check
bundle: $(BUNDLE)
	tests/gpu/pack $(BUILD)/bundle
$(BUNDLE): BESIDE := -Wl,--disable-new-dtags,-rpath,'$$ORIGIN/lib:$$ORIGIN/../../lib'
$(BUILD)/bundle/dpoc: $(BUILD)/compiler/main.o $(LIB)
	@mkdir -p $(@D)
	$(call say,link $@)
	$(Q)$(CC) $(CFLAGS) -o $@ $^ $(LDLIBS) $(BESIDE)
$(BUILD)/bundle/tests/%: tests/%.c $(LIB)
	@mkdir -p $(@D)
	$(call say,cc $<)
	$(Q)$(CC) $(CFLAGS) $(TEST_WARN) -o $@ $^ -lcmocka $(LDLIBS) $(BESIDE)

# Variants of one step against each other, and against PyTorch where python3 has torch, transformers, peft.
bench: all
	python3 tests/peers/bench.py --build $(BUILD)

hard:
	$(MAKE) BUILD=$(BUILD)/hard OPT="-O1 -g" \
	  EXTRA="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -DHARD" test

# Every tests/fuzz/fuzz_NAME.c for FUZZ_TIME seconds, from the seeds in tests/fuzz/NAME/ and with the words of
# tests/fuzz/NAME.dict where there are any.  Needs clang with libFuzzer, and libomp-dev.  A finding stops it;
# the input that shows it is left in $(BUILD)/fuzz.
FUZZ_TIME ?= 60
FUZZERS   := $(patsubst tests/fuzz/%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
FUZZ_SAN  := address,undefined -fno-sanitize-recover=undefined
fuzz:
	$(MAKE) BUILD=$(BUILD)/fuzz CC=clang WARN=-w OPT="-O1 -g" EXTRA="-fsanitize=fuzzer-no-link,$(FUZZ_SAN)" fuzzers
	@cd $(BUILD)/fuzz && for f in $(FUZZERS); do n=$${f#fuzz_}; seeds=$(CURDIR)/tests/fuzz/$$n; \
	  mkdir -p corpus/$$n; [ -d $$seeds ] || seeds=; dict=$(CURDIR)/tests/fuzz/$$n.dict; [ -f $$dict ] || dict=; \
	  echo "fuzz $$n: $(FUZZ_TIME) s"; \
	  ./$$f -max_total_time=$(FUZZ_TIME) -timeout=20 -rss_limit_mb=3000 -artifact_prefix=$$n- -close_fd_mask=1 \
	    $${dict:+-dict=$$dict} corpus/$$n $$seeds > $$n.log 2>&1 || { tail -n 40 $$n.log; exit 1; }; \
	  tail -n 1 $$n.log; done
fuzzers: $(addprefix $(BUILD)/,$(FUZZERS))
$(BUILD)/fuzz_%: tests/fuzz/fuzz_%.c $(LIB)
	$(call say,cc $<)
	$(Q)$(CC) $(CFLAGS) -fsanitize=fuzzer -MMD -MP -o $@ $< $(LIB) $(LDLIBS)

demo: deps
	$(MAKE) all
	BUILD=$(BUILD) examples/demo/run.sh

deps:
	tests/deps

# After reading what changed and why.
golden: all $(BUILD)/tests/parse/test_parse
	DPOC_GOLDEN=1 $(BUILD)/tests/parse/test_parse

lines:
	tests/lines/check

clean:
	rm -rf $(BUILD)

install: all
	install -D $(BUILD)/dpoc $(DESTDIR)$(PREFIX)/bin/dpoc

.PHONY: all test cudasim hard fuzz fuzzers bench golden lines deps install demo gpu-check bundle clean tests
tests: test # there is a folder of that name
# A word that is no target is answered with those that are: the head of this file.
.DEFAULT:
	@echo "make: there is nothing called '$@' to make; there is:" >&2; sed -n '2,9s/^#  */  /p' Makefile >&2; exit 2
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
