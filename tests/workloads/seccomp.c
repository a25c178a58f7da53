/* seccomp strict|filter: allocates before and after it gave up all system calls but read, write and exit. */
#define _GNU_SOURCE
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "workload.h"

static void *volatile sink;

static void allocate(void)
{
    for (int i = 0; i < 200; i++) {
        void *block = malloc(40);
        block = realloc(block, 80);
        sink = calloc(1, 24);
        free(block);
    }
}

static void give_up_calls(int strict)
{
    struct sock_filter instructions[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_read, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof instructions / sizeof *instructions, instructions};
    int result;
    if (strict)
        result = prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
    else
        result = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
    if (result != 0)
        die("prctl failed");
}

int main(int argc, char **argv)
{
    allocate();
    give_up_calls(argc > 1 && strcmp(argv[1], "strict") == 0);
    allocate();
    say("confined\n");
    say_flush();
    /* exit_group is one of the calls given up. */
    syscall(SYS_exit, 7);
}
