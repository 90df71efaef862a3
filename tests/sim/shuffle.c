/* SPDX-License-Identifier: LGPL-3.0-or-later */
/**
 * \file shuffle.c
 * A module for the simulation: drops every record whose index is divisible by five, and emits the
 * others in groups of four indexes, each group back to front. A group that is not full is kept
 * until the host has asked once more. Depends on nothing but what comes in.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lcap_policy.h"

enum { MAX_HELD = 4096, INDEX_AT = 8 };

struct held {
	uint64_t token;
	uint64_t index;
};

struct shuffle {
	struct held held[MAX_HELD];
	size_t n;
	int fresh;
};

static const char *shuffle_describe(void)
{
	return "{\"summary\": \"mixes records up\", \"options\": {\"type\": \"object\"}}";
}

static int shuffle_create(const char *config_json, const struct lcap_policy_host *host,
			  void **state)
{
	(void)config_json;
	(void)host;
	*state = calloc(1, sizeof(struct shuffle));
	return *state == NULL ? -ENOMEM : 0;
}

static void shuffle_destroy(void *state)
{
	free(state);
}

static int shuffle_enqueue(void *state, const struct lcap_policy_record *recs, size_t n,
			   uint64_t now_ns)
{
	struct shuffle *self = state;
	size_t i;

	(void)now_ns;
	if (n > MAX_HELD - self->n)
		return -ENOBUFS;
	for (i = 0; i < n; i++) {
		struct held *held = &self->held[self->n++];

		held->token = recs[i].token;
		memcpy(&held->index, (const char *)recs[i].rec + INDEX_AT, sizeof(held->index));
	}
	self->fresh = 1;
	return 0;
}

static int shuffle_dequeue(void *state, uint64_t now_ns, uint32_t flags,
			   struct lcap_policy_out *out, size_t max, uint64_t *wake_ns)
{
	struct shuffle *self = state;
	int all = (flags & LCAP_POLICY_FLUSH) || !self->fresh;
	size_t n = 0;

	while (n < max && self->n > 0) {
		uint64_t group = self->held[0].index / 4;
		size_t last = 0;

		while (last + 1 < self->n && self->held[last + 1].index / 4 == group)
			last++;
		if (last + 1 == self->n && !all)
			break;
		out[n].verdict = self->held[last].index % 5 ? LCAP_POLICY_EMIT : LCAP_POLICY_DROP;
		out[n].count = 1;
		out[n].token = self->held[last].token;
		n++;
		memmove(self->held + last, self->held + last + 1,
			(self->n - last - 1) * sizeof(*self->held));
		self->n--;
	}
	if (n < max)
		self->fresh = 0;
	if (self->n > 0)
		*wake_ns = now_ns + 1;
	return (int)n;
}

static const struct lcap_policy_ops shuffle_ops = {
	.abi = LCAP_POLICY_ABI,
	.size = sizeof(struct lcap_policy_ops),
	.name = "shuffle",
	.version = "1",
	.flags = LCAP_POLICY_NO_POINTERS | LCAP_POLICY_VERBATIM,
	.describe = shuffle_describe,
	.create = shuffle_create,
	.destroy = shuffle_destroy,
	.enqueue = shuffle_enqueue,
	.dequeue = shuffle_dequeue,
};

const struct lcap_policy_ops *lcap_policy_entry(void);

const struct lcap_policy_ops *lcap_policy_entry(void)
{
	return &shuffle_ops;
}
