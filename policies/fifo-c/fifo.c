/* SPDX-License-Identifier: LGPL-3.0-or-later */
/**
 * \file fifo.c
 * Everything passes, in order: the smallest policy module in C.
 *
 *     gcc -shared -fPIC -O2 -Wall -Wextra -I include -o fifo_c.so policies/fifo-c/fifo.c
 */
#include <errno.h>
#include <stdlib.h>

#include "lcap_policy.h"

/** Tokens are consecutive, so a first one and a number are all there is to remember. */
struct fifo {
	uint64_t first;
	uint32_t count;
};

static const char *fifo_describe(void)
{
	return "{\"summary\": \"emits every record unchanged, in order\","
	       " \"options\": {\"type\": \"object\", \"additionalProperties\": false,"
	       " \"properties\": {}}}";
}

static int fifo_create(const char *config_json, const struct lcap_policy_host *host, void **state)
{
	struct fifo *fifo = calloc(1, sizeof(*fifo));

	(void)config_json; /* lcapd has checked it: there are no options */
	if (fifo == NULL) {
		host->log(host, LCAP_POLICY_LOG_ERROR, "out of memory");
		return -ENOMEM;
	}
	*state = fifo;
	return 0;
}

static void fifo_destroy(void *state)
{
	free(state);
}

static int fifo_enqueue(void *state, const struct lcap_policy_record *recs, size_t n,
			uint64_t now_ns)
{
	struct fifo *fifo = state;

	(void)now_ns;
	if (n > UINT32_MAX - fifo->count)
		return -EOVERFLOW;
	if (fifo->count == 0)
		fifo->first = recs[0].token;
	fifo->count += (uint32_t)n;
	return 0;
}

static int fifo_dequeue(void *state, uint64_t now_ns, uint32_t flags, struct lcap_policy_out *out,
			size_t max, uint64_t *wake_ns)
{
	struct fifo *fifo = state;

	(void)now_ns;
	(void)flags;   /* nothing is ever held back, so a flush changes nothing */
	(void)max;     /* at least 1 */
	(void)wake_ns; /* never: there is nothing to do until the next enqueue() */
	if (fifo->count == 0)
		return 0;
	out[0].verdict = LCAP_POLICY_EMIT;
	out[0].token = fifo->first;
	out[0].count = fifo->count;
	fifo->count = 0;
	return 1;
}

static const struct lcap_policy_ops fifo_ops = {
	.abi = LCAP_POLICY_ABI,
	.size = sizeof(struct lcap_policy_ops),
	.name = "fifo_c",
	.version = "1",
	.flags = LCAP_POLICY_NO_POINTERS | LCAP_POLICY_VERBATIM,
	.describe = fifo_describe,
	.create = fifo_create,
	.destroy = fifo_destroy,
	.enqueue = fifo_enqueue,
	.dequeue = fifo_dequeue,
};

const struct lcap_policy_ops *lcap_policy_entry(void)
{
	return &fifo_ops;
}
