/*
 * interrupted LIBRARY…: sleeps and waits in two threads while a third loads libraries, at the start and again for each
 * byte on stdin; counts the EINTR that any of them sees.
 */
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

static u64 load_all(char **libraries)
{
    struct timespec pause = {0, 100000000};
    u64 loaded = 0;
    for (; *libraries; libraries++) {
        void *library = dlopen(*libraries, RTLD_NOW | RTLD_LOCAL);
        loaded += library != NULL;
        interruptions += nanosleep(&pause, NULL) != 0;
        free(malloc(100));
        if (library)
            dlclose(library);
    }
    return loaded;
}

int main(int argc, char **argv)
{
    pthread_t waiter, sleeper;
    char order;
    ssize_t length;
    if (argc < 2 || pthread_create(&waiter, NULL, wait_for_events, NULL) || pthread_create(&sleeper, NULL, sleep_on, NULL))
        die("pthread_create failed");
    u64 loaded = load_all(argv + 1);
    while ((length = read(0, &order, 1)) != 0) {
        interruptions += length < 0;
        loaded += load_all(argv + 1);
    }
    done = 1;
    pthread_join(waiter, NULL);
    pthread_join(sleeper, NULL);
    say_number("loaded", loaded);
    say_number("interruptions", interruptions);
    say_end();
    return 0;
}
