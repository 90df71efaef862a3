/*
 * A stand-in for liblustreapi: reads packed records from the file $STANDIN_DIR/<MDT>, and writes
 * down what it is asked to clear in $STANDIN_DIR/cleared.
 */
#include <assert.h>
#include <unistd.h>

#include "lustreapi_changelog.h"

#define MAGIC 0xCA8E1080

struct log {
	unsigned int magic;
	int flags;
	FILE *file;
	long long startrec;
};

static FILE *open_in_dir(const char *name, const char *mode)
{
	const char *dir = getenv("STANDIN_DIR");
	char path[PATH_MAX];

	if (!dir) {
		errno = ENOENT;
		return NULL;
	}
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return fopen(path, mode);
}

int llapi_changelog_start(void **priv, enum changelog_send_flag flags, const char *mdtname,
			  long long startrec)
{
	struct log *log;
	FILE *file = open_in_dir(mdtname, "r");

	if (!file)
		return -errno;
	log = (struct log *)calloc(1, sizeof(*log));
	log->magic = MAGIC;
	log->flags = flags;
	log->file = file;
	log->startrec = startrec;
	*priv = log;
	return 0;
}

int llapi_changelog_start_user(void **priv, enum changelog_send_flag flags, const char *mdtname,
			       const char *username, __u64 mask, long long startrec)
{
	(void)username;
	(void)mask;
	return llapi_changelog_start(priv, flags, mdtname, startrec);
}

int llapi_changelog_fini(void **priv)
{
	struct log *log = (struct log *)*priv;

	if (!log || log->magic != MAGIC)
		return -EINVAL;
	fclose(log->file);
	free(log);
	*priv = NULL;
	return 0;
}

int llapi_changelog_recv(void *priv, struct changelog_rec **rech)
{
	struct log *log = (struct log *)priv;
	struct changelog_rec *rec;
	size_t size;

	if (!log || log->magic != MAGIC || !rech)
		return -EINVAL;
	*rech = NULL;
	do {
		rec = (struct changelog_rec *)calloc(1, CR_MAXSIZE);
		if (fread(rec, sizeof(*rec), 1, log->file) != 1) {
			free(rec);
			return 1;
		}
		if (rec->cr_flags & (CLF_RENAME | CLF_JOBID)) {
			size = changelog_rec_offset(rec->cr_flags & (CLF_RENAME | CLF_JOBID), 0) -
			       sizeof(*rec);
			assert(fread(rec + 1, 1, size, log->file) == size);
		}
		assert(!(rec->cr_flags & CLF_EXTRA_FLAGS)); /* the tests write none */
		size = rec->cr_namelen;
		assert(fread(changelog_rec_name(rec), 1, size, log->file) == size);
		if ((long long)rec->cr_index >= log->startrec)
			break;
		free(rec);
	} while (1);
	*rech = rec;
	return 0;
}

int llapi_changelog_in_buf(void *priv)
{
	(void)priv;
	return 0;
}

int llapi_changelog_free(struct changelog_rec **rech)
{
	free(*rech);
	*rech = NULL;
	return 0;
}

int llapi_changelog_get_fd(void *priv)
{
	return fileno(((struct log *)priv)->file);
}

int llapi_changelog_set_xflags(void *priv, enum changelog_send_extra_flag extra_flags)
{
	(void)extra_flags;
	return ((struct log *)priv)->magic == MAGIC ? 0 : -EINVAL;
}

int llapi_changelog_clear(const char *mdtname, const char *idstr, long long endrec)
{
	FILE *mdt = open_in_dir(mdtname, "r");
	FILE *file;

	if (!mdt)
		return -errno;
	fclose(mdt);
	file = open_in_dir("cleared", "a");
	fprintf(file, "%s %s %lld\n", mdtname, idstr, endrec);
	fclose(file);
	return 0;
}

struct changelog_rec *llapi_changelog_repack_rec(const struct changelog_rec *rec,
						 enum changelog_rec_flags crf_wanted,
						 enum changelog_rec_extra_flags cref_want)
{
	struct changelog_rec *copy = (struct changelog_rec *)calloc(1, CR_MAXSIZE);

	(void)crf_wanted;
	(void)cref_want;
	memcpy(copy, rec, lcap_changelog_rec_len((struct changelog_rec *)rec));
	return copy;
}

/* Some other symbol of the real library's. */
int llapi_standin(void)
{
	return 42;
}
