/* SPDX-License-Identifier: LGPL-3.0-or-later */
/**
 * \file lcap_client.h
 *
 * Reads the changelog records of a Lustre MDT from lcapd, which shares them among any number of
 * programs, or from the MDT itself. lcap_client(3) has an example.
 *
 *     struct lcap_cl_ctx *ctx;
 *     struct changelog_rec *rec;
 *     int rc = lcap_changelog_start(&ctx, LCAP_CL_BLOCK, "lustre-MDT0000", 0);
 *
 *     while (rc == 0 && (rc = lcap_changelog_recv(ctx, &rec)) == 0) {
 *         use(rec);
 *         rc = lcap_changelog_clear(ctx, "lustre-MDT0000", "", rec->cr_index);
 *         lcap_changelog_free(ctx, &rec);
 *     }
 *     lcap_changelog_fini(ctx);
 *
 * Return values are those of liblustreapi: 0, 1 at the end of the records, or a negative errno; the
 * sentence that goes with the errno is lcap_changelog_error()'s. Every function may be given NULL and
 * answers -EINVAL then.
 *
 * A context and the records that it gave are used by one thread at a time. Contexts do not know
 * of each other. The library has one thread per context besides libzmq's; both take no signals.
 * A context cannot be used in a child process after fork(), except with lcap_changelog_fini().
 *
 * Environment: LCAP_REC_URI names the servers, separated by commas and tried in turn (default
 * tcp://localhost:8189), LCAP_STREAM the stream (default "changelog"), LCAP_READER the registered
 * reader, LCAP_TIMEOUT_MS how long an answer may take (default 5000), LCAP_SERVER_KEY the server's
 * CURVE key, LCAP_CLIENT_KEY_FILE the file with the client's own; with LCAP_LOG (error, warn, info,
 * debug, trace) the library logs to stderr. All are ignored in set-user-id programs.
 */
#ifndef LCAP_CLIENT_H
#define LCAP_CLIENT_H

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lcap_changelog.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Flags of lcap_changelog_start(). */
enum lcap_cl_flags {
	LCAP_CL_FOLLOW = 0x01, /**< go on with new records after the present end */
	LCAP_CL_BLOCK = 0x02,  /**< wait for a server that is not there */
	LCAP_CL_DIRECT = 0x04, /**< no server: call liblustreapi on this machine */
	LCAP_CL_JOBID = 0x08   /**< no effect: records have all that the MDT wrote */
};

/** Options of lcap_changelog_setopt(). */
enum lcap_cl_option {
	/** Text: the registered reader that this context is. */
	LCAP_CL_OPT_READER = 1,
	/** Text: the stream. */
	LCAP_CL_OPT_STREAM = 2,
	/**
	 * Text: which records are wanted, as an expression in the language of docs/policies.md,
	 * e.g. `type in (CREAT, UNLNK) and not name ~ *.tmp`. The server evaluates it; what does not
	 * pass settles by itself. A wrong one makes the first receive answer -EINVAL.
	 */
	LCAP_CL_OPT_FILTER = 3,
	/** Number: bytes of records that may wait for the application. Default 8 MiB. */
	LCAP_CL_OPT_PREFETCH = 4,
	/** Number: milliseconds that an acknowledgement may wait. Default 1000. */
	LCAP_CL_OPT_ACK_INTERVAL = 5,
	/** Number: milliseconds that an answer may take. Default 5000. */
	LCAP_CL_OPT_TIMEOUT = 6,
	/**
	 * Number, 0 or 1, of a stream of HSM events: 1 gives what is there now first, each action's last
	 * event, with LCAP_HSM_SNAPSHOT among its bits, and then, without a gap, what changes. 0 gives all
	 * events that lcapd still has.
	 */
	LCAP_CL_OPT_SNAPSHOT = 7
};

/** What a context has seen; lcap_changelog_stats(). */
struct lcap_cl_stats {
	unsigned long long records;      /**< records received */
	unsigned long long bytes;        /**< bytes of them */
	unsigned long long last_index;   /**< index of the last one */
	unsigned long long head_index;   /**< newest index that the server has read from the MDT */
	unsigned long long lag_records;  /**< head_index - last_index; indexes have gaps */
	unsigned long long gaps;         /**< notices of records that are gone for good */
	unsigned long long gap_first;    /**< the latest of those: first index that is missing */
	unsigned long long gap_last;     /**< and the last one, 0 if that is not known */
	unsigned long long redelivered;  /**< records that somebody else had and did not clear */
	unsigned long long repeated;     /**< records that came again and were left out */
	unsigned long long reconnects;   /**< times that the session was started again */
	unsigned long long malformed;    /**< messages that were not usable */
	unsigned long long reserved[12]; /**< 0 */
};

struct lcap_cl_ctx;

