/*
 * busy THREADS [PAUSE]: allocates, checks what it wrote, and frees, until its stdin ends. Any byte on stdin makes it
 * print how many blocks it had by now; the last line says how many did not hold what was written: an unharmed process
 * has none. With PAUSE each thread rests for so many microseconds after a thousand blocks.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "workload.h"

enum { MAX_THREADS = 16 };

static u64 pause_us;
static atomic_int stop;
static atomic_ullong blocks, wrong;

static void *work(void *argument)
{
    unsigned char mark = (unsigned char)(uintptr_t)argument;
    for (u64 i = 0; !stop; i++) {
        size_t size = 1 + i % 2000;
        unsigned char *block = i % 3 ? malloc(size) : calloc(1, size);
        memset(block, mark, size);
        block = realloc(block, size + 500);
        wrong += block[0] != mark || block[size - 1] != mark;
        free(block);
        blocks++;
        if (pause_us && i % 1000 == 999)
            usleep(pause_us);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    static pthread_t threads[MAX_THREADS];
    u64 count = argc > 1 ? decimal(argv[1]) : 1;
    char command;
    pause_us = argc > 2 ? decimal(argv[2]) : 0;
    for (u64 i = 0; i < count && i < MAX_THREADS; i++)
        if (pthread_create(&threads[i], NULL, work, (void *)(i + 1)) != 0)
            die("pthread_create failed");
    say("ready\n");
    say_flush();
    while (read(0, &command, 1) == 1) {
        say_number("blocks", blocks);
        say_end();
    }
    stop = 1;
    for (u64 i = 0; i < count && i < MAX_THREADS; i++)
        pthread_join(threads[i], NULL);
    say_number("blocks", blocks);
    say_number("wrong", wrong);
    say_end();
    return 0;
}
