/*
 * An allocator that calls itself, and (without ALLOCATOR) a program of that library: pooled N.
 *
 * fill_pool() is the allocator's own code, as it lies between its functions. It takes blocks by malloc and by memalign,
 * which jumps to operator new: none of these is the program's.
 */
#include <stddef.h>
#include <string.h>

#ifdef ALLOCATOR

static _Alignas(4096) char memory[64 << 20];
static size_t used;

__attribute__((noinline, used)) static void *take(size_t size)
{
    char *block = memory + used;
    used += (size + 15) & -16ul;
    return used <= sizeof memory ? block : NULL;
}

void *malloc(size_t size)
{
    return take(size);
}

void *calloc(size_t count, size_t size)
{
    return take(count * size);
}

/* memalign(alignment, size), by a jump from behind its frame to operator new(size). */
void *memalign(size_t alignment, size_t size);
__asm__(".text\n"
        ".globl memalign\n"
        ".type memalign, @function\n"
        "memalign:\n"
        "    push %rbp\n"
        "    mov %rsi, %rdi\n"
        "    pop %rbp\n"
        "    jmp _Znwm@PLT\n"
        ".size memalign, . - memalign\n");

/* Weak: a global function that is not known to allocate would be the end of the allocator's own code. */
__attribute__((noinline, weak)) size_t fill_pool(void)
{
    char *volatile blocks[] = {malloc(100), memalign(64, 2000)};
    return (blocks[0] != NULL) + (blocks[1] != NULL);
}

void *_Znwm(size_t size)
{
    void *block = take(size);
    /* Not a jump: its return is to be seen. */
    __asm__ volatile("" : "+r"(block));
    return block;
}

void *realloc(void *block, size_t size)
{
    void *moved = take(size);
    if (block && moved)
        memmove(moved, block, size);
    return moved;
}

void _ZdlPv(void *block)
{
    __asm__ volatile("" : : "r"(block));
}

void free(void *block)
{
    __asm__ volatile("" : : "r"(block));
}

#else

#include "workload.h"

void *malloc(size_t), *memalign(size_t, size_t), *_Znwm(size_t);
void free(void *);
size_t fill_pool(void);

int main(int argc, char **argv)
{
    u64 n = argc > 1 ? decimal(argv[1]) : 0;
    for (u64 i = 0; i < n; i++) {
        free(malloc(24));
        if (fill_pool() != 2 || !_Znwm(40) || !memalign(64, 50))
            die("the allocator is empty");
    }
    say_number("pid", getpid());
    say_number("allocations", 3 * n);
    say_number("reallocations", 0);
    say_number("frees", n);
    say_number("bytes_allocated", n * (24 + 40 + 50));
    say_number("live_blocks", 2 * n);
    say_end();
    return 0;
}

#endif
