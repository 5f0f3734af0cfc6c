/* cache.h: the directory of compiled kernels, for both devices.
 *
 * In it stand modules, each holding several kernels, and one small file HASH.key per kernel:
 * "MODULE BYTES CONTENT-HASH REST".  A kernel's hash covers all that decides its code, so that a
 * kernel is found again whatever else its plan holds.  A module counts only if its bytes are those
 * that the key names: a damaged one is compiled again.  All files appear by rename.
 * Relies on plan.h.
 */
#ifndef DPOC_CACHE_H
#define DPOC_CACHE_H

#include "plan.h"

typedef struct CacheKey {
    char module[64]; /* file name in the directory */
    size_t bytes;    /* of the module, */
    char hash[33];   /* and their hash */
    char rest[160];  /* what the device notes about the kernel */
} CacheKey;

/* What stands in the cache under a kernel's hash (hex); false: nothing, or a damaged file. */
bool cache_find(const char *dir, const char *kernel, CacheKey *out);
/* The module's bytes (malloc), if they are what the key says; else NULL. */
char *cache_module(const char *dir, const CacheKey *key);
/* Appears whole or not at all; not synced, for a damaged file is found out and made again. */
bool cache_put(const char *dir, const char *name, const void *data, size_t len);
/* Notes that a kernel lies in a module with these bytes. */
bool cache_put_key(const char *dir, const char *kernel, const char *module, const void *data,
                   size_t len, const char *rest);
/* Makes the directory if need be; whether files can be made there. */
bool cache_usable(const char *dir);

/* Spreads n kernels over modules of like size: at least one per job, none much over `bytes` of
 * text; group[i] is the module of kernel[i].  The number of modules. */
int cache_spread(const Plan *plan, const int *kernel, int n, size_t bytes, int jobs, int *group);

#endif
