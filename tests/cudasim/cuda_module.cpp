/* cuda_module.cpp: modules and launches of the simulated driver.
 *
 * An image (image.h) is loaded once for each worker, from memory, so that each has its own static
 * shared memory.  What the real driver checks at a launch is checked here.
 */
#include "state.h"

#include <dlfcn.h>
#include <sys/mman.h>

#include "image.h"

int device_shared_limit(); /* cuda_device.cpp */
int device_number();

struct CUfunc_st {
    Module *module;
    int kernel, shared, max_dynamic;
};

struct Module : std::enable_shared_from_this<Module> {
    std::string library;
    void *handle[MAX_WORKERS];
    CudasimModule *copy[MAX_WORKERS];
    std::map<std::string, int> shared;
    std::map<std::string, CUfunction> functions;

    ~Module() {
        for (void *h : handle)
            if (h) dlclose(h);
        for (auto &f : functions) delete f.second;
    }
};

struct CUmod_st {
    std::shared_ptr<Module> module;
};

static Owned<CUmod_st> &modules = *new Owned<CUmod_st>;

void modules_forget() {
    modules.drop_all();
}

/* The loader takes a path that it has seen for the library it was: no two are spelled alike. */
static std::string fresh_path(int fd) {
    static unsigned count;
    std::string path = "/proc/self/fd";
    for (unsigned n = ++count; n; n /= 2) path += n % 2 ? "/." : "/";
    return path + "/" + std::to_string(fd);
}

