/* rates.c: see rates.h.  Relies on exec.h, device.h. */
#include "rates.h"
#include "epoch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(MAX_LEVELS >= 8, "64 KiB .. 1 GiB by fours");
enum { BEST_OF = 5, LEAST_SIDE = 256, ONE_TIME = 8 << 20 };

typedef struct Room { /* memory to measure in */
    char *at;
    int64_t bytes;
} Room;

/* Random numbers from -1 to 1: zeros would flatter a GPU, which then draws less power. */
static bool fill(Device *dev, char *at, int64_t n, DType type, Err *err) {
    enum { PIECE = 1 << 16 };
    int64_t size = dtype_bytes(type);
    char *piece = malloc((size_t)(PIECE * size));
    if (!piece) return fail(err, EXIT_MEMORY, "out of memory");
    for (int i = 0; i < PIECE; i++) {
        float x = (float)(mix64(3, (uint64_t)i, 0) % 2001) / 1000.0f - 1.0f;
        uint16_t half = float_to_bf16(x);
        memcpy(piece + i * size, type == DT_bf16 ? (void *)&half : (void *)&x, (size_t)size);
    }
    bool ok = true;
    for (int64_t done = 0, now; ok && done < n; done += now) {
        now = n - done < PIECE ? n - done : PIECE;
        if (dev->arch)
            ok = dev->ops->write(dev, at - dev->base + done * size, piece, now * size, err);
        else
            memcpy(at + done * size, piece, (size_t)(now * size));
    }
    free(piece);
    return ok;
}

/* Square matrices as large as there is room for. */
static bool measure_product(Device *dev, Room room, DType type, Rates *out, Err *err) {
    int64_t size = dtype_bytes(type), n = dev->arch ? 8192 : 1024;
    while (n >= LEAST_SIDE && n * n * (2 * size + 4) > room.bytes) n /= 2;
    if (n < LEAST_SIDE) return true;
    Gemm g = {.a = type,
              .b = type,
              .c = DT_f32,
              .tb = true,
              .lda = n,
              .ldb = n,
              .ldc = n,
              .alpha = 1,
              .align = 256};
    void *p[] = {room.at, room.at + n * n * size, room.at + 2 * n * n * size};
    const DeviceOps *ops = dev->ops;
    bool ok = ops->gemm_prepare(dev, &g, n, n, n, err) && fill(dev, room.at, 2 * n * n, type, err);
    for (int i = 0; i < BEST_OF && ok; i++) {
        double seconds = 0;
        ok = ops->stamp(dev, 0, err) && ops->gemm(dev, &g, p, n, n, n, err) &&
             ops->stamp(dev, 1, err) && ops->sync(dev, err) &&
             ops->seconds(dev, 0, 1, &seconds, err);
        double rate = seconds > 0 ? 2 * (double)n * (double)n * (double)n / seconds : 0;
        if (!ok || rate <= out->flops) continue;
        out->flops = rate;
        out->side = n;
    }
    return ok;
}

/* One pass over a working set.  CLEAR and COPY are the device's own; READ looks for a byte that is
 * not there, which libc does with the widest registers. */
typedef enum Sweep { SWEEP_COPY, SWEEP_CLEAR, SWEEP_READ } Sweep;

static int found_in(const char *at, int64_t n) {
    const int64_t piece = 1 << 20;
    int found = 0;
#pragma omp parallel for schedule(static) reduction(+ : found) if (n > piece)
    for (int64_t i = 0; i < n; i += piece)
        found += memchr(at + i, 2, (size_t)(n - i < piece ? n - i : piece)) != NULL;
    return found;
}

static bool sweep(Device *dev, char *at, int64_t n, Sweep kind, Err *err) {
    if (kind == SWEEP_COPY) return dev->ops->copy(dev, at + n / 2, at, n / 2, err);
    if (kind == SWEEP_CLEAR) return dev->ops->zero(dev, at, n, err);
    return found_in(at, n) == 0 || fail(err, EXIT_BUG, "bug: memory to measure in changed");
}

/* Sets the rate of sweeps over n bytes, best of five; small sets are swept many times in one. */
static bool measure_sweep(Device *dev, char *at, int64_t n, Sweep kind, double *rate, Err *err) {
    const DeviceOps *ops = dev->ops;
    int times = n < ONE_TIME ? (int)(ONE_TIME / n) : 1;
    bool ok = true;
    for (int i = 0; i < BEST_OF && ok; i++) {
        double seconds = 0;
        ok = ops->stamp(dev, 0, err);
        for (int k = 0; k < times && ok; k++) ok = sweep(dev, at, n, kind, err);
        ok = ok && ops->stamp(dev, 1, err) && ops->sync(dev, err) &&
             ops->seconds(dev, 0, 1, &seconds, err);
        if (ok && seconds > 0) *rate = fmax(*rate, (double)n * times / seconds);
    }
    return ok;
}

static bool measure_levels(Device *dev, Room room, Rates *out, Err *err) {
    const int64_t least = dev->arch ? 1 << 16 : 1 << 15; /* up to 1 GiB, or 128 MiB */
    bool ok = true;
    for (int64_t n = least; n <= room.bytes && n <= 1 << 30 && ok; n *= 4) {
        Level *l = &out->level[out->nlevels++];
        l->bytes = n;
        ok = measure_sweep(dev, room.at, n, SWEEP_COPY, &l->rate, err);
        out->bandwidth = l->rate; /* of the last, which is the largest */
        out->copied = n / 2;
        ok = ok && (dev->arch || measure_sweep(dev, room.at, n, SWEEP_READ, &l->rate, err)) &&
             measure_sweep(dev, room.at, n, SWEEP_CLEAR, &l->rate, err);
    }
    return ok;
}

bool measure_rates(Exec *exec, Device *dev, DType type, Rates *out, Err *err) {
    Span scratch = exec_scratch(exec);
    Room room = {dev->base + scratch.offset, scratch.bytes};
    char *own = NULL;
    if (!dev->arch) {
        room.bytes = INT64_C(128) << 20;
        room.at = own = aligned_alloc(4096, (size_t)room.bytes);
        if (!own) return fail(err, EXIT_MEMORY, "out of memory");
        memset(own, 1, (size_t)room.bytes);
    }
    *out = (Rates){0};
    bool ok = measure_levels(dev, room, out, err) && measure_product(dev, room, type, out, err) &&
              (type == DT_f32 || measure_product(dev, room, DT_f32, out, err));
    free(own);
    return ok;
}

double rates_ceiling(const Rates *rates, double bytes) {
    double best = rates->nlevels ? 0 : rates->bandwidth;
    for (int i = rates->nlevels - 1; i >= 0; i--) {
        best = fmax(best, rates->level[i].rate);
        if ((double)rates->level[i].bytes <= bytes) break;
    }
    return best;
}

void rates_raise(Rates *rates, double bytes, double flops_rate, double bytes_rate) {
    rates->flops = fmax(rates->flops, flops_rate);
    int i = rates->nlevels - 1;
    while (i > 0 && (double)rates->level[i].bytes > bytes) i--;
    if (i >= 0) rates->level[i].rate = fmax(rates->level[i].rate, bytes_rate);
}
