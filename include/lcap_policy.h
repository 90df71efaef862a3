/* SPDX-License-Identifier: LGPL-3.0-or-later */
/**
 * \file lcap_policy.h
 * What a policy module is to lcapd.
 *
 * A policy is a shared library that exports one function, lcap_policy_entry(). lcapd hands it the
 * records of an MDT in batches, and the module says of each record whether it is emitted or
 * dropped, when, and in which order. docs/policies.md is the guide; this file is the contract.
 *
 * TOKENS. The host gives every record that it enqueues a token. Tokens of one instance are
 * consecutive numbers, beginning anywhere. The module must decide each token exactly once, with
 * dequeue(): EMIT or DROP. Until then it holds the record, and the MDT keeps it, too.
 *
 * MEMORY. The host owns the records that it hands in and keeps them unchanged, at the same address,
 * until their tokens are decided; with the flag LCAP_POLICY_NO_POINTERS only until enqueue()
 * returns. The module owns what it hands out and keeps it unchanged until the next call on the same
 * instance.
 *
 * THREADS. An instance is used by one thread at a time, though not always by the same one; the host
 * orders the calls. Different instances may be called at the same moment on different threads, so
 * keep no global variables, or lock them. No function may block, sleep, do I/O or start threads that
 * outlive destroy(): while it runs, its stream stands still.
 *
 * ERRORS. Functions that return int answer 0 (or a count) or a negative errno. On an error, on a
 * token that is foreign or already decided, and on anything else against this contract, the host
 * stops using the instance: with `on_error = "bypass"` (the default) it emits what the module held,
 * unchanged and in its original order, and goes on without it; with "stop" the stream stops.
 * No record is lost either way. Never let a C++ exception or longjmp cross these functions.
 */
#ifndef LCAP_POLICY_H
#define LCAP_POLICY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Version of this contract. It changes only if an old module could no longer be served. */
#define LCAP_POLICY_ABI 1

/** \name Flags of a module (lcap_policy_ops.flags). Leave unknown bits zero. */
/**@{*/
/** One instance serves all MDTs of a stream, on one thread; else there is one instance per MDT. */
#define LCAP_POLICY_SHARED ((uint64_t)1)
/** The module keeps no pointer into a record after enqueue() returns, so the host may move what is
 *  held. Set it if you can: few held records then do not pin the large batches that they came in. */
#define LCAP_POLICY_NO_POINTERS ((uint64_t)2)
/** What comes out is what came in: the module never sets lcap_policy_out.rec, and drops no record
 *  because another one makes up for it. Set it if that is so. lcapd then leaves out what a consumer
 *  has had before a restart, and a reader that is away holds nothing for records that are dropped.
 *  Without it, a record may stand for others than the record of the same index that the consumer has
 *  had, so consumers see some again. A module that says so and emits a record of its own fails. */
#define LCAP_POLICY_VERBATIM ((uint64_t)4)
/**@}*/

/** Flags of dequeue(). */
enum {
	/** Decide everything now: shutdown, reload, memory short, or held for too long. A token that
	 *  is still undecided after dequeue() has answered less than `max` is an error. */
	LCAP_POLICY_FLUSH = 1
};

/** Verdicts. */
enum {
	/** The record goes on to the next module, or out. */
	LCAP_POLICY_EMIT = 1,
	/** The record is done with: it settles as if it had been acknowledged. */
	LCAP_POLICY_DROP = 2
};

/** Levels of lcap_policy_host.log(). */
enum {
	LCAP_POLICY_LOG_ERROR = 1,
	LCAP_POLICY_LOG_WARN = 2,
	LCAP_POLICY_LOG_INFO = 3,
	LCAP_POLICY_LOG_DEBUG = 4
};

/** One record on its way in. */
struct lcap_policy_record {
	uint64_t token;   /**< this record's token: the one before it plus one */
	const void *rec;  /**< a packed struct changelog_rec, checked to be whole; not aligned */
	uint32_t size;    /**< its size in bytes, extensions and name included */
	uint32_t mdt;     /**< its MDT, a number for lcap_policy_host.mdt_name() */
};