CudasimModule *module_copy(Module *m, int worker) {
    static std::mutex &lock = *new std::mutex;
    std::lock_guard<std::mutex> held(lock);
    if (m->copy[worker]) return m->copy[worker];
    const int fd = memfd_create("cudasim", MFD_CLOEXEC);
    if (fd < 0) return nullptr;
    if (write(fd, m->library.data(), m->library.size()) == (ssize_t)m->library.size())
        m->handle[worker] = dlopen(fresh_path(fd).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (m->handle[worker])
        m->copy[worker] = (CudasimModule *)dlsym(m->handle[worker], "cudasim_module");
    else
        fprintf(stderr, "cudasim: %s\n", dlerror());
    close(fd);
    return m->copy[worker];
}

namespace {

/* The size of an image: its text, then a library whose section headers come last. */
size_t library_size(const char *so) {
    unsigned long long sections;
    unsigned short each, count;
    memcpy(&sections, so + 40, 8);
    memcpy(&each, so + 58, 2);
    memcpy(&count, so + 60, 2);
    return sections + (size_t)each * count;
}

CUresult read_image(const char *image, Module *m) {
    const size_t head = strlen(CUDASIM_IMAGE);
    if (strncmp(image, CUDASIM_IMAGE, head)) return CUDA_ERROR_INVALID_IMAGE;
    const int number = atoi(image + head);
    /* Code of a capability runs on later ones of the same major number. */
    if (number / 10 != device_number() / 10 || number > device_number())
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    const char *at = strchr(image, '\n') + 1;
    for (char name[512]; *at != '\n'; at = strchr(at, '\n') + 1) {
        int bytes = 0;
        if (sscanf(at, "%511s %d", name, &bytes) != 2) return CUDA_ERROR_INVALID_IMAGE;
        m->shared[name] = bytes;
    }
    at++;
    m->library.assign(at, library_size(at));
    const CudasimModule *copy = module_copy(m, 0);
    return copy && copy->abi == CUDASIM_ABI ? CUDA_SUCCESS : CUDA_ERROR_INVALID_IMAGE;
}

std::string shape(const char *name, const Launch &l) {
    char text[200];
    snprintf(text, sizeof text, "%.90s grid %ux%ux%u block %ux%ux%u shared %u", name, l.grid[0],
             l.grid[1], l.grid[2], l.block[0], l.block[1], l.block[2], l.shared);
    return text;
}

CUresult check(CUfunction f, const Launch &l, const CudasimKernel &k) {
    const unsigned long long threads = 1ull * l.block[0] * l.block[1] * l.block[2];
    const bool zero = !threads || !l.grid[0] || !l.grid[1] || !l.grid[2];
    if (zero || l.block[0] > 1024 || l.block[1] > 1024 || l.block[2] > 64 || threads > 1024)
        return CUDA_ERROR_INVALID_VALUE;
    if (l.grid[0] > 0x7fffffff || l.grid[1] > 65535 || l.grid[2] > 65535)
        return CUDA_ERROR_INVALID_VALUE;
    if (k.max_threads && threads > (unsigned)k.max_threads) return CUDA_ERROR_INVALID_VALUE;
    if (l.shared > (unsigned)f->max_dynamic) return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
}

/* Arguments by value; a pointer must be null or lie in memory that the device can reach. */
bool read_arguments(const CudasimKernel &k, void **from, std::vector<char> &to, int *wrong) {
    for (int i = 0; i < k.parameters; i++) {
        const size_t bytes = (size_t)k.bytes[i], align = bytes < 16 ? bytes : 16;
        const size_t at = (to.size() + align - 1) / align * align;
        to.resize(at + bytes);
        memcpy(&to[at], from[i], bytes);
        if (!k.pointer[i]) continue;
        CUdeviceptr p;
        memcpy(&p, from[i], sizeof p);
        if (p && !is_device(p) && !pinned_range((void *)p, 0)) return *wrong = i, false;
    }
    return true;
}

void run(const Launch &launch, const std::shared_ptr<Module> &) {
    const Fault fault = fiber_run(launch, describe_address);
    if (fault.code) cudasim_fault(fault.code, "%s", fault.text.c_str());
}

} // namespace

extern "C" {

/* ---- modules --------------------------------------------------------------------------------- */

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    ENTER(Need::CONTEXT);
    if (!module || !image) return CUDA_ERROR_INVALID_VALUE;
    if (CUresult error = refuse_in_capture()) return error;
    auto m = std::make_shared<Module>();
    if (CUresult error = read_image((const char *)image, m.get())) return error;
    *module = modules.add(new CUmod_st{m});
    return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) {
    ENTER(Need::CONTEXT);
    if (!module) return CUDA_ERROR_INVALID_HANDLE;
    if (CUresult error = drain()) return error;
    return modules.drop(module) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    ENTER(Need::CONTEXT, name);
    if (!module || !function) return CUDA_ERROR_INVALID_HANDLE;
    CUfunction &f = module->module->functions[name];
    const CudasimModule *m = module->module->copy[0];
    for (int i = 0; i < m->count && !f; i++)
        if (!strcmp(m->kernels[i].name, name)) {
            const int shared = module->module->shared[name];
            f = new CUfunc_st{module->module.get(), i, shared, (48 << 10) - shared};
        }
    if (!f) return CUDA_ERROR_NOT_FOUND;
    *function = f;
    return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction f) {
    ENTER(Need::CONTEXT);
    if (!f) return CUDA_ERROR_INVALID_HANDLE;
    const int most = f->module->copy[0]->kernels[f->kernel].max_threads;
    switch ((int)attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
        *value = most ? most : 1024;
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
        *value = f->shared;
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        *value = f->max_dynamic;
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
        *value = 32;
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
    case CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES:
        *value = 0;
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute attribute, int value) {
    ENTER(Need::CONTEXT);
    if (!f) return CUDA_ERROR_INVALID_HANDLE;
    if (attribute == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) return CUDA_SUCCESS;
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
        return CUDA_ERROR_INVALID_VALUE;
    if (value < 0 || value + f->shared > device_shared_limit()) return CUDA_ERROR_INVALID_VALUE;
    f->max_dynamic = value;
    return CUDA_SUCCESS;
}

/* ---- launches -------------------------------------------------------------------------------- */

CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                        unsigned by, unsigned bz, unsigned shared, CUstream stream,
                        void **arguments, void **extra) {
    if (!f) return CUDA_ERROR_INVALID_HANDLE;
    const CudasimKernel &k = f->module->copy[0]->kernels[f->kernel];
    auto l = std::make_shared<Launch>(
        Launch{f->module, f->kernel, {gx, gy, gz}, {bx, by, bz}, shared, {}});
    ENTER(Need::CONTEXT, shape(k.name, *l));
    if (extra || (!arguments && k.parameters)) return CUDA_ERROR_INVALID_VALUE;
    if (CUresult error = check(f, *l, k)) return error;
    int wrong;
    if (!read_arguments(k, arguments, l->arguments, &wrong)) {
        cudasim_fault(CUDA_ERROR_ILLEGAL_ADDRESS,
                      "kernel %s: argument %d is a pointer to memory of the host", k.name, wrong);
        return CUDA_SUCCESS; /* as on a real device, the next call tells */
    }
    /* The module stays while the launch is to come. */
    const std::shared_ptr<Module> module = f->module->shared_from_this();
    return enqueue(stream, [=] { run(*l, module); });
}
}
