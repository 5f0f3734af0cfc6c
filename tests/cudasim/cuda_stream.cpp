/* cuda_stream.cpp: streams, events, captured graphs of the simulated driver.
 *
 * A piece of work is a node that comes after others: the one before it in its stream, those of
 * events waited for, and where the legacy stream is concerned all before it.  Usually a node runs
 * as soon as it is put in.  With CUDASIM_LAZY=1 nothing runs until it is waited for, and then
 * always the newest piece that may run goes first; with CUDASIM_LAZY=random:SEED any.  So work
 * that lacks a wait for an event comes too early, or too late.
 */
#include "state.h"

#include <algorithm>
#include <chrono>
#include <deque>

struct Capture;

struct CUstream_st {
    bool blocking;
    std::deque<NodePtr> queue;
    NodePtr last;
    std::shared_ptr<Capture> capture;
    std::vector<int> frontier; /* of the capture: what comes next comes after these nodes */
};

struct CUevent_st {
    bool timed;
    NodePtr node; /* of the last record */
    std::shared_ptr<double> seconds;
    std::shared_ptr<Capture> capture; /* the last record was captured */
    std::vector<int> frontier;
};

struct Captured {
    Work work;
    std::vector<int> after;
};

struct Capture {
    std::vector<Captured> nodes;
    CUstream origin;
    CUstreamCaptureMode mode;
    std::thread::id thread;
    bool invalid = false, ended = false;
};

struct CUgraph_st {
    std::vector<Captured> nodes;
};

struct CUgraphExec_st {
    std::vector<Captured> nodes;
};

