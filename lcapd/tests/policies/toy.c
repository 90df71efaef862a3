/* SPDX-License-Identifier: LGPL-3.0-or-later */
/**
 * \file toy.c
 * A module that does, on demand, what modules may do and what they may not.
 * The option "mode" says what; -DTOY_ABI, -DTOY_SIZE, -DTOY_NO_... make tables that are wrong.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lcap_policy.h"

#ifndef TOY_ABI
#define TOY_ABI LCAP_POLICY_ABI
#endif
#ifndef TOY_SIZE
#define TOY_SIZE sizeof(struct lcap_policy_ops)
#endif
#ifndef TOY_VERSION
#define TOY_VERSION "1"
#endif
#ifndef TOY_FLAGS
#define TOY_FLAGS 0
#endif

/* The layout is frozen: the same numbers stand in ffi/src/policy.rs. */
_Static_assert(sizeof(struct lcap_policy_record) == 24, "record");
_Static_assert(sizeof(struct lcap_policy_out) == 48, "out");
_Static_assert(offsetof(struct lcap_policy_out, route) == 40, "out.route");
_Static_assert(sizeof(struct lcap_policy_reader) == 16, "reader");
_Static_assert(sizeof(struct lcap_policy_host) == 32, "host");
_Static_assert(offsetof(struct lcap_policy_ops, dequeue) == 64, "ops.dequeue");
_Static_assert(sizeof(struct lcap_policy_ops) == 88, "ops");

enum { MAX_HELD = 1 << 20, MAX_SIZE = 1024, MAX_PAIRS = 1024, INDEX_AT = 8 };

struct held {
	uint64_t token;
	uint64_t index;
	uint32_t size;
	uint32_t mdt;
	const unsigned char *rec;
};

struct toy {
	char mode[32];
	char file[256];
	const struct lcap_policy_host *host;
	struct held *held;
	size_t n;
	uint64_t first_time;
	uint64_t tokens[2 * MAX_PAIRS];
	unsigned char record[MAX_PAIRS][MAX_SIZE];
	int calls;
};

static int is(const struct toy *toy, const char *mode)
{
	return strcmp(toy->mode, mode) == 0;
}

static const char *toy_describe(void)
{
	return "{\"summary\": \"a toy\", \"options\": {\"type\": \"object\","
	       " \"additionalProperties\": false, \"required\": [\"mode\"],"
	       " \"properties\": {\"mode\": {\"type\": \"string\"}, \"file\": {\"type\": \"string\"}}}}";
}

static int toy_create(const char *config_json, const struct lcap_policy_host *host, void **state)
{
	const char *option;
	struct toy *toy;

	if (strstr(config_json, "\"fail-create\"") != NULL) {
		host->log(host, LCAP_POLICY_LOG_ERROR, "the moon is not full");
		return -EINVAL;
	}
	if (strstr(config_json, "\"fail-create-mutely\"") != NULL)
		return -ENOSPC;
	toy = calloc(1, sizeof(*toy));
	toy->held = calloc(MAX_HELD, sizeof(*toy->held));
	toy->host = host;
	option = strstr(config_json, "\"mode\":\"");
	if (option != NULL)
		sscanf(option + 8, "%31[^\"]", toy->mode);
	option = strstr(config_json, "\"file\":\"");
	if (option != NULL)
		sscanf(option + 8, "%255[^\"]", toy->file);
	*state = toy;
	return 0;
}

static void toy_destroy(void *state)
{
	struct toy *toy = state;

	free(toy->held);
	free(toy);
}

