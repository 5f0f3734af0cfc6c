/* cuda_memory.cpp: the simulated device's memory: CUDASIM_MEMORY bytes (80 GiB), of which only
 * what is touched takes memory of the host.
 *
 * Device addresses are a region of their own.  An allocation ends at the end of a page (to 512
 * bytes, its alignment; large ones are aligned to 4096 and end at most as far before it), and what
 * follows cannot be touched.  It begins as 0xff bytes; once freed it cannot be touched.  A host
 * pointer is never taken for a device's, nor the other way round; with CUDASIM_HIDE=1 the program
 * itself cannot touch the device's memory either (slower: pages are switched for each piece of work).
 */
#include "state.h"

#include <sys/mman.h>

namespace {

enum : size_t { PAGE = 4096, ALIGNMENT = 512, PINNED = 64, LARGE = 1 << 20, POISONED = 256u << 20 };

struct Piece {
    size_t bytes, pages, offset; /* asked for; mapped; of the first byte in them */
};
std::map<size_t, Piece> &pieces = *new std::map<size_t, Piece>;   /* by where their pages begin */
std::map<size_t, size_t> &pinned = *new std::map<size_t, size_t>; /* host memory: address, bytes */
size_t region, region_bytes, cursor, used;

size_t round_up(size_t n, size_t to) {
    return (n + to - 1) / to * to;
}

const int mapping = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

/* Pages of the region become untouchable; the host has their memory back. */
void hide(size_t at, size_t bytes) {
    mmap((void *)at, bytes, PROT_NONE, mapping | MAP_FIXED, -1, 0);
}

bool reserve() {
    if (region) return true;
    region_bytes = 2 * memory_total() + ((size_t)64 << 30);
    void *p = mmap(nullptr, region_bytes, PROT_NONE, mapping, -1, 0);
    if (p == MAP_FAILED) return false;
    region = cursor = (size_t)p;
    return true;
}

/* A place for that many pages with one free page on each side, after the last one given; 0: none.
 */
size_t find_room(size_t bytes) {
    for (int again = 0; again < 2; again++) {
        size_t at = cursor + PAGE;
        for (const auto &p : pieces) {
            if (p.first + p.second.pages + PAGE <= at) continue;
            if (p.first >= at + bytes + PAGE) break;
            at = p.first + p.second.pages + PAGE;
        }
        if (at + bytes + PAGE <= region + region_bytes) return at;
        cursor = region;
    }
    return 0;
}

/* The piece that an address lies in, or next to; null: none before it. */
const std::pair<const size_t, Piece> *piece_before(size_t p) {
    auto i = pieces.upper_bound(p);
    return i == pieces.begin() ? nullptr : &*--i;
}

/* The bytes of [p, p + bytes) become `value`; zeros of whole pages cost nothing. */
void fill(size_t p, unsigned char value, size_t bytes) {
    if (value == 0 && bytes >= LARGE) {
        const size_t begin = round_up(p, PAGE), end = (p + bytes) / PAGE * PAGE;
        memset((void *)p, 0, begin - p);
        madvise((void *)begin, end - begin, MADV_DONTNEED);
        memset((void *)end, 0, p + bytes - end);
    } else {
        memset((void *)p, value, bytes);
    }
}

/* Host memory of ours ends where its pages end, like the device's. */
void free_pinned(size_t p, size_t bytes) {
    munmap((void *)(p / PAGE * PAGE), round_up(bytes, PAGE) + PAGE);
}

} // namespace

size_t memory_total() {
    static const size_t total = read_bytes(getenv("CUDASIM_MEMORY"), (size_t)80 << 30);
    return total;
}

static int shown;

static void show(bool yes) {
    static const char *const setting = getenv("CUDASIM_HIDE");
    if (!setting || *setting != '1') return;
    for (const auto &p : pieces)
        mprotect((void *)p.first, p.second.pages, yes ? PROT_READ | PROT_WRITE : PROT_NONE);
}

Shown::Shown() {
    if (shown++ == 0) show(true);
}

Shown::~Shown() {
    if (--shown == 0) show(false);
}

bool is_device(CUdeviceptr p) {
    return region && p >= region && p < region + region_bytes;
}

