/* SPDX-License-Identifier: LGPL-3.0-or-later */
/**
 * \file template.c
 * A start for your own module in C: drops records of one type.
 *
 *     gcc -shared -fPIC -O2 -Wall -Wextra -I include -o template_c.so policies/template-c/template.c
 *
 *     policies = [ { module = "/usr/lib/lcap/policies/template_c.so", drop_type = 11 } ]
 *
 * The contract is in lcap_policy.h; docs/policies.md is the guide.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lcap_policy.h"

/** Where cr_type lies in a packed struct changelog_rec. Records are not aligned: use memcpy(). */
#define CR_TYPE_OFFSET 4

/** One decision that is yet to be given: a run of consecutive tokens with the same fate. */
struct run {
	uint64_t first;
	uint32_t count;
	uint32_t verdict;
};

/** What one instance remembers. */
struct template {
	uint32_t drop_type;
	struct run *runs;
	size_t n_runs, n_given, room;
	uint64_t n_dropped;
};

static const char *template_describe(void)
{
	/* lcapd checks the configuration against this schema before it calls create(). */
	return "{\"summary\": \"drops records of one type\","
	       " \"options\": {\"type\": \"object\", \"additionalProperties\": false,"
	       "  \"required\": [\"drop_type\"],"
	       "  \"properties\": {\"drop_type\": {\"type\": \"integer\", \"minimum\": 0,"
	       "   \"maximum\": 24, \"description\": \"number of the type, CL_*\"}}}}";
}

static int template_create(const char *config_json, const struct lcap_policy_host *host, void **state)
{
	struct template *self;
	const char *option;

	/* The schema leaves one integer to be found. For more than that, use a JSON library. */
	option = strstr(config_json, "\"drop_type\":");
	if (option == NULL) {
		host->log(host, LCAP_POLICY_LOG_ERROR, "drop_type is missing");
		return -EINVAL;
	}
	self = calloc(1, sizeof(*self));
	if (self == NULL)
		return -ENOMEM;
	self->drop_type = (uint32_t)strtoul(option + strlen("\"drop_type\":"), NULL, 10);
	*state = self;
	return 0;
}

static void template_destroy(void *state)
{
	struct template *self = state;

	free(self->runs);
	free(self);
}

static int template_enqueue(void *state, const struct lcap_policy_record *recs, size_t n,
			    uint64_t now_ns)
{
	struct template *self = state;
	size_t i;

	(void)now_ns;
	for (i = 0; i < n; i++) {
		struct run *last = self->n_runs > 0 ? &self->runs[self->n_runs - 1] : NULL;
		uint32_t type, verdict;

		memcpy(&type, (const char *)recs[i].rec + CR_TYPE_OFFSET, sizeof(type));
		verdict = type == self->drop_type ? LCAP_POLICY_DROP : LCAP_POLICY_EMIT;
		if (last != NULL && last->verdict == verdict && last->count < UINT32_MAX) {
			last->count++; /* tokens are consecutive */
			continue;
		}
		if (self->n_runs == self->room) {
			size_t room = self->room > 0 ? 2 * self->room : 64;
			struct run *runs = realloc(self->runs, room * sizeof(*runs));

			if (runs == NULL)
				return -ENOMEM; /* lcapd goes on without us, and loses nothing */
			self->runs = runs;
			self->room = room;
		}
		self->runs[self->n_runs].first = recs[i].token;
		self->runs[self->n_runs].count = 1;
		self->runs[self->n_runs].verdict = verdict;
		self->n_runs++;
	}
	return 0;
}

static int template_dequeue(void *state, uint64_t now_ns, uint32_t flags,
			    struct lcap_policy_out *out, size_t max, uint64_t *wake_ns)
{
	struct template *self = state;
	size_t n = 0;

	(void)now_ns;
	(void)flags;   /* nothing is held back here, so a flush changes nothing */
	(void)wake_ns; /* stays "never": nothing to do before the next records come */
	while (self->n_given < self->n_runs && n < max) {
		const struct run *run = &self->runs[self->n_given++];

		out[n].verdict = run->verdict;
		out[n].token = run->first;
		out[n].count = run->count;
		if (run->verdict == LCAP_POLICY_DROP)
			self->n_dropped += run->count;
		n++;
	}
	if (self->n_given == self->n_runs)
		self->n_given = self->n_runs = 0;
	return (int)n; /* if it is max, lcapd calls again at once */
}

static int template_stats(void *state, char *json, size_t len)
{
	const struct template *self = state;
	int n = snprintf(json, len, "{\"dropped_by_type\": %llu}",
			 (unsigned long long)self->n_dropped);

	return n >= 0 && (size_t)n < len ? n : -ENOSPC;
}

static const struct lcap_policy_ops template_ops = {
	.abi = LCAP_POLICY_ABI,
	.size = sizeof(struct lcap_policy_ops),
	.name = "template_c",
	.version = "1",
	.flags = LCAP_POLICY_NO_POINTERS | LCAP_POLICY_VERBATIM, /* no record is looked at after enqueue() */
	.describe = template_describe,
	.create = template_create,
	.destroy = template_destroy,
	.enqueue = template_enqueue,
	.dequeue = template_dequeue,
	.stats = template_stats,
	/* .clear is left out: what lcapd proposes stands */
};

const struct lcap_policy_ops *lcap_policy_entry(void)
{
	return &template_ops;
}
