/*
 * A library of one function, NAME, that calls back over a frame of SPACE bytes, after AHEAD bytes of nothing. Two of
 * them with equal AHEAD have the same layout. Before it lie OTHERS functions with two unwind rules each.
 */
#ifndef AHEAD
#define AHEAD 0
#endif
#ifndef OTHERS
#define OTHERS 0
#endif
#define TEXT_OF(words) #words
#define TEXT(value) TEXT_OF(value)

__asm__(".text\n"
        ".rept " TEXT(OTHERS) "\n"
        ".cfi_startproc\n"
        "nop\n"
        ".cfi_def_cfa_offset 32\n"
        "nop\n"
        ".cfi_endproc\n"
        ".endr\n");

void NAME(void (*call)(void))
{
    char space[SPACE];
    __asm__ volatile(".skip " TEXT(AHEAD) ", 0x90" : : "r"(space) : "memory");
    call();
    __asm__ volatile("" : : "r"(space) : "memory");
}
