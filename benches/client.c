/* SPDX-License-Identifier: LGPL-3.0-or-later */
/*
 * Receives records and looks at each one's index, as fast as it can.
 *
 * usage: client MDT STREAM N [clear]      LCAP_REC_URI, LCAP_READER as ever
 *
 * Prints, when it has N records: records, bytes, seconds from the first record to the last, seconds of
 * processor time of the calling thread in that time, and of the whole process.
 */
#include <stdio.h>
#include <sys/resource.h>
#include <time.h>

#include "lcap_client.h"

static double seconds(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	unsigned long long n = argc >= 4 ? strtoull(argv[3], NULL, 10) : 0;
	int clear = argc == 5;
	struct lcap_cl_ctx *ctx = NULL;
	struct changelog_rec *rec;
	struct lcap_cl_stats stats;
	unsigned long long i, sum = 0;
	double wall = 0, thread = 0, process = 0;
	int rc;

	if (n < 2 || setenv("LCAP_STREAM", argv[2], 1))
		return 2;
	rc = lcap_changelog_start(&ctx, LCAP_CL_FOLLOW | LCAP_CL_BLOCK, argv[1], 0);
	if (rc) {
		fprintf(stderr, "client: start: %s\n", strerror(-rc));
		return 1;
	}
	for (i = 0; i < n; i++) {
		rc = lcap_changelog_recv(ctx, &rec);
		if (rc) {
			fprintf(stderr, "client: after %llu: %d %s\n", i, rc, lcap_changelog_error(ctx));
			return 1;
		}
		if (i == 0) {
			wall = seconds(CLOCK_MONOTONIC);
			thread = seconds(CLOCK_THREAD_CPUTIME_ID);
			process = seconds(CLOCK_PROCESS_CPUTIME_ID);
		}
		sum += rec->cr_index;
		if (clear && i % 1000 == 999)
			lcap_changelog_clear(ctx, argv[1], "", (long long)rec->cr_index);
		lcap_changelog_free(ctx, &rec);
	}
	wall = seconds(CLOCK_MONOTONIC) - wall;
	thread = seconds(CLOCK_THREAD_CPUTIME_ID) - thread;
	process = seconds(CLOCK_PROCESS_CPUTIME_ID) - process;
	if (lcap_changelog_stats(ctx, &stats))
		return 1;
	printf("%llu %llu %.9f %.9f %.9f %llu\n", stats.records, stats.bytes, wall, thread, process, sum);
	lcap_changelog_fini(ctx);
	return 0;
}
