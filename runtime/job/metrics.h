/* metrics.h: metrics.jsonl, one JSON object per event, append-only; TensorBoard sees the same.
 *
 * Numbers are the shortest text that reads back to the same double; NaN and infinities are null
 * with "finite": false beside them.  Every line is written whole and flushed.  */
#ifndef DPOC_METRICS_H
#define DPOC_METRICS_H

#include "../io/tfevents.h"

typedef struct MetricsFile MetricsFile;
/* Opens RUN/metrics.jsonl for appending; with keep_steps >= 0 lines after that step are cut first
 * (resume), together with a torn last line. */
MetricsFile *metrics_open(const char *path, int64_t keep_steps, Err *err);
/* The step of the last line that was kept then, or -1. */
int64_t metrics_kept_step(const MetricsFile *m);
/* From now on the numbers of events that have a step go to TensorBoard, too: "loss" of a step is
 * train/loss, "eval_loss" is eval/loss, "gpu/power_watts" keeps its name.  Not owned. */
void metrics_mirror(MetricsFile *m, TfEvents *events);
bool metrics_in_use(const char *path); /* a process is writing it */
void metrics_begin(MetricsFile *m, const char *event);
void metrics_int(MetricsFile *m, const char *key, int64_t value);
void metrics_num(MetricsFile *m, const char *key, double value);
double metrics_wall(void);         /* seconds since 1970 */
void metrics_time(MetricsFile *m); /* "time": seconds since 1970, of the event */
void metrics_str(MetricsFile *m, const char *key, const char *value);
void metrics_raw(MetricsFile *m, const char *key, const char *json);
bool metrics_end(MetricsFile *m, Err *err); /* writes the line */
bool metrics_close(MetricsFile *m, Err *err);
void number_text(char out[40], double x);   /* shortest round-trip text of a finite double */
void json_escape(Text *out, const char *s); /* with quotes */

#endif
