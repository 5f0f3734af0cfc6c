/* fiber.cpp: see fiber.h.
 *
 * A fiber runs one thread after another of a block until one has to wait; then another fiber takes
 * over, so kernels that never wait pay nothing but calls.  A warp's rendezvous ends when the last
 * lane comes: it does the work of all (CudasimTogether) while the others' stacks stand still.
 * Whatever can hang is an error instead: a thread that ends before a barrier, two barriers at
 * once, lanes that are not there, and a block in which nobody can go on.
 */
#include "fiber.h"

#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include "switch.h"

namespace {

enum { STACK = 64 << 10, PAGE = 4096, ROOM = 1 << 20 /* of dynamic shared memory */ };

enum class Order { FORWARD, REVERSE, RANDOM };

struct Fiber {
    Context context;
    Fiber *next; /* in the list of free ones */
    char *stack;
};

struct Copy { /* an asynchronous one; group 0: not committed yet */
    char *to;
    const char *from;
    unsigned bytes, room;
    int group;
};

struct Thread {
    CudasimIndex index;
    Fiber *fiber;
    enum { NEW, RUNS, BARRIER, WARP, DONE } state;
    int line;      /* of the barrier it waits at */
    unsigned mask; /* of the lanes it waits for */
    CudasimTogether *together;
    std::vector<Copy> copies;
    int groups; /* committed */
};

struct Warp {
    unsigned waiting, ended; /* lanes */
    void *mine[32];
};

struct Worker {
    int number;
    Order order;
    unsigned long long random;
    const Launch *launch;
    CudasimModule *module;
    CudasimKernel *kernel;
    Fault fault;

    Context base;
    Fiber *fiber, *free; /* the one that runs; those without a thread */
    std::vector<Fiber *> fibers;
    char *stacks, *room;

    int n, begun, live, at_barrier, current;
    unsigned head, tail; /* of ready, a ring */
    unsigned short ready[2 * MAX_THREADS], turn[MAX_THREADS];
    Thread thread[MAX_THREADS];
    Warp warp[MAX_THREADS / 32];
};

thread_local Worker *running; /* a kernel, on this thread of the host */
std::string (*describe)(const void *);

unsigned draw(Worker *w, unsigned n) {
    w->random = w->random * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)((w->random >> 33) % n);
}

/* ---- faults ---------------------------------------------------------------------------------- */

std::string thread_name(const Worker *w, int t) {
    const CudasimIndex &b = w->module->state->block, &i = w->thread[t].index;
    char text[160];
    snprintf(text, sizeof text, "block (%u,%u,%u), thread (%u,%u,%u)", b.x, b.y, b.z, i.x, i.y,
             i.z);
    return text;
}

/* Ends the launch; all fibers of this worker are given up. */
[[noreturn]] void give_up(Worker *w, CUresult code, const std::string &what) {
    w->fault.code = code;
    w->fault.text =
        std::string("kernel ") + w->kernel->name + ", " + thread_name(w, w->current) + ": " + what;
    context_leave(w->base);
}

std::string format(const char *text, ...) {
    char line[300];
    va_list args;
    va_start(args, text);
    vsnprintf(line, sizeof line, text, args);
    va_end(args);
    return line;
}

void service_fault(void *worker, int code, const char *text) {
    give_up((Worker *)worker, (CUresult)code, text);
}

const int signals[] = {SIGSEGV, SIGBUS, SIGFPE};
struct sigaction others[64]; /* what the program does at them */

void on_signal(int number, siginfo_t *info, void *machine) {
    Worker *w = running;
    if (!w) { /* not ours */
        sigaction(number, &others[number], nullptr);
        return;
    }
    if (number == SIGFPE) give_up(w, CUDA_ERROR_LAUNCH_FAILED, "an integer is divided by zero");
    const char *at = (const char *)info->si_addr;
    const char *does = fault_writes(machine) ? "writes to" : "reads";
    if (at >= w->stacks && at < w->stacks + MAX_THREADS * (STACK + PAGE))
        give_up(w, CUDA_ERROR_ILLEGAL_ADDRESS, format("more than %d KiB of stack", STACK >> 10));
    const long over = at - (w->room + ROOM);
    if (over >= 0 && over < PAGE)
        give_up(w, CUDA_ERROR_ILLEGAL_ADDRESS,
                format("%s byte %ld of dynamic shared memory, which has %u", does,
                       over + (long)w->launch->shared, w->launch->shared));
    give_up(w, CUDA_ERROR_ILLEGAL_ADDRESS,
            format("%s address %p, ", does, (const void *)at) + describe(at));
}

