/* fuzz_safetensors.c: any bytes as a safetensors file: no crash; what opens keeps the format's
 * promises and every byte of every tensor can be read.  Built by clang with -fsanitize=fuzzer (make
 * fuzz). */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/io/safetensors.h"

/* The input as a file of memory. */
static char *path_of(const uint8_t *data, size_t size) {
    static char path[64];
    static int fd = -1;
    if (fd < 0) fd = memfd_create("fuzz", 0);
    if (ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t)size) abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return path;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Err err = {0};
    SafeFile *f = safe_open(path_of(data, size), &err);
    if (!f != (err.code != 0)) abort();
    int64_t total = 0;
    for (int i = 0; f && i < safe_count(f); i++) {
        const SafeTensor *t = safe_tensor(f, i);
        void *bytes = malloc((size_t)t->bytes + 1);
        if (safe_find(f, t->name) != t || t->begin != total) abort();
        if (!safe_read(t, 0, t->bytes, bytes, &err)) abort();
        if (t->type == SAFE_BF16 && t->count > 0) {
            float x;
            if (!safe_read_f32(t, t->count - 1, 1, &x, &err)) abort();
        }
        total += t->bytes;
        free(bytes);
    }
    safe_close(f);
    return 0;
}
