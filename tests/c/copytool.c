/*
 * A copytool in the manner of those that come with Lustre: it registers, receives lists, and has a
 * thread (or, with -f, a process) for each request. Knows nothing of lcap.
 *
 *   copytool [-f] [-n] [-d MILLISECONDS] [-A ID]... MOUNT ARCHIVE
 *
 * The archive is a directory with a file per object id. -n: with a non-blocking descriptor, and a
 * loop of its own around it. A file ARCHIVE/fail-OID makes the request on that object fail with EIO.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* As lustreapi.h has them. */
struct lu_fid {
	uint64_t f_seq;
	uint32_t f_oid, f_ver;
};

struct hsm_extent {
	uint64_t offset, length;
} __attribute__((packed));

struct hsm_action_list {
	uint32_t hal_version, hal_count;
	uint64_t hal_compound_id, hal_flags;
	uint32_t hal_archive_id, padding1;
	char hal_fsname[];
} __attribute__((packed));

struct hsm_action_item {
	uint32_t hai_len, hai_action;
	struct lu_fid hai_fid, hai_dfid;
	struct hsm_extent hai_extent;
	uint64_t hai_cookie, hai_gid;
	char hai_data[];
} __attribute__((packed));

enum { HSMA_ARCHIVE = 20, HSMA_RESTORE, HSMA_REMOVE, HSMA_CANCEL };

struct hsm_copytool_private;
struct hsm_copyaction_private;
int llapi_hsm_copytool_register(struct hsm_copytool_private **, const char *, int, int *, int);
int llapi_hsm_copytool_unregister(struct hsm_copytool_private **);
int llapi_hsm_copytool_get_fd(struct hsm_copytool_private *);
int llapi_hsm_copytool_recv(struct hsm_copytool_private *, struct hsm_action_list **, int *);
int llapi_hsm_action_begin(struct hsm_copyaction_private **, const struct hsm_copytool_private *,
			   const struct hsm_action_item *, int, int, bool);
int llapi_hsm_action_progress(struct hsm_copyaction_private *, const struct hsm_extent *, uint64_t,
			      int);
int llapi_hsm_action_end(struct hsm_copyaction_private **, const struct hsm_extent *, int, int);
int llapi_hsm_action_get_fd(const struct hsm_copyaction_private *);
int llapi_hsm_action_get_dfid(const struct hsm_copyaction_private *, struct lu_fid *);

static struct hsm_copytool_private *ct;
static const char *archive;
static int delay_ms;

static size_t round8(size_t n)
{
	return (n + 7) & ~(size_t)7;
}

static int copy(int from, int to)
{
	char buffer[4096];
	ssize_t n;

	while ((n = read(from, buffer, sizeof(buffer))) > 0)
		if (write(to, buffer, (size_t)n) != n)
			return -EIO;
	return n < 0 ? -errno : 0;
}

/* Sleeps, and reports progress every 50 ms. */
static int work(struct hsm_copyaction_private *hcp)
{
	struct hsm_extent none = { 0, 0 };
	int rc = llapi_hsm_action_progress(hcp, &none, 0, 0);

	for (int left = delay_ms; left > 0 && rc == 0; left -= 50) {
		usleep((left < 50 ? (unsigned)left : 50) * 1000U);
		rc = llapi_hsm_action_progress(hcp, &none, 0, 0);
	}
	return rc;
}

static int move_data(const struct hsm_action_item *hai, struct hsm_copyaction_private *hcp)
{
	char path[4096], temporary[4200];
	struct lu_fid dfid;
	int data, other, rc;

	snprintf(path, sizeof(path), "%s/fail-%u", archive, hai->hai_fid.f_oid);
	if (access(path, F_OK) == 0)
		return -EIO;
	snprintf(path, sizeof(path), "%s/%u", archive, hai->hai_fid.f_oid);
	if (hai->hai_action == HSMA_REMOVE)
		return unlink(path) < 0 && errno != ENOENT ? -errno : 0;
	rc = llapi_hsm_action_get_dfid(hcp, &dfid);
	if (rc < 0)
		return rc;
	data = llapi_hsm_action_get_fd(hcp);
	if (data < 0)
		return data;
	if (hai->hai_action == HSMA_ARCHIVE) {
		snprintf(temporary, sizeof(temporary), "%s.%d.%llx", path, (int)getpid(),
			 (unsigned long long)hai->hai_cookie);
		other = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
		rc = other < 0 ? -errno : copy(data, other);
		if (other >= 0)
			close(other);
		if (rc == 0 && rename(temporary, path) < 0)
			rc = -errno;
	} else {
		other = open(path, O_RDONLY | O_CLOEXEC);
		rc = other < 0 ? -errno : copy(other, data);
		if (other >= 0)
			close(other);
	}
	close(data);
	return rc;
}