/* A stack for signals, as a thread's own may have overflowed. */
void signal_stack() {
    stack_t old;
    if (sigaltstack(nullptr, &old) == 0 && !(old.ss_flags & SS_DISABLE)) return;
    const size_t size = 64 << 10;
    void *p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    stack_t own = {};
    own.ss_sp = p, own.ss_size = size;
    sigaltstack(&own, nullptr);
}

/* ---- from one thread to the next ------------------------------------------------------------- */

void fiber_main(void *worker);

Fiber *new_fiber(Worker *w) {
    Fiber *f = new Fiber;
    const size_t i = w->fibers.size();
    f->stack = w->stacks + i * (STACK + PAGE) + PAGE;
    mprotect(f->stack - PAGE, PAGE, PROT_NONE);
    w->fibers.push_back(f);
    return f;
}

/* Tops of stacks lie apart in the cache. */
void reset(Worker *w, Fiber *f, size_t i) {
    context_make(f->context, f->stack, STACK - i * 192 % 2048, fiber_main, w);
    f->next = w->free;
    w->free = f;
}

void set_current(Worker *w, int t) {
    w->current = t;
    w->module->state->thread = w->thread[t].index;
}

void make_ready(Worker *w, int t) {
    w->thread[t].state = Thread::RUNS;
    w->ready[w->tail++ % (2 * MAX_THREADS)] = (unsigned short)t;
}

std::string who_waits(const Worker *w) {
    std::string text;
    for (int t = 0, said = 0; t < w->n && said < 4; t++) {
        const Thread *x = &w->thread[t];
        if (t && x->state == x[-1].state && x->line == x[-1].line && x->mask == x[-1].mask)
            continue;
        if (x->state == Thread::BARRIER)
            text += format(" thread %d waits at __syncthreads in line %d;", t, x->line), said++;
        if (x->state == Thread::WARP)
            text += format(" thread %d waits for the lanes %08x of its warp;", t, x->mask), said++;
    }
    return text;
}

/* Leaves the fiber that runs (its state goes to `save`) for whatever can go on. */
void go_on(Worker *w, Context &save) {
    const bool begin = w->begun < w->n, ready = w->head != w->tail;
    bool fresh = begin;
    if (begin && ready && w->order == Order::REVERSE) fresh = false;
    if (begin && ready && w->order == Order::RANDOM) fresh = draw(w, 2);
    if (fresh) {
        if (!w->free) reset(w, new_fiber(w), w->fibers.size());
        w->fiber = w->free;
        w->free = w->fiber->next;
    } else if (ready) {
        const int t = w->ready[w->head++ % (2 * MAX_THREADS)];
        set_current(w, t);
        w->fiber = w->thread[t].fiber;
    } else if (w->live == 0) {
        context_switch(save, w->base);
        return;
    } else {
        give_up(w, CUDA_ERROR_LAUNCH_FAILED, "no thread of the block can go on:" + who_waits(w));
    }
    if (&w->fiber->context != &save) context_switch(save, w->fiber->context);
}

/* The thread that runs waits until make_ready. */
void wait(Worker *w) {
    Fiber *f = w->fiber;
    w->thread[w->current].fiber = f;
    go_on(w, f->context);
}

void end_thread(Worker *w, int t) {
    Warp *warp = &w->warp[t / 32];
    const unsigned bit = 1u << t % 32;
    w->thread[t].state = Thread::DONE;
    w->live--;
    warp->ended |= bit;
    if (w->at_barrier > 0)
        give_up(w, CUDA_ERROR_LAUNCH_FAILED, "ends while others wait at a barrier:" + who_waits(w));
    for (unsigned left = warp->waiting; left; left &= left - 1)
        if (w->thread[t / 32 * 32 + __builtin_ctz(left)].mask & bit)
            give_up(w, CUDA_ERROR_LAUNCH_FAILED,
                    "ends while its warp waits for it:" + who_waits(w));
}

void fiber_main(void *worker) {
    Worker *w = (Worker *)worker;
    for (;;) {
        Fiber *self = w->fiber;
        while (w->begun < w->n) {
            const int t = w->turn[w->begun++];
            w->thread[t].state = Thread::RUNS;
            set_current(w, t);
            w->kernel->call(w->launch->arguments.data());
            end_thread(w, w->current);
            if (w->order == Order::REVERSE && w->head != w->tail) break;
        }
        self->next = w->free;
        w->free = self;
        go_on(w, self->context);
    }
}

