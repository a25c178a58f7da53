// news N: every form of new and delete, N times each.
#include <cstdlib>
#include <new>

#include "workload.h"

struct alignas(128) Wide {
    char bytes[128];
};

static void *volatile sink;

template <typename T> static T *keep(T *block)
{
    sink = block;
    return block;
}

static void all_forms(u64 i)
{
    delete keep(new u64(i));
    delete[] keep(new char[100]);
    delete keep(new (std::nothrow) u64(i));
    delete[] keep(new (std::nothrow) char[100]);
    delete keep(new Wide);
    delete[] keep(new Wide[2]);
    delete keep(new (std::nothrow) Wide);
    void *sized = ::operator new(48);
    ::operator delete(keep(sized), 48);
    void *plain = ::operator new(56);
    ::operator delete(keep(plain), std::nothrow);
    ::operator delete(nullptr);
}

int main(int argc, char **argv)
{
    u64 n = argc > 1 ? decimal(argv[1]) : 0;
    for (u64 i = 0; i < n; i++)
        all_forms(i);
    for (u64 i = 0; i < n; i++)
        keep(new char[10]);
    say_number("pid", getpid());
    say_number("allocations", 10 * n);
    say_number("frees", 9 * n);
    say_number("reallocations", 0);
    say_number("bytes_allocated", n * (8 + 100 + 8 + 100 + 128 + 256 + 128 + 48 + 56 + 10));
    say_number("live_blocks", n);
    say_end();
    return 0;
}
