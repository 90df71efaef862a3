/* SPDX-License-Identifier: LGPL-3.0-or-later */
/**
 * \file lcap_changelog.h
 *
 * Lustre's changelog records for C and C++ programs, on machines with Lustre's headers and without.
 *
 * With Lustre's own headers in reach this file includes <lustre/lustreapi.h> and defines nothing
 * that Lustre defines: the compiler sees Lustre's types. Without them it brings the types, the
 * constants, the accessors and the helpers that a reader of changelogs needs, under the names and with
 * the layouts that they have in Lustre, as of release 2.17, so that a program written for
 * liblustreapi compiles unchanged.
 *
 * Order of inclusion:
 *   - Lustre's headers first, this one second: fine, also if the compiler could not have found
 *     them by the name <lustre/lustreapi.h>.
 *   - this one first, Lustre's second: fine if <lustre/lustreapi.h> can be found.
 *   - LCAP_NO_LUSTRE_HEADERS defined: this file does not look for Lustre's headers. They must then
 *     come first or not at all.
 *
 * Whichever it was, LCAP_HAVE_LUSTRE_HEADERS is 1 if the types are Lustre's, and 0 if they are
 * from here; lcap_fid_eq(), lcap_changelog_rec_len() and lcap_changelog_rec_next() are there in
 * both cases.
 *
 * Records are packed: they, and everything in them, may stand at any address. What accessors return
 * points into the record, and is valid as long as the record is. An accessor of an extension may be
 * called only if the record's flags say that the extension is there; otherwise the result points to
 * something else within or behind the record, as it does in Lustre.
 */
#ifndef LCAP_CHANGELOG_H
#define LCAP_CHANGELOG_H

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/types.h>

#if !defined(LCAP_NO_LUSTRE_HEADERS) && defined(__has_include)
# if __has_include(<lustre/lustreapi.h>)
#  include <lustre/lustreapi.h>
# endif
#endif
#if defined(_LUSTREAPI_H_) || defined(_LUSTRE_USER_H) /* their guards in every release */
# define LCAP_HAVE_LUSTRE_HEADERS 1
#else
# define LCAP_HAVE_LUSTRE_HEADERS 0
#endif

/** printf() format of a 64 bit number in hexadecimal. Older programs take its absence as a sign
 * that they have to define fid_is_zero() themselves. */
#ifndef LPX64
# define LPX64 "%#llx"
#endif

#ifdef __cplusplus
# define LCAP_STATIC_ASSERT(what) static_assert(what, #what)
#else
# define LCAP_STATIC_ASSERT(what) _Static_assert(what, #what)
#endif

#if !LCAP_HAVE_LUSTRE_HEADERS

#define LCAP_PACKED __attribute__((packed))

/** llapi_changelog_recv() gives records with extensions. */
#define HAVE_CHANGELOG_EXTEND_REC 1

/* ------------------------------------------------------------------ file identifiers */

/** Names a file in a Lustre file system, whatever its path. */
struct lu_fid {
	__u64 f_seq; /**< sequence */
	__u32 f_oid; /**< number within the sequence */
	__u32 f_ver; /**< version, 0 in practice */
} LCAP_PACKED;

typedef struct lu_fid lustre_fid;

/** Room for a FID as DFID prints it, with its NUL. */
#define FID_NOBRACE_LEN 40
#define FID_LEN (FID_NOBRACE_LEN + 2)

/** printf() format of a FID, and its arguments: printf("t=" DFID "\n", PFID(&rec->cr_tfid)). */
#define DFID_NOBRACE "%#llx:0x%x:0x%x"
#define DFID "[" DFID_NOBRACE "]"
#define PFID(fid) (unsigned long long)(fid)->f_seq, (fid)->f_oid, (fid)->f_ver

/** scanf() format of a FID without its brackets, and its arguments. */
#define SFID "0x%llx:0x%x:0x%x"
#define RFID(fid) (unsigned long long *)&(fid)->f_seq, &(fid)->f_oid, &(fid)->f_ver

/** Whether a FID names nothing. */
static inline bool fid_is_zero(const struct lu_fid *fid)
{
	return fid->f_seq == 0 && fid->f_oid == 0;
}

/* ------------------------------------------------------------------ what happened */

