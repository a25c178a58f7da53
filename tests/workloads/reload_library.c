/*
 * A library of one function, NAME, that calls back over a frame of SPACE bytes, after AHEAD bytes of nothing. Two of
 * them with equal AHEAD have the same layout.
 */
#ifndef AHEAD
#define AHEAD 0
#endif
#define TEXT(value) #value
#define FILL(bytes) ".skip " TEXT(bytes) ", 0x90"

void NAME(void (*call)(void))
{
    char space[SPACE];
    __asm__ volatile(FILL(AHEAD) : : "r"(space) : "memory");
    call();
    __asm__ volatile("" : : "r"(space) : "memory");
}
