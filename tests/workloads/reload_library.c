/* A library of one function, NAME, that calls back over a frame of SPACE bytes. Two of them have the same layout. */
void NAME(void (*call)(void))
{
    char space[SPACE];
    __asm__ volatile("" : : "r"(space) : "memory");
    call();
    __asm__ volatile("" : : "r"(space) : "memory");
}