/**
 * Start to read the records of an MDT.
 *
 * Asks the server whether it has them, for at most LCAP_TIMEOUT_MS. With LCAP_CL_FOLLOW or
 * LCAP_CL_BLOCK, 0 returns even if there is no server yet: lcap_changelog_recv() waits for it.
 *
 * \param[out] ctx       the context, to be given back with lcap_changelog_fini(); untouched unless
 *                       0 returns
 * \param[in]  flags     enum lcap_cl_flags, or'ed
 * \param[in]  mdtname   e.g. "lustre-MDT0000"
 * \param[in]  startrec  first index wanted; 0: after what the reader has cleared, or, without a
 *                       reader, the oldest that there is. Who starts at a higher index is done with
 *                       the records before it as soon as he clears one
 *
 * \retval 0           the context is there
 * \retval -ENOENT     no such MDT, or no such stream
 * \retval -ETIMEDOUT  no server answers
 * \retval -EINVAL     an argument or a variable of the environment cannot be
 */
int lcap_changelog_start(struct lcap_cl_ctx **ctx, int flags, const char *mdtname,
			 long long startrec);

/**
 * End: acknowledge what was cleared, for which it waits two seconds at most, and free the
 * context and every record that it gave.
 *
 * \retval 0  done
 */
int lcap_changelog_fini(struct lcap_cl_ctx *ctx);

/**
 * Receive one record. Waits for it.
 *
 * \param[in]  ctx  the context
 * \param[out] rec  the record, exactly as the MDT wrote it; valid until it is given back with
 *                  lcap_changelog_free(); not to be written to. NULL unless 0 returns
 *
 * \retval 0           a record was received
 * \retval 1           the end of the present records, without LCAP_CL_FOLLOW; every further call
 *                     returns 1, too
 * \retval -EINTR      a signal came first, and its handler was installed without SA_RESTART
 * \retval -EAGAIN     nothing is there, and the program made the descriptor of
 *                     lcap_changelog_get_fd() non-blocking
 * \retval -ETIMEDOUT  without LCAP_CL_FOLLOW and LCAP_CL_BLOCK: no server has answered for as long
 *                     as the timeout; the next call waits again
 * \retval -ENOENT     the server has no such MDT, stream or reader (any more)
 * \retval -EKEYEXPIRED the reader was suspended because it lagged too far behind
 */
int lcap_changelog_recv(struct lcap_cl_ctx *ctx, struct changelog_rec **rec);

/**
 * Give a record back. The order does not matter; each once.
 *
 * \param[in]     ctx  the context that it came from
 * \param[in,out] rec  the record; NULL afterwards. A NULL record is fine
 *
 * \retval 0        done
 * \retval -EINVAL  the record is not of this context
 */
int lcap_changelog_free(struct lcap_cl_ctx *ctx, struct changelog_rec **rec);

/**
 * Clear: never be given the records again that were received up to an index. Records that were not
 * received yet are not concerned, in whatever order a policy delivers them.
 *
 * For the context's own reader (or queue) this is cheap: the server is told after LCAP_CL_OPT_ACK_INTERVAL,
 * or 10,000 records, or by lcap_changelog_fini(). What was not told when a program dies is received
 * again. Without a reader there is nothing to clear and nothing happens. For another reader the
 * server is asked at once, and the answer awaited.
 *
 * \param[in] ctx      the context
 * \param[in] mdtname  its MDT, or another one of the server's together with an \a id
 * \param[in] id       name of a reader; "" or NULL: the context's own
 * \param[in] endrec   last index; 0 means every record that was received
 *
 * \retval 0        done
 * \retval -EINVAL  \a endrec is negative, or the MDT is another one and there is no \a id
 * \retval -ENOENT  the server has no such reader or MDT
 */
int lcap_changelog_clear(struct lcap_cl_ctx *ctx, const char *mdtname, const char *id,
			 long long endrec);

/**
 * Set an option, before the first record is asked for.
 *
 * \param[in] ctx     the context
 * \param[in] option  enum lcap_cl_option
 * \param[in] value   a text; or a number, unsigned, of 4 or 8 bytes
 * \param[in] len     length of the text without its NUL; or size of the number
 *
 * \retval 0         done
 * \retval -EBUSY    records were asked for
 * \retval -ENOTSUP  the option is reserved, or means nothing with LCAP_CL_DIRECT
 * \retval -EINVAL   there is no such option, or the value cannot be
 */
int lcap_changelog_setopt(struct lcap_cl_ctx *ctx, int option, const void *value, size_t len);

/**
 * A descriptor for poll(): readable exactly when lcap_changelog_recv() would not wait. Only to be
 * polled, or made non-blocking; it belongs to the context. With LCAP_CL_DIRECT look at
 * lcap_changelog_in_buf() first.
 *
 * \return the descriptor, or a negative errno
 */