/* ---- what kernels call ----------------------------------------------------------------------- */

void shuffle_turns(Worker *w) {
    for (unsigned i = (unsigned)w->n - 1; i > 0; i--)
        std::swap(w->turn[i], w->turn[draw(w, i + 1)]);
}

void service_barrier(void *worker, int line) {
    Worker *w = (Worker *)worker;
    Thread *me = &w->thread[w->current];
    me->line = line;
    if (w->live < w->n)
        give_up(w, CUDA_ERROR_LAUNCH_FAILED,
                format("comes to __syncthreads in line %d after %d threads of its block have ended",
                       line, w->n - w->live));
    if (w->at_barrier > 0 && w->thread[w->turn[0]].state == Thread::BARRIER &&
        w->thread[w->turn[0]].line != line)
        give_up(w, CUDA_ERROR_LAUNCH_FAILED,
                format("comes to __syncthreads in line %d:", line) + who_waits(w));
    me->state = Thread::BARRIER;
    if (++w->at_barrier == w->n) {
        for (int t = 0; t < w->n; t++)
            if (w->thread[t].line != line)
                give_up(w, CUDA_ERROR_LAUNCH_FAILED, "two barriers at once:" + who_waits(w));
        w->at_barrier = 0;
        if (w->order == Order::RANDOM) shuffle_turns(w);
        for (int i = 0; i < w->n; i++) make_ready(w, w->turn[i]);
    }
    wait(w);
}

/* The last lane has come: checks that all do the same, does it, and lets the others go on. */
void together(Worker *w, Warp *warp, int first, unsigned mask, int lane) {
    Thread *me = &w->thread[first + lane];
    for (unsigned left = mask; left; left &= left - 1) {
        const Thread *x = &w->thread[first + __builtin_ctz(left)];
        if (x->mask != mask || x->together != me->together)
            give_up(w, CUDA_ERROR_LAUNCH_FAILED,
                    "lanes of one warp do different things together, or name different lanes");
    }
    me->together(warp->mine, mask);
    warp->waiting &= ~mask;
    const unsigned others_ = mask & ~(1u << lane);
    const int from = w->order == Order::RANDOM ? (int)draw(w, 32) : 0;
    for (int i = 0; i < 32; i++) {
        const int l = w->order == Order::REVERSE ? 31 - i : (i + from) % 32;
        if (others_ >> l & 1) make_ready(w, first + l);
    }
}

void service_warp(void *worker, unsigned mask, CudasimTogether *what, void *mine) {
    Worker *w = (Worker *)worker;
    const int t = w->current, first = t & ~31, lane = t & 31;
    Thread *me = &w->thread[t];
    Warp *warp = &w->warp[t / 32];
    const unsigned there = w->n - first >= 32 ? ~0u : (1u << (w->n - first)) - 1;
    if (!(mask >> lane & 1) || mask & (warp->ended | ~there))
        give_up(w, CUDA_ERROR_LAUNCH_FAILED,
                format("names the lanes %08x, but of its warp %08x are there, and it is lane %d",
                       mask, there & ~warp->ended, lane));
    me->mask = mask;
    me->together = what;
    warp->mine[lane] = mine;
    warp->waiting |= 1u << lane;
    if ((warp->waiting & mask) == mask) {
        together(w, warp, first, mask, lane);
        return;
    }
    me->state = Thread::WARP;
    wait(w);
}

bool service_is_shared(void *worker, const void *p, unsigned bytes) {
    const Worker *w = (const Worker *)worker;
    const char *at = (const char *)p, *dynamic = w->module->state->dynamic;
    return (at >= dynamic && at + bytes <= dynamic + w->launch->shared) ||
           (at >= w->module->shared_begin && at + bytes <= w->module->shared_end);
}

unsigned service_active(void *worker) {
    const Worker *w = (const Worker *)worker;
    const int first = w->current & ~31;
    const unsigned there = w->n - first >= 32 ? ~0u : (1u << (w->n - first)) - 1;
    return there & ~w->warp[first / 32].ended;
}

/* The place of an asynchronous copy holds poison until its wait: too early a read shows, and so
 * does one of what lay there before. */
