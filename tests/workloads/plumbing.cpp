/* plumbing: each function leaks in its own way, through as many layers as programs have. */
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#define NOINLINE __attribute__((noinline))

static void *volatile sink;

NOINLINE void *operator new(std::size_t size) { return sink = malloc(size); }
NOINLINE void operator delete(void *block) noexcept { free(block); }
NOINLINE void operator delete(void *block, std::size_t) noexcept { free(block); }

extern "C" NOINLINE void *xmalloc(std::size_t size) { return sink = malloc(size); }
extern "C" NOINLINE void *g_malloc(std::size_t size) { return sink = xmalloc(size); }

struct Object {
    char bytes[1000];
};

NOINLINE static void make_object() { sink = new Object; }

NOINLINE static void fill_vector()
{
    auto *values = new (xmalloc(sizeof(std::vector<int>))) std::vector<int>;
    for (int i = 0; i < 500; i++)
        values->push_back(i);
    sink = values;
}

NOINLINE static void fill_map()
{
    auto *map = new (xmalloc(sizeof(std::map<int, long>))) std::map<int, long>;
    for (int i = 0; i < 10; i++)
        map->emplace(i, i);
    sink = map;
}

NOINLINE static void build_text()
{
    auto *text = new (xmalloc(sizeof(std::string))) std::string(3000, 'x');
    text->append(200, 'y');
    sink = text;
}

NOINLINE static void keep_share() { sink = new (xmalloc(16)) std::shared_ptr<Object>(std::make_shared<Object>()); }

NOINLINE static void use_wrappers() { sink = g_malloc(777); }

int main()
{
    make_object();
    fill_vector();
    fill_map();
    build_text();
    keep_share();
    use_wrappers();
    return 0;
}
