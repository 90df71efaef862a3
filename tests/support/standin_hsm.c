/*
 * A stand-in for an MDT's HSM coordinator and for liblustreapi's copytool calls, for tests on
 * machines without Lustre. Compiled as a shared library it is liblustreapi; with
 * -DSTANDIN_HSM_CTL it is the program that plays the MDT's administrator and users.
 *
 * The "mount" is a directory. The coordinator's state is a file in it, `.standin-hsm`, shared by
 * every process and guarded by its lock, so that any of them may be killed. As measured on Lustre
 * 2.17:
 *
 *   - registration is the ioctl CT_START, so that a library may keep it from happening; one agent a
 *     mount, which is gone as soon as its process is; every message goes to every pipe of the mount;
 *   - recv never tells that the registration is gone;
 *   - a request that was sent is STARTED; without progress it is CANCELED after a time, silently;
 *   - progress (by the library, or by the ioctl without begin) keeps it alive, gives ECANCELED while
 *     a cancel is pending, ENOENT when the MDT does not know the request, EAGAIN when stopped;
 *   - begin and end give ENOENT for what is over; a remove has no COPY_START;
 *   - anybody may end a request, whether registered or not.
 *
 * The data of file [seq:oid:ver] is MOUNT/files/OID; its project is what a file says that is opened to ask for it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))

#define IOC_CT_START 0x401866d5UL
#define IOC_PROGRESS 0x401866d8UL
#define IOC_GET_PROJECT 0x801c581fUL	/* FS_IOC_FSGETXATTR */

enum { ARCHIVE = 20, RESTORE = 21, REMOVE = 22, CANCEL = 23 };
enum { WAITING, STARTED, FAILED, CANCELED, SUCCEED };
enum { COMPLETED = 1, RETRY = 2 };
enum { MAX_AGENTS = 8, MAX_IDS = 16, MAX_DATA = 64, MESSAGE = 5120, CT_MAGIC = (int)0xC0BE2001,
	HCP_MAGIC = 0x19880429 };

struct fid {
	uint64_t seq;
	uint32_t oid;
	uint32_t ver;
};

struct extent {
	uint64_t offset, length;
} __attribute__((packed));

struct hal {
	uint32_t version, count;
	uint64_t compound, flags;
	uint32_t archive, padding;
} __attribute__((packed));

struct hai {
	uint32_t len, action;
	struct fid fid, dfid;
	struct extent extent;
	uint64_t cookie, gid;
} __attribute__((packed));

struct progress {
	struct fid fid;
	uint64_t cookie;
	struct extent extent;
	uint16_t flags, errval;
	uint32_t padding;
};

struct agent {
	int pid;		/* 0: none */
	int n_ids;		/* 0: all archives */
	int ids[MAX_IDS];
};

struct request {
	uint64_t cookie, flags;
	struct fid fid, dfid;
	uint32_t action, archive, data_len;
	int status, errval;
	int cancel;		/* somebody asked for it */
	int forgotten;		/* the MDT has restarted since it was sent */
	int runner;		/* process that has begun it */
	int n_begins, n_sent;
	int64_t heard_ms;	/* last sent or heard of */
	uint8_t data[MAX_DATA];
};

struct sim {
	char fsname[16];
	uint32_t n, max;
	uint64_t first_cookie;
	int enabled, max_requests, timeout_ms;
	uint32_t next_waiting;	/* nothing waits before it */
	uint32_t n_active;
	uint32_t n_messages, max_messages;
	uint64_t n_timeouts, n_doubles;
	int64_t swept_ms;
	struct agent agents[MAX_AGENTS];
	struct request requests[];	/* then max_messages words: what was sent, in order */
};

struct map {
	int fd;
	size_t bytes;
	struct sim *sim;
};

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/* Words of what was sent: a request's number, and whether it was its cancel. */
static uint32_t *messages(struct sim *sim)
{
	return (uint32_t *)(sim->requests + sim->max);
}

