/* SPDX-License-Identifier: LGPL-3.0-or-later */
/* Stands in for Lustre's header: some of its names, each of which would clash if defined twice. */
#ifndef _LUSTREAPI_H_
#define _LUSTREAPI_H_

#include <stdbool.h>
#include <linux/types.h>

#define _LUSTRE_USER_H
#define HAVE_CHANGELOG_EXTEND_REC 1
#define lustre_fid struct lu_fid

enum { LUSTRE_STAND_IN = 1 };

enum changelog_rec_flags { CLF_RENAME = 0x2000, CLF_JOBID = 0x4000, CLF_EXTRA_FLAGS = 0x8000 };

struct lu_fid {
	__u64 f_seq;
	__u32 f_oid;
	__u32 f_ver;
} __attribute__((packed));

struct changelog_rec {
	__u16 cr_namelen;
	__u16 cr_flags;
	char rest[60];
} __attribute__((packed));

struct changelog_ext_rename { char bytes[32]; };
struct changelog_ext_jobid { char bytes[32]; };
struct changelog_ext_extra_flags { __u64 cr_extra_flags; };

static inline bool fid_is_zero(const struct lu_fid *fid)
{
	return fid->f_seq == 0 && fid->f_oid == 0;
}

static inline unsigned long changelog_rec_size(struct changelog_rec *rec)
{
	return sizeof(*rec);
}

#endif
