/* template_piece.h: the pieces of a template, part by part; used by template*.c only. */
#ifndef DPOC_TEMPLATE_PIECE_H
#define DPOC_TEMPLATE_PIECE_H

#include "template.h"

typedef enum PartKind {
    PART_END,
    PART_TEXT,
    PART_CONTENT,
    PART_TRIMMED, /* {content|trim} */
    PART_ROLE,
    PART_DATE,
    PART_BOS,
    PART_EOS,
    PART_BOS_IF, /* {bos?} */
    PART_EOS_IF,
    PART_TOKEN, /* s: its name */
    PART_BAD    /* a brace without its partner, or nothing between them */
} PartKind;

typedef struct Part {
    PartKind kind;
    const char *s; /* the text, or what stands between the braces; n bytes */
    size_t n;
} Part;
/* The part at *at, which moves behind it. */
Part piece_next(const char **at);

/* The pieces of a definition by key, in the order of TemplateDef. */
typedef struct PieceKey {
    const char *key;
    size_t offset; /* of a const char * in TemplateDef */
    bool message;  /* has a content and a role */
} PieceKey;
extern const PieceKey piece_keys[];
extern const int piece_count;
static inline const char *piece_of(const TemplateDef *def, const PieceKey *key) {
    return *(const char *const *)((const char *)def + key->offset);
}

/* The id a part stands for, or -1: none. */
int32_t part_token(const Part *part, const Tokenizer *t);

#endif
