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
    struct Index { /* as CudasimState has it */
        CudasimIndex index;
        unsigned number;
    } index;
    Context context; /* while it waits */
    Fiber *fiber;
};

struct Copies { /* of a thread */
    std::vector<Copy> list;
    int groups; /* committed */
};

struct Warp {
    unsigned ready, waiting, ended; /* lanes: that may go on; that wait for others; without work */
    bool queued;
    unsigned mask[32]; /* the lanes that a lane waits for, what to do then, with what */
    CudasimTogether *together[32];
    void *mine[32];
};

struct Worker {
    int number;
    Order order;
    unsigned long long random;
    const Launch *launch;
    CudasimModule *module;
    CudasimKernel *kernel;
    CudasimState *state; /* of the module */
    Fault fault;

    Context base;
    Fiber *fiber, *free; /* the one that runs; those without a thread */
    int nfibers;
    char *stacks, *room;

    int n, begun, live, current;
    int at_barrier, barrier;             /* threads that wait, and where */
    int queue[MAX_THREADS / 32], queued; /* warps with lanes that may go on; the last goes first */
    unsigned short turn[MAX_THREADS];
    Thread thread[MAX_THREADS];
    int barriers[MAX_THREADS]; /* the line of the one that a thread waits at; 0: none */
    Warp warp[MAX_THREADS / 32];
    Fiber fibers[MAX_THREADS];
    Copies copies[MAX_THREADS];
};

thread_local Worker *running; /* a kernel, on this thread of the host */
std::string (*describe)(const void *);

unsigned draw(Worker *w, unsigned n) {
    w->random = w->random * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)((w->random >> 33) % n);
}

/* ---- faults ---------------------------------------------------------------------------------- */