static int map_open(struct map *map, const char *mount)
{
	char path[PATH_MAX];
	struct stat st;

	snprintf(path, sizeof(path), "%s/.standin-hsm", mount);
	map->fd = open(path, O_RDWR | O_CLOEXEC);
	if (map->fd < 0)
		return -errno;
	if (fstat(map->fd, &st) < 0 || st.st_size < (off_t)sizeof(struct sim)) {
		close(map->fd);
		return -EPROTO;
	}
	map->bytes = (size_t)st.st_size;
	map->sim = mmap(NULL, map->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, map->fd, 0);
	if (map->sim == MAP_FAILED) {
		close(map->fd);
		return -ENOMEM;
	}
	return 0;
}

/* Of the open file, so that two maps of one process exclude each other, and a kill unlocks. */
static void lock(struct map *map)
{
	while (flock(map->fd, LOCK_EX) < 0 && errno == EINTR)
		;
}

static void unlock(struct map *map)
{
	flock(map->fd, LOCK_UN);
}

static bool alive(int pid)
{
	return pid > 0 && (kill(pid, 0) == 0 || errno == EPERM);
}

static struct request *find(struct sim *sim, uint64_t cookie)
{
	uint64_t at = cookie - sim->first_cookie;

	return at < sim->n ? &sim->requests[at] : NULL;
}

static void over(struct sim *sim, struct request *r, int status, int errval)
{
	if (r->status == STARTED && !r->forgotten)
		sim->n_active--;
	r->status = status;
	r->errval = errval;
	r->runner = 0;
}

static void sweep(struct sim *sim)
{
	int64_t now = now_ms();

	if (now - sim->swept_ms < 200)
		return;
	sim->swept_ms = now;
	for (uint32_t i = 0; i < sim->n; i++) {
		struct request *r = &sim->requests[i];

		if (r->status == STARTED && now - r->heard_ms > sim->timeout_ms) {
			sim->n_timeouts++;
			over(sim, r, CANCELED, ECANCELED);
		}
	}
}

static void post(struct sim *sim, uint32_t at, bool cancel)
{
	if (sim->n_messages < sim->max_messages)
		messages(sim)[sim->n_messages++] = at << 1 | cancel;
}

static void wait_again(struct sim *sim, struct request *r)
{
	uint32_t at = (uint32_t)(r - sim->requests);

	r->status = WAITING;
	r->runner = 0;
	r->cancel = 0;
	if (at < sim->next_waiting)
		sim->next_waiting = at;
}

static const char *action_name(uint32_t action)
{
	return action == ARCHIVE ? "ARCHIVE" : action == RESTORE ? "RESTORE" :
		action == REMOVE ? "REMOVE" : "CANCEL";
}

/* hsm/active_requests and hsm/agents, as files of the mount. */
static void write_files(struct sim *sim, const char *mount)
{
	char path[PATH_MAX], temporary[PATH_MAX + 32];
	FILE *f;

	snprintf(path, sizeof(path), "%s/active_requests", mount);
	snprintf(temporary, sizeof(temporary), "%s.%d", path, (int)getpid());
	f = fopen(temporary, "we");
	if (!f)
		return;
	for (uint32_t i = 0; i < sim->n; i++) {
		const struct request *r = &sim->requests[i];

		if (r->status != STARTED || r->forgotten)
			continue;
		fprintf(f, "fid=[0x%llx:0x%x:0x%x] dfid=[0x%llx:0x%x:0x%x] compound/cookie=0x0/0x%llx "
			"action=%s archive#=%u flags=0x%llx extent=0x0-0xffffffffffffffff gid=0x0 data=[",
			(unsigned long long)r->dfid.seq, r->dfid.oid, r->dfid.ver,
			(unsigned long long)r->dfid.seq, r->dfid.oid, r->dfid.ver,
			(unsigned long long)r->cookie, action_name(r->action), r->archive,
			(unsigned long long)r->flags);
		for (uint32_t b = 0; b < r->data_len && b < 5; b++)
			fprintf(f, "%02X", r->data[b]);
		fprintf(f, "] canceled=%d uuid=1-2-3 done=0\n", r->cancel);
	}
	fclose(f);
	rename(temporary, path);
	snprintf(path, sizeof(path), "%s/agents", mount);
	snprintf(temporary, sizeof(temporary), "%s.%d", path, (int)getpid());
	f = fopen(temporary, "we");
	if (!f)
		return;
	for (int i = 0; i < MAX_AGENTS; i++)
		if (alive(sim->agents[i].pid))
			fprintf(f, "uuid=1-2-3 archive_id=ANY requests=[current:%u ok:0 errors:0]\n",
				sim->n_active);
	fclose(f);
	rename(temporary, path);
}

