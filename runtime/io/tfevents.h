/* tfevents.h: TensorBoard's event files, written by hand.
 *
 * A file is a row of records: length, masked crc32c of it, payload, masked crc32c of that; a
 * payload is one protobuf `Event` (wall_time, step, summary of tagged values).  One directory is
 * one run and may hold several files, which TensorBoard reads in lexicographic order: a run that
 * goes on writes a new one.  Every event is written whole and flushed, so that a reader beside a
 * run sees it at once.
 */
#ifndef DPOC_TFEVENTS_H
#define DPOC_TFEVENTS_H

#include "../base.h"

typedef struct TfEvents TfEvents;
/* Creates DIR/events.out.tfevents.SECONDS.HOST.PID.N, one that no other has, and writes the version
 * record.  `wall` is in seconds since 1970. */
TfEvents *tfevents_open(const char *dir, double wall, Err *err);
/* The same into `path`, whatever stands there. */
TfEvents *tfevents_create(const char *path, double wall, Err *err);
/* An event is begun, filled with values, and written by tfevents_end (one without values is not).
 * Later values are what it is: floats, NaN included; text is Markdown for TensorBoard. */
void tfevents_begin(TfEvents *t, double wall, int64_t step);
void tfevents_scalar(TfEvents *t, const char *tag, double value);
void tfevents_text(TfEvents *t, const char *tag, const char *text);
bool tfevents_end(TfEvents *t, Err *err);
bool tfevents_close(TfEvents *t, Err *err); /* NULL is allowed */

uint32_t crc32c(const void *data, size_t n); /* Castagnoli: crc32c("123456789") = 0xE3069283 */

#endif
