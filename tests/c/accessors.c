/* SPDX-License-Identifier: LGPL-3.0-or-later */
/*
 * Prints a file of packed records as `lfs changelog` does, with nothing but the accessors of the
 * header. With the argument `remap` each record first goes through changelog_remap_rec() to all that is
 * known, which must not change the text; with `bare`, to no extension but the rename.
 */
#define _DEFAULT_SOURCE
#include <time.h>

#include "lcap_changelog.h"

/* The captures hold but two kinds of NIDs: of this node, and none. */
static const char *nid_text(const struct changelog_ext_nid *nid)
{
	const unsigned char *bytes = (const unsigned char *)nid;

	return bytes[1] == 9 ? "0@lo" : "0@<0:0>";
}

static void print_extra(const struct changelog_rec *rec)
{
	const __u64 extra = changelog_rec_extra_flags(rec)->cr_extra_flags;

	printf(" ef=0x%llx", (unsigned long long)extra);
	if (extra & CLFE_UIDGID)
		printf(" u=%llu:%llu", (unsigned long long)changelog_rec_uidgid(rec)->cr_uid,
		       (unsigned long long)changelog_rec_uidgid(rec)->cr_gid);
	if (extra & CLFE_NID)
		printf(" nid=%s", nid_text(changelog_rec_nid(rec)));
	if (extra & CLFE_OPEN) {
		const __u32 mode = changelog_rec_openmode(rec)->cr_openflags;
		char text[] = "---";

		if (mode & MDS_FMODE_EXEC)
			text[2] = 'x';
		if (!(mode & MDS_FMODE_EXEC) && (mode & MDS_FMODE_READ))
			text[0] = 'r';
		if (!(mode & MDS_FMODE_EXEC) &&
		    (mode & (MDS_FMODE_WRITE | MDS_OPEN_TRUNC | MDS_OPEN_APPEND)))
			text[1] = 'w';
		if (strcmp(text, "---") != 0)
			printf(" m=%s", text);
	}
	if ((extra & CLFE_XATTR) && changelog_rec_xattr(rec)->cr_xattr[0])
		printf(" x=%s", changelog_rec_xattr(rec)->cr_xattr);
}

static void print_record(const struct changelog_rec *rec)
{
	const time_t secs = (time_t)(rec->cr_time >> 30);
	struct tm ts;

	gmtime_r(&secs, &ts);
	printf("%llu %02d%-5s %02d:%02d:%02d.%09d %04d.%02d.%02d 0x%x t=" DFID,
	       (unsigned long long)rec->cr_index, (int)rec->cr_type,
	       changelog_type2str((int)rec->cr_type), ts.tm_hour, ts.tm_min, ts.tm_sec,
	       (int)(rec->cr_time & ((1 << 30) - 1)), ts.tm_year + 1900, ts.tm_mon + 1,
	       ts.tm_mday, (unsigned int)(rec->cr_flags & CLF_FLAGMASK), PFID(&rec->cr_tfid));
	if ((rec->cr_flags & CLF_JOBID) && changelog_rec_jobid(rec)->cr_jobid[0])
		printf(" j=%s", changelog_rec_jobid(rec)->cr_jobid);
	if (rec->cr_flags & CLF_EXTRA_FLAGS)
		print_extra(rec);
	if (!fid_is_zero(&rec->cr_pfid))
		printf(" p=" DFID, PFID(&rec->cr_pfid));
	if (rec->cr_namelen)
		printf(" %.*s", (int)rec->cr_namelen, changelog_rec_name(rec));
	if (rec->cr_flags & CLF_RENAME) {
		const struct changelog_ext_rename *rename = changelog_rec_rename(rec);

		if (!fid_is_zero(&rename->cr_sfid))
			printf(" s=" DFID " sp=" DFID " %.*s", PFID(&rename->cr_sfid),
			       PFID(&rename->cr_spfid), (int)changelog_rec_snamelen(rec),
			       changelog_rec_sname(rec));
	}
	printf("\n");
}

/* A copy of the record with fewer extensions, in a block that ends where the record ended. */
static void print_remapped(const struct changelog_rec *rec, __u32 crf, __u64 cref)
{
	const size_t len = lcap_changelog_rec_len(rec);
	struct changelog_rec *copy = (struct changelog_rec *)malloc(len);

	if (!copy)
		exit(2);
	memcpy(copy, rec, len);
	changelog_remap_rec(copy, crf, cref);
	if (!(copy->cr_flags & CLF_VERSION) || lcap_changelog_rec_len(copy) > len)
		exit(2);
	print_record(copy);
	free(copy);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 2 ? argv[2] : "";
	struct changelog_rec *rec;
	size_t len = 0;
	size_t pos = 0;
	size_t got;
	char *buf;
	FILE *file;

	file = argc > 1 ? fopen(argv[1], "rb") : NULL;
	buf = (char *)malloc(1);
	if (!file || !buf)
		return 2;
	do { /* grown to exactly what was read, so that the sanitizer knows where it ends */
		buf = (char *)realloc(buf, len + 65536);
		if (!buf)
			return 2;
		got = fread(buf + len, 1, 65536, file);
		len += got;
	} while (got > 0);
	fclose(file);
	buf = (char *)realloc(buf, len ? len : 1);
	if (!buf)
		return 2;

	while ((rec = lcap_changelog_rec_next(buf, len, &pos)) != NULL) {
		if (strcmp(mode, "remap") == 0)
			print_remapped(rec, CLF_SUPPORTED, CLFE_SUPPORTED);
		else if (strcmp(mode, "bare") == 0)
			print_remapped(rec, CLF_RENAME, 0);
		else
			print_record(rec);
	}
	free(buf);
	return pos == len ? 0 : 3; /* 3: something that is no whole record */
}
