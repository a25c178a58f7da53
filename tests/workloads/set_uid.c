/* set_uid: a program to be installed set-uid; says who it is and allocates 500 blocks. */
#include <stdlib.h>

#include "workload.h"

static void *volatile sink;

int main(void)
{
    for (int i = 0; i < 500; i++)
        sink = malloc(4000);
    say_number("pid", getpid());
    say_number("real", getuid());
    say_number("effective", geteuid());
    say_end();
    return 0;
}
