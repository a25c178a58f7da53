/*
 * An allocator that gives out each byte once, with the releasing functions that no C library here exports: cfree and
 * C23's free_sized and free_aligned_sized. PREFIX goes before each name.
 */
#include <stddef.h>
#include <string.h>

#define JOIN(prefix, name) prefix##name
#define NAMED(prefix, name) JOIN(prefix, name)
#define NAME(name) NAMED(PREFIX, name)

static _Alignas(4096) char memory[64 << 20];
static size_t used, released;

static void *take(size_t alignment, size_t size)
{
    size_t start = (used + 16 + alignment - 1) & -alignment;
    if (size > sizeof memory - start)
        return NULL;
    used = start + size;
    /* realloc has to know how much there is to copy. */
    memcpy(memory + start - sizeof size, &size, sizeof size);
    return memory + start;
}

static void give_back(const void *block)
{
    released += block != NULL;
}

void *NAME(malloc)(size_t size)
{
    return take(16, size);
}

void *NAME(calloc)(size_t count, size_t size)
{
    return take(16, count * size);
}

void *NAME(aligned_alloc)(size_t alignment, size_t size)
{
    return take(alignment < 16 ? 16 : alignment, size);
}

void *NAME(realloc)(void *block, size_t size)
{
    size_t old = 0;
    void *moved = take(16, size);
    if (block && moved) {
        memcpy(&old, (char *)block - sizeof old, sizeof old);
        memcpy(moved, block, old < size ? old : size);
        give_back(block);
    }
    return moved;
}

void NAME(free)(void *block)
{
    give_back(block);
}

void NAME(cfree)(void *block)
{
    give_back(block);
}

void NAME(free_sized)(void *block, size_t size)
{
    (void)size;
    give_back(block);
}

void NAME(free_aligned_sized)(void *block, size_t alignment, size_t size)
{
    (void)alignment, (void)size;
    give_back(block);
}
