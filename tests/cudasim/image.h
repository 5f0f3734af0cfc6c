/* image.h: what libnvrtc writes and libcuda loads: CUDASIM_IMAGE, the number of the architecture
 * ("80") and '\n'; a line for each kernel, "name bytes-of-static-shared-memory"; an empty line; a
 * shared library that exports cudasim_module (abi.h). */
#ifndef CUDASIM_IMAGE_H
#define CUDASIM_IMAGE_H

#define CUDASIM_IMAGE "cudasim image of sm_"

#endif
