/* How much the cores give at this moment: fused multiply-adds on registers alone, in GFLOP/s.
 *
 *     calibrate [THREADS] [SECONDS]      prints one number
 *
 * Two measurements may be compared when the readings beside them are alike. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { MOST_THREADS = 256, CHAINS = 12, LANES = 8, BURST = 20000 };

typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));

static double seconds = 1;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

/* As many chains as hide the latency of the unit; the factor shrinks, so that nothing overflows. */
static void *work(void *rate) {
    lanes chain[CHAINS], factor = {0}, term = {0};
    factor += 0.9999999f;
    term += 1e-9f;
    for (int i = 0; i < CHAINS; i++) chain[i] = factor;
    double begin = now(), end = begin, bursts = 0;
    for (; end - begin < seconds; end = now(), bursts++)
        for (int turn = 0; turn < BURST; turn++)
            for (int i = 0; i < CHAINS; i++) chain[i] = chain[i] * factor + term;
    float sum = 0;
    for (int i = 0; i < CHAINS; i++) sum += chain[i][0];
    /* A use of the result, or the compiler leaves the loop out. */
    *(double *)rate = sum == 42 ? 0 : bursts * BURST * CHAINS * LANES * 2 / (end - begin) / 1e9;
    return NULL;
}

int main(int count, char **words) {
    int threads = count > 1 ? atoi(words[1]) : 2;
    if (count > 2) seconds = atof(words[2]);
    if (threads < 1 || threads > MOST_THREADS || seconds <= 0) {
        fprintf(stderr, "usage: calibrate [THREADS, 1 to %d] [SECONDS, above 0]\n", MOST_THREADS);
        return 2;
    }
    pthread_t handles[MOST_THREADS];
    double rates[MOST_THREADS], total = 0;
    for (int i = 0; i < threads; i++)
        if (pthread_create(&handles[i], NULL, work, &rates[i])) return perror("calibrate"), 1;
    for (int i = 0; i < threads; i++) {
        pthread_join(handles[i], NULL);
        total += rates[i];
    }
    printf("%.1f\n", total);
    return 0;
}