#ifndef STANDIN_HSM_CTL

static void map_close(struct map *map)
{
	munmap(map->sim, map->bytes);
	close(map->fd);
}

static bool same_fid(const struct fid *a, const struct fid *b)
{
	return a->seq == b->seq && a->oid == b->oid && a->ver == b->ver;
}

/* The MDT has it in memory, as one that it waits for. */
static struct request *find_active(struct sim *sim, uint64_t cookie)
{
	struct request *r = find(sim, cookie);

	return r && r->status == STARTED && !r->forgotten ? r : NULL;
}

static bool serves(const struct agent *agent, uint32_t archive)
{
	if (agent->n_ids == 0 || archive == 0)
		return agent->n_ids == 0;
	for (int i = 0; i < agent->n_ids; i++)
		if (agent->ids[i] == (int)archive)
			return true;
	return false;
}

/* What the coordinator's thread does: sends what waits to the agent, if there is one. */
static void dispatch(struct sim *sim)
{
	struct agent *agent = NULL;
	bool skipped = false;

	for (int i = 0; i < MAX_AGENTS; i++) {
		if (sim->agents[i].pid && !alive(sim->agents[i].pid))
			sim->agents[i].pid = 0;
		if (sim->agents[i].pid)
			agent = &sim->agents[i];
	}
	sweep(sim);
	if (!agent || !sim->enabled)
		return;
	for (uint32_t i = sim->next_waiting; i < sim->n; i++) {
		struct request *r = &sim->requests[i];

		if (r->status == WAITING) {
			if ((int)sim->n_active >= sim->max_requests || !serves(agent, r->archive)) {
				skipped = true;
				if ((int)sim->n_active >= sim->max_requests)
					break;
				continue;
			}
			r->status = STARTED;
			r->forgotten = 0;
			r->heard_ms = now_ms();
			r->n_sent++;
			sim->n_active++;
			post(sim, i, false);
		}
		if (!skipped)
			sim->next_waiting = i + 1;
	}
}

/* One step of progress or the end, as an RPC brings it. */
static int report(struct sim *sim, const struct progress *p)
{
	struct request *r;

	if (!sim->enabled)
		return -EAGAIN;
	sweep(sim);
	r = find_active(sim, p->cookie);
	if (!r)
		return -ENOENT;
	if (!same_fid(&p->fid, &r->fid) && !same_fid(&p->fid, &r->dfid)) {
		if (r->action != RESTORE)
			return -EINVAL;
		r->dfid = p->fid;	/* the volatile file */
	}
	if (p->errval && !(p->flags & COMPLETED))
		return -EINVAL;
	r->heard_ms = now_ms();
	if (!(p->flags & COMPLETED))
		return r->cancel ? -ECANCELED : 0;
	if (p->errval == 0)
		over(sim, r, SUCCEED, 0);
	else if (p->errval == ECANCELED)
		over(sim, r, CANCELED, ECANCELED);
	else if (p->flags & RETRY) {
		over(sim, r, WAITING, p->errval);
		wait_again(sim, r);
	} else
		over(sim, r, FAILED, p->errval);
	return 0;
}

struct hsm_copytool_private {
	int magic;
	int mnt_fd;
	int pipe_read, pipe_write;
	char mount[PATH_MAX];
	struct map map;
	pthread_t pump;
	volatile int pumping;	/* the kernel's side of the registration is there */
	int n_ids;
	int ids[MAX_IDS];
	uint32_t cursor;
	uint8_t buffer[MESSAGE + 8] __attribute__((aligned(8)));
};

struct hsm_copyaction_private {
	int magic;
	const struct hsm_copytool_private *ct;
	struct hai hai;
	int fd;
	bool is_error;
};

/* The registration that an ioctl is made for; ioctl's argument does not say. */
static __thread struct hsm_copytool_private *registering;

static size_t round8(size_t n)
{
	return (n + 7) & ~(size_t)7;
}

