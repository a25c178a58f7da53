/* interrupted LIBRARY…: sleeps and waits in two threads while a third loads libraries; counts the EINTR they see. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>

#include "workload.h"

static atomic_int done;
static atomic_ullong interruptions;
static char **libraries;

static void *wait_for_events(void *argument)
{
    struct epoll_event event;
    int epoll = epoll_create1(0);
    while (!done)
        if (epoll_wait(epoll, &event, 1, 20) < 0)
            interruptions++;
    close(epoll);
    return argument;
}

static void *sleep_on(void *argument)
{
    struct timespec time = {0, 20000000};
    while (!done)
        if (nanosleep(&time, NULL) != 0)
            interruptions++;
    return argument;
}

int main(int argc, char **argv)
{
    pthread_t waiter, sleeper;
    u64 loaded = 0;
    libraries = argv + 1;
    if (pthread_create(&waiter, NULL, wait_for_events, NULL) || pthread_create(&sleeper, NULL, sleep_on, NULL))
        die("pthread_create failed");
    for (int i = 1; i < argc; i++) {
        struct timespec pause = {0, 100000000};
        void *library = dlopen(argv[i], RTLD_NOW | RTLD_LOCAL);
        loaded += library != NULL;
        interruptions += nanosleep(&pause, NULL) != 0;
        free(malloc(100));
        if (library)
            dlclose(library);
    }
    done = 1;
    pthread_join(waiter, NULL);
    pthread_join(sleeper, NULL);
    say_number("loaded", loaded);
    say_number("interruptions", interruptions);
    say_end();
    return 0;
}
