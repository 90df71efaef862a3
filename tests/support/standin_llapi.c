/*
 * A stand-in for liblustreapi's changelog calls, for tests on machines without Lustre.
 *
 * Serves packed records from a file with the semantics of liblustreapi 2.17: what each flag shows,
 * who frees what, end of log, errno, polling. Its environment:
 *
 *   LCAP_STANDIN_TRACE       the file; "%s" in it stands for the MDT's name. No file: -ENOENT
 *   LCAP_STANDIN_STATE       a file that remembers what was cleared ("cl1 120" a line), also for
 *                            other processes; without it, nothing is remembered
 *   LCAP_STANDIN_USERS       registered users, default "cl1"; e.g. "cl1,cl2"
 *   LCAP_STANDIN_POLL_MS     how often a following log looks for more in the file, default 1000
 *   LCAP_STANDIN_FAIL_AFTER  after so many records a handle gives -EIO for ever, as after an
 *                            eviction
 *
 * A file that grows is followed. As with Lustre, records with an index up to the lowest that any
 * user has cleared are gone, for logs that are opened afterwards.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))

enum {
	HEAD_BYTES = 64,
	RENAME_BYTES = 32,
	JOBID_BYTES = 32,
	MAX_RECORD = 952,	/* CR_MAXSIZE */
	READ_BUFFER = 4096,
	MAGIC = (int)0xCA8E1080,
};

enum { FOLLOW = 1, BLOCK = 2, JOBID = 4, EXTRA_FLAGS = 8, NID_BE = 16 };
enum { CLF_VERSION = 0x1000, CLF_RENAME = 0x2000, CLF_JOBID = 0x4000, CLF_EXTRA = 0x8000 };
enum { CLFE_UIDGID = 1, CLFE_NID = 2, CLFE_OPEN = 4, CLFE_XATTR = 8, CLFE_NID_BE = 16 };

static const struct { unsigned int bit; size_t bytes; } extras[] = {
	{ CLFE_UIDGID, 16 }, { CLFE_NID, 24 }, { CLFE_OPEN, 4 }, { CLFE_XATTR, 256 },
};
#define N_EXTRAS (sizeof(extras) / sizeof(extras[0]))

struct handle {
	int magic;
	int fd;			/* the caller's end: the "device" */
	int feed_fd;		/* the feeding thread's end */
	int flags;
	unsigned int xflags;
	int at_end;
	long fail_after;	/* -1: never */
	long n_given;
	int file;
	uint64_t from;
	int poll_ms;
	pthread_t feeder;
	size_t at, filled;
	unsigned char buffer[READ_BUFFER];
};

