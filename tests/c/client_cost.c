/*
 * What recv, clear and free cost the calling thread: prints nanoseconds of processor time per
 * record, without and with clear.
 *
 * usage: client_cost N
 */
#include <stdio.h>
#include <time.h>

#include "lcap_client.h"

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

int main(int argc, char **argv)
{
	unsigned long n = argc == 2 ? strtoul(argv[1], NULL, 10) : 0;
	unsigned long long bytes = 1ULL << 32;
	unsigned int ms = 10000;
	int clear;

	for (clear = 0; clear < 2; clear++) {
		struct lcap_cl_ctx *ctx = NULL;
		struct changelog_rec *rec;
		double begin;
		unsigned long i;

		assert(lcap_changelog_start(&ctx, 0, "lustre-MDT0000", 0) == 0);
		assert(lcap_changelog_setopt(ctx, LCAP_CL_OPT_PREFETCH, &bytes, sizeof(bytes)) == 0);
		assert(lcap_changelog_setopt(ctx, LCAP_CL_OPT_ACK_INTERVAL, &ms, sizeof(ms)) == 0);
		assert(lcap_changelog_setopt(ctx, LCAP_CL_OPT_READER, "audit", 5) == 0);
		assert(lcap_changelog_recv(ctx, &rec) == 0);
		assert(lcap_changelog_free(ctx, &rec) == 0);
		begin = now();
		for (i = 1; i < n; i++) {
			if (lcap_changelog_recv(ctx, &rec))
				return 1;
			if (clear && lcap_changelog_clear(ctx, "lustre-MDT0000", "", rec->cr_index))
				return 1;
			if (lcap_changelog_free(ctx, &rec))
				return 1;
		}
		printf("%.1f\n", (now() - begin) / (double)(n - 1));
		assert(lcap_changelog_fini(ctx) == 0);
	}
	return 0;
}
