/* library.h: finding NVIDIA's libraries at run time.
 *
 * Places, in order: the loader's own path (LD_LIBRARY_PATH, ld.so.conf), toolkit directories
 * (CUDA_HOME, CUDA_PATH, /usr/local/cuda*), `nvidia-*` wheels of a Python environment (VIRTUAL_ENV,
 * CONDA_PREFIX, the python3 on the PATH).  The driver's version decides: NVRTC and cuBLASLt are of
 * one major, 12 or 13, not newer than the driver's; 13 comes before 12.  What was looked at and not
 * taken is remembered with the reason.  Relies on base.h and dlopen.
 */
#ifndef DPOC_LIBRARY_H
#define DPOC_LIBRARY_H

#include "base.h"

typedef enum LibraryKind { LIBRARY_DRIVER, LIBRARY_NVRTC, LIBRARY_CUBLASLT, NLIBRARY } LibraryKind;
extern const char *const library_names[NLIBRARY]; /* "libcuda", "libnvrtc", "libcublasLt" */

typedef struct Rejected {
    const char *path, *why; /* interned */
} Rejected;

#define MAX_REJECTED 32
typedef struct Library {
    LibraryKind kind;
    void *handle;     /* of dlopen; NULL: none was taken */
    const char *path; /* of the file taken (interned) */
    int version;      /* 1000 * major + 10 * minor; the driver's: the CUDA version it is made for */
    Rejected rejected[MAX_REJECTED];
    int nrejected;
} Library;

/* Opens the driver's library; false and err (exit 3) when there is none, or one older than 12.0.
 * Does not call cuInit. */
bool library_driver(Library *out, Err *err);

/* Opens NVRTC and, unless it is NULL, cuBLASLt, of one major.  `driver`: the driver's version, or 0
 * where there is none: then the newest.  `arch`: 80, 90, ..: an NVRTC that makes no code for it is
 * rejected; 0: any.  False and err (exit 3: what was rejected and why, what to install). */
bool library_pair(int driver, int arch, Library *nvrtc, Library *cublaslt, Err *err);

/* The architecture for which this NVRTC compiles code that runs on `arch`: it, or the nearest
 * earlier one of its family (120 for 121); 0: none. */
int library_arch(const Library *nvrtc, int arch);

void library_close(Library *library); /* one that holds nothing is allowed */

/* "`pip install nvidia-cuda-nvrtc-cu12`, or the CUDA toolkit 12": what provides a library of that
 * major. */
const char *library_advice(LibraryKind kind, int major);
/* "/usr/lib/libx.so.12: 12.4 is ...; ...", or "nothing was found": a text for messages (interned).
 */
const char *library_rejected(const Library *library);

#endif
