/* SPDX-License-Identifier: LGPL-3.0-or-later */
/**
 * \file fold.c
 * A module for the simulation that makes records of its own: one to four records that were given
 * one after another become one, with the index of the first; which ones, depends on how the log
 * was cut. Every second time the next group overtakes. The last group waits until the host has
 * asked once more. A made record tells in cr_prev which indexes it stands for: bit n is the index
 * n + 1 after its own; the bits from 48 on are the record's history, which is not mixed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lcap_policy.h"

enum { MAX_HELD = 512, MAX_MADE = 64, MAX_SIZE = 1024, GROUP = 4, INDEX_AT = 8, PREV_AT = 16,
       VERSION_SHIFT = 48 };

struct held {
	uint64_t token;
	uint64_t index;
	uint64_t prev;
	uint32_t size;
	unsigned char rec[MAX_SIZE];
};

struct fold {
	size_t n;
	int fresh;
	uint64_t tokens[MAX_MADE][GROUP];
	unsigned char made[MAX_MADE][MAX_SIZE];
	struct held held[MAX_HELD];
};

static const char *fold_describe(void)
{
	return "{\"summary\": \"folds records\", \"options\": {\"type\": \"object\"}}";
}

static int fold_create(const char *config_json, const struct lcap_policy_host *host, void **state)
{
	(void)config_json;
	(void)host;
	*state = calloc(1, sizeof(struct fold));
	return *state == NULL ? -ENOMEM : 0;
}

static void fold_destroy(void *state)
{
	free(state);
}

static int fold_enqueue(void *state, const struct lcap_policy_record *recs, size_t n,
			uint64_t now_ns)
{
	struct fold *self = state;
	size_t i;

	(void)now_ns;
	if (n > MAX_HELD - self->n)
		return -ENOBUFS;
	for (i = 0; i < n; i++) {
		struct held *held = &self->held[self->n++];

		if (recs[i].size > MAX_SIZE)
			return -E2BIG;
		held->token = recs[i].token;
		held->size = recs[i].size;
		memcpy(held->rec, recs[i].rec, recs[i].size);
		memcpy(&held->index, held->rec + INDEX_AT, sizeof(held->index));
		memcpy(&held->prev, held->rec + PREV_AT, sizeof(held->prev));
	}
	self->fresh = 1;
	return 0;
}

/* Records of the group that begins at `first`. */
static size_t group_at(const struct fold *self, size_t first)
{
	const struct held *lead = &self->held[first];
	size_t n = 1;

	while (n < 1 + lead->index % GROUP && first + n < self->n &&
	       self->held[first + n].prev == lead->prev &&
	       self->held[first + n].index - lead->index <= VERSION_SHIFT)
		n++;
	return n;
}

static void emit(struct fold *self, struct lcap_policy_out *out, size_t nth, size_t first, size_t n)
{
	struct held *lead = &self->held[first];
	uint64_t prev = lead->prev;
	size_t i;

	out[nth].verdict = LCAP_POLICY_EMIT;
	out[nth].count = (uint32_t)n;
	out[nth].token = lead->token;
	if (n == 1)
		return;
	for (i = 0; i < n; i++) {
		self->tokens[nth][i] = lead[i].token;
		if (i > 0)
			prev |= (uint64_t)1 << (lead[i].index - lead->index - 1);
	}
	memcpy(self->made[nth], lead->rec, lead->size);
	memcpy(self->made[nth] + PREV_AT, &prev, sizeof(prev));
	out[nth].tokens = self->tokens[nth];
	out[nth].rec = self->made[nth];
	out[nth].rec_size = lead->size;
}

static int fold_dequeue(void *state, uint64_t now_ns, uint32_t flags, struct lcap_policy_out *out,
			size_t max, uint64_t *wake_ns)
{
	struct fold *self = state;
	int all = (flags & LCAP_POLICY_FLUSH) || !self->fresh;
	size_t n = 0, done = 0;

	if (max > MAX_MADE)
		max = MAX_MADE;
	while (n < max && done < self->n) {
		size_t one = group_at(self, done), two = 0;

		if (done + one == self->n && !all)
			break;
		if (done + one < self->n && n + 1 < max && self->held[done].index % 2)
			two = group_at(self, done + one);
		if (two > 0 && (all || done + one + two < self->n))
			emit(self, out, n++, done + one, two);
		else
			two = 0;
		emit(self, out, n++, done, one);
		done += one + two;
	}
	self->n -= done;
	memmove(self->held, self->held + done, self->n * sizeof(*self->held));
	if (n < max)
		self->fresh = 0;
	if (self->n > 0)
		*wake_ns = now_ns + 1;
	return (int)n;
}

static const struct lcap_policy_ops fold_ops = {
	.abi = LCAP_POLICY_ABI,
	.size = sizeof(struct lcap_policy_ops),
	.name = "fold",
	.version = "1",
	.flags = LCAP_POLICY_NO_POINTERS,
	.describe = fold_describe,
	.create = fold_create,
	.destroy = fold_destroy,
	.enqueue = fold_enqueue,
	.dequeue = fold_dequeue,
};

const struct lcap_policy_ops *lcap_policy_entry(void);

const struct lcap_policy_ops *lcap_policy_entry(void)
{
	return &fold_ops;
}