namespace {

Owned<CUevent_st> &events = *new Owned<CUevent_st>;
Owned<CUgraph_st> &graphs = *new Owned<CUgraph_st>;
Owned<CUgraphExec_st> &execs = *new Owned<CUgraphExec_st>;
std::vector<CUstream> &streams = *new std::vector<CUstream>;
std::vector<std::weak_ptr<Capture>> &captures = *new std::vector<std::weak_ptr<Capture>>;
CUstream_st &legacy = *new CUstream_st{true, {}, nullptr, nullptr, {}};
unsigned long long numbered;

double now() {
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

CUstream resolve(CUstream s) {
    return !s || s == CU_STREAM_LEGACY ? &legacy : s;
}

bool known(CUstream s) {
    return s == &legacy || std::find(streams.begin(), streams.end(), s) != streams.end();
}

/* ---- running --------------------------------------------------------------------------------- */

enum class Pick { EAGER, NEWEST, RANDOM };

Pick pick() {
    const char *text = getenv("CUDASIM_LAZY");
    if (!text || !*text || *text == '0') return Pick::EAGER;
    return strncmp(text, "random", 6) ? Pick::NEWEST : Pick::RANDOM;
}

/* One of n that may go first; number(i) grows with the order of calls. */
template <class Number> size_t first_of(size_t n, Number number) {
    static unsigned long long random;
    static std::string setting;
    size_t best = 0;
    const Pick how = pick();
    if (how == Pick::RANDOM) {
        const char *text = getenv("CUDASIM_LAZY");
        if (setting != text) setting = text, random = text[6] ? strtoull(text + 7, nullptr, 10) : 1;
        random = random * 6364136223846793005ull + 1442695040888963407ull;
        return (random >> 33) % n;
    }
    for (size_t i = 1; i < n; i++)
        if (how == Pick::NEWEST ? number(i) > number(best) : number(i) < number(best)) best = i;
    return best;
}

bool may_run(const NodePtr &node) {
    for (const NodePtr &a : node->after)
        if (!a->done) return false;
    return true;
}

/* Runs one piece of work; false: nothing is left. */
bool run_one() {
    std::vector<CUstream> ready;
    if (!legacy.queue.empty() && may_run(legacy.queue.front())) ready.push_back(&legacy);
    for (CUstream s : streams)
        if (!s->queue.empty() && may_run(s->queue.front())) ready.push_back(s);
    if (ready.empty()) return false;
    CUstream s =
        ready[first_of(ready.size(), [&](size_t i) { return ready[i]->queue.front()->number; })];
    NodePtr node = s->queue.front();
    s->queue.pop_front();
    if (!sticky && node->work) {
        const Shown now;
        node->work();
    }
    node->done = true;
    node->after.clear();
    node->work = nullptr;
    return true;
}

void run_until(const NodePtr &node) {
    while (node && !node->done && run_one()) {
    }
}

/* A graph's nodes, each after those it depends on. */
void run_graph(const std::vector<Captured> &nodes) {
    std::vector<bool> done(nodes.size());
    for (size_t left = nodes.size(); left > 0; left--) {
        std::vector<size_t> ready;
        for (size_t i = 0; i < nodes.size(); i++) {
            bool may = !done[i];
            for (int a : nodes[i].after) may = may && done[(size_t)a];
            if (may) ready.push_back(i);
            if (may && pick() == Pick::EAGER) break;
        }
        const size_t i = ready[first_of(ready.size(), [&](size_t r) { return ready[r]; })];
        if (!sticky && nodes[i].work) nodes[i].work();
        done[i] = true;
    }
}

/* ---- putting in ------------------------------------------------------------------------------ */

void join(std::vector<int> &to, const std::vector<int> &more) {
    for (int i : more)
        if (std::find(to.begin(), to.end(), i) == to.end()) to.push_back(i);
}

CUresult put(CUstream s, Work work, NodePtr also_after = nullptr) {
    NodePtr node = std::make_shared<Node>();
    node->work = std::move(work);
    node->number = ++numbered;
    if (s->last) node->after.push_back(s->last);
    if (also_after) node->after.push_back(also_after);
    if (s != &legacy && s->blocking && legacy.last) node->after.push_back(legacy.last);
    for (CUstream other : streams)
        if (s == &legacy && other->blocking && other->last) node->after.push_back(other->last);
    s->last = node;
    s->queue.push_back(node);
    while (pick() == Pick::EAGER && run_one()) {
    }
    return CUDA_SUCCESS;
}

CUresult note(CUstream s, Work work) {
    if (s->capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    s->capture->nodes.push_back({std::move(work), s->frontier});
    s->frontier = {(int)s->capture->nodes.size() - 1};
    return CUDA_SUCCESS;
}

/* Work of the legacy stream would come between captured work of blocking streams. */
CUresult refuse_legacy() {
    for (CUstream s : streams)
        if (s->blocking && s->capture) {
            s->capture->invalid = true;
            return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        }
    return CUDA_SUCCESS;
}

/* The stream is being captured: it cannot be waited for. */
CUresult refuse_captured(const std::shared_ptr<Capture> &capture) {
    if (!capture || capture->ended) return CUDA_SUCCESS;
    capture->invalid = true;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

} // namespace

CUresult enqueue(CUstream stream, Work work) {
    CUstream s = resolve(stream);
    if (!known(s)) return CUDA_ERROR_INVALID_HANDLE;
    if (s->capture) return note(s, std::move(work));
    if (s == &legacy)
        if (CUresult error = refuse_legacy()) return error;
    return put(s, std::move(work));
}

CUresult refuse_in_capture() {
    for (const auto &weak : captures) {
        auto c = weak.lock();
        if (!c || c->ended || c->mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
        if (c->mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL &&
            c->thread != std::this_thread::get_id())
            continue;
        return refuse_captured(c);
    }
    return CUDA_SUCCESS;
}

CUresult drain() {
    for (CUstream s : streams)
        if (CUresult error = refuse_captured(s->capture)) return error;
    while (run_one()) {
    }
    return sticky;
}

CUresult wait_legacy() {
    if (CUresult error = refuse_in_capture()) return error;
    if (CUresult error = refuse_legacy()) return error;
    if (CUresult error = put(&legacy, nullptr)) return error;
    run_until(legacy.last);
    return sticky;
}

void streams_forget() {
    for (CUstream s : streams) delete s;
    streams.clear();
    captures.clear();
    events.drop_all();
    graphs.drop_all();
    execs.drop_all();
    legacy.queue.clear();
    legacy.last = nullptr;
}

extern "C" {

CUresult cudasim_enqueue(CUstream stream, void (*fn)(void *), const void *args, size_t bytes) {
    std::lock_guard<std::recursive_mutex> held(the_lock);
    if (sticky) return sticky;
    auto copy = std::make_shared<std::string>((const char *)args, bytes);
    return enqueue(stream, [=] {
        std::string own = *copy; /* a graph may run it again */
        fn(&own[0]);
    });
}

/* ---- streams --------------------------------------------------------------------------------- */

/* Priorities are taken and mean nothing here. */
CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    ENTER(Need::CONTEXT);
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return CUDA_SUCCESS;
}

CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned flags, int) {
    ENTER(Need::CONTEXT);
    if (!stream || flags & ~(unsigned)CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
    *stream = new CUstream_st{!(flags & CU_STREAM_NON_BLOCKING), {}, nullptr, nullptr, {}};
    streams.push_back(*stream);
    return CUDA_SUCCESS;
}

CUresult cuStreamDestroy(CUstream stream) {
    ENTER(Need::CONTEXT);
    const auto i = std::find(streams.begin(), streams.end(), stream);
    if (i == streams.end()) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) stream->capture->invalid = true;
    run_until(stream->last);
    streams.erase(i);
    delete stream;
    return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream stream) {
    ENTER(Need::CONTEXT);
    CUstream s = resolve(stream);
    if (!known(s)) return CUDA_ERROR_INVALID_HANDLE;
    if (CUresult error = refuse_captured(s->capture)) return error;
    if (s == &legacy) return wait_legacy();
    run_until(s->last);
    return sticky;
}

CUresult cuStreamQuery(CUstream stream) {
    ENTER(Need::CONTEXT);
    CUstream s = resolve(stream);
    if (!known(s)) return CUDA_ERROR_INVALID_HANDLE;
    if (CUresult error = refuse_captured(s->capture)) return error;
    if (s->last && !s->last->done) return run_one(), CUDA_ERROR_NOT_READY;
    return CUDA_SUCCESS;
}

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
    ENTER(Need::CONTEXT);
    CUstream s = resolve(stream);
    if (!known(s) || !event) return CUDA_ERROR_INVALID_HANDLE;
    if (event->capture && event->capture->ended) return CUDA_ERROR_CAPTURED_EVENT;
    if (event->capture) {
        if (s->capture && s->capture != event->capture) return CUDA_ERROR_STREAM_CAPTURE_MERGE;
        s->capture = event->capture;
        join(s->frontier, event->frontier);
        return CUDA_SUCCESS;
    }
    if (s->capture) {
        s->capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    return event->node ? put(s, nullptr, event->node) : CUDA_SUCCESS;
}

CUresult cuStreamWriteValue32(CUstream stream, CUdeviceptr to, cuuint32_t value, unsigned) {
    ENTER(Need::CONTEXT);
    if (to % 4 || !device_range(to, 4)) return CUDA_ERROR_INVALID_VALUE;
    return enqueue(stream, [=] { *(volatile cuuint32_t *)to = value; });
}

/* ---- events ---------------------------------------------------------------------------------- */

CUresult cuEventCreate(CUevent *event, unsigned flags) {
    ENTER(Need::CONTEXT);
    *event = events.add(
        new CUevent_st{!(flags & CU_EVENT_DISABLE_TIMING), nullptr, nullptr, nullptr, {}});
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent event) {
    ENTER(Need::CONTEXT);
    return events.drop(event) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
    ENTER(Need::CONTEXT);
    CUstream s = resolve(stream);
    if (!known(s) || !event) return CUDA_ERROR_INVALID_HANDLE;
    event->capture = s->capture;
    event->frontier = s->frontier;
    event->node = nullptr;
    if (s->capture)
        return s->capture->invalid ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
    auto seconds = std::make_shared<double>(0);
    event->seconds = seconds;
    if (CUresult error = enqueue(stream, [=] { *seconds = now(); })) return error;
    event->node = s->last;
    return CUDA_SUCCESS;
}

CUresult cuEventSynchronize(CUevent event) {
    ENTER(Need::CONTEXT);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    if (CUresult error = refuse_captured(event->capture)) return error;
    run_until(event->node);
    return sticky;
}

CUresult cuEventQuery(CUevent event) {
    ENTER(Need::CONTEXT);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    if (CUresult error = refuse_captured(event->capture)) return error;
    if (event->node && !event->node->done) return run_one(), CUDA_ERROR_NOT_READY;
    return CUDA_SUCCESS;
}

static CUresult elapsed(float *milliseconds, CUevent begin, CUevent end) {
    if (!begin || !end || !begin->timed || !end->timed || !begin->node || !end->node)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!begin->node->done || !end->node->done) return CUDA_ERROR_NOT_READY;
    *milliseconds = (float)(1e3 * (*end->seconds - *begin->seconds));
    return CUDA_SUCCESS;
}

CUresult cuEventElapsedTime(float *milliseconds, CUevent begin, CUevent end) {
    ENTER(Need::CONTEXT);
    return elapsed(milliseconds, begin, end);
}

/* ---- capture --------------------------------------------------------------------------------- */

CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
    ENTER(Need::CONTEXT);
    CUstream s = resolve(stream);
    if (!known(s)) return CUDA_ERROR_INVALID_HANDLE;
    if (s == &legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (s->capture) return CUDA_ERROR_ILLEGAL_STATE;
    s->capture = std::make_shared<Capture>();
    s->capture->origin = s;
    s->capture->mode = mode;
    s->capture->thread = std::this_thread::get_id();
    s->frontier.clear();
    captures.push_back(s->capture);
    return CUDA_SUCCESS;
}

/* Whether the origin's end comes after every node. */
static bool all_joined(const Capture &c, const std::vector<int> &end) {
    std::vector<bool> before(c.nodes.size());
    std::vector<int> todo = end;
    while (!todo.empty()) {
        const int i = todo.back();
        todo.pop_back();
        if (before[(size_t)i]) continue;
        before[(size_t)i] = true;
        todo.insert(todo.end(), c.nodes[(size_t)i].after.begin(), c.nodes[(size_t)i].after.end());
    }
    return std::find(before.begin(), before.end(), false) == before.end();
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
    ENTER(Need::CONTEXT);
    CUstream s = resolve(stream);
    *graph = nullptr;
    if (!known(s)) return CUDA_ERROR_INVALID_HANDLE;
    std::shared_ptr<Capture> c = s->capture;
    if (!c) return CUDA_ERROR_ILLEGAL_STATE;
    if (c->origin != s) return c->invalid = true, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    const bool joined = all_joined(*c, s->frontier);
    for (CUstream other : streams)
        if (other->capture == c) other->capture = nullptr, other->frontier.clear();
    c->ended = true;
    captures.erase(std::remove_if(captures.begin(), captures.end(),
                                  [&](const std::weak_ptr<Capture> &w) {
                                      return w.expired() || w.lock() == c;
                                  }),
                   captures.end());
    if (c->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (!joined) return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    *graph = graphs.add(new CUgraph_st{c->nodes});
    return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags) {
    ENTER(Need::CONTEXT);
    const unsigned long long known = CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH |
                                     CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;
    if (!exec || !graph || flags & ~known) return CUDA_ERROR_INVALID_VALUE;
    *exec = execs.add(new CUgraphExec_st{graph->nodes});
    return CUDA_SUCCESS;
}

CUresult cuGraphDestroy(CUgraph graph) {
    ENTER(Need::CONTEXT);
    return graphs.drop(graph) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) {
    ENTER(Need::CONTEXT);
    if (!exec) return CUDA_ERROR_INVALID_VALUE;
    auto nodes = std::make_shared<std::vector<Captured>>(exec->nodes);
    return enqueue(stream, [=] { run_graph(*nodes); });
}

CUresult cuGraphExecDestroy(CUgraphExec exec) {
    ENTER(Need::CONTEXT);
    return execs.drop(exec) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
}
