/* SPDX-License-Identifier: LGPL-3.0-or-later */
/*
 * Both headers in one file, in the order that LUSTRE_FIRST says. "Lustre's" is a stand-in, in
 * changelog_header_lustre/; its records are marked, so that it can be told whose they are.
 */
#ifdef LUSTRE_FIRST
# include <lustre/lustreapi.h>
# include "lcap_changelog.h"
#else
# include "lcap_changelog.h"
# include <lustre/lustreapi.h>
#endif

#if !LCAP_HAVE_LUSTRE_HEADERS
# error "Lustre's headers were not noticed"
#endif
LCAP_STATIC_ASSERT(LUSTRE_STAND_IN == 1);

int main(void)
{
	struct changelog_rec recs[2];
	const lustre_fid fid = { 1, 2, 3 };
	size_t pos = 0;

	memset(recs, 0, sizeof(recs));
	if (lcap_changelog_rec_next(recs, sizeof(recs), &pos) != &recs[0])
		return 1;
	if (lcap_changelog_rec_next(recs, sizeof(recs), &pos) != &recs[1])
		return 1;
	if (lcap_changelog_rec_next(recs, sizeof(recs), &pos) != NULL || pos != sizeof(recs))
		return 1;
	return lcap_fid_eq(&fid, &fid) && !fid_is_zero(&fid) ? 0 : 1;
}
