/* records_foreign.c: see records_foreign.h.  Files are told by their first bytes; only CSV, which
 * has none of its own, by its name and its first line. */
#include "records_foreign.h"

#include <dirent.h>
#include <stdlib.h>   /* qsort */
#include <string.h>   /* memcmp */
#include <sys/stat.h> /* stat */

typedef struct Foreign {
    const char *magic;
    size_t len;
    const char *what, *command; /* @: the file; %: its name without the ending, `.jsonl` follows */
} Foreign;

#define PANDAS   "python3 -c \"import pandas; pandas."
#define TO_JSON  ".to_json('%.jsonl', orient='records', lines=True)\""
#define DATASETS "python3 -c \"import datasets; datasets."

static const Foreign foreign[] = {
    {"PAR1", 4, "a Parquet file", PANDAS "read_parquet('@')" TO_JSON},
    {"ARROW1", 6, "an Arrow file", PANDAS "read_feather('@')" TO_JSON},
    {"\xFF\xFF\xFF\xFF", 4, "an Arrow stream, as Hugging Face's `datasets` keeps them",
     DATASETS "Dataset.from_file('@').to_json('%.jsonl')\""},
    {"\x28\xB5\x2F\xFD", 4, "compressed with zstd (gzip is read as it is)", "zstd -d '@'"},
    {"BZh", 3, "compressed with bzip2 (gzip is read as it is)", "bzip2 -dk '@'"},
    {"\xFD"
     "7zXZ",
     5, "compressed with xz (gzip is read as it is)", "xz -dk '@'"},
    {"PK\3\4", 4, "a zip archive", "unzip '@'"},
    {"\xFF\xFE", 2, "in UTF-16", "iconv -f UTF-16 -t UTF-8 '@' > '%.jsonl'"},
    {"\xFE\xFF", 2, "in UTF-16", "iconv -f UTF-16 -t UTF-8 '@' > '%.jsonl'"},
};
static const Foreign csv = {NULL, 0, "a CSV file", PANDAS "read_csv('@')" TO_JSON};
static const Foreign tsv = {NULL, 0, "a table with tabs",
                            PANDAS "read_csv('@', sep='\\t')" TO_JSON};

static bool refuse(const char *path, const Foreign *f, Err *err) {
    Text text = {0};
    const char *name = strrchr(path, '/'), *dot = strrchr(name ? name : path, '.');
    text_add(&text,
             "%s: this is %s; JSON (.json, .jsonl, each also .gz) is read here. Convert it:\n  ",
             path, f->what);
    for (const char *p = f->command; *p; p++) {
        if (*p == '@')
            text_add(&text, "%s", path);
        else if (*p == '%')
            text_add(&text, "%.*s%s", dot ? (int)(dot - path) : (int)strlen(path), path,
                     ends_with(path, ".jsonl") ? "_converted" : "");
        else
            text_addn(&text, p, 1);
    }
    fail(err, EXIT_IO, "%s", text.data);
    text_free(&text);
    return false;
}

bool records_ours(const char *path, const char *head, size_t n, Err *err) {
    for (size_t i = 0; i < COUNT(foreign); i++)
        if (n >= foreign[i].len && memcmp(head, foreign[i].magic, foreign[i].len) == 0)
            return refuse(path, &foreign[i], err);
    bool json = n && (head[0] == '{' || head[0] == '['); /* whatever its name */
    const char *line = memchr(head, '\n', n);
    size_t first = line ? (size_t)(line - head) : n;
    bool names = !json && memmem(head, first, "chosen", strlen("chosen"));
    if (!json && (ends_with(path, ".tsv") || (names && memchr(head, '\t', first))))
        return refuse(path, &tsv, err);
    if (!json && (ends_with(path, ".csv") || ends_with(path, ".csv.gz") ||
                  (names && memchr(head, ',', first))))
        return refuse(path, &csv, err);
    return true;
}

/* ---- directories ----------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Names in a directory, sorted; ones that begin with a dot are not ours. */
static int list_names(Arena *arena, const char *path, const char ***names) {
    DIR *d = opendir(path);
    int n = 0, cap = 0;
    *names = NULL;
    for (struct dirent *e; d && (e = readdir(d));)
        if (e->d_name[0] != '.') PUSH(arena, *names, n, cap, arena_str(arena, e->d_name));
    if (d) closedir(d);
    if (n) qsort(*names, (size_t)n, sizeof **names, by_name);
    return n;
}

static bool is_json(const char *name) {
    static const char *const kinds[] = {".jsonl", ".json", ".jsonl.gz", ".json.gz"};
    static const char *const others[] = {"dataset_info.json", "dataset_infos.json", "state.json",
                                         "dataset_dict.json", "config.json"};
    for (size_t i = 0; i < COUNT(others); i++)
        if (strcmp(name, others[i]) == 0) return false;
    for (size_t i = 0; i < COUNT(kinds); i++)
        if (ends_with(name, kinds[i])) return true;
    return false;
}

/* What of `datasets` reads this directory, or NULL. */
static const char *loader(Arena *arena, const char *path) {
    const char **names;
    const char *inner[] = {path, path_join(arena, path, "data"), path_join(arena, path, "default")};
    if (file_exists(path_join(arena, path, "dataset_dict.json")))
        return "load_from_disk('%s')['train']";
    if (file_exists(path_join(arena, path, "state.json"))) return "load_from_disk('%s')";
    for (size_t i = 0; i < COUNT(inner); i++) {
        int n = list_names(arena, inner[i], &names);
        for (int k = 0; k < n; k++)
            if (ends_with(names[k], ".parquet") || ends_with(names[k], ".csv"))
                return "load_dataset('%s', split='train')";
    }
    return NULL;
}

bool records_no_directory(const char *path, Err *err) {
    struct stat st;
    if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode)) return true;
    Arena *arena = arena_new();
    const char **names, *load = loader(arena, path);
    int n = list_names(arena, path, &names), found = 0;
    char *list = arena_str(arena, "");
    for (int i = 0; i < n; i++)
        if (is_json(names[i]) && found++ < 8)
            list = arena_printf(arena, "%s\n  %s", list, path_join(arena, path, names[i]));
    if (found)
        fail(err, EXIT_IO,
             "%s is a directory; name one of its files (or several: --data is repeatable):%s", path,
             list);
    else if (load) {
        size_t len = strlen(path);
        while (len > 1 && path[len - 1] == '/') len--;
        const char *call = arena_printf(arena, "%.*s%.*s%s", (int)(strstr(load, "%s") - load), load,
                                        (int)len, path, strstr(load, "%s") + 2);
        fail(err, EXIT_IO,
             "%s is a directory of Hugging Face's `datasets`. Convert it:\n  python3 -c \"import "
             "datasets; datasets.%s.to_json('%.*s.jsonl')\"",
             path, call, (int)len, path);
    } else
        fail(err, EXIT_IO, "%s is a directory without .json or .jsonl files; name a file", path);
    arena_free(arena);
    return false;
}
