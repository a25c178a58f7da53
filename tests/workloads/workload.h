/* Output without stdio, which allocates: the workload's own calls are the only ones to count. */
#ifndef WORKLOAD_H
#define WORKLOAD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long long u64;

#define MAYBE_UNUSED __attribute__((unused))

static char said[1 << 16];
static size_t said_length;

MAYBE_UNUSED static void say(const char *text)
{
    size_t length = strlen(text);
    if (length > sizeof said - said_length)
        _exit(99);
    memcpy(said + said_length, text, length);
    said_length += length;
}

MAYBE_UNUSED static void say_decimal(u64 value)
{
    char digits[24];
    size_t at = sizeof digits;
    digits[--at] = 0;
    do
        digits[--at] = '0' + value % 10;
    while ((value /= 10) != 0);
    say(digits + at);
}

/* One member of a JSON object; the first one opens it. */
MAYBE_UNUSED static void say_number(const char *key, u64 value)
{
    say(said_length == 0 || said[said_length - 1] == '\n' ? "{\"" : ", \"");
    say(key);
    say("\": ");
    say_decimal(value);
}

MAYBE_UNUSED static void say_flush(void)
{
    size_t done = 0;
    while (done < said_length) {
        ssize_t length = write(1, said + done, said_length - done);
        if (length < 0)
            _exit(98);
        done += length;
    }
    said_length = 0;
}

/* Closes the object and prints it. */
MAYBE_UNUSED static void say_end(void)
{
    say("}\n");
    say_flush();
}

MAYBE_UNUSED static u64 decimal(const char *text)
{
    u64 value = 0;
    while (*text >= '0' && *text <= '9')
        value = value * 10 + (u64)(*text++ - '0');
    return value;
}

MAYBE_UNUSED static void die(const char *why)
{
    said_length = 0;
    say(why);
    say("\n");
    if (write(2, said, said_length) < 0)
        _exit(98);
    _exit(97);
}

#endif
