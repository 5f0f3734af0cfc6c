/* switch.h: from one stack to another.  On x86-64 a dozen instructions; elsewhere ucontext, which
 * is slower by a system call. */
#ifndef CUDASIM_SWITCH_H
#define CUDASIM_SWITCH_H

#include <stddef.h>
#include <ucontext.h>

#ifdef __x86_64__

struct Context {
    void *sp; /* callee-saved registers and the return address are on the stack */
};

/* It leaves by a jump: a return would be predicted to go where this stack came from, and threads
 * come from different barriers. */
extern "C" void cudasim_switch(void **save, void *to);
extern "C" void cudasim_begin();
__asm__(".text\n"
        ".type cudasim_switch,@function\n"
        "cudasim_switch:\n"
        "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n"
        "    pushq %r13\n    pushq %r14\n    pushq %r15\n"
        "    movq %rsp, (%rdi)\n    movq %rsi, %rsp\n"
        "    popq %r15\n    popq %r14\n    popq %r13\n"
        "    popq %r12\n    popq %rbx\n    popq %rbp\n    popq %rcx\n    jmp *%rcx\n"
        ".type cudasim_begin,@function\n"
        "cudasim_begin:\n"
        "    movq %r12, %rdi\n    callq *%r13\n    ud2\n");

/* main(argument) will run on this stack; it must not return. */
static inline void context_make(Context &c, char *stack, size_t size, void (*main)(void *),
                                void *argument) {
    void **sp = (void **)((size_t)(stack + size) & ~(size_t)15);
    *--sp = NULL; /* keeps the stack aligned to 16 where main begins */
    *--sp = NULL;
    *--sp = (void *)cudasim_begin;
    *--sp = NULL;         /* rbp */
    *--sp = NULL;         /* rbx */
    *--sp = argument;     /* r12 */
    *--sp = (void *)main; /* r13 */
    *--sp = NULL;         /* r14 */
    *--sp = NULL;         /* r15 */
    c.sp = sp;
}

static inline void context_switch(Context &save, Context &to) {
    cudasim_switch(&save.sp, to.sp);
}

/* This one is likely to be next but one. */
static inline void context_prefetch(const Context &c) {
    __builtin_prefetch(c.sp);
    __builtin_prefetch((char *)c.sp + 64);
    __builtin_prefetch((char *)c.sp + 128);
}

[[noreturn]] static inline void context_leave(Context &to) {
    void *nowhere;
    cudasim_switch(&nowhere, to.sp);
    __builtin_unreachable();
}

/* In a handler of SIGSEGV: whether the access was a write. */
static inline bool fault_writes(void *machine) {
    return ((ucontext_t *)machine)->uc_mcontext.gregs[REG_ERR] & 2;
}

#else

struct Context {
    ucontext_t at;
};

static inline void context_enter(unsigned low, unsigned high, unsigned low2, unsigned high2) {
    ((void (*)(void *))((size_t)low | (size_t)high << 32))(
        (void *)((size_t)low2 | (size_t)high2 << 32));
}

static inline void context_make(Context &c, char *stack, size_t size, void (*main)(void *),
                                void *argument) {
    getcontext(&c.at);
    c.at.uc_stack.ss_sp = stack;
    c.at.uc_stack.ss_size = size;
    c.at.uc_link = NULL;
    makecontext(&c.at, (void (*)())context_enter, 4, (unsigned)(size_t)main,
                (unsigned)((size_t)main >> 32), (unsigned)(size_t)argument,
                (unsigned)((size_t)argument >> 32));
}

static inline void context_switch(Context &save, Context &to) {
    swapcontext(&save.at, &to.at);
}

static inline void context_prefetch(const Context &) {}

[[noreturn]] static inline void context_leave(Context &to) {
    setcontext(&to.at);
    __builtin_unreachable();
}

static inline bool fault_writes(void *) {
    return false;
}

#endif
#endif