int lcap_changelog_get_fd(struct lcap_cl_ctx *ctx);

/** 1 if a record (or the end, or an error) is here already, 0 if not, or a negative errno. */
int lcap_changelog_in_buf(struct lcap_cl_ctx *ctx);

/**
 * Tell what the context has seen.
 *
 * \param[in]  ctx    the context
 * \param[out] stats  the numbers
 *
 * \retval 0  done
 * \retval 1  done; and since the last call a gap was noticed: records are gone for good (they were
 *            purged, or the MDT lost them in a crash). Who mirrors state should rescan.
 */
int lcap_changelog_stats(struct lcap_cl_ctx *ctx, struct lcap_cl_stats *stats);

/**
 * What the last call that failed has to say, as a sentence.
 *
 * \param[in] ctx  the context; NULL for the last lcap_changelog_start() that failed in this thread
 *
 * \return the sentence, "" if there is none; valid until the next call
 */
const char *lcap_changelog_error(const struct lcap_cl_ctx *ctx);

/*
 * HSM events: what changes in the list of HSM actions of an MDT. A stream of kind "hsm" carries
 * them (LCAP_CL_OPT_STREAM, or LCAP_STREAM, names it). They are received, given back and cleared
 * as changelog records are, by the same functions, if a program likes; the following ones know
 * what is in them.
 */

/** \a cr_type of an HSM event. */
#define LCAP_HSM_TYPE 0x6c630001u

/** What happened to an action. */
enum lcap_hsm_kind {
	LCAP_HSM_NEW = 1,    /**< it is there */
	LCAP_HSM_UPDATE = 2, /**< something of it has changed */
	LCAP_HSM_PURGED = 3  /**< it is gone from the MDT's list */
};

/** What is asked for. The numbers are Lustre's. */
enum lcap_hsm_action {
	LCAP_HSM_ACTION_UNKNOWN = 0, /**< see lcap_hsm_raw() */
	LCAP_HSM_NOOP = 10,
	LCAP_HSM_ARCHIVE = 20,
	LCAP_HSM_RESTORE = 21,
	LCAP_HSM_REMOVE = 22,
	LCAP_HSM_CANCEL = 23
};

/** How far an action is. */
enum lcap_hsm_status {
	LCAP_HSM_STATUS_UNKNOWN = 0, /**< none, or see lcap_hsm_raw() */
	LCAP_HSM_WAITING = 1,
	LCAP_HSM_STARTED = 2,
	LCAP_HSM_FAILED = 3,
	LCAP_HSM_CANCELED = 4,
	LCAP_HSM_SUCCEED = 5
};

/** Who noticed. */
enum lcap_hsm_source {
	LCAP_HSM_FROM_ACTIONS = 1,    /**< the MDT's list */
	LCAP_HSM_FROM_UPCALL = 2,     /**< a request that the MDT diverted */
	LCAP_HSM_FROM_COORDINATOR = 3 /**< lcapd's own coordinator */
};

/** \a he_bits */
enum lcap_hsm_bits {
	LCAP_HSM_RAW_CUT = 0x1,  /**< the line was longer than an event has room for */
	LCAP_HSM_SNAPSHOT = 0x2  /**< tells the present state, not a change */
};

/** An event, in the buffer that it was received in. Later versions may put fields before the data. */
struct lcap_hsm_event {
	__u16 he_namelen;       /**< bytes after the first 64 */
	__u16 he_flags;         /**< of the record's format */
	__u32 he_type;          /**< LCAP_HSM_TYPE */
	__u64 he_index;         /**< number of the event on its MDT */
	__u64 he_prev;          /**< the event before it of the same action, 0 if none */
	__u64 he_time;          /**< when it was noticed: seconds << 30 | nanoseconds */
	struct lu_fid he_fid;   /**< the file */
	struct lu_fid he_dfid;  /**< what holds the data: another object while a restore runs */
	__u16 he_fixed;         /**< offset of the data from here */
	__u8 he_kind;           /**< enum lcap_hsm_kind */
	__u8 he_source;         /**< enum lcap_hsm_source */
	__u8 he_action;         /**< enum lcap_hsm_action */
	__u8 he_status;         /**< enum lcap_hsm_status; of a purge, the last one that was seen */
	__u8 he_last_status;    /**< before this event */
	__u8 he_bits;           /**< enum lcap_hsm_bits */
	__u32 he_cat_idx;       /**< place in the list: unique at one time, used again later */
	__u32 he_rec_idx;       /**< likewise */
	__u64 he_cookie;        /**< number of the request */
	__u64 he_compound;      /**< 0 in newer versions of Lustre */
	__u64 he_request_flags; /**< flags of the request */
	__u64 he_offset;        /**< first byte */
	__u64 he_length;        /**< number of bytes, all ones for all */
	__u64 he_gid;           /**< group lock */
	__u64 he_created;       /**< when the action was first seen, like he_time */
	__u32 he_archive_id;    /**< which archive, 0 is any */
	__u32 he_datalen;       /**< bytes of data that the request has */
	__u32 he_llog_type;     /**< of the record in the MDT's list */
	__u32 he_llog_len;      /**< likewise */
	__u16 he_data_bytes;    /**< bytes of data that are here: Lustre shows 5 at most */
	__u16 he_raw_bytes;     /**< bytes of the line that are here, see lcap_hsm_raw() */
	__u32 he_reserved;      /**< 0 */
} __attribute__((packed));

