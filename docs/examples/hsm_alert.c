/* SPDX-License-Identifier: LGPL-3.0-or-later */
/*
 * Tells of every HSM action that fails.
 *
 *     cc -Wall -o hsm_alert hsm_alert.c $(pkg-config --cflags --libs lcapclient)
 *     lcap reader register hsm alerts
 *     LCAP_READER=alerts ./hsm_alert -f lustre-MDT0000
 *
 * -f goes on with what happens from now on. LCAP_REC_URI names the server, LCAP_STREAM the stream ("hsm"
 * unless set). With a reader no failure is missed and none is told twice, whoever dies and restarts.
 */
#include <stdio.h>

#include "lcap_client.h"

int main(int argc, char **argv)
{
	const char *stream = getenv("LCAP_STREAM");
	const char *mdt = argv[argc > 1 ? argc - 1 : 0];
	int follow = argc == 3 && strcmp(argv[1], "-f") == 0;
	struct lcap_hsm_event *event;
	struct lcap_cl_ctx *ctx;
	int rc;

	if (argc != 2 + follow) {
		fprintf(stderr, "usage: %s [-f] MDT\n", argv[0]);
		return 2;
	}
	rc = lcap_changelog_start(&ctx, follow ? LCAP_CL_FOLLOW : 0, mdt, 0);
	if (rc != 0) {
		fprintf(stderr, "%s: %s\n", mdt, lcap_changelog_error(NULL));
		return 1;
	}
	if (stream == NULL || *stream == '\0')
		stream = "hsm";
	rc = lcap_changelog_setopt(ctx, LCAP_CL_OPT_STREAM, stream, strlen(stream));

	while (rc == 0 && (rc = lcap_hsm_recv(ctx, &event)) == 0) {
		/* Once for each action: the event that made it fail, not the purge that comes later. */
		if (event->he_kind != LCAP_HSM_PURGED && event->he_status == LCAP_HSM_FAILED &&
		    event->he_last_status != LCAP_HSM_FAILED) {
			printf("%s %s of " DFID " in archive %u FAILED (cookie 0x%llx)\n", mdt,
			       lcap_hsm_action2str(event->he_action), PFID(&event->he_fid),
			       (unsigned int)event->he_archive_id,
			       (unsigned long long)event->he_cookie);
			fflush(stdout);
		}
		/* Cheap: the library tells the server every so often. */
		rc = lcap_changelog_clear(ctx, mdt, "", (long long)event->he_index);
		lcap_hsm_free(ctx, &event);
	}
	if (rc < 0)
		fprintf(stderr, "%s: %s\n", mdt, lcap_changelog_error(ctx));
	lcap_changelog_fini(ctx); /* sends what was cleared */
	return rc == 1 ? 0 : 1;
}
