/* SPDX-License-Identifier: LGPL-3.0-or-later */
/* Numbers that Lustre's own headers gave, and the rules of the accessors. Compiled as C and C++. */
#include "lcap_changelog.h"

#define OFFSET(type, field, want) LCAP_STATIC_ASSERT(offsetof(struct type, field) == (want))
#define VALUE(name, want) LCAP_STATIC_ASSERT((int)(name) == (want))

OFFSET(lu_fid, f_seq, 0);
OFFSET(lu_fid, f_oid, 8);
OFFSET(lu_fid, f_ver, 12);
OFFSET(changelog_rec, cr_namelen, 0);
OFFSET(changelog_rec, cr_flags, 2);
OFFSET(changelog_rec, cr_type, 4);
OFFSET(changelog_rec, cr_index, 8);
OFFSET(changelog_rec, cr_prev, 16);
OFFSET(changelog_rec, cr_time, 24);
OFFSET(changelog_rec, cr_tfid, 32);
OFFSET(changelog_rec, cr_markerflags, 32);
OFFSET(changelog_rec, cr_pfid, 48);
OFFSET(changelog_ext_rename, cr_sfid, 0);
OFFSET(changelog_ext_rename, cr_spfid, 16);
OFFSET(changelog_ext_uidgid, cr_uid, 0);
OFFSET(changelog_ext_uidgid, cr_gid, 8);
OFFSET(changelog_ext_nid, cr_nid, 0);
OFFSET(changelog_ext_nid, extra, 8);
OFFSET(changelog_ext_nid, padding, 16);
LCAP_STATIC_ASSERT(sizeof(struct changelog_rec) == 64);
LCAP_STATIC_ASSERT(sizeof(struct changelog_ext_rename) == 32);
LCAP_STATIC_ASSERT(sizeof(struct changelog_ext_jobid) == 32);
LCAP_STATIC_ASSERT(sizeof(struct changelog_ext_extra_flags) == 8);
LCAP_STATIC_ASSERT(sizeof(struct changelog_ext_uidgid) == 16);
LCAP_STATIC_ASSERT(sizeof(struct changelog_ext_nid) == 24);
LCAP_STATIC_ASSERT(sizeof(struct changelog_ext_openmode) == 4);
LCAP_STATIC_ASSERT(sizeof(struct changelog_ext_xattr) == 256);
LCAP_STATIC_ASSERT(CR_MAXSIZE == 952);
LCAP_STATIC_ASSERT(FID_LEN == 42 && FID_NOBRACE_LEN == 40 && LUSTRE_JOBID_SIZE == 32);

VALUE(CL_NONE, -1);
VALUE(CL_MARK, 0);
VALUE(CL_CREATE, 1);
VALUE(CL_MKDIR, 2);
VALUE(CL_HARDLINK, 3);
VALUE(CL_SOFTLINK, 4);
VALUE(CL_MKNOD, 5);
VALUE(CL_UNLINK, 6);
VALUE(CL_RMDIR, 7);
VALUE(CL_RENAME, 8);
VALUE(CL_EXT, 9);
VALUE(CL_OPEN, 10);
VALUE(CL_CLOSE, 11);
VALUE(CL_LAYOUT, 12);
VALUE(CL_TRUNC, 13);
VALUE(CL_SETATTR, 14);
VALUE(CL_SETXATTR, 15);
VALUE(CL_XATTR, 15);
VALUE(CL_HSM, 16);
VALUE(CL_MTIME, 17);
VALUE(CL_CTIME, 18);
VALUE(CL_ATIME, 19);
VALUE(CL_MIGRATE, 20);
VALUE(CL_FLRW, 21);
VALUE(CL_RESYNC, 22);
VALUE(CL_GETXATTR, 23);
VALUE(CL_DN_OPEN, 24);
VALUE(CL_LAST, 25);
VALUE(CLF_VERSION, 0x1000);
VALUE(CLF_RENAME, 0x2000);
VALUE(CLF_JOBID, 0x4000);
VALUE(CLF_EXTRA_FLAGS, 0x8000);
VALUE(CLF_SUPPORTED, 0xf000);
VALUE(CLF_FLAGMASK, 0x0fff);
VALUE(CLF_FLAGSHIFT, 12);
LCAP_STATIC_ASSERT((__u32)CLF_VERMASK == 0xfffff000u);
VALUE(CLF_UNLINK_LAST, 1);
VALUE(CLF_UNLINK_HSM_EXISTS, 2);
VALUE(CLF_RENAME_LAST, 1);
VALUE(CLF_RENAME_LAST_EXISTS, 2);
VALUE(CLFE_INVALID, 0);
VALUE(CLFE_UIDGID, 0x01);
VALUE(CLFE_NID, 0x02);
VALUE(CLFE_OPEN, 0x04);
VALUE(CLFE_XATTR, 0x08);
VALUE(CLFE_NID_BE, 0x10);
VALUE(CLFE_SUPPORTED, 0x1f);
VALUE(CHANGELOG_FLAG_FOLLOW, 0x01);
VALUE(CHANGELOG_FLAG_BLOCK, 0x02);
VALUE(CHANGELOG_FLAG_JOBID, 0x04);
VALUE(CHANGELOG_FLAG_EXTRA_FLAGS, 0x08);
VALUE(CHANGELOG_FLAG_NID_BE, 0x10);
VALUE(CHANGELOG_EXTRA_FLAG_UIDGID, 0x1);
VALUE(CHANGELOG_EXTRA_FLAG_NID, 0x2);
VALUE(CHANGELOG_EXTRA_FLAG_OMODE, 0x4);
VALUE(CHANGELOG_EXTRA_FLAG_XATTR, 0x8);
VALUE(MDS_FMODE_READ, 0x1);
VALUE(MDS_FMODE_WRITE, 0x2);
VALUE(MDS_FMODE_EXEC, 0x4);
VALUE(MDS_OPEN_CREAT, 0x40);
VALUE(MDS_OPEN_EXCL, 0x80);
VALUE(MDS_OPEN_TRUNC, 0x200);
VALUE(MDS_OPEN_APPEND, 0x400);
VALUE(HE_ARCHIVE, 0);
VALUE(HE_RESTORE, 1);
VALUE(HE_CANCEL, 2);
VALUE(HE_RELEASE, 3);
VALUE(HE_REMOVE, 4);
VALUE(HE_STATE, 5);
VALUE(HAVE_CHANGELOG_EXTEND_REC, 1);

