/* nvrtc.cpp: a libnvrtc that compiles kernel text for the simulated device.
 *
 * g++ preprocesses the text behind abi.h, shim.h and ptx.h (there are no other headers, as in the
 * real one); then `extern __shared__` becomes a pointer, every __global__ function an entry of the
 * module's table, and g++ -O2 makes a library of it.  The image ("cubin") is a few lines of text
 * (image.h) and that library.  The log has the form of ptxas -v; its figures but for shared memory
 * are made up.
 */
#include <nvrtc.h>

#include <cstdio>
#include <cstring>
#include <elf.h>
#include <fcntl.h>
#include <fstream>
#include <regex>
#include <spawn.h>
#include <sstream>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#include "abi.h"
#include "image.h"
#include "sim.h"

__asm__(".section .rodata\n"
        "cudasim_shim: .incbin \"" CUDASIM_SHIM "\"\n"
        "cudasim_shim_end: .byte 0\n"
        ".text\n");
extern "C" const char cudasim_shim[], cudasim_shim_end[];

#define ENTER()                                                                                    \
    if (int code = cudasim_call(__func__, NVRTC_ERROR_INTERNAL_ERROR)) return (nvrtcResult)code

struct _nvrtcProgram {
    std::string text, name, log, image;
};

namespace {

struct Kernel {
    std::string name, max_threads;
    int shared;
};

struct Folder { /* a temporary one */
    char path[64];
    Folder() {
        const char *tmp = getenv("TMPDIR");
        snprintf(path, sizeof path, "%.40s/cudasim-XXXXXX", tmp ? tmp : "/tmp");
        if (!mkdtemp(path)) *path = 0;
    }
    std::string file(const char *name) const {
        return std::string(path) + "/" + name;
    }
    ~Folder() {
        for (const char *name : {"in.ii", "out.ii", "out.so", "log"}) unlink(file(name).c_str());
        rmdir(path);
    }
};

std::string read_file(const std::string &path) {
    std::ifstream f(path, std::ios::binary);
    std::stringstream all;
    all << f.rdbuf();
    return all.str();
}

void write_file(const std::string &path, const std::string &text) {
    std::ofstream(path, std::ios::binary) << text;
}

/* Runs g++, with what it says in `log`. */
bool gxx(const Folder &dir, std::vector<std::string> words, std::string &log) {
    std::vector<char *> argv;
    words.insert(words.begin(), "g++");
    for (std::string &w : words) argv.push_back(&w[0]);
    argv.push_back(nullptr);
    const std::string path = dir.file("log");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 2, path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    pid_t pid;
    const bool begun = posix_spawnp(&pid, "g++", &actions, nullptr, argv.data(), environ) == 0;
    posix_spawn_file_actions_destroy(&actions);
    int status = 1;
    if (begun && waitpid(pid, &status, 0) < 0) status = 1;
    log += begun ? read_file(path) : "cudasim: there is no g++\n";
    return begun && status == 0;
}

/* ---- options --------------------------------------------------------------------------------- */

struct Options {
    std::string arch;
    std::vector<std::string> macros;
    bool verbose = false;
};

/* "--name=value" or "--name value" for the names of an option; what follows the name. */
const char *value_of(const char *option, const char *name) {
    const size_t len = strlen(name);
    return !strncmp(option, name, len) && option[len] == '=' ? option + len + 1 : nullptr;
}

bool is_one_of(const char *option, std::initializer_list<const char *> names) {
    for (const char *name : names)
        if (!strcmp(option, name)) return true;
    return false;
}

bool read_option(const char *o, Options &to, std::string &log) {
    const char *arch = value_of(o, "--gpu-architecture");
    if (!arch) arch = value_of(o, "-arch");
    if (arch) {
        static const std::regex known("(sm|compute)_(75|80|86|87|88|89|90a?|100[af]?|103[af]?|"
                                      "110[af]?|120[af]?|121[af]?)");
        to.arch = arch;
        if (std::regex_match(arch, known)) return true;
        log += std::string("nvrtc: error: invalid value for --gpu-architecture (-arch): ") + arch;
        return false;
    }
    if (const char *v = value_of(o, "--ptxas-options")) {
        to.verbose |= !strcmp(v, "-v") || !strcmp(v, "--verbose");
        return true;
    }
    if (!strncmp(o, "-D", 2) || value_of(o, "--define-macro")) {
        to.macros.push_back(std::string("-D") + (o[1] == 'D' ? o + 2 : strchr(o, '=') + 1));
        return true;
    }
    for (const char *name :
         {"--fmad", "-fmad", "--std", "-std", "--split-compile", "--maxrregcount", "--ftz",
          "--prec-div", "--prec-sqrt", "--diag-suppress", "--opt-level", "--dopt",
          "--Ofast-compile", "-Ofast-compile"})
        if (value_of(o, name)) return true;
    if (is_one_of(o, {"--generate-line-info", "-lineinfo", "--device-debug", "-G", "--restrict",
                      "--disable-warnings", "-w", "--minimal", "--no-source-include",
                      "-default-device", "--device-as-default-execution-space"}))
        return true;
    log += std::string("nvrtc: error: unrecognized option ") + o + " found";
    return false;
}

/* ---- the text -------------------------------------------------------------------------------- */

/* `extern __shared__ T name[];` -> a name for the block's dynamic shared memory. */
std::string dynamic_shared(const std::string &declaration) {
    static const std::regex shape("\\s*extern\\b([^;]*?)(\\w+)\\s*\\[\\s*\\]\\s*");
    static const std::regex words("CUDASIM_SHARED|__attribute__\\s*\\(\\(aligned\\(\\w+\\)\\)\\)|"
                                  "alignas\\s*\\([^)]*\\)");
    std::smatch m;
    if (!std::regex_match(declaration, m, shape)) return declaration;
    const std::string pointer = std::regex_replace(m[1].str(), words, "") + "*const &";
    return pointer + m[2].str() + " = (" + pointer + ")cudasim_state.dynamic";
}

/* Rewrites the words that shim.h left for this file; fills in the kernels. */
std::string rewrite(const std::string &text, std::vector<Kernel> &kernels) {
    static const std::regex head("CUDASIM_GLOBAL\\s+(?:void\\s*)?(?:CUDASIM_BOUNDS\\(([^,)]*)[^)]*"
                                 "\\)\\s*)?(?:void\\s*)?(\\w+)\\s*\\(");
    std::string out;
    size_t from = 0;
    for (size_t at; (at = text.find("CUDASIM_", from)) != std::string::npos;) {
        std::smatch m;
        if (!text.compare(at, 14, "CUDASIM_GLOBAL")) {
            out.append(text, from, at - from);
            if (!std::regex_search(text.begin() + (long)at, text.end(), m, head,
                                   std::regex_constants::match_continuous))
                break;
            kernels.push_back({m[2], m[1].length() ? m[1].str() : "0", 0});
            out += "void " + m[2].str() + "(";
            from = at + (size_t)m.length();
        } else if (!text.compare(at, 14, "CUDASIM_SHARED")) {
            const size_t begin = text.find_last_of(";{}\n", at) + 1, end = text.find(';', at);
            const std::string whole = text.substr(begin, end - begin);
            const std::string dynamic = dynamic_shared(whole);
            const bool is_dynamic = dynamic != whole;
            out.append(text, from, (is_dynamic ? begin : at) - from);
            out += is_dynamic ? dynamic : "static __attribute__((section(\"cudasim_shared\")))";
            from = is_dynamic ? end : at + 14;
        } else {
            out.append(text, from, at + 8 - from);
            from = at + 8;
        }
    }
    return out.append(text, from, std::string::npos);
}

std::string table_of(const std::vector<Kernel> &kernels) {
    std::string t = "\n# 1 \"cudasim\"\nstatic CudasimKernel cudasim_kernels[] = {\n";
    for (const Kernel &k : kernels)
        t += "cudasim_kernel<" + k.name + ">(\"" + k.name + "\", " + k.max_threads + "),\n";
    t += "};\nextern \"C\" __attribute__((visibility(\"hidden\"))) char __start_cudasim_shared[], "
         "__stop_cudasim_shared[];\nextern \"C\" __attribute__((visibility(\"default\"))) "
         "CudasimModule cudasim_module = {" +
         std::to_string(CUDASIM_ABI) +
         ", &cudasim_state, __start_cudasim_shared, __stop_cudasim_shared, cudasim_kernels, " +
         std::to_string(kernels.size()) + "};\n";
    return t;
}

/* The figures of static shared memory: local symbols of their section, "_ZZ<n><kernel>E...". */
void measure_shared(const std::string &so, std::vector<Kernel> &kernels) {
    const Elf64_Ehdr *head = (const Elf64_Ehdr *)so.data();
    const Elf64_Shdr *section = (const Elf64_Shdr *)(so.data() + head->e_shoff);
    const char *names = so.data() + section[head->e_shstrndx].sh_offset;
    for (int i = 0; i < head->e_shnum; i++) {
        if (section[i].sh_type != SHT_SYMTAB) continue;
        const char *strings = so.data() + section[section[i].sh_link].sh_offset;
        const Elf64_Sym *sym = (const Elf64_Sym *)(so.data() + section[i].sh_offset);
        for (size_t j = 0; j < section[i].sh_size / sizeof *sym; j++) {
            const int in = sym[j].st_shndx;
            if (in >= head->e_shnum || strcmp(names + section[in].sh_name, "cudasim_shared"))
                continue;
            for (Kernel &k : kernels) {
                const std::string prefix = "_ZZ" + std::to_string(k.name.size()) + k.name + "E";
                if (!strncmp(strings + sym[j].st_name, prefix.c_str(), prefix.size()))
                    k.shared += (int)sym[j].st_size;
            }
        }
    }
}

std::string figures(const std::vector<Kernel> &kernels, const std::string &arch) {
    std::string log;
    for (const Kernel &k : kernels)
        log += "ptxas info    : Compiling entry function '" + k.name + "' for '" + arch +
               "'\nptxas info    : Function properties for " + k.name +
               "\n    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
               "ptxas info    : Used 32 registers, used 1 barriers, " +
               std::to_string(k.shared) + " bytes smem\n";
    return log;
}

bool build(nvrtcProgram p, const Options &options) {
    Folder dir;
    std::vector<std::string> words = {
        "-E",
        "-xc++",
        "-std=gnu++17",
        "-nostdinc",
        "-nostdinc++",
        "-w",
        "-DCUDASIM",
        "-D__CUDA_ARCH__=" + std::to_string(10 * atoi(strchr(options.arch.c_str(), '_') + 1))};
    words.insert(words.end(), options.macros.begin(), options.macros.end());
    words.insert(words.end(), {dir.file("in.ii"), "-o", dir.file("out.ii")});
    write_file(dir.file("in.ii"), std::string(cudasim_shim, cudasim_shim_end) + "\n# 1 \"" +
                                      p->name + "\"\n" + p->text);
    if (!gxx(dir, words, p->log)) return false;
    std::vector<Kernel> kernels;
    const std::string text = rewrite(read_file(dir.file("out.ii")), kernels);
    write_file(dir.file("in.ii"), text + table_of(kernels));
    if (!gxx(dir,
             {"-xc++-cpp-output",
              "-std=gnu++17",
              "-O2",
              "-march=native",
              "-w",
              "-shared",
              "-fPIC",
              "-fvisibility=hidden",
              "-ffp-contract=off",
              "-fno-math-errno",
              "-fno-strict-aliasing",
              "-fwrapv",
              "-fno-exceptions",
              "-fno-rtti",
              "-fno-asynchronous-unwind-tables",
              "-fsanitize=alignment,bounds",

              "-nostdlib",
              "-Wl,-Bsymbolic",
              dir.file("in.ii"),
              "-o",
              dir.file("out.so"),
              "-lm",
              "-lc"},
             p->log))
        return false;
    const std::string so = read_file(dir.file("out.so"));
    measure_shared(so, kernels);
    p->image = std::string(CUDASIM_IMAGE) + options.arch.substr(options.arch.find('_') + 1) + "\n";
    for (const Kernel &k : kernels) p->image += k.name + " " + std::to_string(k.shared) + "\n";
    p->image += "\n" + so;
    if (options.verbose) p->log += figures(kernels, options.arch);
    return true;
}

nvrtcResult give(const std::string &from, char *to) {
    if (!to) return NVRTC_ERROR_INVALID_INPUT;
    memcpy(to, from.data(), from.size());
    return NVRTC_SUCCESS;
}

} // namespace

