/*
 * steps [STATUS]: says that it is ready, then does what each byte on stdin tells, and answers each with a line:
 *   r  ten rounds: 10 malloc of 1000 B, 5 realloc to 3000 B, 7 free       q  ends
 *   f  frees what was allocated before the first round: a tracer that came later has not seen it come
 *   c  answers with the number of bytes of libc's code that differ from the file: breakpoints
 *   d  forks a child that does the rest; its end is this one's
 * Exits with STATUS at the end of stdin too. SIGINT does nothing to it.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "workload.h"

enum { EARLY = 20 };

static void *early[EARLY];
static void *volatile sink;

__attribute__((noinline)) static void one_round(void)
{
    void *blocks[10];
    for (int i = 0; i < 10; i++)
        blocks[i] = malloc(1000);
    for (int i = 0; i < 5; i++)
        blocks[i] = realloc(blocks[i], 3000);
    for (int i = 0; i < 7; i++)
        free(blocks[i]);
    sink = blocks[7];
}

static u64 hexadecimal(const char **text)
{
    u64 value = 0;
    for (;; ++*text) {
        char c = **text;
        if (c >= '0' && c <= '9')
            value = value * 16 + (u64)(c - '0');
        else if (c >= 'a' && c <= 'f')
            value = value * 16 + (u64)(c - 'a' + 10);
        else
            return value;
    }
}

static u64 compare(const unsigned char *code, size_t length, int file, u64 offset)
{
    static unsigned char bytes[1 << 16];
    u64 differ = 0;
    for (size_t done = 0; done < length;) {
        ssize_t got = pread(file, bytes, sizeof bytes, (off_t)(offset + done));
        if (got <= 0)
            break;
        for (ssize_t i = 0; i < got && done < length; i++, done++)
            differ += bytes[i] != code[done];
    }
    return differ;
}

/* Mappings of libc that may be executed, against their file. */
static u64 changed_code(void)
{
    static char maps[1 << 16];
    size_t length = 0;
    ssize_t got;
    u64 differ = 0;
    int file = open("/proc/self/maps", O_RDONLY);
    while ((got = read(file, maps + length, sizeof maps - 1 - length)) > 0)
        length += (size_t)got;
    close(file);
    maps[length] = 0;
    for (char *line = maps, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        *end = 0;
        char *path = strchr(line, '/');
        if (path == NULL || strstr(path, "libc.so.6") == NULL || strstr(line, " r-xp ") == NULL)
            continue;
        const char *at = line;
        u64 start = hexadecimal(&at);
        at++;
        u64 stop = hexadecimal(&at);
        at += strlen(" r-xp ");
        u64 offset = hexadecimal(&at);
        file = open(path, O_RDONLY);
        differ += compare((const unsigned char *)start, stop - start, file, offset);
        close(file);
    }
    return differ;
}

static void wait_for_child(void)
{
    int status;
    pid_t child = fork();
    if (child == 0)
        return;
    waitpid(child, &status, 0);
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 96);
}

int main(int argc, char **argv)
{
    char command;
    signal(SIGINT, SIG_IGN);
    for (int i = 0; i < EARLY; i++)
        early[i] = malloc(500);
    say("ready\n");
    say_flush();
    while (read(0, &command, 1) == 1 && command != 'q') {
        for (int i = 0; command == 'r' && i < 10; i++)
            one_round();
        for (int i = 0; command == 'f' && i < EARLY; i++) {
            free(early[i]);
            early[i] = NULL;
        }
        if (command == 'd')
            wait_for_child();
        if (command == 'c')
            say_decimal(changed_code());
        else
            say("done");
        say("\n");
        say_flush();
    }
    return argc > 1 ? (int)decimal(argv[1]) : 0;
}