/* Writes one message to the pipe, if there is room for all of it. */
static bool deliver(struct hsm_copytool_private *ct)
{
	struct sim *sim = ct->map.sim;
	uint8_t message[8 + MESSAGE];
	struct hal *hal = (struct hal *)(message + 8);
	size_t name = round8(strlen(sim->fsname) + 1), size = sizeof(*hal) + name;
	uint32_t at = ct->cursor;
	uint16_t magic = 0x191c, type = 100, len;
	int room = 0;

	memset(message, 0, sizeof(message));
	hal->version = 1;
	strcpy((char *)(hal + 1), sim->fsname);
	for (; at < sim->n_messages; at++) {
		const struct request *r = &sim->requests[messages(sim)[at] >> 1];
		struct hai hai = { .len = sizeof(hai) + r->data_len, .fid = r->fid, .dfid = r->dfid,
			.extent = { 0, UINT64_MAX }, .cookie = r->cookie };

		hai.action = messages(sim)[at] & 1 ? CANCEL : r->action;
		if (hal->count && (hal->archive != r->archive || hal->flags != r->flags))
			break;
		if (size + round8(hai.len) > MESSAGE)
			break;
		hal->archive = r->archive;
		hal->flags = r->flags;
		memcpy(message + 8 + size, &hai, sizeof(hai));
		memcpy(message + 8 + size + sizeof(hai), r->data, r->data_len);
		size += round8(hai.len);
		hal->count++;
	}
	if (!hal->count)
		return false;
	len = (uint16_t)(size + 8);
	memcpy(message, &magic, 2);
	message[2] = 2;
	memcpy(message + 4, &type, 2);
	memcpy(message + 6, &len, 2);
	/* Bytes that nobody has read yet. */
	if (ioctl(ct->pipe_read, FIONREAD, &room) < 0 || room + len > 60000)
		return false;
	if (write(ct->pipe_write, message, len) != len)
		return false;
	ct->cursor = at;
	return true;
}

/* The kernel's part: it sends what waits, and fills the pipe. */
static void *pump(void *arg)
{
	struct hsm_copytool_private *ct = arg;

	while (ct->pumping) {
		struct timespec pause = { 0, 1000000 };
		bool more;

		lock(&ct->map);
		dispatch(ct->map.sim);
		more = deliver(ct);
		unlock(&ct->map);
		if (!more)
			nanosleep(&pause, NULL);
	}
	return NULL;
}

static int start(struct hsm_copytool_private *ct)
{
	struct sim *sim = ct->map.sim;
	int rc = -ENOTCONN;
	sigset_t all, old;

	lock(&ct->map);
	for (int i = 0; i < MAX_AGENTS; i++)
		if (sim->agents[i].pid == getpid())
			rc = 0;		/* known already, with the first one's archives */
	for (int i = 0; rc && i < MAX_AGENTS; i++)
		if (!alive(sim->agents[i].pid)) {
			sim->agents[i].pid = getpid();
			sim->agents[i].n_ids = ct->n_ids;
			memcpy(sim->agents[i].ids, ct->ids, sizeof(ct->ids));
			rc = 0;
		}
	if (!sim->enabled)
		rc = 0;			/* the agents' list stays as it is */
	ct->cursor = sim->n_messages;
	write_files(sim, ct->mount);
	unlock(&ct->map);
	if (rc)
		return rc;
	ct->pumping = 1;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(&ct->pump, NULL, pump, ct);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc)
		ct->pumping = 0;
	return -rc;
}

static void stop(struct hsm_copytool_private *ct)
{
	struct sim *sim = ct->map.sim;

	if (!ct->pumping)
		return;
	ct->pumping = 0;
	pthread_join(ct->pump, NULL);
	lock(&ct->map);
	for (int i = 0; i < MAX_AGENTS; i++)
		if (sim->agents[i].pid == getpid())
			sim->agents[i].pid = 0;
	write_files(sim, ct->mount);
	unlock(&ct->map);
}

/* A directory of a mount: its state, for as long as the process lives. Under `maps_mutex`, as the
 * lock of an open file does not keep threads apart. */
static pthread_mutex_t maps_mutex = PTHREAD_MUTEX_INITIALIZER;

