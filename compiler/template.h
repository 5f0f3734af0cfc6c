/* template.h: the `template` statements of a file, as definitions the runtime renders. */
#ifndef DPOC_COMPILER_TEMPLATE_H
#define DPOC_COMPILER_TEMPLATE_H

#include "spec.h"
#include "../runtime/io/template.h"

/* Diagnostics for every template of the file, and for data.template where it names none. */
void templates_check(Spec *spec);
/* The file's template that data.template names; NULL: a built-in one, auto or none.  With a
 * tokenizer also diagnostics for control tokens that it lacks; false after those. */
bool spec_template(Spec *spec, const Tokenizer *tokenizer, const TemplateDef **out);

#endif
