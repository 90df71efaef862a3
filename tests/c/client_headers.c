/* The header beside libzmq's, in either order, as C and as C++. */
#ifdef ZMQ_FIRST
# include <zmq.h>
#endif
#include "lcap_client.h"
#include "lcap_mover.h"
#ifdef ZMQ_LAST
# include <zmq.h>
#endif

int main(void)
{
	char copy[4];

	assert(strlcpy(copy, "changelog", sizeof(copy)) == 9);
	assert(!strcmp(copy, "cha"));
	assert(strlcpy(copy, "x", 0) == 1);
	/* NULL is an error everywhere, and freeing it is nothing. */
	assert(lcap_mover_start(NULL, NULL) == -EINVAL);
	assert(lcap_mover_recv(NULL, NULL, 0) == -EINVAL);
	assert(lcap_mover_begun(NULL, NULL) == -EINVAL);
	assert(lcap_mover_done(NULL, NULL, 0) == -EINVAL);
	assert(lcap_mover_refused(NULL, NULL, 0) == -EINVAL);
	assert(lcap_mover_return(NULL, NULL) == -EINVAL);
	assert(lcap_mover_get_fd(NULL) == -EINVAL);
	assert(lcap_mover_fsname(NULL) == NULL);
	assert(lcap_mover_fini(NULL) == -EINVAL);
	lcap_mover_free(NULL);
	return strcmp(zmq_strerror(ENOENT), strerror(ENOENT)) != 0;
}
