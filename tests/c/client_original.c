/*
 * A program as they were written for the first lcap client: it includes only these headers, and
 * takes everything else from lcap_client.h.
 *
 * usage: client_original [-d] MDT
 */
#include <stdio.h>
#include <time.h>
#include <unistd.h>
#include <stdbool.h>

#include "lcap_client.h"

#ifndef LPX64
#define LPX64 "%#llx"
static inline bool fid_is_zero(const lustre_fid *fid)
{
	return fid->f_seq == 0 && fid->f_oid == 0;
}
#endif

static void print_record(struct changelog_rec *rec)
{
	char jobid[LUSTRE_JOBID_SIZE] = "";
	time_t secs = rec->cr_time >> 30;
	struct tm ts;

	gmtime_r(&secs, &ts);
	printf("%llu %02d%-5s %02d:%02d:%02d.%09d %04d.%02d.%02d 0x%x t=" DFID,
	       (unsigned long long)rec->cr_index, rec->cr_type,
	       changelog_type2str(rec->cr_type), ts.tm_hour, ts.tm_min, ts.tm_sec,
	       (int)(rec->cr_time & ((1 << 30) - 1)), ts.tm_year + 1900, ts.tm_mon + 1, ts.tm_mday,
	       rec->cr_flags & CLF_FLAGMASK, PFID(&rec->cr_tfid));
	if (rec->cr_flags & CLF_JOBID) {
		strlcpy(jobid, (const char *)changelog_rec_jobid(rec), sizeof(jobid));
		if (strlen(jobid) > 0)
			printf(" j=%s", jobid);
	}
	if (rec->cr_namelen)
		printf(" p=" DFID " %.*s", PFID(&rec->cr_pfid), rec->cr_namelen,
		       changelog_rec_name(rec));
	if (rec->cr_flags & CLF_RENAME) {
		struct changelog_ext_rename *rnm = changelog_rec_rename(rec);

		if (!fid_is_zero(&rnm->cr_sfid))
			printf(" s=" DFID " sp=" DFID " %.*s", PFID(&rnm->cr_sfid),
			       PFID(&rnm->cr_spfid), (int)changelog_rec_snamelen(rec),
			       changelog_rec_sname(rec));
	}
	printf("\n");
}

int main(int argc, char **argv)
{
	int flags = LCAP_CL_BLOCK;
	struct lcap_cl_ctx *ctx = NULL;
	struct changelog_rec *rec;
	const char *mdtname;
	int rc;
	int c;

	while ((c = getopt(argc, argv, "d")) != -1) {
		if (c != 'd')
			return 2;
		flags |= LCAP_CL_DIRECT;
	}
	if (optind != argc - 1)
		return 2;
	mdtname = argv[optind];

	rc = lcap_changelog_start(&ctx, flags, mdtname, 0LL);
	if (rc < 0) {
		fprintf(stderr, "lcap_changelog_start: %s\n", zmq_strerror(-rc));
		return 1;
	}
	while ((rc = lcap_changelog_recv(ctx, &rec)) == 0) {
		print_record(rec);
		rc = lcap_changelog_clear(ctx, mdtname, "", rec->cr_index);
		if (rc < 0) {
			fprintf(stderr, "lcap_changelog_clear: %s\n", zmq_strerror(-rc));
			return 1;
		}
		rc = lcap_changelog_free(ctx, &rec);
		if (rc < 0) {
			fprintf(stderr, "lcap_changelog_free: %s\n", zmq_strerror(-rc));
			return 1;
		}
	}
	if (rc < 0) {
		fprintf(stderr, "lcap_changelog_recv: %s\n", zmq_strerror(-rc));
		return 1;
	}
	rc = lcap_changelog_fini(ctx);
	if (rc) {
		fprintf(stderr, "lcap_changelog_fini: %s\n", zmq_strerror(-rc));
		return 1;
	}
	return 0;
}