/** \a cr_type */
enum changelog_rec_type {
	CL_NONE = -1,     /**< nothing */
	CL_MARK = 0,      /**< recording began or ended */
	CL_CREATE = 1,    /**< a regular file was created */
	CL_MKDIR = 2,     /**< a directory was created */
	CL_HARDLINK = 3,  /**< a name was added to a file */
	CL_SOFTLINK = 4,  /**< a symbolic link was created */
	CL_MKNOD = 5,     /**< a device, fifo or socket was created */
	CL_UNLINK = 6,    /**< a name was removed; see CLF_UNLINK_LAST */
	CL_RMDIR = 7,     /**< a directory was removed */
	CL_RENAME = 8,    /**< a name was moved; has the rename extension */
	CL_EXT = 9,       /**< second half of a rename, from servers before 2.3 */
	CL_OPEN = 10,     /**< a file was opened */
	CL_CLOSE = 11,    /**< a file was closed */
	CL_LAYOUT = 12,   /**< striping changed */
	CL_TRUNC = 13,    /**< the size was set */
	CL_SETATTR = 14,  /**< mode, owner, … were set */
	CL_SETXATTR = 15, /**< an extended attribute was set */
	CL_XATTR = CL_SETXATTR,
	CL_HSM = 16,      /**< archived, restored, released, …; see hsm_get_cl_event() */
	CL_MTIME = 17,    /**< the modification time changed */
	CL_CTIME = 18,    /**< the change time changed */
	CL_ATIME = 19,    /**< the access time changed */
	CL_MIGRATE = 20,  /**< moved to another MDT; has the rename extension */
	CL_FLRW = 21,     /**< a mirrored file was written to */
	CL_RESYNC = 22,   /**< mirrors were made equal again */
	CL_GETXATTR = 23, /**< an extended attribute was read */
	CL_DN_OPEN = 24,  /**< an open was refused */
	CL_LAST
};

/** Lustre's short name of a record type, or NULL. */
static inline const char *changelog_type2str(int type)
{
	static const char *const names[] = {
		"MARK",  "CREAT", "MKDIR",  "HLINK", "SLINK", "MKNOD", "UNLNK",
		"RMDIR", "RENME", "RNMTO",  "OPEN",  "CLOSE", "LYOUT", "TRUNC",
		"SATTR", "XATTR", "HSM",    "MTIME", "CTIME", "ATIME", "MIGRT",
		"FLRW",  "RESYNC", "GXATR", "NOPEN",
	};

	return type >= 0 && type < CL_LAST ? names[type] : NULL;
}

/* ------------------------------------------------------------------ flags */

/** Bits of \a cr_flags that belong to the record's type. */
#define CLF_FLAGSHIFT 12

/** \a cr_flags: which extensions there are, above the bits that depend on the type */
enum changelog_rec_flags {
	CLF_VERSION = 0x1000,     /**< set in every record that a library returned */
	CLF_RENAME = 0x2000,      /**< changelog_rec_rename() */
	CLF_JOBID = 0x4000,       /**< changelog_rec_jobid() */
	CLF_EXTRA_FLAGS = 0x8000, /**< changelog_rec_extra_flags() */
	CLF_SUPPORTED = CLF_VERSION | CLF_RENAME | CLF_JOBID | CLF_EXTRA_FLAGS,
	CLF_FLAGMASK = 0x0fff,
	CLF_VERMASK = ~0x0fff
};

/** CL_UNLINK, CL_RMDIR: that was the last name, the file is gone. */
#define CLF_UNLINK_LAST 0x0001
/** CL_UNLINK, with the former: an archive still has a copy. */
#define CLF_UNLINK_HSM_EXISTS 0x0002
/** CL_RENAME: that was the last name of the file that was overwritten. */
#define CLF_RENAME_LAST 0x0001
/** CL_RENAME, with the former: an archive still has a copy of that file. */
#define CLF_RENAME_LAST_EXISTS 0x0002

