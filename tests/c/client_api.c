/*
 * Every function of lcap_client.h, with good arguments and bad ones.
 *
 * usage: client_api N [no-fork]     the MDT has the records 1 to N and a reader "audit"
 *
 * A child process cannot free what the parent's library holds, which leak checkers mind: no-fork.
 */
#include <poll.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lcap_client.h"

#define MDT "lustre-MDT0000"

#define CHECK(what)                                                                        \
	do {                                                                               \
		if (!(what)) {                                                             \
			fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #what,     \
				lcap_changelog_error(ctx));                                \
			exit(1);                                                           \
		}                                                                          \
	} while (0)

static void bad_arguments(void)
{
	struct lcap_cl_ctx *ctx = NULL;
	struct changelog_rec *rec = NULL;
	struct lcap_cl_stats stats;

	CHECK(lcap_changelog_start(NULL, 0, MDT, 0) == -EINVAL);
	CHECK(lcap_changelog_start(&ctx, 0, NULL, 0) == -EINVAL);
	CHECK(lcap_changelog_start(&ctx, 0x7fff0000, MDT, 0) == -EINVAL);
	CHECK(lcap_changelog_start(&ctx, 0, MDT, -1) == -EINVAL);
	CHECK(strlen(lcap_changelog_error(NULL)) > 0);
	CHECK(lcap_changelog_start(&ctx, 0, "nonsense", 0) == -ENOENT);
	CHECK(lcap_changelog_start(&ctx, 0, "other-MDT0000", 0) == -ENOENT);
	CHECK(strstr(lcap_changelog_error(NULL), "no such MDT"));
	CHECK(ctx == NULL);
	CHECK(lcap_changelog_recv(NULL, &rec) == -EINVAL);
	CHECK(lcap_changelog_free(NULL, &rec) == -EINVAL);
	CHECK(lcap_changelog_clear(NULL, MDT, "", 1) == -EINVAL);
	CHECK(lcap_changelog_setopt(NULL, LCAP_CL_OPT_STREAM, "x", 1) == -EINVAL);
	CHECK(lcap_changelog_get_fd(NULL) == -EINVAL);
	CHECK(lcap_changelog_in_buf(NULL) == -EINVAL);
	CHECK(lcap_changelog_stats(NULL, &stats) == -EINVAL);
	CHECK(lcap_changelog_fini(NULL) == -EINVAL);
	CHECK(!strcmp(lcap_strerror(ENOENT), strerror(ENOENT)));

	CHECK(lcap_changelog_start(&ctx, 0, MDT, 0) == 0);
	CHECK(lcap_changelog_recv(ctx, NULL) == -EINVAL);
	CHECK(lcap_changelog_free(ctx, NULL) == -EINVAL);
	CHECK(lcap_changelog_clear(ctx, NULL, "", 1) == -EINVAL);
	CHECK(lcap_changelog_clear(ctx, MDT, "", -1) == -EINVAL);
	CHECK(lcap_changelog_clear(ctx, "other-MDT0000", NULL, 1) == -EINVAL);
	CHECK(lcap_changelog_clear(ctx, MDT, "nobody", 1) == -ENOENT);
	CHECK(lcap_changelog_stats(ctx, NULL) == -EINVAL);
	CHECK(lcap_changelog_fini(ctx) == 0);
}

static void options(void)
{
	struct lcap_cl_ctx *ctx = NULL;
	struct changelog_rec *rec = NULL;
	unsigned int ms = 100;
	unsigned long long bytes = 1 << 20;

	CHECK(lcap_changelog_start(&ctx, LCAP_CL_BLOCK | LCAP_CL_JOBID, MDT, 0) == 0);
	CHECK(lcap_changelog_setopt(ctx, LCAP_CL_OPT_ACK_INTERVAL, &ms, sizeof(ms)) == 0);
	CHECK(lcap_changelog_setopt(ctx, LCAP_CL_OPT_PREFETCH, &bytes, sizeof(bytes)) == 0);
	CHECK(lcap_changelog_setopt(ctx, LCAP_CL_OPT_TIMEOUT, &ms, 3) == -EINVAL);
	CHECK(lcap_changelog_setopt(ctx, LCAP_CL_OPT_READER, NULL, 4) == -EINVAL);
	CHECK(lcap_changelog_setopt(ctx, LCAP_CL_OPT_READER, "", 0) == -EINVAL);
	CHECK(lcap_changelog_setopt(ctx, LCAP_CL_OPT_READER, "a\0b", 3) == -EINVAL);
	CHECK(lcap_changelog_setopt(ctx, LCAP_CL_OPT_FILTER, "type = HSM", 10) == 0);
	CHECK(lcap_changelog_setopt(ctx, 99, "x", 1) == -EINVAL);
	CHECK(lcap_changelog_setopt(ctx, LCAP_CL_OPT_READER, "audit", 6) == 0);
	CHECK(lcap_changelog_setopt(ctx, LCAP_CL_OPT_STREAM, "changelog", 9) == 0);
	CHECK(lcap_changelog_recv(ctx, &rec) == 0);
	CHECK(lcap_changelog_setopt(ctx, LCAP_CL_OPT_READER, "other", 5) == -EBUSY);
	CHECK(lcap_changelog_fini(ctx) == 0); /* with a record out */
}

