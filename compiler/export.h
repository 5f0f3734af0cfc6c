/* export.h: what the files behind `export` share: which run, what it trained, where the result
 * goes. */
#ifndef DPOC_EXPORT_H
#define DPOC_EXPORT_H

#include "../runtime/job/merge.h"
#include "work.h"

typedef struct Export {
    const Options *options; /* of this command */
    Options as_run;         /* what the run was started with, and what this command overrides */
    Arena *arena;
    const char *spec;       /* .dpo file of the run */
    const char *adapter;    /* PEFT directory of what was trained; NULL: none was */
    const char *trained;    /* directory of the trained base (`train base`), or NULL */
    const char *out, *part; /* OUT, and OUT.part: all is written there, then renamed */
    bool from_run;          /* as_run is a run's command; else `adapter` came by itself */
    bool again;             /* the run's file was checked once and its warnings were printed */
    bool keep;              /* OUT.part stays where something is wrong with it */
    DType dtype;
    Err err;
} Export;

/* ---- export_run.c ---------------------------------------------------------------------------- */
int export_fail(Export *e); /* prints e->err; its code */
/* Fills `as_run`, `spec` and what was trained from the directory that the command names. */
bool export_find(Export *e);
/* Adds what was trained to as_run's --adapter flags, by name; an exit code. */
int export_name_trained(Export *e);
/* A Work on the run's model, checked; `set`: one more setting, or NULL.  `bare`: over this model
 * directory instead, which holds what adapters and quantization made; or NULL. */
int export_work(Export *e, Work *w, const char *bare, const char *set);

/* ---- export_check.c -------------------------------------------------------------------------- */
/* The merged model beside base and adapter, on random tokens.  `base` is checked and compiled for
 * evaluation in fp32, its device open. */
int export_check(Export *e, Work *base, const MergeReport *report);

#endif
