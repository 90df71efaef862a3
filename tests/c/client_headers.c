/* The header beside libzmq's, in either order, as C and as C++. */
#ifdef ZMQ_FIRST
# include <zmq.h>
#endif
#include "lcap_client.h"
#ifdef ZMQ_LAST
# include <zmq.h>
#endif

int main(void)
{
	char copy[4];

	assert(strlcpy(copy, "changelog", sizeof(copy)) == 9);
	assert(!strcmp(copy, "cha"));
	assert(strlcpy(copy, "x", 0) == 1);
	return strcmp(zmq_strerror(ENOENT), strerror(ENOENT)) != 0;
}
