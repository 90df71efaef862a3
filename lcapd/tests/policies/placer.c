/* SPDX-License-Identifier: LGPL-3.0-or-later */
/* A placer for tests: data "to=NAME" names the mover, "hang" sleeps, "fail" fails, "odd" answers what is no answer,
 * "many" wants the last mover that is there; everything else may go anywhere. With -DOLD it is a table of the first
 * release, which has no plan(); else "rank=N" says when. */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <lcap_policy.h>

static int create(const char *config_json, void **state)
{
	if (strstr(config_json, "\"refuse\"") != NULL)
		return -EINVAL;
	*state = malloc(1);
	return *state == NULL ? -ENOMEM : 0;
}

static int is(const struct lcap_place_request *request, const char *text)
{
	return request->data_len == strlen(text) && memcmp(request->data, text, strlen(text)) == 0;
}

static int place(void *state, const struct lcap_place_request *request, const char *const *movers,
		 size_t n_movers, char *host, size_t host_size)
{
	if (state == NULL || request->size < sizeof(*request) || strcmp(request->fsname, "l") != 0)
		return -EPROTO;
	if (is(request, "hang")) {
		struct timespec second = { 1, 0 };

		nanosleep(&second, NULL);
		return LCAP_PLACE_ANYWHERE;
	}
	if (is(request, "fail"))
		return -EIO;
	if (is(request, "odd")) {
		memset(host, 'x', host_size);
		return 0;
	}
	if (is(request, "many")) {
		if (n_movers == 0)
			return LCAP_PLACE_ANYWHERE;
		strncpy(host, movers[n_movers - 1], host_size - 1);
		return 0;
	}
	if (request->data_len > 3 && memcmp(request->data, "to=", 3) == 0 &&
	    request->data_len - 3 < host_size) {
		memcpy(host, (const char *)request->data + 3, request->data_len - 3);
		return 0;
	}
	return LCAP_PLACE_ANYWHERE;
}

#ifdef OLD
static const struct lcap_placer_ops ops = {
	.abi = LCAP_PLACER_ABI,
	.size = offsetof(struct lcap_placer_ops, plan),
	.name = "toy",
	.create = create,
	.destroy = free,
	.place = place,
	.plan = (void *)1, /* the table ends before this */
};
#else
static int plan(void *state, const struct lcap_place_request *request, const char *const *movers,
		size_t n_movers, struct lcap_place_plan *plan)
{
	char text[32] = "";

	if (plan->size < sizeof(*plan) || plan->rank != 0 || plan->host[0] != 0)
		return -EPROTO;
	if (request->data_len > 5 && request->data_len < sizeof(text) &&
	    memcmp(request->data, "rank=", 5) == 0) {
		memcpy(text, request->data, request->data_len);
		plan->rank = atoi(text + 5);
		return LCAP_PLACE_ANYWHERE;
	}
	return place(state, request, movers, n_movers, plan->host, sizeof(plan->host));
}

static const struct lcap_placer_ops ops = {
	.abi = LCAP_PLACER_ABI,
	.size = sizeof(ops),
	.name = "toy",
	.create = create,
	.destroy = free,
	.plan = plan,
};
#endif

const struct lcap_placer_ops *lcap_placer_entry(void)
{
	return &ops;
}