static int toy_enqueue(void *state, const struct lcap_policy_record *recs, size_t n,
		       uint64_t now_ns)
{
	struct toy *toy = state;
	size_t i;

	toy->calls++;
	if (is(toy, "fail-first-enqueue") || (is(toy, "fail-enqueue") && toy->calls == 2))
		return -ENOMEM;
	if (toy->n == 0)
		toy->first_time = now_ns;
	if (n > MAX_HELD - toy->n)
		return -ENOBUFS;
	for (i = 0; i < n; i++) {
		struct held *held = &toy->held[toy->n++];

		if (i > 0 && recs[i].token != recs[i - 1].token + 1)
			return -EPROTO;
		held->token = recs[i].token;
		held->rec = recs[i].rec;
		held->size = recs[i].size;
		held->mdt = recs[i].mdt;
		memcpy(&held->index, held->rec + INDEX_AT, sizeof(held->index));
	}
	return 0;
}

static void decide(struct lcap_policy_out *out, uint32_t verdict, uint64_t token)
{
	out->verdict = verdict;
	out->count = 1;
	out->token = token;
}

/** Takes the oldest record off the list. */
static void shift(struct toy *toy, size_t n)
{
	memmove(toy->held, toy->held + n, (toy->n - n) * sizeof(*toy->held));
	toy->n -= n;
}

static int toy_dequeue(void *state, uint64_t now_ns, uint32_t flags, struct lcap_policy_out *out,
		       size_t max, uint64_t *wake_ns)
{
	struct toy *toy = state;
	uint64_t token = toy->n > 0 ? toy->held[0].token : 0;
	size_t n = 0, i, j;

	/* Does not return as long as there is a file. */
	while (is(toy, "block") && toy->n > 0 && access(toy->file, F_OK) == 0)
		usleep(1000);
	if (is(toy, "garbage")) {
		decide(out, LCAP_POLICY_EMIT, token);
		decide(out + 1, LCAP_POLICY_EMIT, 0xdeadbeefcafe);
		return 2;
	}
	if (is(toy, "drop-twice")) {
		decide(out, LCAP_POLICY_DROP, token);
		decide(out + 1, LCAP_POLICY_DROP, token);
		return 2;
	}
	if (is(toy, "list-twice")) {
		toy->tokens[0] = toy->tokens[1] = token;
		out->verdict = LCAP_POLICY_EMIT;
		out->count = 2;
		out->tokens = toy->tokens;
		return 1;
	}
	if (is(toy, "merge-twice") || is(toy, "merge-bad-index") || is(toy, "merge-garbage")) {
		toy->tokens[0] = token;
		toy->tokens[1] = is(toy, "merge-twice") ? token : token + 1;
		memcpy(toy->record[0], toy->held[1].rec, toy->held[1].size);
		out->verdict = LCAP_POLICY_EMIT;
		out->count = 2;
		out->tokens = toy->tokens;
		out->rec = toy->record[0];
		out->rec_size = is(toy, "merge-garbage") ? 40 : toy->held[1].size;
		return 1;
	}
	if (is(toy, "merge-huge")) {
		decide(out, LCAP_POLICY_EMIT, token);
		out->rec = toy->record[0];
		out->rec_size = 1u << 30;
		return 1;
	}
	if (is(toy, "past-the-end")) {
		out->verdict = LCAP_POLICY_EMIT;
		out->count = (uint32_t)toy->n + 1;
		out->token = token;
		return 1;
	}
	if (is(toy, "no-verdict"))
		return 1;
	if (is(toy, "bad-verdict")) {
		decide(out, 7, token);
		return 1;
	}
	if (is(toy, "no-count")) {
		out->verdict = LCAP_POLICY_EMIT;
		return 1;
	}
	if (is(toy, "unaligned-list")) {
		decide(out, LCAP_POLICY_EMIT, token);
		out->tokens = (const uint64_t *)((uintptr_t)toy->tokens | 1);
		return 1;
	}
	if (is(toy, "too-many"))
		return (int)max + 1;
	if (is(toy, "fail-dequeue"))
		return -EIO;
	if (is(toy, "hold-for-ever"))
		return 0;
	if (is(toy, "hold") || is(toy, "hold-reverse")) {
		uint64_t until = toy->first_time + 1000000000;

		if (toy->n == 0)
			return 0;
		if (now_ns < until && !(flags & LCAP_POLICY_FLUSH)) {
			*wake_ns = until;
			return 0;
		}
	}
	if (is(toy, "hold-one-in-1000")) {
		if (flags & LCAP_POLICY_FLUSH) {
			for (n = 0; n < max && n < toy->n; n++)
				decide(out + n, LCAP_POLICY_EMIT, toy->held[n].token);
			shift(toy, n);
			return (int)n;
		}
		for (i = j = 0; i < toy->n; i++) {
			if (toy->held[i].index % 1000 != 0 && n < max)
				decide(out + n++, LCAP_POLICY_DROP, toy->held[i].token);
			else
				toy->held[j++] = toy->held[i];
		}
		toy->n = j;
		return (int)n;
	}
	while (toy->n > 0 && n < max) {
		size_t used = 1;

		if (is(toy, "drop-odd")) {
			decide(out + n, toy->held[0].index % 2 ? LCAP_POLICY_DROP : LCAP_POLICY_EMIT,
			       toy->held[0].token);
		} else if (is(toy, "hold-reverse")) {
			decide(out + n++, LCAP_POLICY_EMIT, toy->held[--toy->n].token);
			continue;
		} else if (is(toy, "route")) {
			decide(out + n, LCAP_POLICY_EMIT, toy->held[0].token);
			out[n].route = toy->held[0].index % 4;
		} else if (is(toy, "merge") && toy->n > 1) {
			uint64_t lowest = toy->held[0].index;
			uint64_t *tokens = &toy->tokens[2 * n];
			unsigned char *record = toy->record[n];

			if (n == MAX_PAIRS)
				return (int)n;
			if (toy->held[1].index < lowest)
				lowest = toy->held[1].index;
			tokens[0] = toy->held[0].token;
			tokens[1] = toy->held[1].token;
			memcpy(record, toy->held[1].rec, toy->held[1].size);
			memcpy(record + INDEX_AT, &lowest, sizeof(lowest));
			out[n].verdict = LCAP_POLICY_EMIT;
			out[n].count = 2;
			out[n].tokens = tokens;
			out[n].rec = record;
			out[n].rec_size = toy->held[1].size;
			used = 2;
		} else { /* pass, hold, merge the last one */
			decide(out + n, LCAP_POLICY_EMIT, toy->held[0].token);
		}
		shift(toy, used);
		n++;
	}
	return (int)n;
}