static void process(const struct hsm_action_item *hai)
{
	struct hsm_copyaction_private *hcp = NULL;
	int rc = llapi_hsm_action_begin(&hcp, ct, hai, -1, 0, false);

	if (rc == 0) {
		rc = work(hcp);
		if (rc == 0)
			rc = move_data(hai, hcp);
	} else if (llapi_hsm_action_begin(&hcp, ct, hai, -1, 0, true) < 0)
		return;
	llapi_hsm_action_end(&hcp, &hai->hai_extent, 0, rc);
}

static void *thread(void *arg)
{
	process(arg);
	free(arg);
	return NULL;
}

static void start(const struct hsm_action_item *hai, bool by_fork)
{
	struct hsm_action_item *own;
	pthread_attr_t attributes;
	pthread_t id;

	if (hai->hai_action == HSMA_CANCEL)
		return;		/* the action itself learns of it by its progress */
	own = malloc(hai->hai_len);
	if (!own)
		abort();
	memcpy(own, hai, hai->hai_len);
	if (by_fork) {
		if (fork() == 0) {
			process(own);
			_exit(0);
		}
		free(own);
		return;
	}
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attributes, 256 << 10);
	if (pthread_create(&id, &attributes, thread, own))
		abort();
	pthread_attr_destroy(&attributes);
}

static void stop(int signal)
{
	llapi_hsm_copytool_unregister(&ct);
	_exit(signal == SIGTERM ? 0 : 1);
}

int main(int argc, char **argv)
{
	int ids[16], n_ids = 0, option, rc;
	bool by_fork = false, own_loop = false;

	while ((option = getopt(argc, argv, "fnd:A:")) != -1)
		if (option == 'f')
			by_fork = true;
		else if (option == 'n')
			own_loop = true;
		else if (option == 'd')
			delay_ms = atoi(optarg);
		else if (option == 'A' && n_ids < 16)
			ids[n_ids++] = atoi(optarg);
		else
			return 2;
	if (argc - optind != 2)
		return 2;
	archive = argv[optind + 1];
	rc = llapi_hsm_copytool_register(&ct, argv[optind], n_ids, n_ids ? ids : NULL,
					 own_loop ? O_NONBLOCK : 0);
	if (rc < 0) {
		fprintf(stderr, "copytool: cannot register: %s\n", strerror(-rc));
		return 1;
	}
	puts("registered");
	fflush(stdout);
	signal(SIGTERM, stop);
	signal(SIGINT, stop);
	if (by_fork)
		signal(SIGCHLD, SIG_IGN);
	for (;;) {
		struct hsm_action_list *list;
		const char *at, *end;
		int size;

		if (own_loop) {
			struct pollfd fd = { .fd = llapi_hsm_copytool_get_fd(ct), .events = POLLIN };

			if (fd.fd < 0)
				return 1;
			poll(&fd, 1, -1);
		}
		rc = llapi_hsm_copytool_recv(ct, &list, &size);
		if (rc == -ESHUTDOWN)
			break;
		if (rc == -EAGAIN && own_loop)
			continue;
		if (rc < 0) {
			fprintf(stderr, "copytool: recv: %s\n", strerror(-rc));
			if (rc != -EINTR)
				return 1;
			continue;
		}
		at = list->hal_fsname + round8(strlen(list->hal_fsname) + 1);
		end = (const char *)list + size;
		for (uint32_t i = 0; i < list->hal_count && at < end; i++) {
			const struct hsm_action_item *hai = (const struct hsm_action_item *)at;

			start(hai, by_fork);
			at += round8(hai->hai_len);
		}
	}
	llapi_hsm_copytool_unregister(&ct);
	return 0;
}
