/* ranks.c: see ranks.h.  Relies on MPI where built with it (DPOC_MPI: the Makefile found mpicc).
 *
 * A process that waits for others (wait_for) looks often for a moment, then sleeps between looks
 * and watches whether they still live: so nothing waits in MPI's blocking calls. */
#include "ranks.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "job.h"

static int size = 1, rank, local_size = 1, local;

int ranks_size(void) {
    return size;
}

int ranks_rank(void) {
    return rank;
}

bool ranks_first(void) {
    return rank == 0;
}

int ranks_local(void) {
    return local;
}

int ranks_local_size(void) {
    return local_size;
}

/* The first of these variables that is set, as a number. */
static int from_environment(const char *const *names, size_t n, int otherwise) {
    for (size_t i = 0; i < n; i++) {
        const char *value = getenv(names[i]);
        if (value && *value) return atoi(value);
    }
    return otherwise;
}

int ranks_started(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};
    int n = from_environment(names, COUNT(names), 1);
    return n > 1 ? n : 1;
}

/* All of them have the same to say about how they were started: one does, before the launcher sees
 * another end and ends it. */
static bool cannot_join(const char *why, Err *err) {
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"};
    fail(err, EXIT_DEVICE, "one of %d processes started together, but %s", ranks_started(), why);
    if (from_environment(names, COUNT(names), 0) == 0)
        fprintf(stderr, "dpoc: error: %s\n", err->text);
    else
        sleep(1);
    return false;
}

/* ---- cores ----------------------------------------------------------------------------------- */

static int cores_bound(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

static int cores_share(void) {
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores > local_size ? (int)cores / local_size : 1;
}

int ranks_threads(void) {
    if (size == 1) return 0;
    int bound = cores_bound(), share = cores_share();
    return bound < share ? bound : share;
}

void ranks_print(void) {
    if (size == 1 || rank > 0) return;
    fprintf(stderr, "  %-12s%d, of them %d on this machine with %d thread%s each\n", "processes",
            size, local_size, ranks_threads(), ranks_threads() == 1 ? "" : "s");
    if (ranks_threads() < cores_share())
        fprintf(stderr, "note: each is bound to %d of its %d cores: mpirun --bind-to none\n",
                ranks_threads(), cores_share());
}

#ifdef DPOC_MPI
#    include <mpi.h>

enum { HOST = 64 };
typedef struct Process {
    char host[HOST];
    int pid;
} Process;

static MPI_Comm data, ends;       /* steps; the end alone, so that a failure meets no step */
static Process *process;          /* [size] */
static int held = -1, shown = -1; /* rank > 0: what it says on stderr, and where that would go */
static bool open_;

/* ---- what is said ---------------------------------------------------------------------------- */

static void hold_stderr(void) {
    if (rank == 0) return;
    held = memfd_create("stderr", MFD_CLOEXEC);
    shown = dup(STDERR_FILENO);
    if (held >= 0 && shown >= 0) dup2(held, STDERR_FILENO);
}

static void show_held(void) {
    if (held < 0 || shown < 0) return;
    fflush(stderr);
    dup2(shown, STDERR_FILENO);
    char text[4096];
    fprintf(stderr, "rank %d on %s:\n", rank, process[rank].host);
    lseek(held, 0, SEEK_SET);
    for (ssize_t n; (n = read(held, text, sizeof text)) > 0;) fwrite(text, 1, (size_t)n, stderr);
    held = -1;
}

static void end_job(int code) {
    open_ = false;
    show_held();
    fflush(stderr);
    MPI_Abort(MPI_COMM_WORLD, code);
    _exit(code);
}

/* Something called exit(): it has said why. */
static void left_early(void) {
    if (open_) end_job(EXIT_MEMORY);
}

/* ---- waiting --------------------------------------------------------------------------------- */

/* A process of this machine that is no more; -1: none. */
static int lost(void) {
    for (int i = 0; i < size; i++)
        if (!strcmp(process[i].host, process[rank].host) && kill(process[i].pid, 0) &&
            errno == ESRCH)
            return i;
    return -1;
}

/* False: not done after `seconds` (0: waits for ever, but not for a process that died). */
static bool wait_for(MPI_Request *request, double seconds) {
    enum { LOOKS = 2000 }; /* before it sleeps: about 2 ms */
    const double start = now_seconds(), every = 0.2;
    double looked = start;
    for (int n = 0, done = 0;; n++) {
        MPI_Test(request, &done, MPI_STATUS_IGNORE);
        if (done) return true;
        if (n < LOOKS) {
            sched_yield();
            continue;
        }
        nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
        double now = now_seconds();
        if (seconds > 0 && now - start > seconds) return false;
        if (now - looked < every) continue;
        looked = now;
        int gone = seconds > 0 ? -1 : lost();
        if (gone < 0) continue;
        if (held >= 0 && ftruncate(held, 0) == 0) lseek(held, 0, SEEK_SET);
        fprintf(stderr,
                "dpoc: error: rank %d (process %d on %s) was lost: the job ends\n"
                "help: the newest checkpoint is intact: --resume goes on from it\n",
                gone, process[gone].pid, process[gone].host);
        end_job(EXIT_DEVICE);
    }
}

/* ---- the beginning and the end --------------------------------------------------------------- */

static void meet(void) {
    MPI_Comm here;
    MPI_Comm_dup(MPI_COMM_WORLD, &data);
    MPI_Comm_dup(MPI_COMM_WORLD, &ends);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &here);
    MPI_Comm_rank(here, &local);
    MPI_Comm_size(here, &local_size);
    MPI_Comm_free(&here);
    Process self = {.pid = (int)getpid()};
    gethostname(self.host, HOST - 1);
    process = calloc((size_t)size, sizeof *process);
    MPI_Allgather(&self, sizeof self, MPI_BYTE, process, sizeof self, MPI_BYTE, data);
}