bool cudasim_allocation(CUdeviceptr address, CUdeviceptr *base, size_t *bytes) {
    std::lock_guard<std::recursive_mutex> held(the_lock);
    const auto *p = piece_before(address);
    if (!p) return false;
    *base = p->first + p->second.offset;
    *bytes = p->second.bytes;
    return address >= *base && address < *base + *bytes;
}

bool pinned_range(const void *p, size_t bytes) {
    auto i = pinned.upper_bound((size_t)p);
    return i != pinned.begin() && (--i, (size_t)p + bytes <= i->first + i->second);
}

bool device_range(CUdeviceptr p, size_t bytes) {
    CUdeviceptr base;
    size_t all;
    if (!is_device(p)) return pinned_range((void *)p, bytes);
    return cudasim_allocation(p, &base, &all) && p + bytes <= base + all;
}

std::string describe_address(const void *address) {
    char text[200];
    const size_t p = (size_t)address;
    CUdeviceptr base;
    size_t bytes;
    if (p < 65536)
        snprintf(text, sizeof text, "a null pointer");
    else if (!is_device(p))
        snprintf(text, sizeof text, "which is not memory of the device");
    else if (cudasim_allocation(p, &base, &bytes))
        snprintf(text, sizeof text, "byte %zu of the allocation of %zu bytes at 0x%llx",
                 (size_t)(p - base), bytes, base);
    else if (const auto *i = piece_before(p))
        snprintf(text, sizeof text,
                 "%zu bytes after the end of the allocation of %zu bytes at 0x%zx",
                 p - (i->first + i->second.offset + i->second.bytes), i->second.bytes,
                 i->first + i->second.offset);
    else
        snprintf(text, sizeof text, "before any allocation");
    return text;
}

void memory_forget() {
    if (region) hide(region, region_bytes);
    used = 0;
    pieces.clear();
    for (const auto &p : pinned) free_pinned(p.first, p.second);
    pinned.clear();
}