/** \a cr_extra_flags: which further extensions there are */
enum changelog_rec_extra_flags {
	CLFE_INVALID = 0,
	CLFE_UIDGID = 0x0001, /**< changelog_rec_uidgid() */
	CLFE_NID = 0x0002,    /**< changelog_rec_nid() */
	CLFE_OPEN = 0x0004,   /**< changelog_rec_openmode() */
	CLFE_XATTR = 0x0008,  /**< changelog_rec_xattr() */
	CLFE_NID_BE = 0x0010, /**< the NID is a big-endian struct lnet_nid; adds no bytes */
	CLFE_SUPPORTED = CLFE_UIDGID | CLFE_NID | CLFE_OPEN | CLFE_XATTR | CLFE_NID_BE
};

/** Flags of llapi_changelog_start(). */
enum changelog_send_flag {
	CHANGELOG_FLAG_FOLLOW = 0x01,      /**< wait for new records at the end */
	CHANGELOG_FLAG_BLOCK = 0x02,       /**< no effect since 2.10 */
	CHANGELOG_FLAG_JOBID = 0x04,       /**< show the jobid extension */
	CHANGELOG_FLAG_EXTRA_FLAGS = 0x08, /**< show the extra flags */
	CHANGELOG_FLAG_NID_BE = 0x10       /**< show NIDs in the large layout */
};

/** Flags of llapi_changelog_set_xflags(). */
enum changelog_send_extra_flag {
	CHANGELOG_EXTRA_FLAG_UIDGID = 0x01,
	CHANGELOG_EXTRA_FLAG_NID = 0x02,
	CHANGELOG_EXTRA_FLAG_OMODE = 0x04,
	CHANGELOG_EXTRA_FLAG_XATTR = 0x08
};

/** Bits of the open mode, in \a cr_openflags and in \a cr_flags of CL_OPEN and CL_CLOSE. */
#ifndef MDS_FMODE_READ
# define MDS_FMODE_READ 00000001
# define MDS_FMODE_WRITE 00000002
# define MDS_FMODE_EXEC 00000004
# define MDS_OPEN_CREAT 00000100
# define MDS_OPEN_EXCL 00000200
# define MDS_OPEN_TRUNC 00001000
# define MDS_OPEN_APPEND 00002000
#endif

/* ------------------------------------------------------------------ HSM events */

/** What a CL_HSM record reports. These are not the numbers of HSM actions. */
enum hsm_event {
	HE_ARCHIVE = 0,
	HE_RESTORE = 1,
	HE_CANCEL = 2,
	HE_RELEASE = 3,
	HE_REMOVE = 4,
	HE_STATE = 5, /**< the file's HSM flags changed */
	HE_SPARE1 = 6,
	HE_SPARE2 = 7
};

#define CLF_HSM_SUCCESS 0x00
#define CLF_HSM_MAXERROR 0x7E      /**< largest error that can be told */
#define CLF_HSM_ERROVERFLOW 0x7F   /**< an error larger than that */
#define CLF_HSM_DIRTY 1            /**< the file is dirty after the event */

/** Event of a CL_HSM record, from its \a cr_flags. */
static inline enum hsm_event hsm_get_cl_event(__u16 flags)
{
	return (enum hsm_event)((flags >> 7) & 0x7);
}

/** Flags of a CL_HSM record (CLF_HSM_DIRTY), from its \a cr_flags. */
static inline __u16 hsm_get_cl_flags(__u32 flags)
{
	return (__u16)((flags >> 10) & 0x3);
}

/** Error of a CL_HSM record as a positive errno, 0 for success, from its \a cr_flags. */
static inline int hsm_get_cl_error(__u32 flags)
{
	return (int)(flags & 0x7f);
}

/* ------------------------------------------------------------------ the record */

/** Largest record, in bytes; what llapi_changelog_recv() allocates. */
#define CR_MAXSIZE 952

/** Bytes of a jobid with its NUL. */
#define LUSTRE_JOBID_SIZE 32

/**
 * What every record begins with. Extensions follow as the flags say, in the order of the structures
 * below, then the name area; nothing is aligned or padded.
 */
struct changelog_rec {
	__u16 cr_namelen;             /**< bytes of the name area */
	__u16 cr_flags;               /**< enum changelog_rec_flags */
	__u32 cr_type;                /**< enum changelog_rec_type */
	__u64 cr_index;               /**< number of the record on its MDT, growing, with gaps */
	__u64 cr_prev;                /**< not used by any server */
	__u64 cr_time;                /**< seconds << 30 | nanoseconds */
	union {
		struct lu_fid cr_tfid; /**< the object; of a rename, what was overwritten */
		__u32 cr_markerflags;  /**< CL_MARK only */
	};
	struct lu_fid cr_pfid;        /**< its directory */
} LCAP_PACKED;

