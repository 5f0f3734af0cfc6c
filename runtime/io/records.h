/* records.h: the JSON values of a data file, one at a time: lines of a .jsonl, elements of a .json
 * array, each also compressed with gzip (told from the content, not from the name).
 * The file is never whole in memory. */
#ifndef DPOC_RECORDS_H
#define DPOC_RECORDS_H

#include "../base.h"

typedef struct Records Records;
typedef struct Record {
    const char *text; /* of one JSON value; valid until the next call */
    size_t len;
    int line; /* where it begins, from 1 */
} Record;

Records *records_open(const char *path, Err *err); /* NULL and err (exit 5) */
/* False at the end, and when reading failed (then err says why). */
bool records_next(Records *r, Record *out, Err *err);
double records_share(const Records *r); /* of the file that was read, 0 to 1 */
void records_close(Records *r);         /* NULL is allowed */

#endif
