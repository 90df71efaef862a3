/* SPDX-License-Identifier: LGPL-3.0-or-later */
/*
 * A placer: data "host=NAME" names the mover, "rank=N" the turn; "fail", "odd" and "name" answer what is no good,
 * "crash" crashes, and "hang" blocks for as long as there is the file that the option `gate` names.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <lcap_policy.h>

static int create(const char *config_json, void **state)
{
	const char *gate = strstr(config_json, "\"gate\":\"");

	if (gate == NULL)
		return -EINVAL;
	gate += strlen("\"gate\":\"");
	*state = strndup(gate, strcspn(gate, "\""));
	return *state == NULL ? -ENOMEM : 0;
}

static int plan(void *state, const struct lcap_place_request *request, const char *const *movers,
		size_t n_movers, struct lcap_place_plan *plan)
{
	char data[64] = "";

	(void)movers;
	(void)n_movers;
	if (request->data_len >= sizeof(data))
		return -E2BIG;
	memcpy(data, request->data, request->data_len);
	if (strncmp(data, "host=", 5) == 0) {
		strcpy(plan->host, data + 5);
		return LCAP_PLACE_HOST;
	}
	if (strncmp(data, "rank=", 5) == 0)
		plan->rank = atoi(data + 5);
	else if (strcmp(data, "fail") == 0)
		return -EIO;
	else if (strcmp(data, "odd") == 0)
		return 77;
	else if (strcmp(data, "name") == 0) {
		strcpy(plan->host, "no mover / has this name");
		return LCAP_PLACE_HOST;
	} else if (strcmp(data, "crash") == 0)
		abort();
	else if (strcmp(data, "hang") == 0)
		while (access(state, F_OK) == 0)
			usleep(2000);
	return LCAP_PLACE_ANYWHERE;
}

static const struct lcap_placer_ops ops = {
	.abi = LCAP_PLACER_ABI,
	.size = sizeof(ops),
	.name = "turns",
	.create = create,
	.destroy = free,
	.plan = plan,
};

const struct lcap_placer_ops *lcap_placer_entry(void)
{
	return &ops;
}