/* All records out at once, given back in an odd order. */
static void out_of_order(unsigned long n)
{
	struct changelog_rec **recs = (struct changelog_rec **)calloc(n, sizeof(*recs));
	struct changelog_rec *stranger = (struct changelog_rec *)recs;
	struct lcap_cl_ctx *ctx = NULL;
	struct lcap_cl_stats stats;
	unsigned long i;

	CHECK(recs && lcap_changelog_start(&ctx, 0, MDT, 0) == 0);
	for (i = 0; i < n; i++)
		CHECK(lcap_changelog_recv(ctx, &recs[i]) == 0);
	for (i = 0; i < n; i++)
		CHECK(recs[i]->cr_index == i + 1);
	CHECK(lcap_changelog_free(ctx, &stranger) == -EINVAL && stranger);
	for (i = 0; i < n; i++) {
		unsigned long at = i * 7919 % n; /* a prime: every one once */

		CHECK(recs[at]->cr_index == at + 1);
		CHECK(lcap_changelog_free(ctx, &recs[at]) == 0);
		CHECK(recs[at] == NULL);
		CHECK(lcap_changelog_free(ctx, &recs[at]) == 0); /* NULL is fine */
	}
	CHECK(lcap_changelog_stats(ctx, &stats) == 0);
	CHECK(stats.records == n && stats.last_index == n && stats.gaps == 0);
	CHECK(lcap_changelog_fini(ctx) == 0);
	free(recs);
}

static void to_the_end_by_poll(unsigned long n)
{
	struct lcap_cl_ctx *ctx = NULL;
	struct changelog_rec *rec;
	unsigned long got = 0;
	struct pollfd pfd;
	int rc;

	CHECK(lcap_changelog_start(&ctx, 0, MDT, 0) == 0);
	CHECK(lcap_changelog_setopt(ctx, LCAP_CL_OPT_READER, "audit", 5) == 0);
	pfd.fd = lcap_changelog_get_fd(ctx);
	pfd.events = POLLIN;
	CHECK(pfd.fd >= 0);
	for (;;) {
		CHECK(poll(&pfd, 1, 20000) == 1);
		CHECK(lcap_changelog_in_buf(ctx) == 1);
		rc = lcap_changelog_recv(ctx, &rec);
		if (rc)
			break;
		CHECK(rec->cr_index == ++got);
		CHECK(lcap_changelog_clear(ctx, MDT, "audit", rec->cr_index) == 0);
		CHECK(lcap_changelog_free(ctx, &rec) == 0);
	}
	CHECK(rc == 1 && rec == NULL && got == n);
	CHECK(lcap_changelog_recv(ctx, &rec) == 1);
	CHECK(lcap_changelog_clear(ctx, MDT, NULL, 0) == 0);
	CHECK(lcap_changelog_fini(ctx) == 0);

	/* Who comes again begins behind what was cleared. */
	CHECK(lcap_changelog_start(&ctx, 0, MDT, 0) == 0);
	CHECK(lcap_changelog_setopt(ctx, LCAP_CL_OPT_READER, "audit", 5) == 0);
	CHECK(lcap_changelog_recv(ctx, &rec) == 1);
	CHECK(lcap_changelog_fini(ctx) == 0);
}

/* A child may end the parent's context, and use one of its own. */
static void forks(void)
{
	struct lcap_cl_ctx *ctx = NULL;
	struct changelog_rec *rec;
	int status;
	pid_t pid;

	CHECK(lcap_changelog_start(&ctx, LCAP_CL_FOLLOW, MDT, 0) == 0);
	CHECK(lcap_changelog_recv(ctx, &rec) == 0);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		struct lcap_cl_ctx *own = NULL;

		if (lcap_changelog_get_fd(ctx) >= 0 || lcap_changelog_fini(ctx) != 0)
			_exit(1);
		if (lcap_changelog_start(&own, 0, MDT, 0) || lcap_changelog_recv(own, &rec) ||
		    lcap_changelog_fini(own))
			_exit(2);
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid && status == 0);
	CHECK(lcap_changelog_free(ctx, &rec) == 0);
	CHECK(lcap_changelog_recv(ctx, &rec) == 0 && rec->cr_index == 2);
	CHECK(lcap_changelog_fini(ctx) == 0);
}

int main(int argc, char **argv)
{
	unsigned long n = argc >= 2 ? strtoul(argv[1], NULL, 10) : 0;

	if (n == 0)
		return 2;
	bad_arguments();
	options();
	out_of_order(n);
	to_the_end_by_poll(n);
	if (argc == 2)
		forks();
	return 0;
}
