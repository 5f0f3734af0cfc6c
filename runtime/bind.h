/* bind.h: what the files that fill buffers share.  bind.c walks a plan's binds, feed.c reads or
 * makes a tensor's values, bind_quant.c keeps them in few bits.
 */
#ifndef DPOC_BIND_H
#define DPOC_BIND_H

#include "exec_bind.h"
#include "io/packed.h"

#define PIECE (INT64_C(2) << 20) /* elements moved at a time, about, or a whole tensor */

typedef struct Binder {
    const Plan *plan;
    Device *dev;
    Span scratch; /* of the arena: free while weights come in */
    const BindSource *source;
    int nsource;
    Checkpoint **checkpoint; /* opened ones, by source */
    uint64_t seed;
    LoadWatch *watch;               /* or NULL */
    double bytes, elements, of_all; /* read so far; of all binds' elements */
    int64_t piece;                  /* elements that the two below have room for */
    float *value;
    char *staged; /* the same, converted */
    Err *err;
    Arena *arena;
} Binder;

typedef enum Fresh { FRESH_FILE, FRESH_ZERO, FRESH_ONE, FRESH_UNIFORM, FRESH_GAUSSIAN } Fresh;

typedef struct Feed { /* where the elements of one tensor come from */
    const SafeTensor *tensor;
    bool packed; /* the tensor holds codes: */
    Packed codes;
    float *absmax; /* of all its blocks */
    Fresh fresh;
    double num; /* half width, or standard deviation */
    uint32_t key[2];
} Feed;

/* feed.c: finds a bind's tensor; values are checked to be numbers as they are read. */
bool feed_open(Binder *b, const Bind *bind, Feed *feed);
void feed_close(Feed *feed);
/* The source of a bind; -1 after a bug's message. */
int feed_source(Binder *b, const Bind *bind);
/* Elements begin .. begin+n times `scale`, as f32, bf16 or f16. */
bool feed_read(Binder *b, const Feed *feed, int64_t begin, int64_t n, double scale, DType to,
               void *out);
/* A part of a packed tensor as it stands in the file; f32 statistics are checked to be numbers (the
 * codes may have any type). */
bool feed_part(Binder *b, const SafeTensor *t, bool codes, int64_t begin, int64_t bytes, void *out);

/* bind_start.c: whether a bind is a side of a weight's singular vectors, */
bool starts_pissa(Binder *b, const Bind *bind);
/* then all that want a side of that weight, policy and copies, once: with the first of them. */
bool bind_pissa(Binder *b, int i);
double pissa_elements(Binder *b, int i); /* that this will read */

/* bind_quant.c: all parts of the tensor that bind `first` is the first part of. */
bool bind_quantized(Binder *b, int first);
/* Elements at a time that its parts ask for. */
int64_t quant_piece(const Bind *bind);

#endif