/** CLF_RENAME */
struct changelog_ext_rename {
	struct lu_fid cr_sfid;  /**< what was moved; zero if the record is no rename after all */
	struct lu_fid cr_spfid; /**< the directory that it left */
} LCAP_PACKED;

/** CLF_JOBID */
struct changelog_ext_jobid {
	char cr_jobid[LUSTRE_JOBID_SIZE]; /**< ends with a NUL; what follows it means nothing */
} LCAP_PACKED;

/** CLF_EXTRA_FLAGS */
struct changelog_ext_extra_flags {
	__u64 cr_extra_flags; /**< enum changelog_rec_extra_flags */
} LCAP_PACKED;

/** CLFE_UIDGID */
struct changelog_ext_uidgid {
	__u64 cr_uid;
	__u64 cr_gid;
} LCAP_PACKED;

/** CLFE_NID: the address of the client */
struct changelog_ext_nid {
	__u64 cr_nid; /**< lnet_nid_t; with CLFE_NID_BE the area is a struct lnet_nid instead */
	__u64 extra;
	__u32 padding;
	__u32 lcap_tail; /**< padding of the compiler in Lustre's structure, part of the record */
} LCAP_PACKED;

/** CLFE_OPEN */
struct changelog_ext_openmode {
	__u32 cr_openflags; /**< MDS_*; only the low 12 bits mean anything */
} LCAP_PACKED;

/** CLFE_XATTR */
struct changelog_ext_xattr {
	char cr_xattr[256]; /**< ends with a NUL; what follows it means nothing */
} LCAP_PACKED;

/** Where the name area begins in a record with such \a cr_flags and \a cr_extra_flags. */
static inline size_t changelog_rec_offset(__u32 crf, __u64 cref)
{
	size_t size = sizeof(struct changelog_rec);

	if (crf & CLF_RENAME)
		size += sizeof(struct changelog_ext_rename);
	if (crf & CLF_JOBID)
		size += sizeof(struct changelog_ext_jobid);
	if (!(crf & CLF_EXTRA_FLAGS))
		return size;

	size += sizeof(struct changelog_ext_extra_flags);
	if (cref & CLFE_UIDGID)
		size += sizeof(struct changelog_ext_uidgid);
	if (cref & CLFE_NID)
		size += sizeof(struct changelog_ext_nid);
	if (cref & CLFE_OPEN)
		size += sizeof(struct changelog_ext_openmode);
	if (cref & CLFE_XATTR)
		size += sizeof(struct changelog_ext_xattr);
	return size;
}

/* Address of the extension in front of which stand those of \a crf and \a cref, if present. */
static inline char *lcap_rec_at_(const struct changelog_rec *rec, __u32 crf, __u64 cref);

/** CLF_EXTRA_FLAGS */
static inline struct changelog_ext_extra_flags *
changelog_rec_extra_flags(const struct changelog_rec *rec)
{
	return (struct changelog_ext_extra_flags *)
		lcap_rec_at_(rec, CLF_RENAME | CLF_JOBID, 0);
}

static inline char *lcap_rec_at_(const struct changelog_rec *rec, __u32 crf, __u64 cref)
{
	__u64 extra = 0;

	if (cref && (rec->cr_flags & CLF_EXTRA_FLAGS))
		extra = changelog_rec_extra_flags(rec)->cr_extra_flags;
	return (char *)rec + changelog_rec_offset(rec->cr_flags & crf, extra & cref);
}

/** CLF_RENAME, first in order */
static inline struct changelog_ext_rename *changelog_rec_rename(const struct changelog_rec *rec)
{
	return (struct changelog_ext_rename *)lcap_rec_at_(rec, 0, 0);
}

/** CLF_JOBID */
static inline struct changelog_ext_jobid *changelog_rec_jobid(const struct changelog_rec *rec)
{
	return (struct changelog_ext_jobid *)lcap_rec_at_(rec, CLF_RENAME, 0);
}