void service_copy_later(void *worker, void *to, const void *from, unsigned bytes, unsigned room) {
    Worker *w = (Worker *)worker;
    if (!service_is_shared(w, to, room))
        give_up(w, CUDA_ERROR_ILLEGAL_ADDRESS, "an asynchronous copy ends outside shared memory");
    if (((size_t)to | (bytes ? (size_t)from : 0)) % room)
        give_up(w, CUDA_ERROR_MISALIGNED_ADDRESS, "an asynchronous copy is misaligned");
    memset(to, 0xff, room);
    w->thread[w->current].copies.push_back({(char *)to, (const char *)from, bytes, room, 0});
}

void service_copy_commit(void *worker) {
    Worker *w = (Worker *)worker;
    Thread *t = &w->thread[w->current];
    t->groups++;
    for (size_t i = t->copies.size(); i-- > 0 && !t->copies[i].group;)
        t->copies[i].group = t->groups;
}

void service_copy_wait(void *worker, int groups) {
    Worker *w = (Worker *)worker;
    Thread *t = &w->thread[w->current];
    size_t done = 0;
    while (done < t->copies.size()) {
        const Copy &c = t->copies[done];
        if (!c.group || c.group > t->groups - groups) break;
        memcpy(c.to, c.from, c.bytes);
        memset(c.to + c.bytes, 0, c.room - c.bytes);
        done++;
    }
    t->copies.erase(t->copies.begin(), t->copies.begin() + (long)done);
}

const CudasimServices services = {service_barrier,     service_warp,      service_copy_later,
                                  service_copy_commit, service_copy_wait, service_is_shared,
                                  service_active,      service_fault};

/* ---- blocks ---------------------------------------------------------------------------------- */

void new_worker(Worker *w) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, both = PROT_READ | PROT_WRITE;
    w->stacks = (char *)mmap(nullptr, (size_t)MAX_THREADS * (STACK + PAGE), both, flags, -1, 0);
    char *room = (char *)mmap(nullptr, ROOM + 2 * PAGE, PROT_NONE, flags, -1, 0);
    w->room = room + PAGE;
    mprotect(w->room, ROOM, both);
    for (int t = 0; t < MAX_THREADS; t++) w->thread[t].copies.reserve(8);
}

/* Makes the worker ready for blocks of this launch; false: the module cannot be loaded. */
bool prepare(Worker *w, const Launch *launch, Order order) {
    if (!w->stacks) new_worker(w);
    signal_stack();
    w->order = order;
    w->launch = launch;
    w->fault = Fault();
    w->module = module_copy(launch->module, w->number);
    if (!w->module) return false;
    w->kernel = &w->module->kernels[launch->kernel];
    CudasimState *s = w->module->state;
    s->worker = w;
    s->services = &services;
    s->block_dim = {launch->block[0], launch->block[1], launch->block[2]};
    s->grid_dim = {launch->grid[0], launch->grid[1], launch->grid[2]};
    s->dynamic = w->room + ROOM - (launch->shared + 127) / 128 * 128;
    w->n = (int)(launch->block[0] * launch->block[1] * launch->block[2]);
    for (int t = 0; t < w->n; t++) {
        const unsigned x = launch->block[0], y = launch->block[1], i = (unsigned)t;
        w->thread[t].index = {i % x, i / x % y, i / x / y};
        w->turn[t] = (unsigned short)(order == Order::REVERSE ? w->n - 1 - t : t);
    }
    return true;
}

void run_block(Worker *w, unsigned long long block, unsigned long long seed) {
    const Launch *l = w->launch;
    CudasimState *s = w->module->state;
    s->block = {(unsigned)(block % l->grid[0]), (unsigned)(block / l->grid[0] % l->grid[1]),
                (unsigned)(block / l->grid[0] / l->grid[1])};
    memset(w->module->shared_begin, 0xff,
           (size_t)(w->module->shared_end - w->module->shared_begin));
    memset(s->dynamic, 0xff, l->shared);
    w->random = seed * 0x9e3779b97f4a7c15ull + block;
    w->begun = w->at_barrier = 0;
    w->live = w->n;
    w->head = w->tail = 0;
    for (int t = 0; t < w->n; t++) {
        w->thread[t].state = Thread::NEW;
        w->thread[t].groups = 0;
        w->thread[t].copies.clear();
    }
    for (int i = 0; i * 32 < w->n; i++) w->warp[i].waiting = w->warp[i].ended = 0;
    if (w->order == Order::RANDOM) shuffle_turns(w);
    running = w;
    go_on(w, w->base);
    running = nullptr;
    if (!w->fault.code) return;
    w->free = nullptr; /* fibers were left where they stood */
    for (size_t i = 0; i < w->fibers.size(); i++) reset(w, w->fibers[i], i);
}

