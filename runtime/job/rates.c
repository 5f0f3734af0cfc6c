/* rates.c: see rates.h.  Relies on exec.h, device.h. */
#include "rates.h"
#include "epoch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BEST_OF = 5, LEAST_SIDE = 256 };

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
        if (ok && seconds > 0)
            out->flops = fmax(out->flops, 2 * (double)n * (double)n * (double)n / seconds);
    }
    out->side = n;
    return ok;
}

static bool measure_copy(Device *dev, Room room, Rates *out, Err *err) {
    int64_t most = (int64_t)(dev->arch ? 512 : 64) << 20;
    int64_t n = room.bytes / 2 < most ? room.bytes / 2 / 4096 * 4096 : most;
    const DeviceOps *ops = dev->ops;
    bool ok = n > 0;
    if (!ok) return true;
    for (int i = 0; i < BEST_OF && ok; i++) {
        double seconds = 0;
        ok = ops->stamp(dev, 0, err) && ops->copy(dev, room.at + n, room.at, n, err) &&
             ops->stamp(dev, 1, err) && ops->sync(dev, err) &&
             ops->seconds(dev, 0, 1, &seconds, err);
        if (ok && seconds > 0) out->bandwidth = fmax(out->bandwidth, 2 * (double)n / seconds);
    }
    out->copied = n;
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
    bool ok = measure_product(dev, room, type, out, err) && measure_copy(dev, room, out, err);
    free(own);
    return ok;
}
