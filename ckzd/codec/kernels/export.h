/* How functions of the kernels are built. */

/* one binary for all x86-64 machines: the loader takes what the processor has */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WIDE
#endif

#define EXPORT __attribute__((visibility("default")))
