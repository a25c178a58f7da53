/*
 * Memory system calls by i386's numbers, in a program without a C library: built with -m32, or for x86-64, where the
 * kernel takes int $0x80 as well. Prints its /proc/self/maps: which mappings are left.
 */
#include <asm-generic/mman.h>
#include <stddef.h>

typedef unsigned long word;

/* linux/mman.h has it, and headers of its own for each of the two. */
#define MAP_PRIVATE 2

enum { EXIT_GROUP = 252, OPEN = 5, READ = 3, WRITE = 4, BRK = 45, OLD_MMAP = 90, MUNMAP = 91, IPC = 117 };
enum { MPROTECT = 125, MREMAP = 163, MMAP2 = 192, MADVISE = 219, SHMAT = 397, SHMDT = 398 };
enum { IPC_SHMAT = 21, IPC_SHMDT = 22, IPC_SHMGET = 23, IPC_SHMCTL = 24 };
enum { PAGE = 4096, ANONYMOUS = MAP_PRIVATE | MAP_ANONYMOUS, READ_WRITE = PROT_READ | PROT_WRITE };

static char text[1 << 16];

/* The sixth argument goes through ebp, which the compiler may not hand over by itself. */
static word call6(word number, word a, word b, word c, word d, word e, word f)
{
    static word sixth;
    word result;
    sixth = f;
#ifdef __i386__
    __asm__ volatile("push %%ebp; mov %7, %%ebp; int $0x80; pop %%ebp"
                     : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e), "m"(sixth) : "memory");
#else
    __asm__ volatile("push %%rbp; mov %7, %%ebp; int $0x80; pop %%rbp"
                     : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e), "m"(sixth)
                     : "memory", "r8", "r9", "r10", "r11");
#endif
    return (unsigned)result;
}

#define call(number, a, b, c) call6(number, (word)(a), (word)(b), (word)(c), 0, 0, 0)

static void die(const char *why, size_t length)
{
    call(WRITE, 2, why, length);
    call(EXIT_GROUP, 97, 0, 0);
}

#define must(holds) ((holds) ? (void)0 : die(#holds "\n", sizeof #holds))

static int failed(word result)
{
    return result > (unsigned)-4096;
}

static word map(word pages, word protection)
{
    word block = call6(MMAP2, 0, pages * PAGE, protection, ANONYMOUS, -1, 0);
    must(!failed(block));
    return block;
}

/* As old programs call it: the arguments in memory. */
static word old_map(word pages, word protection)
{
    static unsigned arguments[6];
    arguments[1] = pages * PAGE;
    arguments[2] = protection;
    arguments[3] = ANONYMOUS;
    arguments[4] = -1;
    word block = call(OLD_MMAP, arguments, 0, 0);
    must(!failed(block));
    return block;
}

static void change(void)
{
    word block = map(100, PROT_NONE);
    must(call(MPROTECT, block + 10 * PAGE, 20 * PAGE, READ_WRITE) == 0);
    must(call(MUNMAP, block + 40 * PAGE, 10 * PAGE, 0) == 0);
    word old = old_map(30, PROT_READ);
    must(call(MUNMAP, old, 7 * PAGE, 0) == 0);
    word moved = map(16, READ_WRITE);
    moved = call(MREMAP, moved, 16 * PAGE, 256 * PAGE);
    must(failed(moved));
    word other = map(16, READ_WRITE);
    moved = call6(MREMAP, other, 16 * PAGE, 256 * PAGE, 1 /* MREMAP_MAYMOVE */, 0, 0);
    must(!failed(moved));
    for (word i = 0; i < 256; i++)
        ((volatile char *)moved)[i * PAGE] = 1;
    must(call(MADVISE, moved, 128 * PAGE, MADV_DONTNEED) == 0);
    for (int i = 0; i < 5; i++)
        must(failed(call6(MMAP2, 0, 0, PROT_READ, ANONYMOUS, -1, 0)));
}

static void grow(void)
{
    word end = call(BRK, 0, 0, 0);
    must(call(BRK, end + 50 * PAGE, 0, 0) == end + 50 * PAGE);
    must(call(BRK, end + 20 * PAGE, 0, 0) == end + 20 * PAGE);
}

/* By ipc and by the calls of their own: one of each stays, one goes. */
static void share(void)
{
    static unsigned address;
    word segment = call6(IPC, IPC_SHMGET, 0, 10 * PAGE, 01600, 0, 0);
    must(!failed(segment));
    must(call6(IPC, IPC_SHMAT, segment, 0, (word)&address, 0, 0) == 0);
    must(call6(IPC, IPC_SHMDT, 0, 0, 0, address, 0) == 0);
    must(call6(IPC, IPC_SHMAT, segment, 0, (word)&address, 0, 0) == 0);
    word second = call(SHMAT, segment, 0, 0), third = call(SHMAT, segment, 0, 0);
    must(!failed(second) && !failed(third));
    must(call(SHMDT, second, 0, 0) == 0);
    must(call6(IPC, IPC_SHMCTL, segment, 0 /* IPC_RMID */, 0, 0, 0) == 0);
}

static void say_maps(void)
{
    word length = 0, got;
    word file = call(OPEN, "/proc/self/maps", 0, 0);
    while ((got = call(READ, file, text + length, sizeof text - length)) != 0 && !failed(got))
        length += got;
    call(WRITE, 1, text, length);
}

void _start(void)
{
    change();
    grow();
    share();
    say_maps();
    call(EXIT_GROUP, 0, 0, 0);
}
