/* cuda_doctor.c: what of CUDA this machine has, for `dpoc doctor`.  Relies on cuda.h, library.h. */
#include "cuda.h"

static void version_line(FILE *out, const char *what, const Library *lib) {
    fprintf(out, "found    %-10s %s, %d.%d\n", what, lib->path, lib->version / 1000,
            lib->version % 1000 / 10);
}

static void rejected_lines(FILE *out, const char *what, const Library *lib) {
    for (int i = 0; i < lib->nrejected; i++)
        fprintf(out, "rejected %-10s %s: %s\n", what, lib->rejected[i].path, lib->rejected[i].why);
}

/* The first line of a message: its help lines are advice given elsewhere. */
static void missing_line(FILE *out, const char *what, const char *why) {
    size_t n = 0;
    while (why[n] && why[n] != '\n') n++;
    fprintf(out, "missing  %-10s %.*s\n", what, (int)n, why);
}

static void gpu_line(Cuda *c, int i, FILE *out) {
    Err err = {0};
    char name[20];
    int64_t available = 0, total = 0;
    snprintf(name, sizeof name, "cuda:%d", i);
    bool ok = cuda_choose(c, name, i + 1, &err) &&
              CUDA(c, DevicePrimaryCtxRetain, (&c->context, c->device), &err) &&
              CUDA(c, CtxSetCurrent, (c->context), &err) &&
              cuda_ops.memory(&c->dev, &available, &total, &err);
    if (ok)
        fprintf(out, "found    %-10s %s, compute capability %d.%d, %.1f GiB free of %.1f\n", name,
                c->name, c->dev.arch / 10, c->dev.arch % 10, (double)available / (1 << 30),
                (double)total / (1 << 30));
    else
        fprintf(out, "rejected %-10s %s\n", name, err.text);
    if (c->context) c->cu.DevicePrimaryCtxRelease(c->device);
    c->context = NULL;
}

static void library_line(FILE *out, const char *what, const Library *lib, int driver) {
    if (lib->handle) version_line(out, what, lib);
    rejected_lines(out, what, lib);
    if (lib->handle) return;
    int major = driver && driver / 1000 < 13 ? 12 : 13;
    fprintf(out, "missing  %-10s %s.so.%d: %s\n", what, library_names[lib->kind], major,
            library_advice(lib->kind, major));
}

void cuda_doctor(FILE *out) {
    Cuda c = {.dev.ops = &cuda_ops};
    Library nvrtc, cublaslt;
    Err err = {0};
    int count = 0;
    bool gpus = cuda_start(&c, &count, &err);
    if (c.driver.handle) version_line(out, "driver", &c.driver);
    rejected_lines(out, "driver", &c.driver);
    if (!gpus) missing_line(out, c.driver.handle ? "gpu" : "driver", err.text);
    if (!gpus) fprintf(out, "         %-10s %s\n", "", library_advice(LIBRARY_DRIVER, 13));
    for (int i = 0; gpus && i < count; i++) gpu_line(&c, i, out);
    library_pair(c.driver.version, gpus ? c.dev.arch : 0, &nvrtc, &cublaslt, &err);
    library_line(out, "nvrtc", &nvrtc, c.driver.version);
    library_line(out, "cublaslt", &cublaslt, c.driver.version);
    library_close(&nvrtc);
    library_close(&cublaslt);
    library_close(&c.driver);
}