/** CLFE_UIDGID */
static inline struct changelog_ext_uidgid *changelog_rec_uidgid(const struct changelog_rec *rec)
{
	return (struct changelog_ext_uidgid *)lcap_rec_at_(rec, CLF_SUPPORTED, 0);
}

/** CLFE_NID */
static inline struct changelog_ext_nid *changelog_rec_nid(const struct changelog_rec *rec)
{
	return (struct changelog_ext_nid *)
		lcap_rec_at_(rec, CLF_SUPPORTED, CLFE_UIDGID);
}

/** CLFE_OPEN */
static inline struct changelog_ext_openmode *
changelog_rec_openmode(const struct changelog_rec *rec)
{
	return (struct changelog_ext_openmode *)
		lcap_rec_at_(rec, CLF_SUPPORTED, CLFE_UIDGID | CLFE_NID);
}

/** CLFE_XATTR */
static inline struct changelog_ext_xattr *changelog_rec_xattr(const struct changelog_rec *rec)
{
	return (struct changelog_ext_xattr *)
		lcap_rec_at_(rec, CLF_SUPPORTED, CLFE_UIDGID | CLFE_NID | CLFE_OPEN);
}

/**
 * The name area: \a cr_namelen bytes, without a NUL at the end.
 * With CLF_RENAME it holds the new name, a NUL and the old name.
 */
static inline char *changelog_rec_name(const struct changelog_rec *rec)
{
	return lcap_rec_at_(rec, CLF_SUPPORTED, CLFE_SUPPORTED);
}

/** Bytes of the record in front of its name area. */
static inline size_t changelog_rec_size(const struct changelog_rec *rec)
{
	return (size_t)(changelog_rec_name(rec) - (char *)rec);
}

/** Bytes of the record behind struct changelog_rec. */
static inline size_t changelog_rec_varsize(const struct changelog_rec *rec)
{
	return changelog_rec_size(rec) - sizeof(*rec) + rec->cr_namelen;
}

/**
 * The old name of a rename: changelog_rec_snamelen() bytes, without a NUL at the end. Unlike
 * Lustre's, it never looks beyond the name area: without a NUL in there the old name is empty.
 */
static inline char *changelog_rec_sname(const struct changelog_rec *rec)
{
	char *name = changelog_rec_name(rec);
	char *nul = (char *)memchr(name, 0, rec->cr_namelen);

	return nul ? nul + 1 : name + rec->cr_namelen;
}

/** Length of the old name of a rename. */
static inline size_t changelog_rec_snamelen(const struct changelog_rec *rec)
{
	return (size_t)(changelog_rec_name(rec) + rec->cr_namelen - changelog_rec_sname(rec));
}

/**
 * Removes from a record, in place, the extensions that are not wanted, as liblustreapi does since
 * 2.16. Extensions that the record does not have are not added. The record gets shorter or stays.
 *
 * \param[in,out] rec         the record
 * \param[in]     crf_wanted  enum changelog_rec_flags
 * \param[in]     cref_want   enum changelog_rec_extra_flags
 */
static inline void changelog_remap_rec(struct changelog_rec *rec, __u32 crf_wanted,
				       __u64 cref_want)
{
	static const struct {
		__u64 flag;
		size_t size;
	} extra_exts[] = {
		{ CLFE_UIDGID, sizeof(struct changelog_ext_uidgid) },
		{ CLFE_NID, sizeof(struct changelog_ext_nid) },
		{ CLFE_OPEN, sizeof(struct changelog_ext_openmode) },
		{ CLFE_XATTR, sizeof(struct changelog_ext_xattr) },
	};
	const __u32 crf = rec->cr_flags;
	const size_t namelen = rec->cr_namelen;
	const char *from = (const char *)(rec + 1);
	char *to = (char *)(rec + 1);
	char *extra_at = NULL;
	__u64 extra = 0;
	__u64 kept = 0;
	size_t i;

	if (crf & CLF_RENAME) {
		if (crf_wanted & CLF_RENAME) {
			memmove(to, from, sizeof(struct changelog_ext_rename));
			to += sizeof(struct changelog_ext_rename);
		}
		from += sizeof(struct changelog_ext_rename);
	}
	if (crf & CLF_JOBID) {
		if (crf_wanted & CLF_JOBID) {
			memmove(to, from, sizeof(struct changelog_ext_jobid));
			to += sizeof(struct changelog_ext_jobid);
		}
		from += sizeof(struct changelog_ext_jobid);
	}
	if (crf & CLF_EXTRA_FLAGS) {
		memcpy(&extra, from, sizeof(extra));
		from += sizeof(extra);
		if (crf_wanted & CLF_EXTRA_FLAGS) {
			extra_at = to;
			to += sizeof(extra);
		} else {
			cref_want = 0;
		}
	}
	for (i = 0; i < sizeof(extra_exts) / sizeof(extra_exts[0]); i++) {
		if (!(extra & extra_exts[i].flag))
			continue;
		if (cref_want & extra_exts[i].flag) {
			memmove(to, from, extra_exts[i].size);
			to += extra_exts[i].size;
			kept |= extra_exts[i].flag;
		}
		from += extra_exts[i].size;
	}
	if (kept & CLFE_NID)
		kept |= extra & cref_want & CLFE_NID_BE;
	memmove(to, from, namelen);
	if (extra_at)
		memcpy(extra_at, &kept, sizeof(kept));
	rec->cr_flags = (__u16)((crf & CLF_FLAGMASK) | CLF_VERSION |
				(crf & crf_wanted & CLF_SUPPORTED));
}