bool ranks_open(Err *err) {
    int level;
    MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (size != ranks_started()) {
        size = 1;
        MPI_Finalize();
        return cannot_join("MPI does not know of the others\n"
                           "help: mpirun of the MPI that dpoc was built with, or srun --mpi=pmix",
                           err);
    }
    meet();
    hold_stderr();
    open_ = true;
    atexit(left_early);
    return true;
}

int ranks_close(int code) {
    enum { PATIENCE = 2 }; /* seconds in which the others fail of the same */
    if (!open_) return code;
    bool failed = code != EXIT_OK && code < 128;
    int *codes = calloc((size_t)size, sizeof *codes);
    MPI_Request request;
    MPI_Iallgather(&code, 1, MPI_INT, codes, 1, MPI_INT, ends, &request);
    if (!wait_for(&request, failed ? PATIENCE : 0)) end_job(code);
    if (failed && codes[0] != code) show_held();
    open_ = false;
    MPI_Finalize();
    free(codes);
    free(process);
    return code;
}

/* ---- together -------------------------------------------------------------------------------- */

void ranks_barrier(void) {
    if (size == 1) return;
    MPI_Request request;
    MPI_Ibarrier(data, &request);
    wait_for(&request, 0);
}

int ranks_max(int x) {
    if (size == 1) return x;
    int most;
    MPI_Request request;
    MPI_Iallreduce(&x, &most, 1, MPI_INT, MPI_MAX, data, &request);
    wait_for(&request, 0);
    return most;
}

/* Each process gets everyone's numbers for its part of a block, adds them in the order of ranks,
 * and gives the sums to all: twice the block over the wire, whatever the size. */
void ranks_sum(float *x, int64_t n) {
    enum { PART = 1 << 16 };
    if (size == 1 || n == 0) return;
    MPI_Request request;
    const size_t room = (size_t)size * PART;
    float *block = calloc(room, sizeof *block), *parts = calloc(room, sizeof *parts);
    float *sum = calloc(PART, sizeof *sum);
    if (!block || !parts || !sum) {
        fprintf(stderr, "dpoc: error: no host memory to add gradients in\n");
        end_job(EXIT_MEMORY);
    }
    for (int64_t at = 0; at < n; at += (int64_t)room) {
        const int64_t count = n - at < (int64_t)room ? n - at : (int64_t)room;
        const int part = (int)((count + size - 1) / size);
        memcpy(block, x + at, sizeof *x * (size_t)count);
        MPI_Ialltoall(block, part, MPI_FLOAT, parts, part, MPI_FLOAT, data, &request);
        wait_for(&request, 0);
        for (int i = 0; i < part; i++) {
            double all = 0;
            for (int r = 0; r < size; r++) all += (double)parts[r * part + i];
            sum[i] = (float)all;
        }
        MPI_Iallgather(sum, part, MPI_FLOAT, block, part, MPI_FLOAT, data, &request);
        wait_for(&request, 0);
        memcpy(x + at, block, sizeof *x * (size_t)count);
    }
    free(block);
    free(parts);
    free(sum);
}

bool ranks_same(const RankFact *facts, int n, Err *err) {
    if (size == 1) return true;
    Text text = {0};
    Hash128 *all = calloc((size_t)size, sizeof *all);
    MPI_Request request;
    for (int i = 0; i < n; i++) {
        MPI_Iallgather(&facts[i].hash, sizeof *all, MPI_BYTE, all, sizeof *all, MPI_BYTE, data,
                       &request);
        wait_for(&request, 0);
        for (int r = 1; r < size; r++)
            if (memcmp(&all[r], &all[0], sizeof *all) != 0)
                text_add(&text, "\n  %s: rank %d on %s has others than rank 0 on %s", facts[i].what,
                         r, process[r].host, process[0].host);
    }
    bool same = text.len == 0;
    if (!same)
        fail(err, EXIT_INPUT, "the processes of the job do not work on the same:%.1500s",
             text.data);
    text_free(&text);
    free(all);
    return same;
}

#else

bool ranks_open(Err *err) {
    return cannot_join("this dpoc was built without MPI, and each would train by itself\n"
                       "help: with libopenmpi-dev installed (mpicc), run make again",
                       err);
}

int ranks_close(int code) {
    return code;
}

void ranks_barrier(void) {}

int ranks_max(int x) {
    return x;
}

void ranks_sum(float *x, int64_t n) {
    (void)x, (void)n;
}

bool ranks_same(const RankFact *facts, int n, Err *err) {
    (void)facts, (void)n, (void)err;
    return true;
}

#endif
