/* What the kernel says about the process itself, read without allocating. */
#ifndef SMAPS_H
#define SMAPS_H

#include <fcntl.h>

#include "workload.h"

static char smaps[4 << 20];

MAYBE_UNUSED static size_t read_file(const char *path, char *buffer, size_t size)
{
    int file = open(path, O_RDONLY);
    size_t length = 0;
    ssize_t got;
    if (file < 0)
        die("cannot open a file of /proc");
    while ((got = read(file, buffer + length, size - 1 - length)) > 0)
        length += got;
    if (length == size - 1)
        die("a file of /proc is too long");
    close(file);
    buffer[length] = 0;
    return length;
}

/* The sum of a field of /proc/self/smaps in bytes. */
static u64 sum_of(const char *field)
{
    u64 sum = 0;
    size_t length = strlen(field);
    for (char *line = smaps; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, field, length) == 0)
            sum += decimal(line + length + strspn(line + length, " ")) << 10;
    }
    return sum;
}

/* Prints pid, Rss, size and more of the process as they are now, and the size of the buffer that is a part of them. */
MAYBE_UNUSED static void say_smaps(void)
{
    /* Touched beforehand: filling the buffer must not change what is read. */
    memset(smaps, 1, sizeof smaps);
    read_file("/proc/self/smaps", smaps, sizeof smaps);
    say_number("pid", getpid());
    say_number("rss", sum_of("Rss:"));
    say_number("size", sum_of("Size:"));
    say_number("swap", sum_of("Swap:"));
    say_number("huge", sum_of("AnonHugePages:"));
    say_number("buffer", sizeof smaps);
    say_end();
}

#endif