static int failures;

#define CHECK(what)                                                                     \
	do {                                                                            \
		if (!(what)) {                                                          \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what);      \
			failures++;                                                     \
		}                                                                       \
	} while (0)

static void check_offsets(void)
{
	static const struct {
		__u32 crf;
		__u64 cref;
		size_t want;
	} rows[] = {
		{ 0x1000, 0x00, 64 },  { 0x3000, 0x00, 96 },  { 0x5000, 0x00, 96 },
		{ 0x7000, 0x00, 128 }, { 0x9000, 0x03, 112 }, { 0xd000, 0x03, 144 },
		{ 0xd000, 0x13, 144 }, { 0xd000, 0x07, 148 }, { 0xd000, 0x0b, 400 },
		{ 0xf000, 0x03, 176 }, { 0xf000, 0x0f, 436 }, { 0xf000, 0x1f, 436 },
		{ 0x5fff, 0x0f, 96 },
	};
	size_t i;

	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		CHECK(changelog_rec_offset(rows[i].crf, rows[i].cref) == rows[i].want);
}

static void check_hsm(void)
{
	static const struct {
		__u16 flags;
		enum hsm_event event;
		int error;
		int dirty;
	} rows[] = {
		{ 0x000, HE_ARCHIVE, 0, 0 }, { 0x080, HE_RESTORE, 0, 0 },
		{ 0x100, HE_CANCEL, 0, 0 },  { 0x180, HE_RELEASE, 0, 0 },
		{ 0x200, HE_REMOVE, 0, 0 },  { 0x280, HE_STATE, 0, 0 },
		{ 0x07d, HE_ARCHIVE, 125, 0 }, { 0x0fd, HE_RESTORE, 125, 0 },
		{ 0x410, HE_ARCHIVE, 16, 1 }, { 0x680, HE_STATE, 0, 1 },
		{ 0x1680, HE_STATE, 0, 1 },  { 0x07f, HE_ARCHIVE, CLF_HSM_ERROVERFLOW, 0 },
	};
	size_t i;

	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		CHECK(hsm_get_cl_event(rows[i].flags) == rows[i].event);
		CHECK(hsm_get_cl_error(rows[i].flags) == rows[i].error);
		CHECK((hsm_get_cl_flags(rows[i].flags) & CLF_HSM_DIRTY) == rows[i].dirty);
	}
}

static void check_names(void)
{
	/* Only as large as the record: whoever looks beyond it is caught by the sanitizer. */
	const size_t len = sizeof(struct changelog_rec) + sizeof(struct changelog_ext_rename) + 7;
	struct changelog_rec *rec = (struct changelog_rec *)calloc(1, len);

	if (!rec)
		exit(2);
	rec->cr_flags = CLF_RENAME;
	rec->cr_namelen = 7;
	memcpy(changelog_rec_name(rec), "new\0old", 7);
	CHECK(changelog_rec_size(rec) == 96 && changelog_rec_varsize(rec) == 39);
	CHECK(lcap_changelog_rec_len(rec) == len);
	CHECK(changelog_rec_snamelen(rec) == 3);
	CHECK(memcmp(changelog_rec_sname(rec), "old", 3) == 0);
	memcpy(changelog_rec_name(rec), "without", 7);
	CHECK(changelog_rec_snamelen(rec) == 0);
	free(rec);
}

static void check_fids(void)
{
	struct lu_fid fid = { 0x200000402ULL, 0x1a, 0 };
	const lustre_fid zero = { 0, 0, 7 };
	char text[FID_LEN];

	CHECK(!fid_is_zero(&fid) && fid_is_zero(&zero));
	CHECK(lcap_fid_eq(&fid, &fid) && !lcap_fid_eq(&fid, &zero));
	snprintf(text, sizeof(text), DFID, PFID(&fid));
	CHECK(strcmp(text, "[0x200000402:0x1a:0x0]") == 0);
	snprintf(text, sizeof(text), DFID_NOBRACE, PFID(&zero));
	CHECK(strcmp(text, "0:0x0:0x7") == 0);
	snprintf(text, sizeof(text), LPX64, (unsigned long long)fid.f_seq);
	CHECK(strcmp(text, "0x200000402") == 0);
}

static void check_types(void)
{
	CHECK(strcmp(changelog_type2str(CL_MARK), "MARK") == 0);
	CHECK(strcmp(changelog_type2str(CL_CREATE), "CREAT") == 0);
	CHECK(strcmp(changelog_type2str(CL_EXT), "RNMTO") == 0);
	CHECK(strcmp(changelog_type2str(CL_RESYNC), "RESYNC") == 0);
	CHECK(strcmp(changelog_type2str(CL_DN_OPEN), "NOPEN") == 0);
	CHECK(changelog_type2str(CL_LAST) == NULL && changelog_type2str(CL_NONE) == NULL);
}

int main(void)
{
	check_offsets();
	check_hsm();
	check_names();
	check_fids();
	check_types();
	return failures ? 1 : 0;
}
