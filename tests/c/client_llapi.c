/*
 * A program written for liblustreapi.
 *
 * usage: client_llapi [-f] [-j] [-e] [-x XFLAGS] [-n MAX] [-s START] [-c ID] [-p] [-t] MDT
 *   -f follow  -j jobids  -e extra flags  -x which  -n stop after so many  -s first index
 *   -c clear each for ID  -p poll before each  -t check the rest of the interface, and two
 *   threads with a log each
 *        client_llapi -C ID END MDT     only clear
 */
#include <assert.h>
#include <poll.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lustreapi_changelog.h"

#ifdef HAVE_STANDIN
int llapi_standin(void);
#endif

static int fail(const char *what, int rc)
{
	fprintf(stderr, "client_llapi: %s: %s\n", what, strerror(-rc));
	return 1;
}

static void *count(void *mdt)
{
	struct changelog_rec *rec;
	void *log = NULL;
	long n = 0;
	int rc;

	assert(llapi_changelog_start(&log, CHANGELOG_FLAG_BLOCK, (const char *)mdt, 0) == 0);
	while ((rc = llapi_changelog_recv(log, &rec)) == 0) {
		n++;
		assert(llapi_changelog_free(&rec) == 0 && rec == NULL);
	}
	assert(rc == 1 && rec == NULL);
	assert(llapi_changelog_recv(log, &rec) == 1);
	assert(llapi_changelog_fini(&log) == 0 && log == NULL);
	return (void *)n;
}

static void rest_of_the_interface(const char *mdt)
{
	struct changelog_rec *rec = NULL;
	struct changelog_rec *copy;
	pthread_t threads[2];
	void *results[2];
	void *log = NULL;
	int status;
	pid_t pid;
	int i;

	assert(llapi_changelog_start(NULL, CHANGELOG_FLAG_BLOCK, mdt, 0) == -EINVAL);
	assert(llapi_changelog_start(&log, CHANGELOG_FLAG_BLOCK, mdt, -1) == -EINVAL);
	assert(llapi_changelog_start(&log, CHANGELOG_FLAG_BLOCK, "none-MDT0000", 0) == -ENOENT);
	assert(llapi_changelog_start(&log, CHANGELOG_FLAG_BLOCK, "nonsense", 0) == -ENOENT);
	assert(log == NULL);
	assert(llapi_changelog_recv(NULL, &rec) == -EINVAL);
	assert(llapi_changelog_fini(&log) == -EINVAL);
	assert(llapi_changelog_get_fd(NULL) == -EINVAL);
	assert(llapi_changelog_set_xflags(NULL, CHANGELOG_EXTRA_FLAG_UIDGID) == -EINVAL);
	assert(llapi_changelog_clear(mdt, "cl1", -1) == -EINVAL);
	assert(llapi_changelog_clear("none-MDT0000", "cl1", 1) == -ENOENT);
	assert(llapi_changelog_clear(mdt, "stranger", 1) == -ENOENT);
	assert(llapi_changelog_free(&rec) == 0);
	rec = (struct changelog_rec *)malloc(100);
	assert(llapi_changelog_free(&rec) == 0 && rec == NULL);

	assert(llapi_changelog_start_user(&log, CHANGELOG_FLAG_BLOCK, mdt, NULL, 1ULL << CL_RENAME,
					  0) == 0);
	assert(llapi_changelog_recv(log, NULL) == -EINVAL);
	assert(llapi_changelog_recv(log, &rec) == 1); /* there is no rename */
	assert(llapi_changelog_fini(&log) == 0);

	assert(llapi_changelog_start(&log, CHANGELOG_FLAG_JOBID, mdt, 0) == 0);
	assert(llapi_changelog_recv(log, &rec) == 0);
	assert(rec->cr_flags & CLF_JOBID);
	assert(llapi_changelog_in_buf(log) == 1);
	copy = llapi_changelog_repack_rec(rec, CLF_VERSION, CLFE_INVALID);
	assert(copy && (copy->cr_flags & CLF_SUPPORTED) == CLF_VERSION);
	assert(copy->cr_namelen == rec->cr_namelen);
	assert(!memcmp(changelog_rec_name(copy), changelog_rec_name(rec), rec->cr_namelen));
	free(copy);
	assert(strlen(changelog_rec_name(rec)) == rec->cr_namelen); /* zero behind the name */
	assert(llapi_changelog_free(&rec) == 0);

	for (i = 0; i < 2; i++)
		assert(!pthread_create(&threads[i], NULL, count, (void *)mdt));
	for (i = 0; i < 2; i++)
		assert(!pthread_join(threads[i], &results[i]));
	assert(results[0] == results[1] && results[0]);

	pid = fork();
	assert(pid >= 0);
	if (pid == 0) {
		int rc = llapi_changelog_fini(&log); /* the parent's */

		if (rc == 0)
			rc = count((void *)mdt) != results[0];
		if (rc == 0)
			rc = llapi_changelog_clear(mdt, "cl1", 1);
		_exit(rc ? 1 : 0);
	}
	assert(waitpid(pid, &status, 0) == pid && status == 0);
	assert(llapi_changelog_recv(log, &rec) == 0 && rec->cr_index == 2);
	assert(llapi_changelog_free(&rec) == 0);
	assert(llapi_changelog_fini(&log) == 0);
#ifdef HAVE_STANDIN
	assert(llapi_standin() == 42);
#endif
}