std::string thread_name(const Worker *w, int t) {
    const CudasimIndex &b = w->module->state->block, &i = w->thread[t].index.index;
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

/* Tops of stacks lie apart in the cache. */
void reset(Worker *w, int i) {
    Fiber *f = &w->fibers[i];
    context_make(f->context, f->stack, STACK - (size_t)i * 192 % 4096, fiber_main, w);
    f->next = w->free;
    w->free = f;
}

void new_fiber(Worker *w) {
    const int i = w->nfibers++;
    w->fibers[i].stack = w->stacks + (size_t)i * (STACK + PAGE) + PAGE;
    mprotect(w->fibers[i].stack - PAGE, PAGE, PROT_NONE);
    reset(w, i);
}

void set_current(Worker *w, Thread *t) {
    w->current = (int)(t - w->thread);
    w->fiber = t->fiber;
    memcpy(&w->state->thread, &t->index, sizeof t->index);
}

/* These lanes of a warp may go on, before those of other warps. */
void make_ready(Worker *w, int warp, unsigned lanes) {
    Warp *x = &w->warp[warp];
    x->ready |= lanes;
    if (lanes && !x->queued) w->queue[w->queued++] = warp;
    x->queued |= lanes != 0;
}

int next_ready(Worker *w) {
    int at = w->queued - 1;
    if (w->order == Order::RANDOM) std::swap(w->queue[draw(w, (unsigned)w->queued)], w->queue[at]);
    const int warp = w->queue[at];
    Warp *x = &w->warp[warp];
    int lane = __builtin_ctz(x->ready);
    if (w->order == Order::REVERSE) lane = 31 - __builtin_clz(x->ready);
    if (w->order == Order::RANDOM) {
        const unsigned above = x->ready & (~0u << draw(w, 32));
        if (above) lane = __builtin_ctz(above);
    }
    x->ready &= ~(1u << lane);
    if (!x->ready) x->queued = false, w->queued--;
    return warp * 32 + lane;
}

std::string who_waits(const Worker *w) {
    std::string text;
    int said = 0;
    for (int t = 0; t < w->n && said < 4; t++) {
        const int before = t ? w->barriers[t - 1] : 0;
        if (w->barriers[t] && w->barriers[t] != before)
            text += format(" thread %d waits at __syncthreads in line %d;", t, w->barriers[t]),
                said++;
        const Warp &x = w->warp[t / 32];
        if (x.waiting >> t % 32 & 1 && (t % 32 == 0 || x.mask[t % 32] != x.mask[t % 32 - 1]))
            text += format(" thread %d waits for the lanes %08x of its warp;", t, x.mask[t % 32]),
                said++;
    }
    return text;
}

/* Leaves what runs (its state goes to `save`) for whatever can go on. */
__attribute__((noinline)) void go_on(Worker *w, Context &save) {
    bool fresh = w->begun < w->n;
    if (fresh && w->queued && w->order == Order::REVERSE) fresh = false;
    if (fresh && w->queued && w->order == Order::RANDOM) fresh = draw(w, 2);
    if (fresh) {
        if (!w->free) new_fiber(w);
        w->fiber = w->free;
        w->free = w->fiber->next;
        if (&w->fiber->context != &save) context_switch(save, w->fiber->context);
    } else if (w->queued) {
        Thread *next = &w->thread[next_ready(w)];
        set_current(w, next);
        if (&next->context != &save) context_switch(save, next->context);
    } else if (w->live == 0) {
        context_switch(save, w->base);
    } else {
        give_up(w, CUDA_ERROR_LAUNCH_FAILED, "no thread of the block can go on:" + who_waits(w));
    }
}

/* The thread that runs waits until it is made ready.  What happens most is done here, in few
 * registers: the next lane of the same warp goes on. */
__attribute__((always_inline)) inline void wait(Worker *w) {
    Thread *me = &w->thread[w->current];
    me->fiber = w->fiber;
    if (w->begun < w->n || !w->queued || w->order == Order::RANDOM) return go_on(w, me->context);
    const int warp = w->queue[w->queued - 1];
    Warp *x = &w->warp[warp];
    const unsigned ready = x->ready;
    const int lane = w->order == Order::REVERSE ? 31 - __builtin_clz(ready) : __builtin_ctz(ready);
    Thread *next = &w->thread[warp * 32 + lane];
    x->ready = ready & ~(1u << lane);
    if (!x->ready)
        x->queued = false, w->queued--;
    else
        context_prefetch(next[w->order == Order::REVERSE ? -1 : 1].context);
    set_current(w, next);
    if (next != me) context_switch(me->context, next->context);
}

void end_thread(Worker *w, int t) {
    Warp *warp = &w->warp[t / 32];
    const unsigned bit = 1u << t % 32;
    w->live--;
    warp->ended |= bit;
    if (w->at_barrier > 0)
        give_up(w, CUDA_ERROR_LAUNCH_FAILED, "ends while others wait at a barrier:" + who_waits(w));
    for (unsigned left = warp->waiting; left; left &= left - 1)
        if (warp->mask[__builtin_ctz(left)] & bit)
            give_up(w, CUDA_ERROR_LAUNCH_FAILED,
                    "ends while its warp waits for it:" + who_waits(w));
}

void fiber_main(void *worker) {
    Worker *w = (Worker *)worker;
    for (;;) {
        Fiber *self = w->fiber;
        while (w->begun < w->n) {
            Thread *t = &w->thread[w->turn[w->begun++]];
            t->fiber = self;
            set_current(w, t);
            w->kernel->call(w->launch->arguments.data());
            end_thread(w, w->current);
            if (w->queued && w->order != Order::FORWARD) break;
        }
        self->next = w->free;
        w->free = self;
        go_on(w, self->context);
    }
}

/* ---- what kernels call ----------------------------------------------------------------------- */

unsigned lanes_there(const Worker *w, int first) {
    return w->n - first >= 32 ? ~0u : (1u << (w->n - first)) - 1;
}

[[noreturn]] __attribute__((noinline)) void no_barrier(Worker *w, int line) {
    const std::string comes = format("comes to __syncthreads in line %d", line);
    if (w->live < w->n)
        give_up(w, CUDA_ERROR_LAUNCH_FAILED,
                comes + format(" after %d threads of its block have ended", w->n - w->live));
    give_up(w, CUDA_ERROR_LAUNCH_FAILED, comes + ":" + who_waits(w));
}

__attribute__((noinline)) void end_barrier(Worker *w) {
    w->at_barrier = 0;
    for (int t = 0; t < w->n; t++) w->barriers[t] = 0;
    const int warps = (w->n + 31) / 32;
    for (int i = 0; i < warps; i++) {
        const int warp = w->order == Order::REVERSE ? i : warps - 1 - i;
        make_ready(w, warp, lanes_there(w, 32 * warp));
    }
}

void service_barrier(void *worker, int line) {
    Worker *w = (Worker *)worker;
    if (w->live < w->n || (w->at_barrier > 0 && w->barrier != line)) no_barrier(w, line);
    w->barrier = line;
    w->barriers[w->current] = line;
    if (++w->at_barrier == w->n) end_barrier(w);
    wait(w);
}

[[noreturn]] __attribute__((noinline)) void absent(Worker *w, unsigned mask) {
    give_up(w, CUDA_ERROR_LAUNCH_FAILED,
            format("names the lanes %08x, but of its warp %08x are there, and it is lane %d", mask,
                   ~w->warp[w->current / 32].ended, w->current % 32));
}

[[noreturn]] __attribute__((noinline)) void different(Worker *w) {
    give_up(w, CUDA_ERROR_LAUNCH_FAILED,
            "lanes of one warp do different things together, or name different lanes");
}

/* The last lane has come. */
__attribute__((noinline)) void together_now(Worker *w, unsigned mask, CudasimTogether *together) {
    const int number = w->current / 32;
    Warp *warp = &w->warp[number];
    together(warp->mine, mask);
    const unsigned rest = warp->waiting & mask;
    warp->waiting &= ~mask;
    make_ready(w, number, rest);
}

void service_warp(void *worker, unsigned mask, CudasimTogether *together, void *mine) {
    Worker *w = (Worker *)worker;
    const unsigned lane = (unsigned)w->current % 32, bit = 1u << lane;
    Warp *warp = &w->warp[(unsigned)w->current / 32];
    if (!(mask & bit) || mask & warp->ended) absent(w, mask);
    const unsigned rest = warp->waiting & mask;
    if (rest) {
        const int other = __builtin_ctz(rest);
        if (warp->mask[other] != mask || warp->together[other] != together) different(w);
    }
    warp->mine[lane] = mine;
    if ((rest | bit) == mask) return together_now(w, mask, together);
    warp->mask[lane] = mask;
    warp->together[lane] = together;
    warp->waiting |= bit;
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
    return ~w->warp[w->current / 32].ended;
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
    w->copies[w->current].list.push_back({(char *)to, (const char *)from, bytes, room, 0});
}

void service_copy_commit(void *worker) {
    Worker *w = (Worker *)worker;
    Copies *c = &w->copies[w->current];
    c->groups++;
    for (size_t i = c->list.size(); i-- > 0 && !c->list[i].group;) c->list[i].group = c->groups;
}

void service_copy_wait(void *worker, int groups) {
    Worker *w = (Worker *)worker;
    Copies *all = &w->copies[w->current];
    size_t done = 0;
    for (; done < all->list.size(); done++) {
        const Copy &c = all->list[done];
        if (!c.group || c.group > all->groups - groups) break;
        memcpy(c.to, c.from, c.bytes);
        memset(c.to + c.bytes, 0, c.room - c.bytes);
    }
    all->list.erase(all->list.begin(), all->list.begin() + (long)done);
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
    for (Copies &c : w->copies) c.list.reserve(8);
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
    CudasimState *s = w->state = w->module->state;
    s->worker = w;
    s->services = &services;
    s->block_dim = {launch->block[0], launch->block[1], launch->block[2]};
    s->grid_dim = {launch->grid[0], launch->grid[1], launch->grid[2]};
    s->dynamic = w->room + ROOM - (launch->shared + 127) / 128 * 128;
    w->n = (int)(launch->block[0] * launch->block[1] * launch->block[2]);
    for (int t = 0; t < w->n; t++) {
        const unsigned x = launch->block[0], y = launch->block[1], i = (unsigned)t;
        w->thread[t].index = {{i % x, i / x % y, i / x / y}, i};
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
    w->begun = w->at_barrier = w->queued = 0;
    w->live = w->n;
    for (int t = 0; t < w->n; t++) {
        w->barriers[t] = 0;
        w->copies[t].groups = 0;
        w->copies[t].list.clear();
    }
    for (int i = 0; i * 32 < w->n; i++) {
        Warp *x = &w->warp[i];
        x->ready = x->waiting = 0;
        x->queued = false;
        x->ended = ~lanes_there(w, 32 * i);
    }
    for (int i = w->n - 1; i > 0 && w->order == Order::RANDOM; i--)
        std::swap(w->turn[i], w->turn[draw(w, (unsigned)i + 1)]);
    running = w;
    go_on(w, w->base);
    running = nullptr;
    if (!w->fault.code) return;
    w->free = nullptr; /* fibers were left where they stood */
    for (int i = 0; i < w->nfibers; i++) reset(w, i);
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
