/* SPDX-License-Identifier: MIT
 *
 * What the library says of itself: which sources it was made from, and the sizes of its structures.
 */
#include "datapath.h"

#ifndef SOURCE_SUM
#define SOURCE_SUM 0u
#endif

const uint32_t datapath_source_sum = SOURCE_SUM;

const uint32_t datapath_sizes[] = {
	sizeof(struct segment), sizeof(struct memory), sizeof(struct evq), sizeof(struct rxq),
	sizeof(struct txq), sizeof(struct rss), sizeof(struct filter), sizeof(struct slots),
	sizeof(struct outcome), sizeof(struct receiver), sizeof(struct stage),
	sizeof(struct deliverable), sizeof(struct vq),
};
