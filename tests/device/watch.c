/* watch.c: counts what a process allocates, seen from outside; preloaded by memory.sh.
 *
 * At exit the file DPOC_WATCH receives "LARGEST HEAP RESIDENT", in bytes: the largest anonymous
 * mapping, the most that was live in the heap at once since it was made, and the most that was
 * ever resident. */
#include <dlfcn.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>

static _Atomic long live, peak, largest;

static void count(long bytes) {
    long now = atomic_fetch_add(&live, bytes) + bytes, most = atomic_load(&peak);
    while (now > most && !atomic_compare_exchange_weak(&peak, &most, now)) {
    }
}

#define REAL(name)                                                                                 \
    static __typeof__(name) *real;                                                                 \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name)

void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset) {
    REAL(mmap);
    void *p = real(at, n, prot, flags, fd, offset);
    long size = (long)n, most = atomic_load(&largest);
    if (p != MAP_FAILED && flags & MAP_ANONYMOUS && size > most) {
        atomic_store(&largest, size);
        atomic_store(&peak, atomic_load(&live));
    }
    return p;
}

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static void *counted(void *p) {
    if (p) count((long)malloc_usable_size(p));
    return p;
}

static void uncounted(void *p) {
    if (p) count(-(long)malloc_usable_size(p));
}

void *malloc(size_t n) {
    return counted(__libc_malloc(n));
}
void *calloc(size_t n, size_t size) {
    return counted(__libc_calloc(n, size));
}
void *aligned_alloc(size_t align, size_t n) {
    return counted(__libc_memalign(align, n));
}
void *memalign(size_t align, size_t n) {
    return counted(__libc_memalign(align, n));
}

int posix_memalign(void **p, size_t align, size_t n) {
    *p = counted(__libc_memalign(align, n));
    return *p ? 0 : 12;
}

void *realloc(void *p, size_t n) {
    uncounted(p);
    return counted(__libc_realloc(p, n));
}

void free(void *p) {
    uncounted(p);
    __libc_free(p);
}

__attribute__((destructor)) static void report(void) {
    const char *path = getenv("DPOC_WATCH");
    FILE *f = path ? fopen(path, "w") : NULL;
    if (!f) return;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    fprintf(f, "%ld %ld %ld\n", atomic_load(&largest), atomic_load(&peak), usage.ru_maxrss * 1024);
    fclose(f);
}