/** The request's data, as far as it is there: \a he_data_bytes bytes. */
static inline const char *lcap_hsm_data(const struct lcap_hsm_event *event)
{
	return (const char *)event + sizeof(struct changelog_rec) + event->he_fixed;
}

/** NEW, UPDATE or PURGED. */
static inline const char *lcap_hsm_kind2str(unsigned int kind)
{
	return kind == LCAP_HSM_NEW      ? "NEW"
	       : kind == LCAP_HSM_UPDATE ? "UPDATE"
	       : kind == LCAP_HSM_PURGED ? "PURGED"
					 : "UNKNOWN";
}

/** Lustre's word for an action. */
static inline const char *lcap_hsm_action2str(unsigned int action)
{
	return action == LCAP_HSM_NOOP      ? "NOOP"
	       : action == LCAP_HSM_ARCHIVE ? "ARCHIVE"
	       : action == LCAP_HSM_RESTORE ? "RESTORE"
	       : action == LCAP_HSM_REMOVE  ? "REMOVE"
	       : action == LCAP_HSM_CANCEL  ? "CANCEL"
					    : "UNKNOWN";
}

/** Lustre's word for a status. */
static inline const char *lcap_hsm_status2str(unsigned int status)
{
	return status == LCAP_HSM_WAITING    ? "WAITING"
	       : status == LCAP_HSM_STARTED  ? "STARTED"
	       : status == LCAP_HSM_FAILED   ? "FAILED"
	       : status == LCAP_HSM_CANCELED ? "CANCELED"
	       : status == LCAP_HSM_SUCCEED  ? "SUCCEED"
					     : "UNKNOWN";
}

/**
 * Receive one HSM event. Waits for it. Return values and ownership as lcap_changelog_recv(), and
 *
 * \param[in]  ctx    a context on a stream of kind "hsm"
 * \param[out] event  the event, to be given back with lcap_hsm_free(); NULL unless 0 returns
 *
 * \retval -EPROTO  the stream carries changelog records; the one that came is given back
 */
int lcap_hsm_recv(struct lcap_cl_ctx *ctx, struct lcap_hsm_event **event);

/** Give an event back, as lcap_changelog_free() does. */
int lcap_hsm_free(struct lcap_cl_ctx *ctx, struct lcap_hsm_event **event);

/**
 * The line that the MDT printed for the action (of a purge: the last one), with a NUL.
 *
 * \param[in]  event  the event
 * \param[out] text   room for it; may be NULL if \a size is 0
 * \param[in]  size   bytes of room; what does not fit is left out
 *
 * \return length of the whole line, as snprintf() would; or a negative errno
 */
int lcap_hsm_raw(const struct lcap_hsm_event *event, char *text, size_t size);

/**
 * The event as JSON, with a NUL; docs/protocol.md has the keys. Likewise.
 *
 * \param[in] mdtname  name of the MDT that it came from
 */
int lcap_hsm_json(const char *mdtname, const struct lcap_hsm_event *event, char *text, size_t size);

/** Text of an error number, positive: of the system's and of libzmq's. Valid until the next call. */
const char *lcap_strerror(int errnum);

#ifdef __cplusplus
}
#endif

/*
 * Names that programs written for the first lcap client got along with its header.
 */

/* Such a program need not link libzmq for the one function of it that it calls. Before <zmq.h>
 * and after it, declarations and calls fit. */
#ifndef zmq_strerror
# define zmq_strerror lcap_strerror
#endif

/* glibc has strlcpy() since 2.38; the other C libraries of Linux and the BSDs always had it. */
#if defined(__GLIBC__) && !defined(strlcpy)
# if !(__GLIBC__ > 2 || (__GLIBC__ == 2 && __GLIBC_MINOR__ >= 38))
static inline size_t lcap_strlcpy(char *dst, const char *src, size_t size)
{
	const size_t len = strlen(src);

	if (size > 0) {
		const size_t n = len < size ? len : size - 1;

		memcpy(dst, src, n);
		dst[n] = '\0';
	}
	return len;
}
#  define strlcpy lcap_strlcpy
# endif
#endif

#endif /* LCAP_CLIENT_H */
