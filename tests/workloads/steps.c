/*
 * steps [STATUS]: says that it is ready, then does what each byte on stdin tells, and answers each with a line:
 *   r  ten rounds: 10 malloc of 1000 B, 5 realloc to 3000 B, 7 free       q  ends
 *   f  frees what was allocated before the first round: a tracer that came later has not seen it come
 * Exits with STATUS at the end of stdin too. SIGINT does nothing to it.
 */
#include <signal.h>
#include <stdlib.h>

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
        say("done\n");
        say_flush();
    }
    return argc > 1 ? (int)decimal(argv[1]) : 0;
}
