/* SPDX-License-Identifier: LGPL-3.0-or-later */
/**
 * \file lcap_mover.h
 *
 * Carries out HSM requests of a Lustre file system that lcapd hands out. lcap_mover(3) has an example.
 *
 *     struct lcap_mover_options options = { .size = sizeof(options), .name = "mover1" };
 *     struct lcap_mover *mover;
 *     const struct lcap_mover_action *action;
 *     int rc = lcap_mover_start(&mover, &options);
 *
 *     while (rc == 0 && (rc = lcap_mover_recv(mover, &action, -1)) == 0) {
 *         if (action->action != LCAP_MOVER_CANCEL)
 *             lcap_mover_done(mover, action, move_the_data(action));
 *         lcap_mover_free(action);
 *     }
 *     lcap_mover_fini(mover);
 *
 * The mover itself tells Lustre of the beginning, the progress and the end of each action, with
 * liblustreapi's llapi_hsm_action_begin(), _progress() and _end() or what stands for them; then it
 * tells lcapd, here. A program that calls llapi_hsm_copytool_register() needs none of this: it runs
 * under liblcap_llapi.so as it is.
 *
 * Return values are 0 or a negative errno. Every function may be given NULL and answers -EINVAL then.
 * A mover may be used by any number of threads; it is not to be used in a child process after fork().
 * The library has one thread per mover besides libzmq's; both take no signals.
 *
 * Environment, for what the options leave open: LCAP_MOVER_URI names the servers, separated by commas
 * and tried in turn (default tcp://localhost:8193), LCAP_MOVER_NAME the mover (default: the host's
 * name up to its first dot), LCAP_MAX_ARCHIVE, LCAP_MAX_RESTORE and LCAP_MAX_REMOVE how many requests
 * of a kind it runs at most, LCAP_MOVER_WINDOW how many may wait in it (default 64), LCAP_SERVER_KEY
 * the server's CURVE key, LCAP_CLIENT_KEY_FILE the file with the mover's own; with LCAP_LOG (error,
 * warn, info, debug, trace) the library logs to stderr. All are ignored in set-user-id programs.
 */
#ifndef LCAP_MOVER_H
#define LCAP_MOVER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** What is to be done; the numbers are Lustre's HSMA_*. */
enum lcap_mover_what {
	LCAP_MOVER_ARCHIVE = 20, /**< copy the file to the archive */
	LCAP_MOVER_RESTORE = 21, /**< bring its data back */
	LCAP_MOVER_REMOVE = 22,  /**< delete the archive's copy */
	LCAP_MOVER_CANCEL = 23   /**< stop the action with this cookie and FID; end it with ECANCELED */
};

/** A file's identifier, as Lustre's struct lu_fid. */
struct lcap_mover_fid {
	uint64_t seq;
	uint32_t oid;
	uint32_t ver;
};

/** One request, or the cancel of one. */
struct lcap_mover_action {
	uint32_t action;            /**< enum lcap_mover_what */
	uint32_t archive_id;        /**< 0: any */
	uint64_t flags;             /**< hal_flags */
	struct lcap_mover_fid fid;  /**< the file */
	struct lcap_mover_fid dfid; /**< the file that holds the data */
	uint64_t offset;            /**< first byte */
	uint64_t length;            /**< bytes; all ones: to the end */
	uint64_t cookie;            /**< the coordinator's name for it */
	uint64_t gid;               /**< group lock */
	const void *data;           /**< the requester's, any bytes; a NUL follows them */
	size_t data_len;            /**< how many, without that NUL */
};

/** Who the mover is. Zeroed but for `size`, everything is as the environment says. */
struct lcap_mover_options {
	size_t size;              /**< sizeof(struct lcap_mover_options) */
	const char *uri;          /**< servers, or NULL */
	const char *name;         /**< unique among movers, or NULL */
	const char *fsname;       /**< refused with -EINVAL if lcapd has another; NULL: any */
	const uint32_t *archives; /**< archives that it serves */
	size_t n_archives;        /**< how many; 0: all */
	int32_t max_archive;      /**< most at once; 0: as the environment says */
	int32_t max_restore;
	int32_t max_remove;
	uint32_t window;          /**< requests that may wait in the mover; 0: as the environment says */
	int32_t timeout_ms;       /**< how long lcap_mover_start() waits for lcapd; 0: for ever */
	uint32_t reserved;
};

struct lcap_mover;

/**
 * Start a mover, and wait until lcapd knows it.
 *
 * \param[out] mover    to be ended with lcap_mover_fini(); untouched unless 0 returns
 * \param[in]  options  may be NULL
 *
 * \retval 0           started; a lost connection is mended without the program's knowledge
 * \retval -EINVAL     an option is wrong, or lcapd serves another file system
 * \retval -EACCES     lcapd knows no mover with this key
 * \retval -ETIMEDOUT  lcapd did not answer in time (as with a wrong LCAP_SERVER_KEY), or another mover of that
 *                     name lives
 */
int lcap_mover_start(struct lcap_mover **mover, const struct lcap_mover_options *options);

/**
 * Receive one request, or the cancel of one that was received before.
 *
 * \param[in]  mover
 * \param[out] action      to be given back with lcap_mover_free(); untouched unless 0 returns
 * \param[in]  timeout_ms  how long to wait; negative: until there is one
 *
 * \retval 0           received
 * \retval -EAGAIN     nothing within the time
 * \retval -EINTR      a signal arrived first
 * \retval -ESHUTDOWN  another thread has called lcap_mover_fini()
 */
int lcap_mover_recv(struct lcap_mover *mover, const struct lcap_mover_action **action,
		    int timeout_ms);

/** Give an action's memory back. NULL is nothing. What was asked for stays the mover's. */
void lcap_mover_free(const struct lcap_mover_action *action);

/**
 * Say that Lustre lets the request begin. From here on its progress is the mover's to tell; before,
 * lcapd keeps it alive.
 */
int lcap_mover_begun(struct lcap_mover *mover, const struct lcap_mover_action *action);

/**
 * Say that the request was ended with Lustre.
 *
 * \param[in] status  0 for success, or an errno of either sign
 */
int lcap_mover_done(struct lcap_mover *mover, const struct lcap_mover_action *action, int status);

/**
 * Say that Lustre would not let it begin. lcapd ends it with Lustre, with this errno, if that has not
 * been done; -ENOENT is what Lustre says if it has.
 */
int lcap_mover_refused(struct lcap_mover *mover, const struct lcap_mover_action *action, int status);

/** Say that the request will not be carried out here: others may have it. Lustre was not told. */
int lcap_mover_return(struct lcap_mover *mover, const struct lcap_mover_action *action);

/**
 * A descriptor that is readable while lcap_mover_recv() would give something at once. It belongs to
 * the mover.
 */
int lcap_mover_get_fd(struct lcap_mover *mover);

/** The file system whose requests these are. Lives as long as the mover. NULL for NULL. */
const char *lcap_mover_fsname(const struct lcap_mover *mover);

/**
 * End a mover: others get at once what it holds. Waits up to some seconds until lcapd has its last
 * reports on disk. No other thread may call anything of this mover afterwards.
 */
int lcap_mover_fini(struct lcap_mover *mover);

#ifdef __cplusplus
}
#endif

#endif /* LCAP_MOVER_H */
