/* The calls that these tests make of liblustreapi, as programs see them that include its header. */
#ifndef LUSTREAPI_CHANGELOG_H
#define LUSTREAPI_CHANGELOG_H

#include "lcap_changelog.h"

int llapi_changelog_start(void **priv, enum changelog_send_flag flags, const char *mdtname,
			  long long startrec);
int llapi_changelog_start_user(void **priv, enum changelog_send_flag flags, const char *mdtname,
			       const char *username, __u64 mask, long long startrec);
int llapi_changelog_fini(void **priv);
int llapi_changelog_recv(void *priv, struct changelog_rec **rech);
int llapi_changelog_in_buf(void *priv);
int llapi_changelog_free(struct changelog_rec **rech);
int llapi_changelog_get_fd(void *priv);
int llapi_changelog_clear(const char *mdtname, const char *idstr, long long endrec);
int llapi_changelog_set_xflags(void *priv, enum changelog_send_extra_flag extra_flags);
struct changelog_rec *llapi_changelog_repack_rec(const struct changelog_rec *rec,
						 enum changelog_rec_flags crf_wanted,
						 enum changelog_rec_extra_flags cref_want);

#endif