/* What other programs and the kernel rely on. */
LCAP_STATIC_ASSERT(sizeof(struct lu_fid) == 16);
LCAP_STATIC_ASSERT(sizeof(struct changelog_rec) == 64);
LCAP_STATIC_ASSERT(sizeof(struct changelog_ext_rename) == 32);
LCAP_STATIC_ASSERT(sizeof(struct changelog_ext_jobid) == 32);
LCAP_STATIC_ASSERT(sizeof(struct changelog_ext_extra_flags) == 8);
LCAP_STATIC_ASSERT(sizeof(struct changelog_ext_uidgid) == 16);
LCAP_STATIC_ASSERT(sizeof(struct changelog_ext_nid) == 24);
LCAP_STATIC_ASSERT(sizeof(struct changelog_ext_openmode) == 4);
LCAP_STATIC_ASSERT(sizeof(struct changelog_ext_xattr) == 256);

#endif /* !LCAP_HAVE_LUSTRE_HEADERS */

/* ------------------------------------------------------------------ in both cases */

/** Whether two FIDs name the same object. */
static inline bool lcap_fid_eq(const struct lu_fid *a, const struct lu_fid *b)
{
	return a->f_seq == b->f_seq && a->f_oid == b->f_oid && a->f_ver == b->f_ver;
}

/** Bytes of the whole record, name area included. */
static inline size_t lcap_changelog_rec_len(const struct changelog_rec *rec)
{
	return (size_t)changelog_rec_size((struct changelog_rec *)rec) + rec->cr_namelen;
}

/**
 * Walks a buffer of packed records, as the changelog device gives them and lcapd's messages hold
 * them. Checks that the whole record lies within the buffer before it is returned.
 *
 * \param[in]     buf   the buffer
 * \param[in]     len   its length in bytes
 * \param[in,out] pos   offset of the next record, 0 at the beginning
 *
 * \return the record at \a pos, which moves behind it; NULL at the end, or if the bytes at \a pos are
 *         no whole record, where \a pos stays less than \a len
 */
static inline struct changelog_rec *lcap_changelog_rec_next(const void *buf, size_t len, size_t *pos)
{
	const size_t rest = *pos < len ? len - *pos : 0;
	struct changelog_rec *rec = (struct changelog_rec *)((char *)buf + *pos);
	size_t size = sizeof(*rec);

	if (rest < size)
		return NULL;
	if (rec->cr_flags & CLF_RENAME)
		size += sizeof(struct changelog_ext_rename);
	if (rec->cr_flags & CLF_JOBID)
		size += sizeof(struct changelog_ext_jobid);
	if (rec->cr_flags & CLF_EXTRA_FLAGS)
		size += sizeof(struct changelog_ext_extra_flags);
	if (rest < size) /* the extra flags, which tell the size, must be there */
		return NULL;
	size = lcap_changelog_rec_len(rec);
	if (rest < size)
		return NULL;
	*pos += size;
	return rec;
}

#endif /* LCAP_CHANGELOG_H */
