/* state.h: what the simulated driver knows: memory, streams of work, captures.  Private to
 * libcuda (cuda_*.cpp).  Relies on sim.h, fiber.h.
 */
#ifndef CUDASIM_STATE_H
#define CUDASIM_STATE_H

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include "fiber.h"
#include "sim.h"

/* ---- entering a function --------------------------------------------------------------------- */

enum class Need { NOTHING, INIT, CONTEXT };

extern std::recursive_mutex &the_lock;

/* Trace, fault injection, then whether the driver is initialised, a context current, and no
 * earlier fault sticks. */
CUresult enter(const char *function, Need need, const std::string &detail = "");
#define ENTER(...)                                                                                 \
    std::lock_guard<std::recursive_mutex> held(the_lock);                                          \
    if (CUresult error = enter(__func__, __VA_ARGS__)) return error

/* A call that could wait for, or change, what is being captured: invalidates the capture. */
CUresult refuse_in_capture();

extern CUresult sticky;
std::string describe_address(const void *address);

/* "40GiB", "512MiB", bytes. */
size_t read_bytes(const char *text, size_t otherwise);

/* What goes with the context, whether it was destroyed before or not: modules, events, graphs. */
template <class T> class Owned {
    std::set<T *> all;

  public:
    T *add(T *t) {
        return *all.insert(t).first;
    }
    bool drop(T *t) { /* false: there is no such thing */
        if (!all.erase(t)) return false;
        delete t;
        return true;
    }
    void drop_all() {
        for (T *t : all) delete t;
        all.clear();
    }
};

/* ---- memory (cuda_memory.cpp) ---------------------------------------------------------------- */

bool is_device(CUdeviceptr p);                  /* in the device's addresses, allocated or not */
bool device_range(CUdeviceptr p, size_t bytes); /* inside one allocation, or mapped host memory */
bool pinned_range(const void *p, size_t bytes); /* inside one piece of host memory of ours */
void memory_forget();                           /* frees all */
size_t memory_total();
/* While there is one, the host can touch device memory; only then, with CUDASIM_HIDE=1. */
struct Shown {
    Shown();
    ~Shown();
};

/* ---- work (cuda_stream.cpp) ------------------------------------------------------------------ */

typedef std::function<void()> Work;

struct Node {
    Work work;
    std::vector<std::shared_ptr<Node>> after; /* emptied once done */
    unsigned long long number;                /* in the order of calls */
    bool done = false;
};
typedef std::shared_ptr<Node> NodePtr;

/* Adds work to a stream (NULL: the legacy one), or to the graph that it is captured into. */
CUresult enqueue(CUstream stream, Work work);
/* Waits for all streams; not during a capture. */
CUresult drain();
/* The legacy stream's turn: waits for all blocking streams. */
CUresult wait_legacy();
void streams_forget(); /* events and graphs, too */

void modules_forget(); /* cuda_module.cpp */

#endif
