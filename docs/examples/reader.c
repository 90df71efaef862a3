/* SPDX-License-Identifier: LGPL-3.0-or-later */
/*
 * Prints the changelog records of one or more MDTs and clears them.
 *
 *     cc -Wall -o reader reader.c $(pkg-config --cflags --libs lcapclient)
 *     lcap reader register changelog audit
 *     LCAP_READER=audit ./reader -f lustre-MDT0000 lustre-MDT0001
 *
 * -f goes on with new records after the present end. LCAP_REC_URI names the server, LCAP_STREAM the
 * stream. Without a reader nothing is cleared: the program looks on. With one MDT, a loop around
 * lcap_changelog_recv() is enough, since that waits.
 */
#include <ctype.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "lcap_client.h"

#define MAX_MDTS 64

static volatile sig_atomic_t stopped;

static void on_signal(int signum)
{
	(void)signum;
	stopped = 1;
}

/* A name is bytes: what a terminal could take for a command becomes a question mark. */
static void print_record(const char *mdt, const struct changelog_rec *rec)
{
	const char *name = changelog_rec_name(rec);
	int i;

	printf("%s %llu %02u%s t=" DFID " p=" DFID " ", mdt, (unsigned long long)rec->cr_index,
	       (unsigned int)rec->cr_type, changelog_type2str((int)rec->cr_type),
	       PFID(&rec->cr_tfid), PFID(&rec->cr_pfid));
	for (i = 0; i < rec->cr_namelen; i++)
		putchar(isprint((unsigned char)name[i]) ? name[i] : '?');
	putchar('\n');
}

/* Takes what is there. 0: nothing more for now, 1: the end, otherwise a negative errno. */
static int drain(struct lcap_cl_ctx *ctx, const char *mdt)
{
	struct changelog_rec *rec;
	int rc;

	while ((rc = lcap_changelog_in_buf(ctx)) == 1 && !stopped) {
		rc = lcap_changelog_recv(ctx, &rec);
		if (rc != 0)
			return rc;
		print_record(mdt, rec);
		/* Cheap: the library tells the server every so often. */
		rc = lcap_changelog_clear(ctx, mdt, "", (long long)rec->cr_index);
		lcap_changelog_free(ctx, &rec);
		if (rc != 0)
			return rc;
	}
	return rc < 0 ? rc : 0;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_signal }; /* no SA_RESTART: poll() returns */
	struct lcap_cl_ctx *ctx[MAX_MDTS];
	struct pollfd fds[MAX_MDTS];
	int flags = LCAP_CL_BLOCK | LCAP_CL_JOBID;
	int first = 1, n = 0, n_open, rc = 0, i;

	if (first < argc && strcmp(argv[first], "-f") == 0) {
		flags |= LCAP_CL_FOLLOW;
		first++;
	}
	if (first >= argc || argc - first > MAX_MDTS) {
		fprintf(stderr, "usage: %s [-f] MDT...\n", argv[0]);
		return 2;
	}
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);

	for (; first + n < argc; n++) {
		rc = lcap_changelog_start(&ctx[n], flags, argv[first + n], 0);
		if (rc != 0) {
			fprintf(stderr, "%s: %s\n", argv[first + n], lcap_changelog_error(NULL));
			break;
		}
		fds[n].fd = lcap_changelog_get_fd(ctx[n]);
		fds[n].events = POLLIN;
	}

	for (n_open = n; rc == 0 && n_open > 0 && !stopped;) {
		fflush(stdout);
		/* The second is for a signal that comes just before poll(). */
		if (poll(fds, (nfds_t)n, 1000) < 0)
			break;
		for (i = 0; i < n && rc == 0; i++) {
			if (fds[i].fd < 0 || fds[i].revents == 0)
				continue;
			rc = drain(ctx[i], argv[first + i]);
			if (rc == 1) { /* the end of this one; poll() skips negative descriptors */
				fds[i].fd = -1;
				n_open--;
				rc = 0;
			} else if (rc < 0) {
				fprintf(stderr, "%s: %s\n", argv[first + i],
					lcap_changelog_error(ctx[i]));
			}
		}
	}

	/* Sends what was cleared. */
	for (i = 0; i < n; i++)
		lcap_changelog_fini(ctx[i]);
	return rc == 0 && fflush(stdout) == 0 ? 0 : 1;
}
