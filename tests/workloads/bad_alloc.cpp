// bad_alloc N: catches a std::bad_alloc N times, from every form of new that throws.
#include <cstdlib>
#include <new>

#include "workload.h"

struct alignas(128) Wide {
    char bytes[128];
};

static volatile size_t huge = SIZE_MAX / 1024;
static void *volatile sink;

template <typename Allocate> static u64 caught(Allocate allocate)
{
    try {
        sink = allocate();
    } catch (const std::bad_alloc &) {
        return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    u64 n = argc > 1 ? decimal(argv[1]) : 1, count = 0;
    for (u64 i = 0; i < n; i++) {
        count += caught([] { return ::operator new(huge * 512); });
        count += caught([] { return ::operator new[](huge * 512); });
        count += caught([] { return static_cast<void *>(new char[huge * 512]); });
        count += caught([] { return ::operator new(huge * 512, std::align_val_t(128)); });
        count += ::operator new(huge * 512, std::nothrow) == nullptr;
        sink = ::operator new(100);
    }
    say_number("caught", count);
    say_end();
    return 0;
}
