/* stop.c: signals asked for a stop: the run saves and ends after its current step. */
#include <signal.h>
#include <unistd.h>

#include "job.h"

static volatile sig_atomic_t caught;

static void on_signal(int number) {
    if (caught) _exit(128 + number);
    caught = number;
}

void stop_watch(void) {
    struct sigaction action = {0};
    action.sa_handler = on_signal;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

int stop_signal(void) {
    return caught;
}
