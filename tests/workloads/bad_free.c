/* bad_free double|invalid: frees what is not a block (any more); glibc ends the program for it. */
#include <stdlib.h>

#include "workload.h"

int main(int argc, char **argv)
{
    /* Volatile, or the compiler sees through it. */
    char *volatile block = malloc(100);
    if (argc > 1 && strcmp(argv[1], "double") == 0) {
        free(block);
        free(block);
    } else {
        free(block + 16);
    }
    return 0;
}