static struct map *map_of(int fd)
{
	static struct { char mount[PATH_MAX]; struct map map; } known[4];
	static int n_known;
	char link[64], mount[PATH_MAX];
	ssize_t len;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	len = readlink(link, mount, sizeof(mount) - 1);
	if (len <= 0)
		return NULL;
	mount[len] = 0;
	for (int i = 0; i < n_known; i++)
		if (!strcmp(known[i].mount, mount))
			return &known[i].map;
	if (n_known == 4 || map_open(&known[n_known].map, mount))
		return NULL;
	strcpy(known[n_known].mount, mount);
	return &known[n_known++].map;
}

/* In front of libc's, so that what the kernel would answer is answered here. */
API int ioctl(int fd, unsigned long request, ...)
{
	va_list args;
	void *arg;

	va_start(args, request);
	arg = va_arg(args, void *);
	va_end(args);
	if (request == IOC_CT_START) {
		int rc = registering ? start(registering) : -EINVAL;

		errno = -rc;
		return rc ? -1 : 0;
	}
	if (request == IOC_GET_PROJECT) {
		char text[32] = "";

		/* On Lustre it is an attribute; here it stands in the file. */
		if (pread(fd, text, sizeof(text) - 1, 0) < 0)
			return -1;
		((uint32_t *)arg)[3] = (uint32_t)atol(text);
		return 0;
	}
	if (request == IOC_PROGRESS) {
		struct map *map;
		int rc = -ENOTTY;

		pthread_mutex_lock(&maps_mutex);
		map = map_of(fd);
		if (map) {
			lock(map);
			rc = report(map->sim, arg);
			unlock(map);
		}
		pthread_mutex_unlock(&maps_mutex);
		errno = -rc;
		return rc ? -1 : 0;
	}
	return (int)syscall(SYS_ioctl, fd, request, arg);
}

API int llapi_search_fsname(const char *path, char *fsname)
{
	struct map map;
	int rc = map_open(&map, path);

	if (rc)
		return rc;
	strcpy(fsname, map.sim->fsname);
	map_close(&map);
	return 0;
}

API int llapi_hsm_copytool_unregister(struct hsm_copytool_private **priv)
{
	struct hsm_copytool_private *ct = priv ? *priv : NULL;

	if (!ct || ct->magic != CT_MAGIC)
		return -EINVAL;
	stop(ct);
	close(ct->pipe_read);
	close(ct->pipe_write);
	close(ct->mnt_fd);
	map_close(&ct->map);
	ct->magic = 0;
	free(ct);
	*priv = NULL;
	return 0;
}