/* ---- the interface --------------------------------------------------------------------------- */

extern "C" {

static const int archs[] = {75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121};

nvrtcResult nvrtcGetNumSupportedArchs(int *n) {
    ENTER();
    *n = sizeof archs / sizeof *archs;
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcGetSupportedArchs(int *out) {
    ENTER();
    memcpy(out, archs, sizeof archs);
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcVersion(int *major, int *minor) {
    ENTER();
    *major = CUDA_VERSION / 1000;
    *minor = CUDA_VERSION % 1000 / 10;
    return NVRTC_SUCCESS;
}

const char *nvrtcGetErrorString(nvrtcResult result) {
    static const char *const names[] = {"NVRTC_SUCCESS",
                                        "NVRTC_ERROR_OUT_OF_MEMORY",
                                        "NVRTC_ERROR_PROGRAM_CREATION_FAILURE",
                                        "NVRTC_ERROR_INVALID_INPUT",
                                        "NVRTC_ERROR_INVALID_PROGRAM",
                                        "NVRTC_ERROR_INVALID_OPTION",
                                        "NVRTC_ERROR_COMPILATION",
                                        "NVRTC_ERROR_BUILTIN_OPERATION_FAILURE",
                                        "NVRTC_ERROR_NO_NAME_EXPRESSIONS_AFTER_COMPILATION",
                                        "NVRTC_ERROR_NO_LOWERED_NAMES_BEFORE_COMPILATION",
                                        "NVRTC_ERROR_NAME_EXPRESSION_NOT_VALID",
                                        "NVRTC_ERROR_INTERNAL_ERROR"};
    return (size_t)result < sizeof names / sizeof *names ? names[result] : "NVRTC_ERROR unknown";
}

nvrtcResult nvrtcCreateProgram(nvrtcProgram *program, const char *text, const char *name,
                               int headers, const char *const *, const char *const *) {
    ENTER();
    if (!program || !text || headers) return NVRTC_ERROR_INVALID_INPUT;
    *program = new _nvrtcProgram{text, name && *name ? name : "default_program", "", ""};
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcDestroyProgram(nvrtcProgram *program) {
    ENTER();
    if (!program || !*program) return NVRTC_ERROR_INVALID_PROGRAM;
    delete *program;
    *program = nullptr;
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcCompileProgram(nvrtcProgram p, int n, const char *const *option) {
    ENTER();
    if (!p) return NVRTC_ERROR_INVALID_PROGRAM;
    Options options;
    options.arch = "compute_75";
    for (int i = 0; i < n; i++)
        if (!read_option(option[i], options, p->log)) return NVRTC_ERROR_INVALID_OPTION;
    return build(p, options) ? NVRTC_SUCCESS : NVRTC_ERROR_COMPILATION;
}

nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram p, size_t *size) {
    ENTER();
    if (!p || !size) return NVRTC_ERROR_INVALID_INPUT;
    *size = p->log.size() + 1;
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcGetProgramLog(nvrtcProgram p, char *log) {
    ENTER();
    return give(p->log + '\0', log);
}

nvrtcResult nvrtcGetCUBINSize(nvrtcProgram p, size_t *size) {
    ENTER();
    if (!p || !size) return NVRTC_ERROR_INVALID_INPUT;
    *size = p->image.size();
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcGetCUBIN(nvrtcProgram p, char *image) {
    ENTER();
    return give(p->image, image);
}
}