/**
 * A decision on its way out: on one token, on a run of consecutive tokens, or on a list of tokens.
 *
 * The host zeroes it before dequeue(). To emit the record with token T: verdict, count = 1,
 * token = T. To let a whole batch pass: count = its size, token = its first.
 */
struct lcap_policy_out {
	uint32_t verdict;        /**< LCAP_POLICY_EMIT or LCAP_POLICY_DROP */
	uint32_t count;          /**< how many tokens this decides, at least 1 */
	uint64_t token;          /**< the first of `count` consecutive tokens, if `tokens` is NULL */
	const uint64_t *tokens;  /**< or the tokens themselves, in the order in which to emit them */
	/**
	 * EMIT only. NULL: each token's record, unchanged. Else one packed record that takes the place
	 * of all of them. They must be of one MDT, and its cr_index must be the lowest of theirs: it
	 * may then only be acknowledged, and the MDT cleared past it, once all that it stands for is
	 * done with, and after a crash all of them are read again.
	 */
	const void *rec;
	uint32_t rec_size;       /**< its size in bytes */
	uint32_t reserved;       /**< 0 */
	uint64_t route;          /**< queue streams: records with equal keys go to one member, in order;
	                              0: any member. 0 also leaves what an earlier module has set */
};

/** A reader, for clear(). */
struct lcap_policy_reader {
	const char *name;    /**< valid during the call */
	uint64_t watermark;  /**< every record with an index up to this is settled for it */
};

/** What the host offers to an instance. Valid from create() to the end of destroy(). */
struct lcap_policy_host {
	uint32_t abi;     /**< LCAP_POLICY_ABI of the host */
	uint32_t size;    /**< sizeof(struct lcap_policy_host) at the host: entries are only appended */
	uint32_t n_mdts;  /**< MDTs that this instance serves: numbers 0 to n_mdts - 1 */
	uint32_t reserved;
	/** The name of an MDT, e.g. "lustre-MDT0000"; NULL for a number that there is not. */
	const char *(*mdt_name)(const struct lcap_policy_host *host, uint32_t mdt);
	/** Writes one line to lcapd's log. Before create() fails, say why at level ERROR: the text
	 *  becomes part of lcapd's own message. Not per record. */
	void (*log)(const struct lcap_policy_host *host, int level, const char *text);
};

/** The table of a module. It must stay valid and unchanged as long as the library is loaded. */
struct lcap_policy_ops {
	uint32_t abi;         /**< LCAP_POLICY_ABI that the module was built with */
	uint32_t size;        /**< sizeof(struct lcap_policy_ops) then; a smaller (older) one is
	                           accepted as long as it reaches to `dequeue`. Entries are only appended */
	const char *name;     /**< short name, e.g. "fifo" */
	const char *version;  /**< the module's own version */
	uint64_t flags;       /**< LCAP_POLICY_SHARED, LCAP_POLICY_NO_POINTERS, LCAP_POLICY_VERBATIM */

	/**
	 * Tells about the module.
	 *
	 * Called on any thread, before the first create() and for `lcap policy inspect`.
	 *
	 * \return a JSON object that stays valid as long as the library is loaded:
	 *         {"summary": "one sentence", "options": SCHEMA}, where SCHEMA is a JSON Schema of the
	 *         configuration (keywords: type, properties, required, additionalProperties, items,
	 *         enum, anyOf, minimum, maximum, minLength, minItems, and format "duration" or "size").
	 *         The host checks the configuration against it before create()
	 */
	const char *(*describe)(void);