API int llapi_hsm_copytool_register(struct hsm_copytool_private **priv, const char *mnt,
				    int n_archives, int *archives, int rfd_flags)
{
	struct hsm_copytool_private *ct;
	int rc, pipes[2];

	if (n_archives > 0 && !archives)
		return -EINVAL;
	ct = calloc(1, sizeof(*ct));
	if (!ct)
		return -ENOMEM;
	ct->magic = CT_MAGIC;
	for (int i = 0; i < n_archives && i < MAX_IDS; i++) {
		ct->ids[ct->n_ids++] = archives[i];
		if (archives[i] == 0) {
			ct->n_ids = 0;
			break;
		}
	}
	rc = map_open(&ct->map, mnt);
	if (rc) {
		free(ct);
		return rc;
	}
	snprintf(ct->mount, sizeof(ct->mount), "%s", mnt);
	ct->mnt_fd = open(mnt, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (ct->mnt_fd < 0 || pipe2(pipes, O_CLOEXEC) < 0) {
		rc = -errno;
		map_close(&ct->map);
		free(ct);
		return rc;
	}
	ct->pipe_read = pipes[0];
	ct->pipe_write = pipes[1];
	fcntl(ct->pipe_read, F_SETFL, rfd_flags);
	fcntl(ct->pipe_write, F_SETFL, O_NONBLOCK);
	registering = ct;
	rc = ioctl(ct->mnt_fd, IOC_CT_START, ct) < 0 ? -errno : 0;
	registering = NULL;
	if (rc) {
		llapi_hsm_copytool_unregister(&ct);
		return rc;
	}
	*priv = ct;
	return 0;
}

API int llapi_hsm_copytool_get_fd(struct hsm_copytool_private *ct)
{
	return ct && ct->magic == CT_MAGIC ? ct->pipe_read : -EINVAL;
}

static int read_all(int fd, uint8_t *to, size_t n)
{
	for (size_t done = 0; done < n;) {
		ssize_t got = read(fd, to + done, n - done);

		if (got < 0)
			return -errno;
		if (got == 0)
			return -EPIPE;
		done += (size_t)got;
	}
	return 0;
}

API int llapi_hsm_copytool_recv(struct hsm_copytool_private *ct, void **hal, int *msgsize)
{
	uint16_t len;
	int rc;

	if (!ct || ct->magic != CT_MAGIC || !hal || !msgsize)
		return -EINVAL;
	*hal = NULL;
	*msgsize = 0;
	rc = read_all(ct->pipe_read, ct->buffer, 8);
	if (rc)
		return rc;
	memcpy(&len, ct->buffer + 6, 2);
	if (len < 40 || len > sizeof(ct->buffer))
		return -EPROTO;
	rc = read_all(ct->pipe_read, ct->buffer + 8, len - 8U);
	if (rc)
		return rc;
	*hal = ct->buffer + 8;
	*msgsize = len - 8;
	return 0;
}

API int llapi_hsm_action_begin(struct hsm_copyaction_private **phcp,
			       const struct hsm_copytool_private *ct, const struct hai *hai,
			       int mdt_index, int open_flags, bool is_error)
{
	struct hsm_copyaction_private *hcp;
	struct map map;
	int rc = 0;

	(void)mdt_index;
	(void)open_flags;
	if (!phcp || !ct || ct->magic != CT_MAGIC || !hai)
		return -EINVAL;
	hcp = calloc(1, sizeof(*hcp));
	if (!hcp)
		return -ENOMEM;
	hcp->magic = HCP_MAGIC;
	hcp->ct = ct;
	hcp->hai = *hai;
	hcp->hai.len = sizeof(*hai);
	hcp->fd = -1;
	hcp->is_error = is_error;
	if (!is_error) {
		char path[PATH_MAX + 64];
		struct request *r;

		snprintf(path, sizeof(path), "%s/files/%u", ct->mount, hai->dfid.oid);
		if (hai->action == ARCHIVE) {
			hcp->fd = open(path, O_RDONLY | O_CLOEXEC);
			rc = hcp->fd < 0 ? -errno : 0;
		} else if (hai->action == RESTORE) {
			char volatile_path[PATH_MAX + 128];

			snprintf(volatile_path, sizeof(volatile_path), "%s.%llx", path,
				 (unsigned long long)hai->cookie);
			hcp->fd = open(volatile_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
			rc = hcp->fd < 0 ? -errno : 0;
			hcp->hai.dfid.ver = 1 + (uint32_t)getpid();
		}
		if (!rc && map_open(&map, ct->mount) == 0) {
			lock(&map);
			sweep(map.sim);
			r = find_active(map.sim, hai->cookie);
			if (!r && hai->action != REMOVE)
				rc = -ENOENT;
			if (r) {
				if (alive(r->runner))
					map.sim->n_doubles++;
				r->runner = getpid();
				r->n_begins++;
				r->heard_ms = now_ms();
			}
			unlock(&map);
			map_close(&map);
		}
	}
	if (rc) {
		if (hcp->fd >= 0)
			close(hcp->fd);
		free(hcp);
		return rc;
	}
	*phcp = hcp;
	return 0;
}

static int tell(struct hsm_copyaction_private *hcp, uint16_t flags, uint16_t errval)
{
	struct progress p = { .fid = hcp->hai.dfid, .cookie = hcp->hai.cookie, .flags = flags,
		.errval = errval };
	struct map map;
	int rc = map_open(&map, hcp->ct->mount);

	if (rc)
		return rc;
	lock(&map);
	rc = report(map.sim, &p);
	unlock(&map);
	map_close(&map);
	return rc;
}

API int llapi_hsm_action_progress(struct hsm_copyaction_private *hcp, const struct extent *he,
				  uint64_t total, int flags)
{
	(void)total;
	if (!hcp || hcp->magic != HCP_MAGIC || !he)
		return -EINVAL;
	return tell(hcp, (uint16_t)flags & ~COMPLETED, 0);
}

API int llapi_hsm_action_end(struct hsm_copyaction_private **phcp, const struct extent *he,
			     int flags, int errval)
{
	struct hsm_copyaction_private *hcp = phcp ? *phcp : NULL;
	int rc;

	if (!hcp || hcp->magic != HCP_MAGIC || !he)
		return -EINVAL;
	rc = tell(hcp, (uint16_t)(flags | COMPLETED), (uint16_t)abs(errval));
	if (hcp->hai.action == RESTORE && hcp->fd >= 0) {
		char from[PATH_MAX + 128], to[PATH_MAX + 64];

		snprintf(to, sizeof(to), "%s/files/%u", hcp->ct->mount, hcp->hai.fid.oid);
		snprintf(from, sizeof(from), "%s.%llx", to, (unsigned long long)hcp->hai.cookie);
		if (rc == 0 && errval == 0)
			rename(from, to);
		else
			unlink(from);
	}
	if (hcp->fd >= 0)
		close(hcp->fd);
	hcp->magic = 0;
	free(hcp);
	*phcp = NULL;
	return rc;
}

API int llapi_hsm_action_get_fd(const struct hsm_copyaction_private *hcp)
{
	if (!hcp || hcp->magic != HCP_MAGIC || hcp->fd < 0)
		return -EINVAL;
	return dup(hcp->fd);
}

API int llapi_hsm_action_get_dfid(const struct hsm_copyaction_private *hcp, struct fid *fid)
{
	if (!hcp || hcp->magic != HCP_MAGIC || !fid || hcp->hai.action == REMOVE)
		return -EINVAL;
	memcpy(fid, &hcp->hai.dfid, sizeof(*fid));
	return 0;
}

#else /* the administrator's program */

static void usage(void)
{
	fputs("standin-hsm MOUNT COMMAND\n"
	      "  create FSNAME MAX               a coordinator that will have at most MAX requests\n"
	      "  add ACTION N ARCHIVE DATA OID   N requests, on files from OID on; prints the first cookie\n"
	      "  cancel COOKIE...                as lfs hsm_cancel\n"
	      "  set max_requests|timeout_ms N\n"
	      "  enable | shutdown | evict | failover    the coordinator, its agents, the MDT\n"
	      "  show                            one line a request: cookie action status errval begins sent\n"
	      "  summary                         counts\n"
	      "  files                           writes MOUNT/active_requests and MOUNT/agents\n", stderr);
	exit(2);
}

static int create(const char *mount, const char *fsname, uint32_t max)
{
	char path[PATH_MAX];
	size_t bytes = sizeof(struct sim) + max * (sizeof(struct request) + 4 * sizeof(uint32_t));
	struct map map;
	int fd;

	snprintf(path, sizeof(path), "%s/files", mount);
	mkdir(path, 0755);
	snprintf(path, sizeof(path), "%s/.standin-hsm", mount);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0 || map_open(&map, mount)) {
		perror(path);
		return 1;
	}
	snprintf(map.sim->fsname, sizeof(map.sim->fsname), "%s", fsname);
	map.sim->max = max;
	map.sim->max_messages = 4 * max;
	map.sim->first_cookie = 0x617d23ef;
	map.sim->enabled = 1;
	map.sim->max_requests = INT_MAX;
	map.sim->timeout_ms = 3600000;
	write_files(map.sim, mount);
	return 0;
}

static void make_file(const char *mount, uint32_t oid)
{
	char path[PATH_MAX];
	FILE *f;

	snprintf(path, sizeof(path), "%s/files/%u", mount, oid);
	f = fopen(path, "wx");
	if (!f)
		return;
	fprintf(f, "data of file %u\n", oid);
	fclose(f);
}

static int add(struct sim *sim, const char *mount, char **args)
{
	uint32_t action = !strcmp(args[0], "archive") ? ARCHIVE : !strcmp(args[0], "restore") ?
		RESTORE : !strcmp(args[0], "remove") ? REMOVE : 0;
	uint32_t n = (uint32_t)atol(args[1]), oid = (uint32_t)atol(args[4]);

	if (!action || !sim->enabled || sim->n + n > sim->max || strlen(args[3]) > MAX_DATA)
		return 1;
	printf("%llu\n", (unsigned long long)(sim->first_cookie + sim->n));
	for (uint32_t i = 0; i < n; i++) {
		struct request *r = &sim->requests[sim->n];

		memset(r, 0, sizeof(*r));
		r->cookie = sim->first_cookie + sim->n;
		r->action = action;
		r->archive = (uint32_t)atol(args[2]);
		r->fid = (struct fid){ 0x200000400, oid + i, 0 };
		r->dfid = r->fid;
		r->data_len = (uint32_t)strlen(args[3]);
		memcpy(r->data, args[3], r->data_len);
		sim->n++;
		make_file(mount, oid + i);
	}
	return 0;
}

static int cancel(struct sim *sim, uint64_t cookie)
{
	struct request *r = find(sim, cookie);

	if (!r)
		return 1;
	if (r->status == WAITING)
		over(sim, r, CANCELED, ECANCELED);
	else if (r->status == STARTED && !r->cancel) {
		r->cancel = 1;
		post(sim, (uint32_t)(r - sim->requests), true);
	}
	return 0;
}

static void failover(struct sim *sim)
{
	memset(sim->agents, 0, sizeof(sim->agents));
	for (uint32_t i = 0; i < sim->n; i++) {
		struct request *r = &sim->requests[i];

		if (r->status != STARTED || r->forgotten)
			continue;
		sim->n_active--;
		if (r->action == RESTORE)
			wait_again(sim, r);
		else
			r->forgotten = 1;
	}
}

static void summary(const struct sim *sim)
{
	unsigned counts[5] = { 0 }, forgotten = 0, agents = 0;

	for (uint32_t i = 0; i < sim->n; i++) {
		counts[sim->requests[i].status]++;
		forgotten += sim->requests[i].status == STARTED && sim->requests[i].forgotten;
	}
	for (int i = 0; i < MAX_AGENTS; i++)
		agents += alive(sim->agents[i].pid);
	printf("waiting=%u started=%u failed=%u canceled=%u succeed=%u forgotten=%u timeouts=%llu "
	       "doubles=%llu agents=%u\n", counts[WAITING], counts[STARTED], counts[FAILED],
	       counts[CANCELED], counts[SUCCEED], forgotten, (unsigned long long)sim->n_timeouts,
	       (unsigned long long)sim->n_doubles, agents);
}

int main(int argc, char **argv)
{
	static const char *const names[] = { "WAITING", "STARTED", "FAILED", "CANCELED", "SUCCEED" };
	struct map map;
	const char *what;
	int rc = 0;

	if (argc < 3)
		usage();
	what = argv[2];
	if (!strcmp(what, "create") && argc == 5)
		return create(argv[1], argv[3], (uint32_t)atol(argv[4]));
	if (map_open(&map, argv[1])) {
		fprintf(stderr, "standin-hsm: %s has no coordinator\n", argv[1]);
		return 1;
	}
	lock(&map);
	if (!strcmp(what, "add") && argc == 8)
		rc = add(map.sim, argv[1], argv + 3);
	else if (!strcmp(what, "cancel"))
		for (int i = 3; i < argc; i++)
			rc |= cancel(map.sim, strtoull(argv[i], NULL, 0));
	else if (!strcmp(what, "set") && argc == 5 && !strcmp(argv[3], "max_requests"))
		map.sim->max_requests = atoi(argv[4]);
	else if (!strcmp(what, "set") && argc == 5 && !strcmp(argv[3], "timeout_ms"))
		map.sim->timeout_ms = atoi(argv[4]);
	else if (!strcmp(what, "enable"))
		map.sim->enabled = 1;
	else if (!strcmp(what, "shutdown") || !strcmp(what, "evict")) {
		map.sim->enabled = !strcmp(what, "evict");
		memset(map.sim->agents, 0, sizeof(map.sim->agents));
	} else if (!strcmp(what, "failover"))
		failover(map.sim);
	else if (!strcmp(what, "summary")) {
		sweep(map.sim);
		summary(map.sim);
	} else if (!strcmp(what, "show"))
		for (uint32_t i = 0; i < map.sim->n; i++) {
			const struct request *r = &map.sim->requests[i];

			printf("%llu %s %s %d %d %d\n", (unsigned long long)r->cookie,
			       action_name(r->action), names[r->status], r->errval, r->n_begins, r->n_sent);
		}
	else if (strcmp(what, "files"))
		usage();
	write_files(map.sim, argv[1]);
	unlock(&map);
	return rc;
}

#endif