/* ---- several workers ------------------------------------------------------------------------- */

struct Job {
    const Launch *launch;
    Order order;
    unsigned long long seed, blocks, step; /* the i-th block to run is i * step % blocks */
    unsigned long long next;
    bool failed;
} job;
Worker *workers[MAX_WORKERS];
std::mutex &lock = *new std::mutex; /* helpers wait on them for ever: never destroyed */
std::condition_variable &work = *new std::condition_variable, &done = *new std::condition_variable;
int helpers, awake, wanted; /* threads there are; at work; still to be taken on */

void run_blocks(int number) {
    if (!workers[number]) workers[number] = new Worker(), workers[number]->number = number;
    Worker *w = workers[number];
    if (!prepare(w, job.launch, job.order)) {
        w->fault = {CUDA_ERROR_INVALID_IMAGE, "its module cannot be loaded"};
        __atomic_store_n(&job.failed, true, __ATOMIC_RELAXED);
    }
    while (!__atomic_load_n(&job.failed, __ATOMIC_RELAXED)) {
        const unsigned long long i = __atomic_fetch_add(&job.next, 1, __ATOMIC_RELAXED);
        if (i >= job.blocks) break;
        run_block(w, job.order == Order::REVERSE ? job.blocks - 1 - i : i * job.step % job.blocks,
                  job.seed);
        if (w->fault.code) __atomic_store_n(&job.failed, true, __ATOMIC_RELAXED);
    }
}

void helper(int number) {
    std::unique_lock<std::mutex> held(lock);
    for (;;) {
        work.wait(held, [] { return wanted > 0; });
        wanted--;
        held.unlock();
        run_blocks(number);
        held.lock();
        if (--awake == 0) done.notify_one();
    }
}

/* A step without a common divisor visits every block. */
unsigned long long coprime(unsigned long long n, unsigned long long seed) {
    unsigned long long step = n * 5 / 8 + seed % 16 + 1;
    for (;; step++) {
        unsigned long long a = n, b = step;
        while (b) {
            const unsigned long long c = a % b;
            a = b, b = c;
        }
        if (a == 1) return step;
    }
}

void read_order() {
    const char *text = getenv("CUDASIM_ORDER");
    job.order = Order::FORWARD;
    job.seed = 0;
    if (text && !strcmp(text, "reverse")) job.order = Order::REVERSE;
    if (text && !strncmp(text, "random", 6)) {
        job.order = Order::RANDOM;
        job.seed = text[6] == ':' ? strtoull(text + 7, nullptr, 10) : 1;
    }
    job.step = job.order == Order::RANDOM ? coprime(job.blocks, job.seed) : 1;
}

/* All blocks of a launch, on as many workers as are worth their while. */
void run_grid(const Launch &launch) {
    const unsigned long long threads = launch.block[0] * launch.block[1] * launch.block[2];
    const char *text = getenv("CUDASIM_WORKERS");
    int n = text ? atoi(text) : 2;
    job.launch = &launch;
    job.blocks = (unsigned long long)launch.grid[0] * launch.grid[1] * launch.grid[2];
    job.next = 0;
    job.failed = false;
    read_order();
    if (n > MAX_WORKERS) n = MAX_WORKERS;
    if (job.blocks < 2 || job.blocks * threads < 2048) n = 1;
    if (n > 1) {
        std::unique_lock<std::mutex> held(lock);
        while (helpers < n - 1) std::thread(helper, ++helpers).detach();
        awake = wanted = n - 1;
        work.notify_all();
    }
    run_blocks(0);
    if (n > 1) {
        std::unique_lock<std::mutex> held(lock);
        done.wait(held, [] { return awake == 0; });
    }
}

} // namespace

Fault fiber_run(const Launch &launch, std::string (*where)(const void *address)) {
    describe = where;
    struct sigaction act = {};
    act.sa_sigaction = on_signal;
    act.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int number : signals) sigaction(number, &act, &others[number]);
    run_grid(launch);
    for (int number : signals) sigaction(number, &others[number], nullptr);
    Fault fault;
    for (Worker *w : workers)
        if (w && w->fault.code) std::swap(fault, w->fault), w->fault = Fault();
    return fault;
}