int main(int argc, char **argv)
{
	int flags = CHANGELOG_FLAG_BLOCK;
	const char *clear_id = NULL;
	int by_poll = 0, the_rest = 0;
	long long start = 0, max = -1;
	struct changelog_rec *rec;
	int xflags = 0;
	void *log;
	int rc = 0;
	int c;

	while ((c = getopt(argc, argv, "fjex:n:s:c:C:pt")) != -1) {
		switch (c) {
		case 'f': flags |= CHANGELOG_FLAG_FOLLOW; break;
		case 'j': flags |= CHANGELOG_FLAG_JOBID; break;
		case 'e': flags |= CHANGELOG_FLAG_EXTRA_FLAGS | CHANGELOG_FLAG_NID_BE; break;
		case 'x': xflags = atoi(optarg); break;
		case 'n': max = atoll(optarg); break;
		case 's': start = atoll(optarg); break;
		case 'c': clear_id = optarg; break;
		case 'p': by_poll = 1; break;
		case 't': the_rest = 1; break;
		case 'C':
			if (optind + 1 >= argc)
				return 2;
			rc = llapi_changelog_clear(argv[optind + 1], optarg, atoll(argv[optind]));
			return rc ? fail("clear", rc) : 0;
		default: return 2;
		}
	}
	if (optind != argc - 1)
		return 2;
	if (the_rest) {
		rest_of_the_interface(argv[optind]);
		return 0;
	}
	rc = llapi_changelog_start(&log, (enum changelog_send_flag)flags, argv[optind], start);
	if (rc)
		return fail("start", rc);
	if (xflags)
		rc = llapi_changelog_set_xflags(log, (enum changelog_send_extra_flag)xflags);
	if (rc)
		return fail("set_xflags", rc);
	while (max < 0 || max-- > 0) {
		if (by_poll && !llapi_changelog_in_buf(log)) {
			struct pollfd pfd = { llapi_changelog_get_fd(log), POLLIN, 0 };

			assert(poll(&pfd, 1, 20000) == 1);
		}
		rc = llapi_changelog_recv(log, &rec);
		if (rc)
			break;
		printf("%llu %s 0x%x", (unsigned long long)rec->cr_index,
		       changelog_type2str(rec->cr_type), rec->cr_flags);
		if (rec->cr_flags & CLF_JOBID)
			printf(" j=%s", changelog_rec_jobid(rec)->cr_jobid);
		if (rec->cr_flags & CLF_EXTRA_FLAGS)
			printf(" ef=0x%llx", (unsigned long long)
			       changelog_rec_extra_flags(rec)->cr_extra_flags);
		printf(" %.*s", rec->cr_namelen, changelog_rec_name(rec));
		if (rec->cr_flags & CLF_RENAME)
			printf(" s=%.*s", (int)changelog_rec_snamelen(rec),
			       changelog_rec_sname(rec));
		printf("\n");
		if (clear_id) {
			rc = llapi_changelog_clear(argv[optind], clear_id, rec->cr_index);
			if (rc)
				return fail("clear", rc);
		}
		llapi_changelog_free(&rec);
	}
	if (rc < 0)
		return fail("recv", rc);
	fflush(stdout);
	return llapi_changelog_fini(&log) ? 1 : 0;
}
