/* cache.c: see cache.h. */
#include "cache.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void join(char path[4096], const char *dir, const char *name, const char *end) {
    snprintf(path, 4096, "%s/%s%s", dir, name, end);
}

bool cache_find(const char *dir, const char *kernel, CacheKey *out) {
    char path[4096];
    Err quiet = {0};
    join(path, dir, kernel, ".key");
    char *text = file_exists(path) ? file_read(path, NULL, &quiet) : NULL;
    int end = 0;
    *out = (CacheKey){.rest = ""};
    bool ok =
        text && sscanf(text, "%63s %zu %32s %n", out->module, &out->bytes, out->hash, &end) >= 3;
    ok = ok && end && !strchr(out->module, '/') && strchr(text, '\n');
    if (ok)
        snprintf(out->rest, sizeof out->rest, "%.*s", (int)strcspn(text + end, "\n"), text + end);
    free(text);
    return ok;
}

char *cache_module(const char *dir, const CacheKey *key) {
    char path[4096], hex[33];
    Err quiet = {0};
    size_t len;
    join(path, dir, key->module, "");
    char *data = file_read(path, &len, &quiet);
    if (!data) return NULL;
    hash_hex(hash_bytes(data, len, (Hash128){0, 0}), hex);
    if (len == key->bytes && !strcmp(hex, key->hash)) return data;
    free(data);
    return NULL;
}

bool cache_put(const char *dir, const char *name, const void *data, size_t len) {
    char path[4096], temp[4200];
    join(path, dir, name, "");
    snprintf(temp, sizeof temp, "%s.%d.tmp", path, (int)getpid());
    int fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) return false;
    bool ok = write(fd, data, len) == (ssize_t)len;
    ok = !close(fd) && ok && !rename(temp, path);
    if (!ok) unlink(temp);
    return ok;
}

bool cache_put_key(const char *dir, const char *kernel, const char *module, const void *data,
                   size_t len, const char *rest) {
    char name[64], hex[33], line[400];
    snprintf(name, sizeof name, "%s.key", kernel);
    hash_hex(hash_bytes(data, len, (Hash128){0, 0}), hex);
    int n = snprintf(line, sizeof line, "%s %zu %s %s\n", module, len, hex, rest);
    return n < (int)sizeof line && cache_put(dir, name, line, (size_t)n);
}

bool cache_usable(const char *dir) {
    Err quiet = {0};
    return dir_make(dir, &quiet) && !access(dir, W_OK | X_OK);
}

int cache_spread(const Plan *plan, const int *kernel, int n, size_t bytes, int jobs, int *group) {
    size_t all = 0;
    for (int i = 0; i < n; i++) all += strlen(plan->kernels[kernel[i]].text);
    int groups = (int)(all / bytes) + 1;
    if (groups < jobs) groups = jobs;
    if (groups > n) groups = n;
    size_t *sum = calloc((size_t)groups + 1, sizeof *sum);
    for (int i = 0; i < n; i++) {
        int least = 0;
        for (int k = 1; k < groups; k++)
            if (sum[k] < sum[least]) least = k;
        group[i] = least;
        sum[least] += strlen(plan->kernels[kernel[i]].text);
    }
    free(sum);
    return groups;
}