	/**
	 * Makes an instance.
	 *
	 * \param[in]  config_json  the module's table of the configuration as a JSON object, without the
	 *                          keys that are the host's (module, on_error, max_hold); valid during the call
	 * \param[in]  host         valid until destroy() returns
	 * \param[out] state        the instance; may be NULL if the module needs none
	 *
	 * \retval 0         made
	 * \retval -EINVAL   the configuration is wrong; say what is wrong with host->log()
	 * \retval -errno    any other reason; destroy() is not called
	 */
	int (*create)(const char *config_json, const struct lcap_policy_host *host, void **state);

	/** Frees an instance. What it still held is the host's concern. */
	void (*destroy)(void *state);

	/**
	 * Takes records.
	 *
	 * \param[in] recs    `n` records with consecutive tokens, in the order of the log or of the
	 *                    module before; the array is valid during the call
	 * \param[in] n       at least 1
	 * \param[in] now_ns  a monotonic clock; never goes back, means nothing else
	 *
	 * \retval 0       all of them are taken
	 * \retval -errno  the instance is of no more use
	 */
	int (*enqueue)(void *state, const struct lcap_policy_record *recs, size_t n, uint64_t now_ns);

	/**
	 * Gives decisions.
	 *
	 * Called after each enqueue() and when the moment that the module asked for has come. If it
	 * answers `max` it is called again at once.
	 *
	 * \param[in]  flags    0 or LCAP_POLICY_FLUSH
	 * \param[out] out      room for `max` decisions, in the order in which records are to be emitted
	 * \param[in]  max      at least 1
	 * \param[out] wake_ns  when to call again at the latest, on the clock of now_ns; the host sets it to
	 *                      UINT64_MAX (never) before the call
	 *
	 * \return the number of decisions, 0 to `max`, or a negative errno
	 */
	int (*dequeue)(void *state, uint64_t now_ns, uint32_t flags, struct lcap_policy_out *out,
		       size_t max, uint64_t *wake_ns);

	/**
	 * Says up to where an MDT may be cleared. NULL: what the host proposes stands.
	 *
	 * \param[in]  mdt       which MDT
	 * \param[in]  readers   the stream's registered readers, `n` of them; a queue counts as one
	 * \param[in]  proposed  the lowest watermark; 0, which is nothing, if there are no readers
	 * \param[out] upto      set to `proposed` before the call. Lower holds back. Higher counts only
	 *                       if n is 0, and never beyond what this chain has delivered or dropped
	 *
	 * \retval 0       *upto is the answer
	 * \retval -errno  the instance is of no more use
	 */
	int (*clear)(void *state, uint32_t mdt, const struct lcap_policy_reader *readers, size_t n,
		     uint64_t proposed, uint64_t *upto);

	/**
	 * Writes figures of the module's own as a JSON object of numbers, with a NUL. NULL: none.
	 *
	 * \retval >=0     bytes written without the NUL
	 * \retval -errno  e.g. -ENOSPC if `len` is too small; not fatal
	 */
	int (*stats)(void *state, char *json, size_t len);
};

/**
 * The one symbol that a module exports. Called once, when the library is loaded.
 *
 * \return the module's table; NULL if the module cannot work here
 */
#if defined(__GNUC__)
__attribute__((visibility("default")))
#endif
const struct lcap_policy_ops *lcap_policy_entry(void);

/**
 * \name Placers: modules that choose the mover of an HSM request, and its turn
 *
 * Another kind of module, which exports lcap_placer_entry(). `[hsm] placer` of the configuration names it, the
 * actions that it is asked about, and how long a request waits for its answer; after that, any mover may have it. It
 * runs on a thread of its own, so it may block (ask a tape library, say): requests are placed one after the other,
 * while the queue goes on. A module that has not answered at all for that time is not asked, and nothing waits for it,
 * until it answers again.
 */
/**@{*/
/** Version of this contract. */
#define LCAP_PLACER_ABI 1

/** Answers of place(), besides negative errnos, after which any mover may have the request. */
enum {
	LCAP_PLACE_HOST = 0,    /**< `host` is the mover */
	LCAP_PLACE_ANYWHERE = 1 /**< any mover may have it */
};

