/* records_foreign.h: files that hold no JSON: what they are, and the command that makes JSON Lines
 * of them. */
#ifndef DPOC_RECORDS_FOREIGN_H
#define DPOC_RECORDS_FOREIGN_H

#include "../base.h"

/* False and err (exit 5) when the first n bytes of a file, or its name, are those of Parquet,
 * Arrow, CSV, another compression or another encoding. */
bool records_ours(const char *path, const char *head, size_t n, Err *err);
/* False and err (exit 5) for a directory: which of its files to name, or how to convert them. */
bool records_no_directory(const char *path, Err *err);

#endif