extern "C" {

/* ---- allocations ----------------------------------------------------------------------------- */

CUresult cuMemAlloc(CUdeviceptr *to, size_t bytes) {
    ENTER(Need::CONTEXT, std::to_string(bytes));
    if (CUresult error = refuse_in_capture()) return error;
    if (!to || !bytes) return CUDA_ERROR_INVALID_VALUE;
    const size_t rounded = round_up(bytes, bytes >= LARGE ? PAGE : ALIGNMENT);
    if (!reserve() || used + rounded > memory_total()) return CUDA_ERROR_OUT_OF_MEMORY;
    const size_t pages = round_up(rounded, PAGE), at = find_room(pages);
    if (!at || mprotect((void *)at, pages, PROT_READ | PROT_WRITE)) return CUDA_ERROR_OUT_OF_MEMORY;
    pieces[at] = {bytes, pages, pages - rounded};
    used += rounded;
    cursor = at + pages;
    *to = at + pages - rounded;
    const Shown now;
    fill(*to, 0xff, bytes < POISONED ? bytes : POISONED);
    return CUDA_SUCCESS;
}

CUresult cuMemFree(CUdeviceptr p) {
    ENTER(Need::CONTEXT);
    if (!p) return CUDA_SUCCESS;
    if (CUresult error = refuse_in_capture()) return error;
    if (CUresult error = drain()) return error;
    const auto *i = piece_before(p);
    if (!i || p != i->first + i->second.offset) return CUDA_ERROR_INVALID_VALUE;
    const size_t at = i->first, pages = i->second.pages;
    used -= pages - i->second.offset;
    pieces.erase(at);
    hide(at, pages);
    return CUDA_SUCCESS;
}

CUresult cuMemGetInfo(size_t *available, size_t *total) {
    ENTER(Need::CONTEXT);
    *total = memory_total();
    *available = *total - used;
    return CUDA_SUCCESS;
}

CUresult cuMemHostAlloc(void **to, size_t bytes, unsigned) {
    ENTER(Need::CONTEXT, std::to_string(bytes));
    if (CUresult error = refuse_in_capture()) return error;
    if (!to || !bytes) return CUDA_ERROR_INVALID_VALUE;
    const size_t pages = round_up(bytes, PAGE);
    char *p = (char *)mmap(nullptr, pages + PAGE, PROT_READ | PROT_WRITE, mapping, -1, 0);
    if (p == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    mprotect(p + pages, PAGE, PROT_NONE);
    *to = p + pages - round_up(bytes, PINNED);
    memset(*to, 0xff, bytes);
    pinned[(size_t)*to] = bytes;
    return CUDA_SUCCESS;
}

CUresult cuMemFreeHost(void *p) {
    ENTER(Need::CONTEXT);
    if (CUresult error = drain()) return error;
    const auto i = pinned.find((size_t)p);
    if (i == pinned.end()) return CUDA_ERROR_INVALID_VALUE;
    free_pinned(i->first, i->second);
    pinned.erase(i);
    return CUDA_SUCCESS;
}

CUresult cuMemHostGetDevicePointer(CUdeviceptr *device, void *host, unsigned) {
    ENTER(Need::CONTEXT);
    if (!pinned_range(host, 1)) return CUDA_ERROR_INVALID_VALUE;
    *device = (CUdeviceptr)host;
    return CUDA_SUCCESS;
}

/* ---- copies ---------------------------------------------------------------------------------- */

/* From memory that is not ours the real driver takes a copy at once, and to such memory it waits.
 */
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    ENTER(Need::CONTEXT);
    if (!bytes) return CUDA_SUCCESS;
    if (!device_range(to, bytes) || is_device((CUdeviceptr)from)) return CUDA_ERROR_INVALID_VALUE;
    if (pinned_range(from, bytes)) return enqueue(stream, [=] { memcpy((void *)to, from, bytes); });
    auto staged = std::make_shared<std::string>((const char *)from, bytes);
    return enqueue(stream, [=] { memcpy((void *)to, staged->data(), bytes); });
}

CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTER(Need::CONTEXT);
    if (!bytes) return CUDA_SUCCESS;
    if (!device_range(from, bytes) || is_device((CUdeviceptr)to)) return CUDA_ERROR_INVALID_VALUE;
    if (CUresult error = enqueue(stream, [=] { memcpy(to, (void *)from, bytes); })) return error;
    return pinned_range(to, bytes) ? CUDA_SUCCESS : cuStreamSynchronize(stream);
}

CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTER(Need::CONTEXT);
    if (!bytes) return CUDA_SUCCESS;
    if (!device_range(from, bytes) || !device_range(to, bytes)) return CUDA_ERROR_INVALID_VALUE;
    return enqueue(stream, [=] { memmove((void *)to, (void *)from, bytes); });
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream) {
    ENTER(Need::CONTEXT);
    if (!bytes) return CUDA_SUCCESS;
    if (!device_range(to, bytes)) return CUDA_ERROR_INVALID_VALUE;
    return enqueue(stream, [=] { fill(to, value, bytes); });
}

CUresult cuMemcpyHtoD(CUdeviceptr to, const void *from, size_t bytes) {
    ENTER(Need::CONTEXT);
    if (!device_range(to, bytes) || is_device((CUdeviceptr)from)) return CUDA_ERROR_INVALID_VALUE;
    if (CUresult error = wait_legacy()) return error;
    const Shown now;
    memcpy((void *)to, from, bytes);
    return CUDA_SUCCESS;
}

CUresult cuMemcpyDtoH(void *to, CUdeviceptr from, size_t bytes) {
    ENTER(Need::CONTEXT);
    if (!device_range(from, bytes) || is_device((CUdeviceptr)to)) return CUDA_ERROR_INVALID_VALUE;
    if (CUresult error = wait_legacy()) return error;
    const Shown now;
    memcpy(to, (void *)from, bytes);
    return CUDA_SUCCESS;
}

CUresult cuMemsetD8(CUdeviceptr to, unsigned char value, size_t bytes) {
    ENTER(Need::CONTEXT);
    if (!device_range(to, bytes)) return CUDA_ERROR_INVALID_VALUE;
    if (CUresult error = wait_legacy()) return error;
    const Shown now;
    fill(to, value, bytes);
    return CUDA_SUCCESS;
}
}
