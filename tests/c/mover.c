/*
 * A mover by lcap_mover.h that refuses what it gets, as if Lustre would not let it begin: lcapd then ends the
 * request with Lustre. Ends after N requests.
 *
 *   mover N
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lcap_mover.h"

int main(int argc, char **argv)
{
	struct lcap_mover_options options = { .size = sizeof(options), .timeout_ms = 3000 };
	struct lcap_mover *mover;
	int left = argc > 1 ? atoi(argv[1]) : 1;
	int rc = lcap_mover_start(&mover, &options);

	if (rc < 0) {
		fprintf(stderr, "mover: %s\n", strerror(-rc));
		return 1;
	}
	while (left > 0) {
		const struct lcap_mover_action *action;

		rc = lcap_mover_recv(mover, &action, -1);
		if (rc < 0) {
			fprintf(stderr, "mover: recv: %s\n", strerror(-rc));
			return 1;
		}
		if (action->action != LCAP_MOVER_CANCEL) {
			lcap_mover_refused(mover, action, EIO);
			left--;
		}
		lcap_mover_free(action);
	}
	return lcap_mover_fini(mover) < 0;
}