#ifndef TOY_NO_CLEAR
static int toy_clear(void *state, uint32_t mdt, const struct lcap_policy_reader *readers, size_t n,
		     uint64_t proposed, uint64_t *upto)
{
	struct toy *toy = state;

	if (toy->host->mdt_name(toy->host, mdt) == NULL)
		return -ENOENT;
	if (is(toy, "clear-less"))
		*upto = n > 0 && strcmp(readers[0].name, "slow") == 0 ? readers[0].watermark : proposed - 1;
	if (is(toy, "clear-more"))
		*upto = UINT64_MAX;
	if (is(toy, "fail-clear"))
		return -EIO;
	return 0;
}

static int toy_stats(void *state, char *json, size_t len)
{
	struct toy *toy = state;

	return snprintf(json, len, "{\"calls\": %d}", toy->calls);
}
#endif

static const struct lcap_policy_ops toy_ops = {
	.abi = TOY_ABI,
	.size = TOY_SIZE,
	.name = "toy",
	.version = TOY_VERSION,
	.flags = TOY_FLAGS,
	.describe = toy_describe,
	.create = toy_create,
	.destroy = toy_destroy,
	.enqueue = toy_enqueue,
#ifndef TOY_NO_DEQUEUE
	.dequeue = toy_dequeue,
#endif
#ifndef TOY_NO_CLEAR
	.clear = toy_clear,
	.stats = toy_stats,
#endif
};

const struct lcap_policy_ops *lcap_policy_entry(void)
{
#ifdef TOY_NO_DEQUEUE
	(void)toy_dequeue;
#endif
#ifdef TOY_NO_TABLE
	(void)toy_ops;
	return NULL;
#else
	return &toy_ops;
#endif
}