/** A request, valid during the call. Fields are only appended. */
struct lcap_place_request {
	uint32_t size;       /**< sizeof(struct lcap_place_request) at the host */
	uint32_t action;     /**< Lustre's number: 20 archive, 21 restore, 22 remove */
	uint32_t archive_id; /**< 0: not known */
	uint32_t data_len;   /**< bytes of `data` */
	uint64_t flags;      /**< hal_flags */
	uint64_t fid_seq;    /**< the file */
	uint32_t fid_oid;
	uint32_t fid_ver;
	uint32_t uid;        /**< its owner, group and project; UINT32_MAX: not known. They are asked of the
	                          mount only if shares are by them */
	uint32_t gid;
	uint32_t project;
	uint32_t reserved;   /**< 0 */
	const void *data;    /**< what the user gave: any bytes, without a NUL at the end */
	const char *fsname;  /**< the file system */
};

/** Room for the name of a mover, with its NUL. */
#define LCAP_PLACE_HOST_SIZE 256

/** What plan() decides. Fields are only appended; `size` says up to where the host reads. */
struct lcap_place_plan {
	uint32_t size; /**< sizeof(struct lcap_place_plan) at the host */
	int32_t rank;  /**< its turn: of the requests of one kind and share, those of a lower rank go first, and of one
	                    rank the oldest. 0 unless said, as for requests that nobody was asked about. Of fair shares
	                    (`share_by`), each still has its own turn */
	char host[LCAP_PLACE_HOST_SIZE]; /**< zeroed; the name of the mover, as for place() */
};

/** The table of a placer. It must stay valid and unchanged as long as the library is loaded. */
struct lcap_placer_ops {
	uint32_t abi;     /**< LCAP_PLACER_ABI that the module was built with */
	uint32_t size;    /**< sizeof(struct lcap_placer_ops) then. Entries are only appended */
	const char *name; /**< short name */

	/**
	 * Makes the instance. NULL: none is needed.
	 *
	 * \param[in]  config_json  the module's own keys of `[hsm] placer`, a JSON object; valid during the call
	 * \param[out] state        the instance
	 *
	 * \retval 0       made
	 * \retval -errno  lcapd does not start
	 */
	int (*create)(const char *config_json, void **state);

	/** Frees the instance. NULL: nothing to do. */
	void (*destroy)(void *state);

	/**
	 * Chooses the mover of a request. NULL if there is plan().
	 *
	 * \param[in]  movers     names of the movers that are there, `n_movers` of them
	 * \param[out] host       zeroed; the name of the mover, with a NUL. It need not be there: the request waits
	 *                        for it then
	 * \param[in]  host_size  room in `host`
	 *
	 * \return LCAP_PLACE_HOST, LCAP_PLACE_ANYWHERE, or a negative errno
	 */
	int (*place)(void *state, const struct lcap_place_request *request, const char *const *movers,
		     size_t n_movers, char *host, size_t host_size);

	/* What follows need not be there: `size` of a module that was built before tells. */

	/**
	 * Chooses the mover of a request and its turn; is asked instead of place(). NULL: place() is asked.
	 *
	 * \param[in]     movers  as for place()
	 * \param[in,out] plan    `size` is set, everything else is 0; `rank` counts with both answers, `host` with
	 *                        LCAP_PLACE_HOST
	 *
	 * \return LCAP_PLACE_HOST, LCAP_PLACE_ANYWHERE, or a negative errno: then neither counts
	 */
	int (*plan)(void *state, const struct lcap_place_request *request, const char *const *movers,
		    size_t n_movers, struct lcap_place_plan *plan);
};

/**
 * The one symbol that a placer exports. Called once, when the library is loaded.
 *
 * \return the module's table; NULL if the module cannot work here
 */
#if defined(__GNUC__)
__attribute__((visibility("default")))
#endif
const struct lcap_placer_ops *lcap_placer_entry(void);
/**@}*/

#ifdef __cplusplus
}
#endif

#endif /* LCAP_POLICY_H */