static uint16_t get16(const unsigned char *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

static uint64_t get64(const unsigned char *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

/* Size of the record at p, of which n bytes are there; 0 if it is not whole. */
static size_t record_size(const unsigned char *p, size_t n)
{
	size_t size = HEAD_BYTES;
	uint16_t flags;

	if (n < HEAD_BYTES)
		return 0;
	flags = get16(p + 2);
	if (flags & CLF_RENAME)
		size += RENAME_BYTES;
	if (flags & CLF_JOBID)
		size += JOBID_BYTES;
	if (flags & CLF_EXTRA) {
		uint64_t extra;

		if (n < size + 8)
			return 0;
		extra = get64(p + size);
		size += 8;
		for (size_t i = 0; i < N_EXTRAS; i++)
			if (extra & extras[i].bit)
				size += extras[i].bytes;
	}
	size += get16(p);
	return size <= n ? size : 0;
}

static const char *trace_path(const char *mdt, char *buf, size_t room)
{
	const char *text = getenv("LCAP_STANDIN_TRACE");
	const char *mark = text ? strstr(text, "%s") : NULL;

	if (!text)
		return NULL;
	if (mark)
		snprintf(buf, room, "%.*s%s%s", (int)(mark - text), text, mdt, mark + 2);
	else
		snprintf(buf, room, "%s", text);
	return buf;
}

/* The number of the user at *text ("cl1,cl2…"), and on to the next; 0 at the end. */
static unsigned int next_user(const char **text)
{
	unsigned int id = 0;
	int used = 0;

	if (!**text || sscanf(*text, "cl%u%n", &id, &used) != 1)
		return 0;
	*text += used;
	if (**text == ',')
		(*text)++;
	return id;
}

static const char *users(void)
{
	const char *text = getenv("LCAP_STANDIN_USERS");

	return text ? text : "cl1";
}

/* Up to where a user has cleared. */
static uint64_t cleared_by(FILE *state, unsigned int id)
{
	unsigned long long index, found = 0;
	unsigned int user;

	if (!state)
		return 0;
	rewind(state);
	while (fscanf(state, "cl%u %llu\n", &user, &index) == 2)
		if (user == id)
			found = index;
	return found;
}

static FILE *open_state(void)
{
	const char *path = getenv("LCAP_STANDIN_STATE");
	FILE *state = path ? fopen(path, "a+") : NULL;

	if (state)
		flock(fileno(state), LOCK_EX);	/* given up by fclose() */
	return state;
}

static uint64_t purged(void)
{
	FILE *state = open_state();
	const char *text = users();
	uint64_t lowest = UINT64_MAX;
	unsigned int id;

	while ((id = next_user(&text)) != 0) {
		uint64_t index = cleared_by(state, id);

		if (index < lowest)
			lowest = index;
	}
	if (state)
		fclose(state);
	return lowest == UINT64_MAX ? 0 : lowest;
}

/* Gives the NID as lnet_nid_t, as the kernel does for a reader that did not ask for NID_BE. */
static void make_nid_small(unsigned char *rec)
{
	uint16_t flags = get16(rec + 2);
	unsigned char *extra_at, *nid, small[24] = { 0 };
	uint64_t extra;

	if (!(flags & CLF_EXTRA))
		return;
	extra_at = rec + HEAD_BYTES + (flags & CLF_RENAME ? RENAME_BYTES : 0) +
		   (flags & CLF_JOBID ? JOBID_BYTES : 0);
	extra = get64(extra_at);
	if (!(extra & CLFE_NID) || !(extra & CLFE_NID_BE))
		return;
	extra &= ~(uint64_t)CLFE_NID_BE;
	memcpy(extra_at, &extra, sizeof(extra));
	nid = extra_at + 8 + (extra & CLFE_UIDGID ? 16 : 0);
	if (nid[0] == 0) {	/* IPv6 does not fit and becomes zero */
		uint64_t number = be64toh(get64(nid));

		memcpy(small, &number, sizeof(number));
	}
	memcpy(nid, small, sizeof(small));
}

/* What the kernel's thread does: puts records into the queue, follows or ends. */
static void *feed(void *arg)
{
	struct handle *h = arg;
	unsigned char buf[2 * MAX_RECORD];
	size_t n = 0;

	for (;;) {
		ssize_t got = read(h->file, buf + n, sizeof(buf) - n);
		size_t at = 0, size;

		if (got > 0)
			n += (size_t)got;
		while ((size = record_size(buf + at, n - at)) != 0) {
			if (!(h->flags & NID_BE))
				make_nid_small(buf + at);
			if (get64(buf + at + 8) >= h->from &&
			    send(h->feed_fd, buf + at, size, MSG_NOSIGNAL) < 0)
				return NULL;	/* fini */
			at += size;
		}
		memmove(buf, buf + at, n - at);
		n -= at;
		if (got <= 0 && at == 0) {
			struct pollfd gone = { .fd = h->feed_fd, .events = 0 };

			if (!(h->flags & FOLLOW))
				break;
			if (poll(&gone, 1, h->poll_ms) > 0)
				return NULL;	/* fini */
		}
	}
	shutdown(h->feed_fd, SHUT_WR);
	return NULL;
}

static struct handle *checked(void *priv)
{
	struct handle *h = priv;

	return h && h->magic == MAGIC ? h : NULL;
}

API int llapi_changelog_start(void **priv, int flags, const char *mdtname, long long startrec)
{
	char path[4096];
	struct handle *h;
	const char *text;
	int ends[2], rc;
	/* As much as the kernel's queue of 1,024 records holds. */
	int room = 1024 * 1024;

	if (!trace_path(mdtname, path, sizeof(path)))
		return -ENOENT;
	if (startrec < 0)
		return -EINVAL;
	h = calloc(1, sizeof(*h));
	if (!h)
		return -ENOMEM;
	h->file = open(path, O_RDONLY | O_CLOEXEC);
	if (h->file < 0) {
		rc = -errno;
		free(h);
		return rc;
	}
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0) {
		rc = -errno;
		close(h->file);
		free(h);
		return rc;
	}
	setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
	h->magic = MAGIC;
	h->fd = ends[0];
	h->feed_fd = ends[1];
	h->flags = flags;
	h->from = purged() + 1;
	if ((uint64_t)startrec > h->from)
		h->from = (uint64_t)startrec;
	text = getenv("LCAP_STANDIN_POLL_MS");
	h->poll_ms = text ? atoi(text) : 1000;
	text = getenv("LCAP_STANDIN_FAIL_AFTER");
	h->fail_after = text ? atol(text) : -1;
	rc = pthread_create(&h->feeder, NULL, feed, h);
	if (rc) {
		close(ends[0]);
		close(ends[1]);
		close(h->file);
		free(h);
		return -rc;
	}
	*priv = h;
	return 0;
}

API int llapi_changelog_fini(void **priv)
{
	struct handle *h = checked(*priv);

	if (!h)
		return -EINVAL;
	close(h->fd);
	pthread_join(h->feeder, NULL);
	close(h->feed_fd);
	close(h->file);
	h->magic = 0;
	free(h);
	*priv = NULL;
	return 0;
}

API int llapi_changelog_set_xflags(void *priv, int xflags)
{
	struct handle *h = checked(priv);

	if (!h)
		return -EINVAL;
	h->xflags = (unsigned int)xflags;
	return 0;
}

API int llapi_changelog_get_fd(void *priv)
{
	struct handle *h = checked(priv);

	return h ? h->fd : -EINVAL;
}

API int llapi_changelog_in_buf(void *priv)
{
	struct handle *h = priv;	/* like the original, does not look */

	return h->at < h->filled;
}

/* Fills the buffer with whole records, as one read() of the device does. */
static int refill(struct handle *h)
{
	ssize_t got = read(h->fd, h->buffer, sizeof(h->buffer));

	if (got < 0)
		return -errno;
	h->at = 0;
	h->filled = (size_t)got;
	while (got > 0) {
		size_t room = sizeof(h->buffer) - h->filled;

		got = recv(h->fd, NULL, 0, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT);
		if (got <= 0 || (size_t)got > room)
			break;
		got = recv(h->fd, h->buffer + h->filled, room, MSG_DONTWAIT);
		if (got > 0)
			h->filled += (size_t)got;
	}
	return 0;
}

/* The 2.16+ rule: what the record has and the caller wants, in a block of CR_MAXSIZE. */
API void *llapi_changelog_repack_rec(const void *rec, int crf_wanted, int cref_wanted)
{
	const unsigned char *from = rec, *extra_at;
	unsigned char *block = calloc(1, MAX_RECORD), *to;
	uint16_t flags = get16(from + 2), kept;
	uint64_t extra, kept_extra = 0;

	if (!block)
		return NULL;
	memcpy(block, from, HEAD_BYTES);
	to = block + HEAD_BYTES;
	from += HEAD_BYTES;
	kept = (flags & 0x0fff) | CLF_VERSION;
	if (flags & CLF_RENAME) {
		if (crf_wanted & CLF_RENAME) {
			memcpy(to, from, RENAME_BYTES);
			to += RENAME_BYTES;
			kept |= CLF_RENAME;
		}
		from += RENAME_BYTES;
	}
	if (flags & CLF_JOBID) {
		if (crf_wanted & CLF_JOBID) {
			memcpy(to, from, JOBID_BYTES);
			to += JOBID_BYTES;
			kept |= CLF_JOBID;
		}
		from += JOBID_BYTES;
	}
	if (flags & CLF_EXTRA) {
		unsigned char *kept_at = to;

		extra_at = from;
		extra = get64(extra_at);
		from += 8;
		if (crf_wanted & CLF_EXTRA) {
			kept |= CLF_EXTRA;
			to += 8;
		}
		for (size_t i = 0; i < N_EXTRAS; i++) {
			if (!(extra & extras[i].bit))
				continue;
			if ((crf_wanted & CLF_EXTRA) && (cref_wanted & (int)extras[i].bit)) {
				memcpy(to, from, extras[i].bytes);
				to += extras[i].bytes;
				kept_extra |= extras[i].bit;
			}
			from += extras[i].bytes;
		}
		if ((kept_extra & CLFE_NID) && (extra & CLFE_NID_BE) && (cref_wanted & CLFE_NID_BE))
			kept_extra |= CLFE_NID_BE;
		if (crf_wanted & CLF_EXTRA)
			memcpy(kept_at, &kept_extra, sizeof(kept_extra));
	}
	memcpy(to, from, get16(block));
	memcpy(block + 2, &kept, sizeof(kept));
	return block;
}

API int llapi_changelog_recv(void *priv, void **rech)
{
	struct handle *h = checked(priv);
	int crf = CLF_VERSION | CLF_RENAME, cref = 0, rc;
	size_t size;

	if (!h || !rech)
		return -EINVAL;
	*rech = NULL;
	if (h->fail_after >= 0 && h->n_given >= h->fail_after)
		return -EIO;
	if (h->at >= h->filled) {
		if (h->at_end)
			return 1;
		rc = refill(h);
		if (rc < 0)
			return rc;
		if (h->filled == 0) {
			h->at_end = 1;
			return 1;
		}
	}
	if (h->flags & JOBID)
		crf |= CLF_JOBID;
	if (h->flags & EXTRA_FLAGS) {
		crf |= CLF_EXTRA;
		cref = (int)h->xflags;
		if (h->flags & NID_BE)
			cref |= CLFE_NID_BE;
	}
	size = record_size(h->buffer + h->at, h->filled - h->at);
	if (size == 0)
		return -EPROTO;
	*rech = llapi_changelog_repack_rec(h->buffer + h->at, crf, cref);
	h->at += size;
	h->n_given++;
	return 0;	/* like the original, also without memory for *rech */
}

API int llapi_changelog_free(void **rech)
{
	free(*rech);
	*rech = NULL;
	return 0;
}

static uint64_t newest(const char *mdtname)
{
	char path[4096];
	unsigned char buf[64 * 1024];
	uint64_t index = 0;
	size_t n = 0, got;
	FILE *file;

	if (!trace_path(mdtname, path, sizeof(path)))
		return 0;
	file = fopen(path, "r");
	if (!file)
		return 0;
	while ((got = fread(buf + n, 1, sizeof(buf) - n, file)) > 0) {
		size_t at = 0, size;

		n += got;
		while ((size = record_size(buf + at, n - at)) != 0) {
			index = get64(buf + at + 8);
			at += size;
		}
		memmove(buf, buf + at, n - at);
		n -= at;
	}
	fclose(file);
	return index;
}

API int llapi_changelog_clear(const char *mdtname, const char *idstr, long long endrec)
{
	char path[4096], id_text[64];
	uint64_t last, upto = (uint64_t)endrec;
	const char *text = users();
	unsigned int id, user;
	char junk;
	FILE *state;
	int rc = 0;

	if (endrec < 0)
		return -EINVAL;
	if (!trace_path(mdtname, path, sizeof(path)) || access(path, F_OK) != 0)
		return -ENOENT;
	snprintf(id_text, sizeof(id_text), "%.*s", (int)strcspn(idstr, "-"), idstr);
	if (sscanf(id_text, "cl%u%c", &id, &junk) != 1)
		return -EINVAL;
	while ((user = next_user(&text)) != 0 && user != id)
		;
	if (user != id)
		return -ENOENT;
	last = newest(mdtname);
	if (upto > last)
		return -EINVAL;
	if (upto == 0)
		upto = last;
	state = open_state();
	if (upto < cleared_by(state, id))
		rc = -ENOENT;
	else if (state)
		fprintf(state, "cl%u %llu\n", id, (unsigned long long)upto);
	if (state)
		fclose(state);
	return rc;
}
